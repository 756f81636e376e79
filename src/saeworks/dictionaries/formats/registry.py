"""All formats: finding out which one a path holds, reading it, and writing any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saeworks.dictionaries.dictionary import TENSORS, Dictionary
from saeworks.dictionaries.formats import (
    crosscoders,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    native,
    openai,
    reading,
    saelens,
    sparsify,
)
from saeworks.dictionaries.formats.format import Format, Hints
from saeworks.dictionaries.formats.hub import fetch
from saeworks.dictionaries.formats.parity import Parity, compare
from saeworks.dictionaries.formats.releases import is_release, place_of, resolve
from saeworks.errors import InputError, RunError, did_you_mean
from saeworks.files import atomic_directory

# The first one that recognises a path has it; ours comes first, because an export may lie in the same folder.
FORMATS: tuple[Format, ...] = (
    native.FORMAT,
    saelens.FORMAT,
    llama_scope.FORMAT,
    llama_scope.FORMAT_LATER,
    sparsify.FORMAT,
    gemma_scope.FORMAT,
    gemma_scope.FORMAT_2,
    crosscoders.FORMAT_HUB,
    crosscoders.FORMAT_PAIR,
    dictionary_learning.FORMAT,
    openai.FORMAT,
)


def format_named(name: str) -> Format:
    """The format called ``name``; ``InputError`` with what it may have meant."""
    for known in FORMATS:
        if known.name == name:
            return known
    raise InputError(f"There is no format '{name}'.{did_you_mean(name, [known.name for known in FORMATS])}")


def detect(path: Path) -> Format:
    """The format of the folder or file ``path``.

    Raises:
        InputError: the path does not exist, no format has such files, or its file of weights is damaged.
    """
    if not path.exists():
        raise InputError(f"'{path}' does not exist; give the directory of a saved dictionary.")
    for known in FORMATS:
        if known.detect(path):
            return known
    raise InputError(_nothing_known(path))


def open_dictionary(
    name: str, sae_id: str | None = None, format: str | None = None, hints: Hints | None = None
) -> Dictionary:
    """The dictionary that ``name`` means; see :func:`saeworks.dictionaries.formats.load`."""
    given = dict(hints or {})
    path = Path(name).expanduser()
    if sae_id is None and path.exists():
        return read(path, format, given)
    release, colon, rest = name.partition(":")
    if sae_id is not None:
        place = resolve(name, sae_id)
    elif colon and is_release(release):
        place = resolve(release, rest)
    else:
        place = place_of(name)
    if place is None:
        raise InputError(f"'{name}' does not exist; give the directory of a saved dictionary.")
    path, origin = fetch(place, FORMATS if format is None else [format_named(format)])
    return read(path, format, {"origin": origin, **place.hints, **given})


def read(path: Path, name: str | None = None, hints: Hints | None = None) -> Dictionary:
    """The dictionary at ``path``. A foreign one carries the name of its format in ``metadata["format"]``.

    Args:
        path: folder, or one file of weights with its settings beside it.
        name: of the format; None finds out.
        hints: what the files do not say; see :class:`Format`.
    """
    known = detect(path) if name is None else format_named(name)
    if not path.exists():
        raise InputError(f"'{path}' does not exist; give the directory of a saved dictionary.")
    given: dict[str, Any] = dict(hints or {})
    if known is native.FORMAT:
        return native.load(path, given)
    return known.load(path, {**given, "format": known.name})


def write(dictionary: Dictionary, path: Path, name: str) -> Parity:
    """Write ``dictionary`` as the format ``name`` into the new folder ``path``: all of it, or nothing.

    What was written is read again and compared with the dictionary before the folder appears.

    Returns:
        How far the two are apart.

    Raises:
        InputError: the format cannot say exactly what the dictionary does, or ``path`` holds something already.
        RunError: what was written computes something else.
    """
    known = format_named(name)
    reason = known.can_express(dictionary)
    if reason is not None or known.save is None:
        raise InputError(f"This dictionary cannot be written as {known.name}: {reason or 'it is only read here'}.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"'{path}' exists already; choose another place, or remove it first.")
    exact = _in_float32(dictionary)
    with atomic_directory(path) as folder:
        (native.write_into if known is native.FORMAT else known.save)(exact, folder)
        found = compare(exact, read(folder, known.name))
        if not found.same:
            raise RunError(
                f"The dictionary was written as {known.name} and read again, but then differed (reconstructions by "
                f"{found.reconstruction:.1e}, active latents by {found.active:.1e}); nothing was kept."
            )
    return found


def is_dictionary(path: Path) -> bool:
    """Whether ``path`` is a dictionary of a known format, be it a damaged one."""
    try:
        detect(path)
    except InputError:
        return path.is_dir() and (path / "cfg.json").is_file()
    return True


def _in_float32(dictionary: Dictionary) -> Dictionary:
    """The dictionary with weights of half precision widened: rewrites would lose digits they need."""
    if dictionary.dtype in (torch.float32, torch.float64):
        return dictionary
    tensors = {name: getattr(dictionary, name) for name in TENSORS}
    return dictionary.replace(**{name: None if t is None else t.float() for name, t in tensors.items()})


def _nothing_known(path: Path) -> str:
    """Why nothing recognised ``path``: what is there, and what is missing beside it."""
    if path.is_file():
        return (
            f"'{path}' is no file of weights of a known format, or lacks its settings beside it; "
            "give the directory of a dictionary."
        )
    present = {item.name for item in path.iterdir()}
    if "cfg.json" in present and "schema_version" in reading.read_settings(path / "cfg.json"):
        return f"'{path}' holds no weights.safetensors; a dictionary is a directory with it and cfg.json."
    below = sorted(item.name for item in path.iterdir() if item.is_dir() and any(f.detect(item) for f in FORMATS))
    if below:
        return (
            f"'{path}' is no dictionary itself but holds {len(below)}, such as '{path / below[0]}'; give one of them."
        )
    shown = ", ".join(sorted(present)[:6]) or "nothing"
    wanted = "; ".join(f"{known.name}: {' and '.join(known.needs)}" for known in FORMATS)
    return f"'{path}' holds no dictionary of a known format, but {shown}. Known: {wanted}."
