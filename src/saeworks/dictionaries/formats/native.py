"""The native format: a directory with ``cfg.json`` and ``weights.safetensors``.

Tensors carry the field's names and orientation: ``W_enc [d_in, d_sae]``, ``W_dec [d_sae, d_in]``, ``b_enc``,
``b_dec`` and, for ``jumprelu``, ``threshold [d_sae]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.errors import InputError
from saeworks.files import atomic_directory, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def save(dictionary: Dictionary, path: Path) -> None:
    """Write the dictionary; an existing one at ``path`` is replaced as a whole."""
    with atomic_directory(path) as tmp:
        write_into(dictionary, tmp)


def write_into(dictionary: Dictionary, directory: Path) -> None:
    """Write the two files into an existing directory (whose own rename makes them appear at once)."""
    from safetensors.torch import save_file

    tensors = {name: getattr(dictionary, name).detach().cpu().contiguous() for name in TENSORS}
    if dictionary.threshold is not None:
        tensors["threshold"] = dictionary.threshold.detach().cpu().contiguous()
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "weights.safetensors")
    write_json(directory / "cfg.json", dictionary.cfg.model_dump())


def load(path: Path) -> Dictionary:
    """Read the two files and check them against each other."""
    from pydantic import ValidationError

    for name in ("cfg.json", "weights.safetensors"):
        if not (path / name).is_file():
            raise InputError(
                f"'{path}' holds no {name}; a dictionary is a directory with cfg.json and weights.safetensors."
            )
    raw = read_json(path / "cfg.json")
    try:
        cfg = DictionaryConfig.model_validate(raw)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"'{path / 'cfg.json'}' is not a saeworks dictionary configuration: {where}: {first['msg']}."
        ) from e
    tensors = _read_tensors(path / "weights.safetensors")
    missing = [name for name in TENSORS if name not in tensors]
    if missing:
        raise InputError(f"'{path / 'weights.safetensors'}' lacks {', '.join(missing)}; the dictionary is incomplete.")
    unknown = sorted(set(tensors) - {*TENSORS, "threshold"})
    if unknown:
        raise InputError(f"'{path / 'weights.safetensors'}' holds unknown tensors ({', '.join(unknown)}).")
    try:
        return Dictionary(cfg, **tensors)
    except InputError as e:
        raise InputError(f"'{path}': {e}") from e


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as e:
        raise InputError(f"'{path}' cannot be read ({e}); the file is truncated or damaged: copy it again.") from e
