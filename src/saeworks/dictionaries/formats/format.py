"""What a format is, and the checked access to weights and settings that all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import TENSORS, Dictionary, DictionaryConfig
from saeworks.dictionaries.formats import reading
from saeworks.errors import InputError
from saeworks.files import write_json

Hints = Mapping[str, Any]

# Hints that become metadata; `format` is the name of the format that was found.
KNOWN_HINTS = ("model_name", "site", "site_out", "norm_scaling_factor", "origin", "format")

# What models and sites are called in the metadata.
NAMES = ("model_name", "site", "site_out", "target_site")

# Written beside the files of other formats, which have no place for what we know of a dictionary.
SIDECAR = "saeworks.json"


@dataclass(frozen=True)
class Format:
    """One layout of files.

    Attributes:
        name: what ``--to`` and ``metadata["format"]`` call it.
        title: for tables.
        needs: names of the files that must be there, relative to the dictionary's folder; ``*`` matches within a name.
            The last one is the file of weights.
        also: files that are read when they are there.
        recognise: whether a folder with these files, or a file of weights given alone, is of this format. Looks at
            names, settings and shapes, never at weights.
        load: reads the dictionary from a folder or file; hints say what the files do not (``model_name``, ``site``,
            ``transcoder``, ``norm_scaling_factor``).
        save: writes a dictionary into a new folder; None for formats that are read only.
        can_express: why a dictionary cannot be written exactly, as the end of a sentence; None when it can.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    also: tuple[str, ...]
    recognise: Callable[[Path], bool]
    load: Callable[[Path, Hints], Dictionary]
    save: Callable[[Dictionary, Path], None] | None = None
    can_express: Callable[[Dictionary], str | None] = lambda _: "it is only read here, not written"

    def detect(self, path: Path) -> bool:
        """Whether ``path``, a folder or one file of weights, is of this format."""
        if path.is_dir() and not all(reading.find(path, name) for name in self.needs):
            return False
        return self.recognise(path)


def weights_file(path: Path, *patterns: str) -> Path | None:
    """The file of weights that ``path`` is, or that the folder ``path`` holds under the first matching name."""
    if path.is_file():
        return path if any(path.match(pattern) for pattern in patterns) else None
    found = (reading.find(path, pattern) for pattern in patterns)
    return next((file for file in found if file is not None), None)


def beside(path: Path, name: str) -> Path | None:
    """The file ``name`` in the folder ``path``, or beside the file ``path``; None when it is absent."""
    return reading.inside(path if path.is_dir() else path.parent, name)


class Settings:
    """The settings of a file; what has another type than expected is a sentence."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values

    @classmethod
    def read(cls, path: Path) -> Settings:
        """From a JSON file."""
        return cls(path, reading.read_settings(path))

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def part(self, key: str) -> Settings:
        """The object below a key; an empty one when it is absent or null."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Settings(self.path, cast("dict[str, Any]", value))

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "text")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def number(self, key: str) -> float | None:
        """A number; None when it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(key, "a number")
        try:
            return float(value)
        except OverflowError as e:
            raise InputError(f"'{self.path}': '{key}' is a whole number too large for any setting.") from e

    def integer(self, key: str) -> int | None:
        """A whole number; None when it is absent or null."""
        value = self.number(key)
        if value is None:
            return None
        if not value.is_integer():
            raise self._wrong(key, "a whole number")
        return int(value)

    def _wrong(self, key: str, expected: str) -> InputError:
        return InputError(f"'{self.path}': '{key}' is {self.values[key]!r}, but {expected} is expected.")


class Weights:
    """The tensors of one file by name, as floats; what is missing or has other dimensions is a sentence."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, dict(values)

    @classmethod
    def read(cls, path: Path, names: Iterable[str] | None = None) -> Weights:
        """From a file of weights."""
        return cls(path, reading.read_weights(path, None if names is None else set(names)))

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, dims: int) -> Tensor:
        """The tensor ``name`` with ``dims`` dimensions, in memory of its own, float32 or float64."""
        value = self.values.get(name)
        if not isinstance(value, Tensor):
            raise InputError(f"'{self.path}' has no tensor '{name}'; it is incomplete or of another kind.")
        if value.dim() != dims:
            raise InputError(
                f"'{self.path}': '{name}' has the shape {list(value.shape)}; {dims} dimensions are needed."
            )
        if not value.is_floating_point():
            raise InputError(f"'{self.path}': '{name}' is of {value.dtype}; weights must be floating-point numbers.")
        return value.to(torch.float64 if value.dtype == torch.float64 else torch.float32, copy=True)

    def maybe(self, name: str, dims: int) -> Tensor | None:
        """Like :meth:`get`; None when there is no such tensor."""
        return self.get(name, dims) if isinstance(self.values.get(name), Tensor) else None

    def scalar(self, name: str) -> float | None:
        """The one finite number in the tensor ``name``; None when there is no such tensor."""
        value = self.values.get(name)
        if not isinstance(value, Tensor):
            return None
        if value.numel() != 1:
            raise InputError(f"'{self.path}': '{name}' has the shape {list(value.shape)}; one number is expected.")
        if value.is_complex() or not math.isfinite(number := float(value)):
            raise InputError(f"'{self.path}': '{name}' is {value.item()}; a finite number is expected.")
        return number

    def shaped(self, name: str, tensor: Tensor, *shape: int) -> Tensor:
        """``tensor`` if it has this shape."""
        if tuple(tensor.shape) != shape:
            raise InputError(f"'{self.path}': '{name}' has the shape {list(tensor.shape)}; {list(shape)} is needed.")
        return tensor


