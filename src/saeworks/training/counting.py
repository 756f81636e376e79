"""What a training step reads off the latents that were active, wherever in the run they were computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.training.division import Division

THRESHOLD_DECAY = 0.99


@dataclass
class Smallest:
    """Moving average of the smallest selected score of a step; corrected for beginning at 0."""

    total: float = 0.0
    weight: float = 0.0

    @property
    def value(self) -> float:
        """The average; 0 before the first step."""
        return self.total / self.weight if self.weight else 0.0

    def follow(self, score: float | None) -> None:
        """Take in the score of the next step; None where nothing was selected."""
        if score is not None:
            self.total = THRESHOLD_DECAY * self.total + (1 - THRESHOLD_DECAY) * score
            self.weight = THRESHOLD_DECAY * self.weight + (1 - THRESHOLD_DECAY)


def fired(codes: Codes, division: Division) -> Tensor:
    """Those of this rank's latents that were active on any token of the whole batch; an index into them."""
    if division.by != "tokens":
        return codes.indices
    return division.ranks.most(codes.fired().to(torch.uint8)) > 0


def mean_l0(codes: Codes, division: Division) -> float:
    """Active latents per token, of the whole dictionary and batch."""
    return division.count(codes.values.numel()) / division.tokens(codes.tokens)


def smallest_selected(codes: Codes, scores: Tensor, whole_batch: bool, division: Division) -> float | None:
    """The smallest selected score: of the batch, or the mean over tokens of each token's; None when nothing was.

    Args:
        scores: ``[nonzero]`` by which the latents were selected.
        whole_batch: whether they were selected from the whole batch at once.
    """
    ranks = division.ranks
    if whole_batch:
        least = scores.min() if scores.numel() else scores.new_tensor(torch.inf)
        smallest = float(ranks.least(least.clone()))
        return smallest if smallest != torch.inf else None
    lowest = scores.new_full((codes.tokens,), torch.inf).scatter_reduce(0, codes.rows(), scores, "amin")
    if division.by == "latents":
        ranks.least(lowest)
    found = lowest[lowest.isfinite()]
    if division.by != "tokens":
        return float(found.mean()) if found.numel() else None
    total, count = division.everywhere(torch.tensor([float(found.sum()), found.numel()], dtype=torch.float64)).tolist()
    return total / count if count else None


def follow(
    averages: Sequence[Smallest],
    codes: Codes,
    scores: Tensor,
    sets: Sequence[tuple[slice, float]],
    whole_batch: bool,
    division: Division,
) -> None:
    """Take the smallest selected score of every set of latents into its average; see :func:`smallest_selected`."""
    for average, (part, _) in zip(averages, sets, strict=True):
        own = scores
        if len(sets) > 1:
            own = scores[(codes.indices >= part.start) & (codes.indices < part.stop)]
        average.follow(smallest_selected(codes, own, whole_batch, division))


def order_by_strength(
    codes: Codes, decoder: Tensor, strengths: Tensor, decay: float, tensors: Sequence[Tensor], division: Division
) -> None:
    """Bring latents into the order of how much they write, in place.

    Args:
        strengths: ``[width]`` moving average of the mean square of what each writes, brought up to date first.
        decay: of that average. tensors: all else with latents along the first dimension.
    """
    written = codes.values.detach() * decoder.detach().norm(dim=1)[codes.indices]
    squares = torch.zeros_like(strengths).index_add_(0, codes.indices, written.square())
    strengths.lerp_(division.over_tokens(squares) / division.tokens(codes.tokens), 1 - decay)
    order = strengths.argsort(descending=True, stable=True)
    for tensor in (*tensors, strengths):
        tensor.copy_(tensor[order])
