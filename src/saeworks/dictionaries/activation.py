"""Activation functions as values: how pre-activations become latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.kernels.selection import (
    select_above,
    select_batch_topk,
    select_groupmax,
    select_positive,
    select_topk,
)


class Activation(Protocol):
    """A frozen rule from pre-activations ``[token, width]`` to codes."""

    def __call__(self, z: Tensor) -> Codes: ...


@dataclass(frozen=True)
class ReLU:
    """Every positive pre-activation."""

    def __call__(self, z: Tensor) -> Codes:
        return select_positive(z)


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """``z`` where ``z > threshold`` (arXiv 2407.14435); never below zero, whatever the threshold.

    ``threshold`` is ``[width]`` or a scalar tensor, in the units of ``z``.
    """

    threshold: Tensor

    def __call__(self, z: Tensor) -> Codes:
        return select_above(z, self.threshold)


@dataclass(frozen=True)
class TopK:
    """The ``k`` largest positive pre-activations of each token (arXiv 2406.04093)."""

    k: int

    def __call__(self, z: Tensor) -> Codes:
        return select_topk(z, self.k)


@dataclass(frozen=True)
class BatchTopK:
    """The ``k * tokens`` largest of the batch (arXiv 2412.06410). For training only: it mixes the tokens of a batch."""

    k: float

    def __call__(self, z: Tensor, hint: float | None = None) -> Codes:
        return select_batch_topk(z, self.k, hint)


@dataclass(frozen=True)
class GroupMax:
    """The largest pre-activation of each of ``k`` groups of neighbouring latents, where it is positive (sparsify)."""

    k: int

    def __call__(self, z: Tensor) -> Codes:
        return select_groupmax(z, self.k)
