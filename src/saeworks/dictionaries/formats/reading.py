"""Reading files that strangers wrote: sizes before contents, tensors and plain values only, nothing outside the folder.

Every function answers a bad file with one sentence (``InputError``) and never runs what is inside it: safetensors and
JSON hold no code, ``npz`` is read without pickles, and a torch file only after its list of names was found to ask for
nothing but tensors.
"""

from __future__ import annotations

import json
import math
import pickletools
import zipfile
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from saeworks.errors import InputError

MOST_SETTINGS = 32 << 20
MOST_INSTRUCTIONS = 16 << 20
# Random weights hardly compress. A small archive of zeros may; a large one that grows twentyfold is no dictionary.
SMALL_ARCHIVE = 64 << 20
MOST_GROWTH = 20
DEEPEST = 32

# What the instructions of a torch file may name: containers, and the parts of which tensors are put together.
_HARMLESS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    "torch device",
    *(
        f"torch {kind}Storage"
        for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    ),
    *(
        f"torch {kind}"
        for kind in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    ),
}


def inside(folder: Path, name: str) -> Path | None:
    """The file ``name`` (may hold ``/``) of ``folder``; None when it is absent.

    Raises:
        InputError: the name, or a link it goes through, leads out of the folder. Links of a hub cache are allowed:
            they lead to the blobs of their own repository.
    """
    check_name(name, folder)
    path = folder / name
    if not path.is_file():
        return None
    root, real = folder.resolve(), path.resolve()
    if not real.is_relative_to(root) and not _is_blob(root, real):
        raise InputError(f"'{path}' is a link that leads out of its folder, to '{real}'; put the file itself there.")
    return path


def check_name(name: str, where: object) -> None:
    """Refuse names of files that could lead anywhere but below their folder."""
    parts = PurePosixPath(name).parts
    bad = not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in parts[0]
    if bad:
        raise InputError(f"'{where}' names a file {name!r}, which leads out of its folder; it is refused.")


def find(folder: Path, pattern: str) -> Path | None:
    """The first file of ``folder``, by name, that matches a pattern such as ``layer_*.safetensors``."""
    if "*" not in pattern:
        return inside(folder, pattern)
    below, _, last = pattern.rpartition("/")
    if not (folder / below).is_dir():
        return None
    names = sorted(item.name for item in (folder / below).iterdir() if fnmatch(item.name, last))
    return inside(folder, f"{below}/{names[0]}" if below else names[0]) if names else None


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object from a file of reasonable size. NaN and infinity, which JSON does not have, are read as null."""
    _check_size(path, MOST_SETTINGS, "settings")
    try:
        text = path.read_text(encoding="utf-8")
        value: object = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError) as e:  # a number of thousands of digits is a plain ValueError
        raise InputError(f"'{path}' is not valid JSON ({e}); the file is damaged or of another kind.") from e
    if not isinstance(value, dict):
        raise InputError(f"'{path}' must hold a JSON object with settings, but holds a {type(value).__name__}.")
    return cast("dict[str, Any]", value)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def read_yaml(path: Path) -> Any:
    """What a YAML file of reasonable size holds."""
    import yaml

    _check_size(path, MOST_SETTINGS, "settings")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as e:
        raise InputError(f"'{path}' is not valid YAML ({' '.join(str(e).split())}).") from e


def peek(path: Path) -> dict[str, tuple[int, ...] | None]:
    """Names at the top of a file of weights with their shapes (None for what is no tensor); no weights are read."""
    if path.suffix == ".npz":
        return {name: shape for name, _, shape in _npz_entries(path)}
    if path.suffix == ".safetensors":
        with _careful(path), _safetensors(path) as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    found = _skeleton(path)
    return {name: tuple(value.shape) if isinstance(value, Tensor) else None for name, value in found.items()}


def read_weights(path: Path, names: Collection[str] | None = None) -> dict[str, Any]:
    """The tensors of a ``.npz``, ``.safetensors`` or torch file; of the last also its strings, numbers and dicts.

    Args:
        names: read these only; what is not in the file is left out.

    Raises:
        InputError: the file is truncated, damaged, larger inside than outside, or asks for more than tensors.
    """
    if path.suffix == ".npz":
        return read_npz(path, names)
    if path.suffix == ".safetensors":
        return dict(read_safetensors(path, names))
    found = read_torch(path)
    return found if names is None else {name: value for name, value in found.items() if name in names}


def read_safetensors(path: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, all or some."""
    with _careful(path), _safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys() if names is None or name in names}  # noqa: SIM118


