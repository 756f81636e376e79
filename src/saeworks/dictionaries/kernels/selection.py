"""Which pre-activations become latents: the selection rules of the activation functions, all exact.

Every rule takes pre-activations ``z [token, width]`` and returns :class:`Codes` whose values are positive. Ties at
the boundary of a BatchTopK selection go to the lower token, then the lower latent, so that its result never depends
on the hint it was computed with. Ties of TopK fall as the ``topk`` of the device lets them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes, offsets_of
from saeworks.dictionaries.kernels.positions import positions, positions_above

# A search among fewer entries per token than this is not divided further.
FEW = 256


def select_positive(z: Tensor) -> Codes:
    """ReLU: every positive pre-activation."""
    return Codes.at(positions_above(z, 0.0), z)


def select_above(z: Tensor, threshold: Tensor) -> Codes:
    """JumpReLU: ``z > threshold`` and ``z > 0`` (``threshold`` is ``[width]`` or a scalar, in the units of ``z``)."""
    return Codes.at(positions_above(z, threshold.clamp_min(0)), z)


def select_topk(z: Tensor, k: int) -> Codes:
    """TopK (arXiv 2406.04093): the ``k`` largest positive pre-activations of each token."""
    indices = largest(z, min(k, z.shape[1])).sort(dim=1).values
    values = z.gather(1, indices)
    positive = values > 0
    counts = positive.sum(dim=1)
    return Codes(
        values=values[positive],
        indices=indices[positive],
        offsets=offsets_of(counts),
        width=z.shape[1],
    )


def largest(z: Tensor, k: int) -> Tensor:
    """``[token, k]`` latents of the ``k`` largest entries of each row of ``z [token, width]``, in any order.

    The k largest entries lie in the k blocks with the largest maxima, whatever the blocks are. So every fourth, eighth,
    … of a row is reduced to its maximum, the search goes on among the maxima, and the blocks it finds are opened: a
    search in some hundreds of entries instead of thousands, three times as fast.
    """
    width = z.shape[1]
    if width < max(8 * k, FEW) or z.device.type != "cpu":
        return z.topk(k, dim=1, sorted=False).indices
    count = width // 4
    maxima = z[:, : 4 * count].unflatten(1, (4, count)).amax(dim=1)
    inside = largest(maxima, k)
    opened = [inside + number * count for number in range(4)]
    opened += [torch.full_like(inside[:, :1], latent) for latent in range(4 * count, width)]
    candidates = torch.cat(opened, dim=1)
    return candidates.gather(1, z.gather(1, candidates).topk(k, dim=1, sorted=False).indices)


def select_groupmax(z: Tensor, groups: int) -> Codes:
    """GroupMax: the largest pre-activation of each of ``groups`` blocks of ``width / groups`` latents, if positive.

    Among equals the lowest latent wins. ``groups`` must divide the width.
    """
    values, first = z.unflatten(1, (groups, -1)).max(dim=2)  # among equals torch takes the first
    starts = torch.arange(0, z.shape[1], z.shape[1] // groups, device=z.device)
    positive = values > 0
    return Codes(
        values=values[positive],
        indices=(first + starts)[positive],
        offsets=offsets_of(positive.sum(dim=1)),
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
    candidates = positions_above(z, max(hint, 0.0)) if hint is not None else None
    if candidates is None or candidates.numel() < wanted:
        candidates = positions_above(z, 0.0)
    return Codes.at(candidates[largest_of_all(z.flatten()[candidates], wanted)], z)


def largest_of_all(values: Tensor, count: int) -> Tensor:
    """Ascending positions of the ``count`` largest ``values [n]``; among equals at the boundary the first ones."""
    if values.numel() <= count:
        return torch.arange(values.numel(), device=values.device)
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=values.device)
    boundary = values.topk(count, sorted=False).values.min()
    above = values > boundary
    equal = positions(values == boundary)
    above[equal[: count - int(above.sum())]] = True
    return positions(above)
