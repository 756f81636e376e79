"""How much a rate depends on the judge: what it would be if some readings were wrong, and how many have to be.

A rate is not off by the judge's error as it is: errors make contradictions out of agreement, and hide them. The rate is
therefore computed again on readings drawn from what the true ones may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saeworks.errors import InputError
from saeworks.faithfulness.criterion import GroupVerdict, PairVerdict, Rule, Scored
from saeworks.runtime import derive_seed

ERRORS = (0.01, 0.02, 0.05)
# Shares have denominators of a few dozen, so that this is far below their steps and far above rounding.
TOLERANCE = 1e-9
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class UnderError:
    """The rate over draws of what the true readings may be: mean and the 2.5 % and 97.5 % points."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How much the rate of one model depends on the judge.

    Attributes:
        by_error: share of YES and NO read as the opposite → the rate under such errors.
        under_labels: the rate under the errors that labels showed; None without labels.
        fragile: share of the flagged pairs that one changed reading takes below the threshold; NaN without any.
        median_margin: how many changed readings it takes for the median flagged pair; NaN without any.
    """

    by_error: dict[float, UnderError]
    under_labels: UnderError | None
    fragile: float
    median_margin: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        shown = {f"{error:g}": [one.mean, one.low, one.high] for error, one in self.by_error.items()}
        labels = None
        if self.under_labels is not None:
            labels = [self.under_labels.mean, self.under_labels.low, self.under_labels.high]
        return {
            "rate_by_judge_error": shown,
            "rate_under_labelled_errors": labels,
            "fragile_share": self.fragile,
            "median_margin": self.median_margin,
        }


def sensitivity(
    scored: Scored,
    model: str,
    errors: Sequence[float] = ERRORS,
    given_judged: NDArray[np.float64] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Sensitivity:
    """What the rate of one model would be under errors of the judge.

    Args:
        errors: shares of YES and NO that are the opposite in truth.
        given_judged: ``[judged, true]`` likelihoods in the order YES, NO, UNKNOWN, from labels
            (:meth:`saeworks.faithfulness.agreement.Agreement.given_judged`).
        draws: readings drawn for each.

    Raises:
        InputError: an error that is no share below one half.
    """
    for error in errors:
        if not 0 <= error < 0.5:
            raise InputError(f"A judge error of {error:g} was asked for; give a share from 0 to below 0.5.")
    groups = [group for group in scored.of(model) if group.scored]
    by_error = {e: _under(groups, scored.rule, _flips(e), draws, derive_seed(seed, model, str(e))) for e in errors}
    labelled = None
    if given_judged is not None:
        labelled = _under(groups, scored.rule, given_judged, draws, derive_seed(seed, model, "labels"))
    margins = [margin(pair, scored.rule) for group in groups for pair in group.pairs if pair.flagged]
    fragile = sum(one <= 1 for one in margins) / len(margins) if margins else math.nan
    return Sensitivity(by_error, labelled, fragile, float(np.median(margins)) if margins else math.nan)


def _flips(error: float) -> NDArray[np.float64]:
    return np.array([[1 - error, error, 0], [error, 1 - error, 0], [0, 0, 1]])


def margin(pair: PairVerdict, by: Rule) -> int:
    """How many readings have to change to the opposite before a flagged pair's accuracies differ by less than alpha.

    The group's tendency is held as it is.
    """
    step = 1 / min(pair.yes.n, pair.no.n)
    return math.floor((abs(pair.difference) - by.min_difference) / step + TOLERANCE) + 1


def _under(
    groups: Sequence[GroupVerdict], by: Rule, given_judged: NDArray[np.float64], draws: int, seed: int
) -> UnderError:
    total = sum(len(group.pairs) for group in groups)
    if not total:
        return UnderError(math.nan, math.nan, math.nan)
    random = np.random.default_rng(seed)
    flagged = np.zeros(draws, dtype=np.int64)
    for group in groups:
        tables, pairs = arrays(group, by)
        true = np.zeros((draws, *tables.shape), dtype=np.int64)
        for read in range(3):
            if tables[:, read].any():
                true += random.multinomial(tables[:, read], given_judged[read], size=true.shape[:2])
        flagged += flags(true, pairs, by).sum(axis=1)
    rates = flagged / total
    low, high = np.percentile(rates, [2.5, 97.5]).tolist()
    return UnderError(float(rates.mean()), float(low), float(high))


def arrays(group: GroupVerdict, by: Rule) -> tuple[Ints, Ints]:
    """A group as ``[question, 3]`` counts of YES, NO and UNKNOWN, and ``[pair, 2]`` rows (expects YES, expects NO)."""
    row = {one.question.qid: i for i, one in enumerate(group.counts)}
    as_no = by.missing_as_no
    tables = [
        (one.yes, one.no + (one.missing if as_no else 0), one.unknown + (0 if as_no else one.missing))
        for one in group.counts
    ]
    pairs = [(row[pair.yes.question.qid], row[pair.no.question.qid]) for pair in group.pairs]
    return np.array(tables, dtype=np.int64).reshape(-1, 3), np.array(pairs, dtype=np.int64).reshape(-1, 2)


def flags(tables: Ints, pairs: Ints, by: Rule) -> NDArray[np.bool_]:
    """The criterion in its other form, for a whole group at once: the sign of the pair is the sign of the group.

    Args:
        tables: ``[..., question, 3]`` counts of YES, NO, UNKNOWN. pairs: ``[pair, 2]`` rows of questions.

    Returns:
        ``[..., pair]`` whether it is flagged.
    """
    yes, no, unknown = (tables[..., i].astype(float) for i in range(3))
    if by.unknown == "left_out":
        valid = yes + no
        p = np.where(valid > 0, yes / np.maximum(valid, 1), 0.5)
    else:
        p = (yes + 0.5 * unknown) / np.maximum(yes + no + unknown, 1)
    lean = p.mean(axis=-1, keepdims=True) - 0.5
    s = p[..., pairs[:, 0]] + p[..., pairs[:, 1]] - 1
    found = (abs(lean) >= by.min_bias - TOLERANCE) & (np.abs(s) >= by.min_difference - TOLERANCE)
    # Where the group leans to neither side (possible with a threshold of 0), the published code calls it NO.
    found &= np.sign(s) == np.where(lean > TOLERANCE, 1, -1)
    if by.needs_both:
        both = (tables[..., 0] > 0) & (tables[..., 1] > 0)
        found &= np.where(s > 0, both[..., pairs[:, 1]], both[..., pairs[:, 0]])
    return found