def _safetensors(path: Path) -> Any:
    """The opened file. That its header describes no more than is there is checked by the library itself."""
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The numeric arrays of an ``npz`` archive as tensors; arrays of Python objects are refused."""
    wanted = [entry for entry in _npz_entries(path) if names is None or entry[0] in names]
    out: dict[str, Tensor] = {}
    with _careful(path), zipfile.ZipFile(path) as archive:
        for name, info, _ in wanted:
            with archive.open(info) as file:
                array = cast("np.ndarray[Any, Any]", np.lib.format.read_array(file, allow_pickle=False))
            if array.dtype.kind in "fiub":
                out[name] = torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    return out


def _npz_entries(path: Path) -> list[tuple[str, zipfile.ZipInfo, tuple[int, ...]]]:
    """Name, archive entry and shape of every array, after the declared sizes were checked against each other."""
    out: list[tuple[str, zipfile.ZipInfo, tuple[int, ...]]] = []
    with _careful(path), zipfile.ZipFile(path) as archive:
        entries = _archive_entries(path, archive)
        declared = sum(entry.file_size for entry in entries)
        if declared > max(SMALL_ARCHIVE, MOST_GROWTH * path.stat().st_size):
            raise InputError(
                f"'{path}' has {path.stat().st_size:,} bytes but would unpack to {declared:,}; weights do not "
                "compress like that, so it is refused."
            )
        for entry in entries:
            if "/" in entry.filename or not entry.filename.endswith(".npy"):
                raise InputError(f"'{path}' holds '{entry.filename}', which is no array of an npz file.")
            with archive.open(entry) as file:
                shape = _npy_shape(path, entry, file)
            out.append((entry.filename.removesuffix(".npy"), entry, shape))
    return out


def _npy_shape(path: Path, entry: zipfile.ZipInfo, file: Any) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise InputError(f"'{path}': the array '{entry.filename}' holds pickled Python objects, which are never read.")
    needed = math.prod(shape) * dtype.itemsize + file.tell()
    if needed != entry.file_size:
        raise InputError(
            f"'{path}': the array '{entry.filename}' declares the shape {list(shape)} of {dtype} ({needed:,} bytes), "
            f"but {entry.file_size:,} bytes are there; the file is damaged."
        )
    return tuple(int(size) for size in shape)


def read_torch(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote, when that is a dictionary of tensors and plain values.

    The archive's sizes are checked, then the names that its instructions ask for, then the declared sizes of all
    tensors; only then are the tensors mapped into memory, by torch's own restricted reader.

    Raises:
        InputError: the file asks for anything but tensors, or its sizes contradict each other, or it is damaged.
    """
    _skeleton(path)
    with _careful(path):
        value: object = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return cast("dict[str, Any]", value)


def _skeleton(path: Path) -> dict[str, Any]:
    """The contents of a torch file with tensors that have a shape but no memory."""
    _check_torch_archive(path)
    with _careful(path):
        value: object = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in cast("dict[object, object]", value)):
        raise InputError(f"'{path}' holds no dictionary of tensors, but a {type(value).__name__}; it is refused.")
    size, total = path.stat().st_size, 0
    for tensor in _tensors(path, cast(object, value), set(), 0):
        total += tensor.numel() * tensor.element_size()
        # Some tensors may share their memory, as tied weights do; none is larger than the file.
        if total > 4 * size or tensor.untyped_storage().nbytes() > size:
            raise InputError(f"'{path}' has {size:,} bytes but declares tensors of {total:,} or more; it is refused.")
    return cast("dict[str, Any]", value)


def _tensors(path: Path, value: object, seen: set[int], depth: int) -> Iterator[Tensor]:
    """The tensors in ``value``; what is in it twice is looked at once, so that lists of one list end."""
    if depth > DEEPEST:
        raise InputError(f"'{path}' nests its values deeper than {DEEPEST} levels; it is refused.")
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)) and id(cast(object, value)) not in seen:
        seen.add(id(cast(object, value)))
        items = cast("dict[object, object]", value).values() if isinstance(value, dict) else value
        for item in cast("list[object]", items):
            yield from _tensors(path, item, seen, depth + 1)


def _check_torch_archive(path: Path) -> None:
    """Sizes and names of the archive, and every name that its instructions import."""
    with _careful(path):
        zipped = zipfile.is_zipfile(path)
    if not zipped:
        raise InputError(
            f"'{path}' is no zip archive of tensors: it is truncated, or a bare pickle, which could run code when "
            "read; save it as safetensors where you trust it."
        )
    with _careful(path), zipfile.ZipFile(path) as archive:
        entries = _archive_entries(path, archive)
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            what = f"'{packed[0]}' is compressed" if packed else "its parts are larger than the file"
            raise InputError(f"'{path}' was not written by torch.save: {what}; it is refused.")
        instructions = [entry for entry in entries if PurePosixPath(entry.filename).name == "data.pkl"]
        if len(instructions) != 1 or instructions[0].file_size > MOST_INSTRUCTIONS:
            raise InputError(f"'{path}' has no 'data.pkl' of reasonable size, so it is no file of torch.save.")
        for opcode, argument, _ in pickletools.genops(archive.read(instructions[0])):
            named = opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")
            if named and (opcode.name != "GLOBAL" or argument not in _HARMLESS):
                asked = f"'{argument.replace(' ', '.')}'" if isinstance(argument, str) else "names made while reading"
                raise InputError(
                    f"'{path}' asks to import {asked}, which no dictionary of tensors needs; a pickle could run code, "
                    "so it is refused. Save it as safetensors where you trust it."
                )


def _archive_entries(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in entries:
        check_name(entry.filename, path)
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise InputError(f"'{path}' holds two files of the same name; it is refused.")
    return entries


def _is_blob(root: Path, real: Path) -> bool:
    """Whether ``real`` is a blob of the same repository of a hub cache that ``root`` is a snapshot of."""
    parts = root.parts
    if "snapshots" not in parts:
        return False
    repository = Path(*parts[: parts.index("snapshots")])
    return real.is_relative_to(repository / "blobs")


def _check_size(path: Path, most: int, what: str) -> None:
    size = path.stat().st_size
    if size > most:
        raise InputError(f"'{path}' has {size:,} bytes, too many for {what} (at most {most:,}); it is refused.")


@contextmanager
def _careful(path: Path) -> Generator[None]:
    """Whatever a library raises over the contents of a strange file is one sentence; there is no list of it all."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as e:
        raise _damaged(path, e) from e


def _damaged(path: Path, error: BaseException) -> InputError:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:160].rstrip('.')}" if lines else type(error).__name__
    return InputError(f"'{path}' cannot be read ({reason}); the file is truncated or damaged: copy it again.")
