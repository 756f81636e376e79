"""95 % intervals by resampling documents: tokens of one document are not independent, documents are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from saeworks.runtime import generator


def document_weights(documents: int, resamples: int, seed: int) -> Tensor:
    """[resample, document] float64: how often each document was drawn. The same for every dictionary (paired)."""
    drawn = torch.randint(documents, (resamples, documents), generator=generator(seed, "bootstrap"))
    weights = torch.zeros(resamples, documents, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def interval(values: Tensor) -> tuple[float, float] | None:
    """The 2.5 % and 97.5 % quantiles of the finite ``values`` [resample]; None when fewer than half are finite."""
    finite = values[torch.isfinite(values)]
    if len(finite) * 2 < len(values) or not len(finite):
        return None
    low, high = torch.quantile(finite, torch.tensor([0.025, 0.975], dtype=finite.dtype)).tolist()
    return float(low), float(high)


def intervals(
    sums: Mapping[str, Tensor],
    statistics: Mapping[str, Callable[[Mapping[str, Tensor]], Tensor]],
    weights: Tensor,
) -> dict[str, tuple[float, float] | None]:
    """Intervals of statistics that are functions of sums over documents.

    Args:
        sums: name → [document] per-document sums.
        statistics: metric → function from resampled sums (name → [resample]) to values [resample].
        weights: of :func:`document_weights`. Fewer than two documents give None for every metric.
    """
    if weights.shape[1] < 2:
        return dict.fromkeys(statistics)
    drawn = {name: weights @ per_document.double().cpu() for name, per_document in sums.items()}
    return {name: interval(statistic(drawn)) for name, statistic in statistics.items()}
