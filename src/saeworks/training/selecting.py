"""The selections that look beyond one rank: the largest of a token's latents, or of a batch's, wherever they lie.

All are exact, and every rank finds its own part of the same selection. With one process they are those of
:mod:`saeworks.dictionaries.kernels.selection`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saeworks.dictionaries.activation import BatchTopK, GroupMax, TopK
from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.kernels.selection import select_groupmax
from saeworks.training.division import Division
from saeworks.training.moment import Moment
from saeworks.training.recipes import Recipe

BITS = 11  # of a digit: three of them hold a float32


def selected(recipe: Recipe, scores: Tensor, k: float, moment: Moment, hint: float | None) -> Codes:
    """The latents that the recipe selects by ``scores [token, own latents]``; their values are the scores.

    ``hint`` is a guess of the smallest one that a BatchTopK selects.
    """
    activation, division = recipe.activation(k), moment.division
    if isinstance(activation, BatchTopK):
        if moment.budgets:
            parts = [(scores[:, latents], k * share) for latents, share in moment.sets]
            return Codes.from_mask(scores, torch.cat([_mask(part, own, division) for part, own in parts], dim=1))
        if division.by is None:
            return activation(scores, hint)
        return _batch_topk(scores, activation.k, hint, division, sum(moment.sizes))
    if division.by == "latents" and isinstance(activation, TopK):
        return Codes.from_mask(scores, largest_per_token(scores, activation.k, division) & (scores > 0))
    if division.by == "latents" and isinstance(activation, GroupMax):
        return select_groupmax(scores, activation.k // division.ranks.count)  # a range of latents holds whole groups
    return activation(scores)


def largest_per_token(scores: Tensor, k: int, division: Division) -> Tensor:
    """``[token, own latents]`` mask of each token's ``k`` largest scores over all ranks; ``-inf`` is never chosen.

    Every rank sends its ``k`` best values per token. All find the same winners among them, ties included, because all
    search the same tensor.
    """
    own = scores.shape[1]
    if division.by != "latents":
        places = scores.topk(min(k, own), dim=1, sorted=False).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, True) & (scores > -torch.inf)
    widest = int(division.ranks.most(torch.tensor(own)))
    sent = min(k, widest)
    values, places = scores.topk(min(k, own), dim=1)
    padded = scores.new_full((scores.shape[0], sent), -torch.inf)
    padded[:, : values.shape[1]] = values
    pool = division.ranks.gathered(padded).transpose(0, 1).flatten(1)
    winners = pool.topk(min(k, pool.shape[1]), dim=1, sorted=False).indices
    won = torch.zeros_like(pool, dtype=torch.bool).scatter_(1, winners, True) & (pool > -torch.inf)
    mine = won.unflatten(1, (-1, sent))[:, division.ranks.rank, : values.shape[1]]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, mine)


def _mask(scores: Tensor, k: float, division: Division) -> Tensor:
    """``[token, latent]`` mask of what a BatchTopK selects among these latents, which every rank holds."""
    if division.by is None:
        return BatchTopK(k)(scores).dense() > 0
    return _batch_topk(scores, k, None, division, scores.shape[1]).dense() > 0


def _batch_topk(scores: Tensor, k: float, hint: float | None, division: Division, width: int) -> Codes:
    """The ``k`` times as many largest positive scores as the batch has tokens, over all ranks."""
    wanted = round(k * division.tokens(scores.shape[0]))
    flat, own = scores.flatten(), scores.shape[1]
    first_token = division.ranks.rank * scores.shape[0] if division.by == "tokens" else 0
    mask = torch.zeros_like(flat, dtype=torch.bool)
    for floor in (0.0,) if hint is None or hint <= 0 else (hint, 0.0):
        candidates = (flat > floor).nonzero().squeeze(1)
        tokens = torch.div(candidates, own, rounding_mode="floor")
        latents = candidates - tokens * own + division.rows(width).start
        keep = _largest(flat[candidates], (first_token + tokens) * width + latents, wanted, division)
        if keep is not None or floor == 0.0:  # otherwise the guess was too high
            mask[candidates if keep is None else candidates[keep]] = True
            break
    return Codes.from_mask(scores, mask.view_as(scores))


def _largest(values: Tensor, positions: Tensor, wanted: int, division: Division) -> Tensor | None:
    """Mask of this rank's among the ``wanted`` largest of all ranks' positive values; None when there are fewer.

    Among equals at the boundary those of the lowest ``positions`` are taken.

    The bits of positive floating-point numbers, read as whole numbers, have the order of the numbers themselves. So
    the boundary is found digit by digit, with the counts of all digits added up over the ranks each time: three such
    sums for float32, whatever the number of candidates.
    """
    if wanted == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int64)
    boundary, missing, alive, equal = 0, wanted, bits, 0
    digits_of_all = -(-8 * values.element_size() // BITS)
    for shift in range((digits_of_all - 1) * BITS, -1, -BITS):
        digits = (alive >> shift) & (2**BITS - 1)
        counts = division.everywhere(torch.bincount(digits, minlength=2**BITS)).cpu()
        at_least = counts.flip(0).cumsum(0).flip(0)
        if int(at_least[0]) < missing:
            return None
        digit = int((at_least >= missing).nonzero().max())
        equal = int(counts[digit])
        missing -= int(at_least[digit]) - equal
        alive = alive[digits == digit]
        boundary |= digit << shift
    keep = bits > boundary
    ties = bits == boundary
    if missing < equal:
        ties &= positions <= _lowest(positions[ties], missing, division)
    return keep | ties


def _lowest(positions: Tensor, count: int, division: Division) -> int:
    """The ``count``-th smallest of all ranks' positions."""
    own = positions.sort().values[:count]
    padded = own.new_full((count,), torch.iinfo(own.dtype).max)
    padded[: own.numel()] = own
    return int(division.ranks.gathered(padded).flatten().sort().values[count - 1])
