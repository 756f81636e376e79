"""Checkpoints: a directory per step with tensors in safetensors and everything else in JSON; no pickle.

A checkpoint appears by one rename, so a kill leaves either none of it or all of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saeworks.errors import InputError
from saeworks.files import atomic_directory, read_json, sha256_file, write_json

KEEP = 2


def save_state(directory: Path, state: Mapping[str, Any]) -> None:
    """Write a nested mapping of tensors and JSON values into an existing directory."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    # Tensors may share memory (views of a buffer); the file format wants each on its own.
    save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, directory / "state.safetensors")
    write_json(directory / "state.json", {"state": plain, "sha256": sha256_file(directory / "state.safetensors")})


def load_state(directory: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; ``InputError`` when the files do not belong together."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    saved = read_json(directory / "state.json")
    path = directory / "state.safetensors"
    if not path.is_file() or sha256_file(path) != saved["sha256"]:
        raise InputError(
            f"The checkpoint '{directory}' is damaged (its tensors do not match its checksum); "
            "delete that directory and resume from the one before."
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as e:
        raise InputError(f"The checkpoint '{directory}' cannot be read ({e}); delete it and resume.") from e
    return _join(saved["state"], tensors)


def latest(directory: Path) -> Path | None:
    """The newest complete checkpoint below ``directory``, or None."""
    found = [p for p in directory.glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
    return max(found, key=lambda p: int(p.name[5:]), default=None)


def checkpoint(directory: Path, step: int) -> Any:
    """Context manager yielding the temporary directory that becomes ``directory/step-N``."""
    return atomic_directory(directory / f"step-{step}")


def prune(directory: Path) -> None:
    """Keep the newest checkpoints and remove the rest, and what a killed write left behind."""
    found = sorted((p for p in directory.glob("step-*") if p.name[5:].isdigit()), key=lambda p: int(p.name[5:]))
    for old in [*found[:-KEEP], *directory.glob(".step-*.tmp")]:
        shutil.rmtree(old, ignore_errors=True)


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"__tensor__": path}
    if isinstance(value, Mapping):
        return {str(k): _split(v, f"{path}/{k}" if path else str(k), tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_split(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    json.dumps(value)  # anything else must survive the file, or the checkpoint is not one
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {k: _join(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_join(v, tensors) for v in value]
    return value
