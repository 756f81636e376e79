"""Checkpoints: a directory per step with tensors in safetensors and everything else in JSON; no pickle.

A checkpoint appears by one rename, so a kill leaves either none of it or all of it. Where every rank holds a range of
latents, each writes its own file of them, and reading puts together the ranges that are asked for: a checkpoint may be
continued by any number of ranks, divided in any way.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from saeworks.errors import InputError, RunError
from saeworks.files import atomic_directory, read_json, sha256_file, write_json
from saeworks.training.division import UNDIVIDED, Division, is_per_latent
from saeworks.training.ranks import ALONE, Ranks

KEEP = 2
MAIN = "state.safetensors"


def save_state(directory: Path, state: Mapping[str, Any], division: Division = UNDIVIDED) -> None:
    """Write a nested mapping of tensors and JSON values into an existing directory.

    All ranks call this. What they hold in common is written by the first one, their ranges of latents by each.
    """
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    ranks, parts = division.ranks, dict[str, str]()
    if division.by == "latents":
        own = {key: tensors.pop(key) for key in list(tensors) if _in_parts(key, tensors[key].dim())}
        file = directory / f"latents-{ranks.rank}-of-{ranks.count}.safetensors"
        for text in ranks.texts(f"{file.name} {_write(file, own)}"):
            name, digest = text.split()
            parts[name] = digest
    if ranks.lead:
        digest = _write(directory / MAIN, tensors)
        write_json(directory / "state.json", {"state": plain, "sha256": digest, "parts": parts})


def load_state(directory: Path, division: Division = UNDIVIDED) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; of latents divided over ranks, this rank's range.

    Raises ``InputError`` when the files do not belong together.
    """
    from safetensors import SafetensorError

    saved = read_json(directory / "state.json")
    digests = {MAIN: saved["sha256"], **saved.get("parts", {})}
    for name, digest in digests.items():
        if not (directory / name).is_file() or sha256_file(directory / name) != digest:
            raise InputError(
                f"The checkpoint '{directory}' is damaged (its tensors do not match its checksum); "
                "delete that directory and resume from the one before."
            )
    try:
        tensors = _read([directory / name for name in digests], division)
    except (SafetensorError, OSError) as e:
        raise InputError(f"The checkpoint '{directory}' cannot be read ({e}); delete it and resume.") from e
    return _join(saved["state"], tensors)


def latest(directory: Path) -> Path | None:
    """The newest complete checkpoint below ``directory``, or None."""
    found = [p for p in directory.glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
    return max(found, key=lambda p: int(p.name[5:]), default=None)


@contextmanager
def checkpoint(directory: Path, step: int, ranks: Ranks = ALONE) -> Generator[Path]:
    """Yield the temporary directory, the same to all ranks, that becomes ``directory/step-N`` once all are done."""
    if ranks.lead:
        with atomic_directory(directory / f"step-{step}") as tmp:
            ranks.text(str(tmp))
            yield tmp
            ranks.barrier()
    else:
        tmp = Path(ranks.text())
        if not tmp.is_dir():
            raise RunError(
                f"This rank does not see the directory '{tmp}' that the first one made; give an --out on a disk that "
                "all machines share."
            )
        yield tmp
        ranks.barrier()
    ranks.barrier()


def prune(directory: Path) -> None:
    """Keep the newest checkpoints and remove the rest, and what a killed write left behind."""
    found = sorted((p for p in directory.glob("step-*") if p.name[5:].isdigit()), key=lambda p: int(p.name[5:]))
    for old in [*found[:-KEEP], *directory.glob(".step-*.tmp")]:
        shutil.rmtree(old, ignore_errors=True)


def _in_parts(key: str, dimensions: int) -> bool:
    """Whether ranks that divide the latents each hold a part of an entry ``members/<name>/<entry>``."""
    return key.startswith("members/") and dimensions > 0 and is_per_latent(key.rsplit("/", 1)[-1])


def _write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors to a file, surely on disk when this returns, and return its digest."""
    from safetensors.torch import save_file

    # Tensors may share memory (views of a buffer); the file format wants each on its own.
    save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, path)
    with open(path, "rb") as f:
        os.fsync(f.fileno())
    return sha256_file(path)


def _read(paths: list[Path], division: Division) -> dict[str, Tensor]:
    """All tensors of the files; those that several files hold in parts, put together from the rows asked for."""
    import torch
    from safetensors import safe_open

    files = [safe_open(path, framework="pt") for path in paths]  # pyright: ignore[reportUnknownVariableType]
    holders: dict[str, list[Any]] = {}
    for file in files:
        for key in file.keys():  # noqa: SIM118, it is no mapping
            holders.setdefault(key, []).append(file)
    tensors: dict[str, Tensor] = {}
    for key, held in holders.items():
        parts = [file.get_slice(key) for file in held]
        sizes = [part.get_shape()[0] if part.get_shape() else 0 for part in parts]
        if len(held) == 1 and not (division.by == "latents" and _in_parts(key, len(parts[0].get_shape()))):
            tensors[key] = held[0].get_tensor(key)
            continue
        rows, start = division.rows(sum(sizes)), 0
        pieces: list[Tensor] = []
        for part, size in zip(parts, sizes, strict=True):
            first, last = max(rows.start - start, 0), min(rows.stop - start, size)
            if first < last:
                pieces.append(part[first:last])
            start += size
        tensors[key] = torch.cat(pieces)
    return tensors


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
