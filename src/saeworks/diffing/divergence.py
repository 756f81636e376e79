"""How differently the two latents of a pair behave over tokens: 0 when they always fire together, 1 when never.

The activation divergence of arXiv 2504.02922: with both activations divided by the larger of the pair's two maxima,
the share of tokens on which one is low among those on which any is high. Besides, with each by its own maximum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.errors import InputError, did_you_mean

# Edges of the bins of a normalised activation: silent, low, middle, high, highest.
EDGES = (1e-6, 0.1, 0.4, 0.7)
SIDE = len(EDGES) + 1
LOW, HIGH = 2, 3  # bins below LOW are low (up to 0.1), from HIGH on high (above 0.4)
NORMALISATIONS = ("pair", "own")


class DivergenceCounts:
    """Joint 5 × 5 histograms of pairs of latents, by data set.

    Args:
        first, second: ``[pair]`` int64 latents, those of the chat model and of the base for twins.
        maxima: ``[latent]`` largest activation of every latent, from an earlier pass.
        scale: ``[latent]`` what a code is multiplied with to have the units of ``maxima`` (the sums of decoder norms
            for those of ``LatentStatistics``); 1 for None.
    """

    def __init__(self, first: Tensor, second: Tensor, maxima: Tensor, scale: Tensor | None = None) -> None:
        if first.shape != second.shape or first.dim() != 1:
            raise InputError(f"Pairs of latents of shapes {tuple(first.shape)} and {tuple(second.shape)} do not match.")
        self.pairs = torch.stack([first, second]).long()
        self._used, places = self.pairs.unique(return_inverse=True)
        self._places = places.view(2, -1)
        own = maxima.double()[self.pairs.to(maxima.device)].cpu()
        self._limits = {"pair": own.amax(dim=0).expand(2, -1), "own": own}
        self._scale = torch.ones(len(maxima), dtype=torch.float64) if scale is None else scale.double().cpu()
        self._counts: dict[str, Tensor] = {}

    def add(self, codes: Codes, data_set: str) -> None:
        """Count the tokens of a batch."""
        pairs = self.pairs.shape[1]
        counts = self._counts.setdefault(data_set, torch.zeros(len(NORMALISATIONS), pairs, SIDE, SIDE).long())
        slot = torch.full((codes.width,), -1)
        slot[self._used] = torch.arange(len(self._used))
        indices, rows, values = codes.indices.cpu(), codes.rows().cpu(), codes.values.double().cpu()
        kept = slot[indices] >= 0
        dense = torch.zeros(codes.tokens, len(self._used), dtype=torch.float64)
        dense[rows[kept], slot[indices[kept]]] = values[kept] * self._scale[indices[kept]]
        active = torch.stack([dense[:, places] for places in self._places])  # [2, token, pair]
        edges = torch.tensor(EDGES, dtype=torch.float64)
        for i, name in enumerate(NORMALISATIONS):
            share = active / self._limits[name][:, None].clamp_min(1e-300)
            # An edge belongs to the bin below it: low is up to and including 0.1, high is above 0.4.
            bins = torch.bucketize(share, edges)
            cell = (torch.arange(pairs) * SIDE + bins[0]) * SIDE + bins[1]
            counts[i] += torch.bincount(cell.flatten(), minlength=pairs * SIDE**2).view(pairs, SIDE, SIDE)

    def __add__(self, other: DivergenceCounts) -> DivergenceCounts:
        """Counts over the tokens of both."""
        if not torch.equal(self.pairs, other.pairs):
            raise InputError("Counts of different pairs of latents cannot be merged; count the same pairs.")
        merged = object.__new__(DivergenceCounts)
        merged.__dict__.update(self.__dict__)
        merged._counts = {name: counts.clone() for name, counts in self._counts.items()}
        for name, counts in other._counts.items():
            merged._counts[name] = merged._counts[name] + counts if name in merged._counts else counts.clone()
        return merged

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return dict(self._counts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._counts = {name: counts.clone() for name, counts in state.items()}

    def histogram(self, data_set: str | None = None, normalisation: str = "pair") -> Tensor:
        """``[pair, 5, 5]`` int64: tokens by the first and second latent's bin; of all data sets for None."""
        if normalisation not in NORMALISATIONS:
            raise InputError(f"There is no '{normalisation}'.{did_you_mean(normalisation, NORMALISATIONS)}")
        if not self._counts or (data_set is not None and data_set not in self._counts):
            raise InputError(f"No token of the data set '{data_set or 'any'}' was counted.")
        chosen = list(self._counts.values()) if data_set is None else [self._counts[data_set]]
        return torch.stack(chosen).sum(dim=0)[NORMALISATIONS.index(normalisation)]

    def divergence(self, data_set: str | None = None, normalisation: str = "pair") -> Tensor:
        """``[pair]`` share of the tokens with a high activation on which the other latent is low; NaN without any."""
        counts = self.histogram(data_set, normalisation).double()
        apart = counts[:, HIGH:, :LOW].sum(dim=(1, 2)) + counts[:, :LOW, HIGH:].sum(dim=(1, 2))
        high = counts.sum(dim=(1, 2)) - counts[:, :HIGH, :HIGH].sum(dim=(1, 2))
        return apart / torch.where(high > 0, high, torch.nan)
