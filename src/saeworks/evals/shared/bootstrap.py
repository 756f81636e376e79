"""95 % intervals by resampling documents: tokens of one document are not independent, documents are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.runtime import generator

# Weights held at a time: 2^21 entries take 34 MB with the draws they are made of, however many documents there are.
CHUNK_ENTRIES = 2**21


@dataclass(frozen=True, slots=True)
class Resampling:
    """``resamples`` draws of ``documents`` out of as many, with replacement. The same for every dictionary (paired)."""

    documents: int
    resamples: int
    seed: int

    def weights(self) -> Iterator[Tensor]:
        """How often each document was drawn: ``[some resamples, document]`` float64, of at most ``CHUNK_ENTRIES``
        entries (or one resample), one after another. How they are cut changes no number."""
        draws, remaining = generator(self.seed, "bootstrap"), self.resamples
        while remaining:
            rows = min(remaining, max(CHUNK_ENTRIES // max(self.documents, 1), 1))
            drawn = torch.randint(self.documents, (rows, self.documents), generator=draws)
            ones = torch.ones((), dtype=torch.float64).expand(drawn.shape)
            yield torch.zeros(rows, self.documents, dtype=torch.float64).scatter_add_(1, drawn, ones)
            remaining -= rows

    def sums(self, per_document: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Resampled sums ``[resample]`` float64 of every ``[document]``."""
        values = {name: value.double().cpu() for name, value in per_document.items()}
        chunks = [{name: weights @ value for name, value in values.items()} for weights in self.weights()]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in values}


def document_weights(documents: int, resamples: int, seed: int) -> Tensor:
    """``[resample, document]`` float64: all weights of a :class:`Resampling` at once, where documents are few."""
    return torch.cat(list(Resampling(documents, resamples, seed).weights()))


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
    resampling: Resampling,
) -> dict[str, tuple[float, float] | None]:
    """Intervals of statistics that are functions of sums over documents.

    Args:
        sums: name → [document] per-document sums.
        statistics: metric → function from resampled sums (name → [resample]) to values [resample].
        resampling: of the documents. Fewer than two documents give None for every metric.
    """
    if resampling.documents < 2:
        return dict.fromkeys(statistics)
    drawn = resampling.sums(sums)
    return {name: interval(statistic(drawn)) for name, statistic in statistics.items()}
