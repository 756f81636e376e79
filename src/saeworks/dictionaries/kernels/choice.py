"""Which library computes the sparse operations: Triton's kernels on a GPU where they work, torch elsewhere.

``SAEWORKS_KERNELS=torch`` never uses Triton; ``SAEWORKS_KERNELS=triton`` uses it on any device, which without a GPU
needs ``TRITON_INTERPRET=1`` and is for tests. Otherwise a GPU gets the kernels after they have given torch's numbers on
it once; where Triton is missing, does not compile or disagrees, a sentence says so and torch computes.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from saeworks.errors import InputError

VARIABLE = "SAEWORKS_KERNELS"
CHOICES = ("auto", "torch", "triton")


def kernels_for(*tensors: Tensor) -> Any | None:
    """The module with the Triton kernels where they compute these tensors, None where torch does."""
    asked = os.environ.get(VARIABLE, "auto")
    if asked not in CHOICES:
        raise InputError(f"{VARIABLE} is '{asked}'; give one of {', '.join(CHOICES)}.")
    first = tensors[0]
    if asked == "torch" or (asked == "auto" and first.device.type != "cuda"):
        return None
    if any(t.dtype != torch.float32 for t in tensors):
        return None
    return _checked(first.device, asked == "triton")


@cache
def _checked(device: torch.device, forced: bool) -> Any | None:
    try:
        module: Any = import_module("saeworks.dictionaries.kernels.triton_kernels")
        agrees = module.agree(device)
    except Exception as error:  # a compiler may fail in any way; torch can always compute
        if forced:
            raise
        warnings.warn(f"Triton's kernels cannot be used on {device} ({error}); torch computes instead.", stacklevel=3)
        return None
    if agrees:
        return module
    if forced:
        raise InputError(f"Triton's kernels disagree with torch on {device}; unset {VARIABLE}.")
    warnings.warn(f"Triton's kernels disagree with torch on {device}; torch computes instead.", stacklevel=3)
    return None
