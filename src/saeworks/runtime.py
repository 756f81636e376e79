"""The one place that chooses device, dtype and random generators."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from saeworks.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def resolve_device(name: str = "auto") -> torch.device:
    """``auto`` → CUDA, else MPS, else CPU; an explicit device that is absent is an ``InputError``."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise InputError(f"Unknown device '{name}'.{did_you_mean(name, ['auto', 'cpu', 'cuda', 'mps'])}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"Device '{name}' was asked for, but torch sees no CUDA device; use --device auto or cpu.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"Device '{name}' was asked for, but this torch has no MPS; use --device auto or cpu.")
    try:
        return torch.device(name)
    except RuntimeError as e:
        raise InputError(f"Unknown device '{name}': write cpu, mps, cuda or cuda:N.") from e


def resolve_dtype(name: str) -> torch.dtype:
    """``float32``, ``bfloat16`` or ``float16`` as a torch dtype."""
    import torch

    if name not in DTYPES:
        raise InputError(f"Unknown dtype '{name}'.{did_you_mean(name, DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and the names, so that every consumer draws from its own stream."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for :func:`derive_seed`. On the CPU always: one seed then means the same on any device."""
    import torch

    return torch.Generator("cpu").manual_seed(derive_seed(seed, *names))


def launched() -> tuple[int, int] | None:
    """Rank and number of the processes that ``torchrun`` started together; None for a process that runs alone."""
    found = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")]
    if not all(text.isdigit() for text in found) or not os.environ.get("MASTER_ADDR"):
        return None
    rank, count = int(found[0]), int(found[1])
    return (rank, count) if count > 1 else None


def reuse_freed_memory() -> bool:
    """Let the C library keep freed memory for the next allocation instead of giving it back to the system.

    Every step of a training allocates and frees the same large tensors; fetching their pages anew from the system each
    time cost a third of a step where this was measured (4 layers, width 256, 4,000 tokens, two cores).

    Returns:
        Whether the C library has the switches (glibc); elsewhere nothing happens.
    """
    import ctypes

    trim_threshold, top_pad, mmap_max = -1, -2, -4
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26))
    return all(bool(mallopt(switch, value)) for switch, value in wanted)
