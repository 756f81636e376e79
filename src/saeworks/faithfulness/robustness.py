"""Does a verdict stand: with more responses, at another temperature, with another judge, against shuffled questions?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from saeworks.errors import InputError
from saeworks.faithfulness.criterion import Scored
from saeworks.faithfulness.intervals import wilson
from saeworks.faithfulness.rates import rates
from saeworks.faithfulness.records import Judged
from saeworks.results.ranks import spearman


@dataclass(frozen=True, slots=True)
class Retention:
    """Of the pairs flagged before, how many are flagged after; ``share`` is NaN when none was flagged."""

    before: int
    after: int
    share: float
    ci95: tuple[float, float] | None


def retention(before: Scored, after: Scored, model: str) -> Retention:
    """How many flagged pairs of a model stay flagged.

    With old and new responses together a pair keeps a part of the luck that it was chosen for; the new ones alone
    (:func:`fresh`) are the unbiased check.
    """
    was = {pair.pair_id for pair in before.flagged if pair.model == model}
    still = {pair.pair_id for pair in after.flagged if pair.model == model} & was
    if not was:
        return Retention(0, 0, math.nan, None)
    return Retention(len(was), len(still), len(still) / len(was), wilson(len(still), len(was)))


def fresh(before: Iterable[Judged], after: Iterable[Judged], pairs_of: Scored) -> list[Judged]:
    """The judgements for the unbiased check: of the flagged pairs' questions only new responses, of others all.

    The other questions are needed because the group's tendency is that of all its questions.
    """
    known = {(one.model, one.qid, one.response_id) for one in before}
    chosen = {(p.model, side.question.qid) for p in pairs_of.flagged for side in (p.yes, p.no)}
    return [
        one for one in after if (one.model, one.qid) not in chosen or (one.model, one.qid, one.response_id) not in known
    ]


def template_correlation(first: Scored, second: Scored, model: str) -> float:
    """Pearson's r of the rates per template group of two runs (two temperatures, say); NaN where one does not vary.

    Raises:
        InputError: fewer than two groups that were scored in both.
    """
    tables = [_template_rates(scored, model) for scored in (first, second)]
    common = sorted(tables[0].keys() & tables[1].keys())
    if len(common) < 2:
        raise InputError(f"{len(common)} template groups of '{model}' were scored in both runs; two are needed.")
    a, b = (np.array([table[key] for key in common]) for table in tables)
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _template_rates(scored: Scored, model: str) -> dict[tuple[str, str], float]:
    return {
        (group.property_id, group.comparison): sum(pair.flagged for pair in group.pairs) / len(group.pairs)
        for group in scored.of(model)
        if group.scored and group.pairs
    }


def ranking_agreement(first: Scored, second: Scored) -> float:
    """Spearman's correlation of the models' rates under two judges; NaN with fewer than two models or equal rates."""
    a, b = rates(first, draws=1), rates(second, draws=1)
    common = [model for model in a if model in b and a[model].pairs and b[model].pairs]
    return spearman([a[model].rate for model in common], [b[model].rate for model in common])


@dataclass(frozen=True, slots=True)
class Permutation:
    """Whether template groups differ more than chance makes them: the statistic, and the share of shuffles above it."""

    statistic: float
    p: float


def permutation_test(scored: Scored, model: str, draws: int = 10_000, seed: int = 42) -> Permutation:
    """Is grouping by template meaningful for a model?

    The statistic is the variance of the groups' mean share of YES over the mean variance within groups (both with one
    degree of freedom taken off); the shares are shuffled over questions, and p = (1 + shuffles at least as large) /
    (1 + draws).

    Raises:
        InputError: fewer than two groups with two questions or more.
    """
    groups = [g for g in scored.of(model) if g.scored and len(g.counts) > 1]
    if len(groups) < 2:
        raise InputError(f"'{model}' has {len(groups)} scored groups of two questions or more; two are needed.")
    shares = np.array([float(scored.rule.p_yes(one)) for group in groups for one in group.counts])
    ends = np.cumsum([len(group.counts) for group in groups])
    starts = np.concatenate([[0], ends[:-1]])
    sizes = ends - starts

    def statistic(values: np.ndarray) -> float:
        sums, squares = np.add.reduceat(values, starts), np.add.reduceat(values**2, starts)
        means = sums / sizes
        within = float(((squares - sizes * means**2) / (sizes - 1)).mean())
        return float(means.var(ddof=1)) / within if within > 1e-15 else math.inf

    observed = statistic(shares)
    random = np.random.default_rng(seed)
    above = sum(statistic(random.permutation(shares)) >= observed - 1e-12 for _ in range(draws))
    return Permutation(observed, (1 + above) / (1 + draws))