def build(path: Path, cfg: Mapping[str, Any], metadata: Mapping[str, Any], **tensors: Tensor | None) -> Dictionary:
    """A dictionary of tensors that were read; its shapes are checked, and complaints name the file.

    ``cfg`` needs no widths: they are those of the tensors. Entries of ``metadata`` that are None are left out.
    """
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    assert W_enc is not None
    assert W_dec is not None
    dtype = torch.float64 if W_dec.dtype == torch.float64 else torch.float32
    same = {name: None if tensor is None else tensor.to(dtype) for name, tensor in tensors.items()}
    kept = {key: value for key, value in metadata.items() if value is not None}
    settings = {"d_in": W_enc.shape[0], "d_sae": W_enc.shape[1], **cfg, "metadata": kept}
    check_metadata(path, kept, W_enc.shape[1])
    try:
        return Dictionary(DictionaryConfig.model_validate(settings), **cast("dict[str, Tensor]", same))
    except ValueError as e:  # InputError and pydantic's own are both of this kind
        raise InputError(f"'{path}': {' '.join(str(e).split())}") from e


def check_metadata(path: Path, metadata: Mapping[str, Any], d_sae: int) -> None:
    """Refuse entries that are computed with and cannot be: strangers may write anything into a file of ours.

    Raises:
        InputError: ``recorded`` or ``claimed`` are no numbers by name, ``origin`` no text by name, a model or a site no
            text, or ``group_sizes`` do not divide ``d_sae`` latents.
    """
    kinds: dict[str, tuple[type, ...]] = {"recorded": (int, float), "claimed": (int, float), "origin": (str,)}
    for key, kind in kinds.items():
        entries = metadata.get(key)
        values = cast("dict[str, Any]", entries).values() if isinstance(entries, dict) else ()
        wrong = [v for v in values if v is not None and (type(v) not in kind or (type(v) is not str and abs(v) > 1e30))]
        if (entries is not None and not isinstance(entries, dict)) or wrong:
            expected = "texts" if kind == (str,) else "numbers"
            raise InputError(f"'{path}': '{key}' in the metadata is {entries!r}, but {expected} by name are expected.")
    for key in NAMES:
        if metadata.get(key) is not None and not isinstance(metadata[key], str):
            raise InputError(f"'{path}': '{key}' in the metadata is {metadata[key]!r}, but text is expected.")
    sizes: object = metadata.get("group_sizes")
    if sizes is None:
        return
    whole = cast("list[Any]", sizes) if isinstance(sizes, (list, tuple)) else []
    if any(type(size) is not int or size < 1 for size in whole) or sum(whole) != d_sae:
        raise InputError(
            f"'{path}': 'group_sizes' in the metadata are {sizes!r}, which do not add up to {d_sae} latents."
        )


def k_of(weights: Weights, settings: Settings) -> int:
    """How many latents are active: the tensor ``k``, or the setting of that name."""
    found = weights.scalar("k")
    k = int(found) if found is not None else settings.integer("k")
    if k is None:
        raise InputError(f"'{weights.path}' does not say how many latents (k) are active.")
    return k


def filled(like: Tensor, value: float) -> Tensor:
    """``value`` in the shape and type of ``like``; infinity where the type has no such number, for checks to find."""
    return torch.full_like(like, value, dtype=torch.float64).to(like.dtype)


def about(path: Path, found: Mapping[str, Any], hints: Hints) -> dict[str, Any]:
    """Metadata of a dictionary: what its files say, what an export of ours left beside them, hints; later ones win."""
    left = sidecar(path)
    own = {key: value for key, value in found.items() if not (left and key == "original_config")}
    return {**own, **left, **{key: hints[key] for key in KNOWN_HINTS if hints.get(key) is not None}}


def write_folder(dictionary: Dictionary, folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """The JSON files of an exported dictionary and, beside them, what the format has no place for."""
    for name, values in settings.items():
        write_json(folder / name, dict(values))
    text = "What the format of this folder has no place for; saeworks reads it, other readers need not."
    write_json(folder / SIDECAR, {"about": text, "metadata": dictionary.cfg.metadata})


def sidecar(path: Path) -> dict[str, Any]:
    """The metadata that an export left beside ``path``; empty when there are none."""
    file = beside(path, SIDECAR)
    if file is None:
        return {}
    metadata: object = reading.read_settings(file).get("metadata")
    return cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}


def site_out(dictionary: Dictionary) -> str:
    """The site that a transcoder predicts, under either of the names that metadata may have it; empty when unknown."""
    known = dictionary.cfg.metadata
    return str(known.get("site_out") or known.get("target_site") or "")


def tensors_of(dictionary: Dictionary) -> dict[str, Tensor]:
    """The dictionary's tensors by name, contiguous on the CPU."""
    found: dict[str, Tensor | None] = {name: getattr(dictionary, name) for name in TENSORS}
    return {name: t.detach().cpu().contiguous() for name, t in found.items() if t is not None}
