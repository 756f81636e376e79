"""One number that brings activations to a common scale, under the two conventions in use.

``unit_msn``: the mean squared norm becomes one, ``E‖s·x‖² = 1``, so ``s = 1 / √E‖x‖²`` (Gemma Scope, JumpReLU,
SAEBench). ``sqrt_d``: the mean norm becomes √d, ``E‖s·x‖ = √d``, so ``s = √d / E‖x‖`` (Anthropic, April 2024).
Hyper-parameters do not carry over from one to the other: losses summed over dimensions differ by a factor of about d.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saeworks.activations.streams import Stream
from saeworks.errors import InputError, did_you_mean

Convention = Literal["none", "unit_msn", "sqrt_d"]
CONVENTIONS: tuple[Convention, ...] = ("none", "unit_msn", "sqrt_d")
DEFAULT_TOKENS = 1 << 17
BATCH = 2048


@dataclass(frozen=True, slots=True)
class Normalization:
    """A scale and how it was found.

    Attributes:
        convention: ``none`` (scale 1), ``unit_msn`` or ``sqrt_d``.
        scale: factor ``s`` applied to activations.
        tokens: rows it was estimated from.
        standard_error: of ``scale``, as if rows were independent; rows of one document are alike, so it is
            a little low.
    """

    convention: Convention = "none"
    scale: float = 1.0
    tokens: int = 0
    standard_error: float = 0.0

    def apply(self, activations: Tensor) -> Tensor:
        """``s · x``, a new tensor."""
        return activations * self.scale

    def undo(self, activations: Tensor) -> Tensor:
        """``x / s``, a new tensor."""
        return activations / self.scale


def estimate_normalization(
    data: Stream | Tensor, convention: str, tokens: int = DEFAULT_TOKENS, batch: int = BATCH
) -> Normalization:
    """Estimate the scale from a stream or from rows.

    A stream is put back to where it was: the rows are handed out again afterwards. Norms are summed in float64.

    Args:
        data: a stream, or activations ``[token, d]``.
        convention: ``none``, ``unit_msn`` or ``sqrt_d``.
        tokens: rows to take from a stream; a tensor is used whole.
        batch: rows per step.

    Raises:
        InputError: unknown convention, no rows, rows that are not finite, or rows that are all zero.
    """
    if convention not in CONVENTIONS:
        raise InputError(f"There is no normalisation '{convention}'.{did_you_mean(convention, CONVENTIONS)}")
    known: Convention = convention
    if known == "none":
        return Normalization()
    count, total, square, width = 0, 0.0, 0.0, 0
    for rows in _blocks(data, tokens, batch):
        norms = torch.linalg.vector_norm(rows.to("cpu", torch.float64), dim=-1).flatten()
        values = norms**2 if known == "unit_msn" else norms
        count, width = count + values.numel(), rows.shape[-1]
        total, square = total + float(values.sum()), square + float((values**2).sum())
    if count == 0:
        raise InputError("A normalisation was to be estimated from no rows; give at least one.")
    mean = total / count
    if not math.isfinite(mean):
        raise InputError(
            "A normalisation was to be estimated from activations that are not finite; check the model or the store."
        )
    if mean == 0:
        raise InputError("All activations are zero, so no scale brings them to a norm; check the site.")
    variance = max(square / count - mean**2, 0.0) * count / max(count - 1, 1)
    error = math.sqrt(variance / count)
    # Errors of s by its derivative: s = m^(−1/2) has ds/dm = −s/(2m), and s = √d/m has ds/dm = −s/m.
    if known == "unit_msn":
        scale = 1 / math.sqrt(mean)
        return Normalization(known, scale, count, scale * error / (2 * mean))
    scale = math.sqrt(width) / mean
    return Normalization(known, scale, count, scale * error / mean)


def _blocks(data: Stream | Tensor, tokens: int, batch: int) -> Iterator[Tensor]:
    if isinstance(data, Tensor):
        yield from data.split(batch * 8)
        return
    before = data.state_dict()
    try:
        left = tokens
        while left > 0:
            rows = data.next_batch(min(batch, left)).activations
            left -= rows.shape[0]
            yield rows
    finally:
        data.load_state_dict(before)
