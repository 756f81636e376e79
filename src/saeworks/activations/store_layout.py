"""Names and places of an activation store's files; how a shard's header is read.

Layout::

    DIR/manifest.json              what was stored: model, site, texts, masks, counts, norms, checksum of every shard
    DIR/statistics.safetensors     mean [d] and m2 [d] (sum of squared deviations), float64
    DIR/shard-00000.safetensors    acts [rows, d]; token_id, position [rows] int32; document_id [rows] int64
    DIR/unfinished.safetensors     only while the store is being written: where to go on
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saeworks.errors import InputError

SCHEMA_VERSION = 1
MANIFEST, STATISTICS, UNFINISHED = "manifest.json", "statistics.safetensors", "unfinished.safetensors"
PARTS = ("acts", "token_id", "document_id", "position")

# safetensors name of a dtype → how numpy reads it, how torch sees it (numpy has no bfloat16)
_DTYPES: dict[str, tuple[str, torch.dtype]] = {
    "F32": ("<f4", torch.float32),
    "F16": ("<f2", torch.float16),
    "BF16": ("<i2", torch.bfloat16),
    "I32": ("<i4", torch.int32),
    "I64": ("<i8", torch.int64),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a shard: first byte in the file, shape, numpy type of its bytes, torch dtype."""

    offset: int
    shape: tuple[int, ...]
    read: str
    dtype: torch.dtype


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def read_header(path: Path) -> dict[str, Part]:
    """Names, places and types of the tensors of a shard; ``InputError`` when the header makes no sense."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 1 << 20:
                raise ValueError("the header is too long")
            header: dict[str, Any] = json.loads(file.read(length))
        parts: dict[str, Part] = {}
        for name in PARTS:
            read, dtype = _DTYPES[header[name]["dtype"]]
            begin = int(header[name]["data_offsets"][0])
            parts[name] = Part(8 + length + begin, tuple(header[name]["shape"]), read, dtype)
        return parts
    except (ValueError, KeyError, TypeError, struct.error) as e:
        raise InputError(
            f"Shard '{path.name}' of '{path.parent}' is damaged (unreadable header); copy it again, or write the store "
            "again."
        ) from e
