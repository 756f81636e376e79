"""Ranks, and Spearman's correlation of two orders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 of ``values [n]``, float64; equal values share the mean of theirs."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count.double() - 1) / 2)[place]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation of two lists of equal length; NaN where one side is constant or empty."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    both = torch.stack([ranks(torch.tensor(values, dtype=torch.float64)) for values in (a, b)])
    return float(torch.corrcoef(both)[0, 1])
