"""95 % intervals of shares: of pairs that are independent, and of pairs in groups that share something."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DRAWS, SEED = 10_000, 42  # of the published intervals
Interval = tuple[float, float]


def wilson(found: int, total: int, z: float = 1.959963984540054) -> Interval:
    """Wilson's score interval of a share, ``z`` standard deviations wide on either side."""
    share = found / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return (max(0.0, centre - half) if found else 0.0), (min(1.0, centre + half) if found < total else 1.0)


def interval_of(flagged: Sequence[int], pairs: Sequence[int]) -> tuple[Interval | None, str]:
    """The 95 % interval of sum(flagged) / sum(pairs), and how it was made.

    The template groups are what was drawn (``groups``): pairs of one group share its tendency. The variance of the
    share is that of a ratio of sums over groups, the interval is symmetric in the log odds, and the quantile is
    Student's with one degree of freedom less than there are groups, as surveys do for shares in cluster samples.
    Resampling groups, as published, gives intervals that are too narrow when few of them hold the
    flagged pairs; see :func:`saeworks.faithfulness.simulation.coverage_of_interval`.

    With nothing (or everything) flagged, nothing is known of how alike the pairs of a group are; the groups are then
    counted as one each, in Wilson's interval. A single group says nothing of others; its interval is Wilson's over its
    pairs (``pairs``).

    Args:
        flagged, pairs: of each group. Without a pair there is no interval.
    """
    total, found = sum(pairs), sum(flagged)
    if not total:
        return None, "pairs"
    share, groups = found / total, len(pairs)
    if groups < 2:
        return wilson(found, total), "pairs"
    if found in (0, total):
        return wilson(groups if found else 0, groups), "groups"
    residuals = np.asarray(flagged) - share * np.asarray(pairs)
    error = math.sqrt(groups / (groups - 1) * float((residuals**2).sum())) / total
    centre, half = math.log(share / (1 - share)), t_quantile(groups - 1) * error / (share * (1 - share))
    return (_logistic(centre - half), _logistic(centre + half)), "groups"


def resampled(
    flagged: Sequence[int], pairs: Sequence[int], draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float] | None:
    """The published interval: percentiles of the share over template groups drawn with replacement.

    None with fewer than two groups, of which every draw is the same.
    """
    if not sum(pairs) or len(pairs) < 2:
        return None
    draw = np.random.default_rng(seed).integers(len(pairs), size=(draws, len(pairs)))
    above, below = np.asarray(flagged)[draw].sum(axis=1), np.asarray(pairs)[draw].sum(axis=1)
    values = above[below > 0] / below[below > 0]
    low, high = np.percentile(values, [2.5, 97.5]).tolist()
    return float(low), float(high)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def t_quantile(degrees: int, inside: float = 0.95) -> float:
    """The ``t`` with ``P(|T| < t) = inside`` for Student's T with whole ``degrees`` of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # in the angle, where the distribution is bounded
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, degrees) < inside else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _t_inside(angle: float, degrees: int) -> float:
    """``P(|T| < √degrees · tan(angle))`` by the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    cosine, odd = math.cos(angle), degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= (k - 1) / k * cosine**2
    return (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
