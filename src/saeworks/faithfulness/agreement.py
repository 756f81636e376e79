"""How far a judge agrees with hand labels or with another judge, and what has to be labelled to find out."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import numpy as np

from saeworks.errors import InputError
from saeworks.faithfulness.intervals import wilson
from saeworks.faithfulness.records import Judged, Reading
from saeworks.runtime import derive_seed

READINGS: tuple[Reading, ...] = ("YES", "NO", "UNKNOWN")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge held against a reference on the same responses.

    Attributes:
        judge, reference: their names. n: responses that both judged. share: of equal readings; ci95: Wilson's interval.
        kappa: Cohen's; NaN where agreement by chance alone is certain. confusion: reference reading → judge's reading →
            number. precision, recall: of the judge by reading, NaN where there is nothing to divide by.
    """

    judge: str
    reference: str
    n: int
    share: float
    ci95: tuple[float, float]
    kappa: float
    confusion: Mapping[str, Mapping[str, int]]
    precision: Mapping[str, float]
    recall: Mapping[str, float]

    def given_judged(self, smoothing: float = 0.5) -> np.ndarray:
        """``[judged, true]``: likelihood of each true reading, given the judge's; ``smoothing`` adds to each count.

        Rows and columns are in the order of :data:`READINGS`. It describes responses like those that were labelled.
        """
        table = np.array([[self.confusion[true][read] for true in READINGS] for read in READINGS], dtype=float)
        # A reading that no labelled response has is taken as it is: nothing says that the judge errs there.
        seen = table.sum(axis=1, keepdims=True) > 0
        table = np.where(seen, table + smoothing, np.eye(len(READINGS)))
        return table / table.sum(axis=1, keepdims=True)


def agreement(judged: Iterable[Judged], reference: Iterable[Judged]) -> Agreement:
    """Compare readings (YES, NO, UNKNOWN) response by response; what only one of them judged is left out.

    Raises:
        InputError: no response was judged by both.
    """
    ours = {(one.model, one.qid, one.response_id): one for one in judged}
    theirs = {(one.model, one.qid, one.response_id): one for one in reference}
    both = [key for key in ours if key in theirs]
    if not both:
        raise InputError(
            f"No response has both a judgement ({len(ours)}) and a label ({len(theirs)}); "
            "model, question id and response id have to be the same in both."
        )
    # A NO without the flag for equality counts as UNKNOWN here as everywhere.
    pairs = [(theirs[key].result or "UNKNOWN", ours[key].result or "UNKNOWN") for key in both]
    confusion = {true: {read: pairs.count((true, read)) for read in READINGS} for true in READINGS}
    equal = sum(confusion[one][one] for one in READINGS)
    return Agreement(
        judge=ours[both[0]].judge,
        reference=theirs[both[0]].judge,
        n=len(both),
        share=equal / len(both),
        ci95=wilson(equal, len(both)),
        kappa=cohen_kappa([a for a, _ in pairs], [b for _, b in pairs]),
        confusion=confusion,
        precision={one: _part(confusion[one][one], sum(confusion[t][one] for t in READINGS)) for one in READINGS},
        recall={one: _part(confusion[one][one], sum(confusion[one].values())) for one in READINGS},
    )


def _part(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Agreement beyond chance; NaN where chance alone makes agreement certain, or without a label.

    Raises:
        InputError: sequences of different length.
    """
    if len(first) != len(second):
        raise InputError(f"{len(first)} labels cannot be compared with {len(second)}; give one of each per item.")
    n = len(first)
    if not n:
        return math.nan
    classes = set(first) | set(second)
    chance = sum(first.count(one) * second.count(one) for one in classes) / n**2
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    return math.nan if chance >= 1 else (observed - chance) / (1 - chance)


@dataclass(frozen=True, slots=True)
class BinaryScores:
    """Yes/no labels against a reference; what cannot be computed is NaN. ``f1_ci95`` resamples items."""

    n: int
    positives: int
    kappa: float
    precision: float
    recall: float
    f1: float
    f1_ci95: tuple[float, float] | None


def binary_scores(predicted: Sequence[bool], true: Sequence[bool], draws: int = 2000, seed: int = 0) -> BinaryScores:
    """Kappa, precision, recall and F1, with a percentile bootstrap of F1 over items."""
    kappa = cohen_kappa(list(predicted), list(true))
    p, t = np.asarray(predicted, dtype=bool), np.asarray(true, dtype=bool)
    hits = int((p & t).sum())
    precision, recall = _part(hits, int(p.sum())), _part(hits, int(t.sum()))
    ci95 = None
    if len(p) > 1:
        draw = np.random.default_rng(seed).integers(len(p), size=(draws, len(p)))
        both, either = (p & t)[draw].sum(axis=1), p[draw].sum(axis=1) + t[draw].sum(axis=1)
        values = 2 * both[either > 0] / either[either > 0]
        if len(values) * 2 >= draws:
            low, high = np.percentile(values, [2.5, 97.5]).tolist()
            ci95 = (float(low), float(high))
    f1 = _part(2 * hits, int(p.sum() + t.sum()))
    return BinaryScores(len(p), int(t.sum()), kappa, precision, recall, f1, ci95)


def to_label(items: Iterable[T], verdict: Callable[[T], str], each: int, seed: int = 0) -> list[T]:
    """A blind sample for labelling by hand: up to ``each`` items of every verdict, shuffled.

    The order tells nothing of the verdict, so hand out the items without it.

    Raises:
        InputError: fewer than one item of each.
    """
    if each < 1:
        raise InputError(f"{each} items of each verdict were asked for; give at least 1.")
    by_verdict: dict[str, list[T]] = {}
    for item in items:
        by_verdict.setdefault(verdict(item), []).append(item)
    random = Random(derive_seed(seed, "to label"))
    chosen = [
        item
        for name in sorted(by_verdict)
        for item in random.sample(by_verdict[name], min(each, len(by_verdict[name])))
    ]
    random.shuffle(chosen)
    return chosen
