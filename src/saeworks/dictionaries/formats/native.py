"""The native format: a directory with ``cfg.json`` and ``weights.safetensors``.

Tensors carry the field's names and orientation: ``W_enc [d_in, d_sae]``, ``W_dec [d_sae, d_out]``, ``b_enc``,
``b_dec``, for ``jumprelu`` ``threshold [d_sae]``, and with ``skip`` ``W_skip [d_in, d_out]``.
"""

from __future__ import annotations

from pathlib import Path

from saeworks.dictionaries.dictionary import TENSORS, Dictionary, DictionaryConfig
from saeworks.dictionaries.formats import reading
from saeworks.dictionaries.formats.format import Format, Hints, check_metadata, tensors_of
from saeworks.errors import InputError
from saeworks.files import atomic_directory, write_json

ALWAYS = ("W_enc", "W_dec", "b_enc", "b_dec")
# The hints that mean something for files of ours: what else they could say, these files say themselves.
SAID = ("model_name", "site", "site_out")


def save(dictionary: Dictionary, path: Path) -> None:
    """Write the dictionary; an existing one at ``path`` is replaced as a whole."""
    with atomic_directory(path) as tmp:
        write_into(dictionary, tmp)


def write_into(dictionary: Dictionary, directory: Path) -> None:
    """Write the two files into an existing directory (whose own rename makes them appear at once)."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(dictionary), directory / "weights.safetensors")
    write_json(directory / "cfg.json", dictionary.cfg.model_dump())


def load(path: Path, hints: Hints | None = None) -> Dictionary:
    """Read the two files, from their folder or either of their paths, and check them against each other.

    Of the hints, those for model and sites replace what ``cfg.json`` says of them.
    """
    from pydantic import ValidationError

    path = path.parent if path.is_file() else path
    settings, weights = (reading.inside(path, name) for name in ("cfg.json", "weights.safetensors"))
    if settings is None or weights is None:
        name = "cfg.json" if settings is None else "weights.safetensors"
        raise InputError(
            f"'{path}' holds no {name}; a dictionary is a directory with cfg.json and weights.safetensors."
        )
    raw = reading.read_settings(settings)
    try:
        cfg = DictionaryConfig.model_validate(raw)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"'{settings}' is not a saeworks dictionary configuration: {where}: {first['msg']}.") from e
    tensors = reading.read_safetensors(weights)
    missing = [name for name in ALWAYS if name not in tensors]
    if missing:
        raise InputError(f"'{weights}' lacks {', '.join(missing)}; the dictionary is incomplete.")
    unknown = sorted(set(tensors) - set(TENSORS))
    if unknown:
        raise InputError(f"'{weights}' holds unknown tensors ({', '.join(unknown)}).")
    check_metadata(settings, cfg.metadata, cfg.d_sae)
    said = {key: value for key in SAID if (value := (hints or {}).get(key)) is not None}
    cfg = cfg.model_copy(update={"metadata": {**cfg.metadata, **said}})
    try:
        return Dictionary(cfg, **tensors)
    except InputError as e:
        raise InputError(f"'{path}': {e}") from e


def _recognise(path: Path) -> bool:
    return path.is_dir() or path.name in ("weights.safetensors", "cfg.json")


FORMAT = Format(
    name="saeworks",
    title="saeworks",
    needs=("cfg.json", "weights.safetensors"),
    also=(),
    recognise=_recognise,
    load=load,
    save=save,
    can_express=lambda _: None,
)
