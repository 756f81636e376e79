"""Which pre-activations become latents: the selection rules of the activation functions, all exact.

Every rule takes pre-activations ``z [token, width]`` and returns :class:`Codes` whose values are positive. Ties at
the boundary of a BatchTopK selection go to the lower token, then the lower latent, so that its result never depends
on the hint it was computed with. Ties of TopK fall as the ``topk`` of the device lets them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes, offsets_of


def select_positive(z: Tensor) -> Codes:
    """ReLU: every positive pre-activation."""
    return Codes.from_mask(z, z > 0)


def select_above(z: Tensor, threshold: Tensor) -> Codes:
    """JumpReLU: ``z > threshold`` and ``z > 0`` (``threshold`` is ``[width]`` or a scalar, in the units of ``z``)."""
    return Codes.from_mask(z, (z > threshold) & (z > 0))


def select_topk(z: Tensor, k: int) -> Codes:
    """TopK (arXiv 2406.04093): the ``k`` largest positive pre-activations of each token."""
    values, indices = z.topk(min(k, z.shape[1]), dim=1, sorted=False)
    indices, order = indices.sort(dim=1)
    values = values.gather(1, order)
    positive = values > 0
    counts = positive.sum(dim=1)
    return Codes(
        values=values[positive],
        indices=indices[positive],
        offsets=offsets_of(counts),
        width=z.shape[1],
    )


def select_batch_topk(z: Tensor, k: float, hint: float | None = None) -> Codes:
    """BatchTopK (arXiv 2412.06410): the ``round(k * tokens)`` largest positive pre-activations of the whole batch.

    Args:
        z: ``[token, width]`` pre-activations.
        k: mean number of latents per token; need not be whole.
        hint: a guess of the smallest selected value, for example the previous batch's. It decides how many
            candidates are looked at first, never the result: when the guess was too high all positives are searched.
    """
    wanted = round(k * z.shape[0])
    flat = z.flatten()
    candidates = (flat > max(hint, 0.0)).nonzero().squeeze(1) if hint is not None else None
    if candidates is None or candidates.numel() < wanted:
        candidates = (flat > 0).nonzero().squeeze(1)
    values = flat[candidates]
    if values.numel() > wanted:
        keep = _largest(values, wanted)
        candidates, values = candidates[keep], values[keep]
    width = z.shape[1]
    rows = torch.div(candidates, width, rounding_mode="floor")
    counts = torch.bincount(rows, minlength=z.shape[0])
    return Codes(
        values=values,
        indices=candidates - rows * width,
        offsets=offsets_of(counts),
        width=width,
    )


def _largest(values: Tensor, count: int) -> Tensor:
    """Ascending positions of the ``count`` largest values; among equals at the boundary the first ones."""
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=values.device)
    boundary = values.topk(count, sorted=False).values.min()
    above = values > boundary
    equal = (values == boundary).nonzero().squeeze(1)
    above[equal[: count - int(above.sum())]] = True
    return above.nonzero().squeeze(1)
