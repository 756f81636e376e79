"""Orders of latents by how specific they are to one model, and views of nu that need no threshold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.diffing.scaling_estimates import Ratio
from saeworks.errors import InputError
from saeworks.results.ranks import ranks
from saeworks.runtime import generator

# Nu outside this range is noise for a causal experiment (arXiv 2504.02922).
SENSIBLE = (-0.1, 2.0)


@dataclass(frozen=True, slots=True)
class Halves:
    """Latents of a ranking: the first and the last half, the middle one of an odd number in neither."""

    best: Tensor
    worst: Tensor


@dataclass(frozen=True, slots=True)
class Curve:
    """``counts [point]`` int64 latents with both nu below ``thresholds [point]`` in size."""

    thresholds: Tensor
    counts: Tensor


def by_rank_sum(nu_error: Ratio, nu_reconstruction: Ratio, candidates: Tensor) -> Tensor:
    """Latents int64, most specific first: ascending sum of their two ranks among the candidates.

    Args:
        candidates: ``[latent]`` bool, chat-only latents for instance. Those without a defined nu, or with one outside
            [−0.1, 2], are left out. Latents of equal sums keep their order.
    """
    kept = candidates.to(nu_error.value.device).clone()
    for nu in (nu_error, nu_reconstruction):
        kept &= nu.defined & (nu.value >= SENSIBLE[0]) & (nu.value <= SENSIBLE[1])
    latents = torch.nonzero(kept).flatten()
    total = ranks(nu_error.value[latents]) + ranks(nu_reconstruction.value[latents])
    return latents[total.argsort(stable=True)]


def by_size(nu: Ratio, candidates: Tensor | None = None) -> Tensor:
    """Latents int64 by ascending ``|nu|``: the order for dictionaries with the activation target only."""
    kept = nu.defined if candidates is None else nu.defined & candidates.to(nu.value.device)
    latents = torch.nonzero(kept).flatten()
    return latents[nu.value[latents].abs().argsort(stable=True)]


def halves(ranked: Tensor) -> Halves:
    """The best and the worst half of a ranking."""
    half = len(ranked) // 2
    return Halves(ranked[:half], ranked[len(ranked) - half :])


def curve(nu_error: Ratio, nu_reconstruction: Ratio, relative: Tensor, among: int, points: int = 101) -> Curve:
    """How many latents have ``|nu_error| < π`` and ``|nu_reconstruction| < π`` as π goes from 0 to 1.

    Args:
        relative: ``[latent]`` norm differences. among: only so many latents with the largest ones count, so that
            dictionaries of different numbers of chat-only latents can be compared.
    """
    if among < 1:
        raise InputError(f"A curve among {among} latents was asked for; give at least 1.")
    order = relative.nan_to_num(-1.0).argsort(descending=True, stable=True)[:among]
    size = torch.maximum(nu_error.value.abs(), nu_reconstruction.value.abs())[order]
    size = size[(nu_error.defined & nu_reconstruction.defined)[order]]
    thresholds = torch.linspace(0, 1, points, dtype=torch.float64)
    return Curve(thresholds, (size.cpu()[None] < thresholds[:, None]).sum(dim=1))


def shared_baseline(shared: Tensor, count: int, seed: int = 42) -> Tensor:
    """``count`` of the shared latents (or all, where fewer) drawn at random: what nu looks like without any change.

    Args:
        shared: ``[latent]`` bool.
    """
    latents = torch.nonzero(shared).flatten()
    drawn = torch.randperm(len(latents), generator=generator(seed, "shared latents"))[:count]
    return latents[drawn.sort().values.to(latents.device)]


def inside_baseline(nu: Ratio, latents: Tensor, baseline: Tensor) -> float:
    """Share of ``latents`` whose nu lies in the central 95 % of that of ``baseline``; NaN without any defined."""
    own = nu.value[latents][nu.defined[latents]]
    other = nu.value[baseline][nu.defined[baseline]]
    if not len(own) or not len(other):
        return float("nan")
    low, high = torch.quantile(other, torch.tensor([0.025, 0.975], dtype=other.dtype, device=other.device))
    return float(((own >= low) & (own <= high)).double().mean())
