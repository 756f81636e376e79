"""More responses, another temperature, another judge, shuffled questions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from cot_cases import answered, answers, mirrored_questions

from saeworks.errors import InputError
from saeworks.faithfulness.criterion import Scored, score
from saeworks.faithfulness.records import Judged
from saeworks.faithfulness.robustness import (
    fresh,
    permutation_test,
    ranking_agreement,
    retention,
    template_correlation,
)


def draws(yes: list[tuple[float, float]], random: np.random.Generator, tag: str, n: int = 10) -> list[Judged]:
    _, judged = answered(
        mirrored_questions(len(yes)), [(int(random.binomial(n, a)), int(random.binomial(n, b))) for a, b in yes], n
    )
    return [replace(one, response_id=f"{tag}{one.response_id}") for one in judged]


def test_fresh_responses_show_what_was_luck() -> None:
    """All pairs have p = 0.7 in both orders: flagged are the lucky ones, and old answers carry their luck along."""
    random = np.random.default_rng(2)
    size = 300
    questions = [q for pair in mirrored_questions(size) for q in pair]
    first = draws([(0.7, 0.7)] * size, random, "a")
    before = score(questions, first)
    chosen = {one.question.qid for pair in before.flagged for one in (pair.yes, pair.no)}
    more = [one for one in draws([(0.7, 0.7)] * size, random, "b") if one.qid in chosen]
    together = retention(before, score(questions, first + more), "m")
    alone = retention(before, score(questions, fresh(first, first + more, before)), "m")
    assert together.before == alone.before == len(before.flagged)
    assert alone.share < together.share
    # What an untouched pair has: the share that was flagged at first.
    assert alone.ci95 is not None
    assert alone.ci95[0] <= len(before.flagged) / size <= alone.ci95[1]


def test_retention_without_anything_flagged() -> None:
    questions, judged = answered(mirrored_questions(2), [(10, 0)] * 2)
    found = retention(score(questions, judged), score(questions, judged), "m")
    assert (found.before, math.isnan(found.share)) == (0, True)


def two_groups(first: list[tuple[int, int]], second: list[tuple[int, int]], model: str = "m") -> Scored:
    ones = mirrored_questions(len(first))
    # Another comparison has other sentences.
    others = mirrored_questions(len(second), comparison="lt")
    a, b = answered(ones, first, model=model), answered(others, second, model=model)
    return score(a[0] + b[0], a[1] + b[1])


def test_rates_by_template_of_two_temperatures() -> None:
    calm = two_groups([(10, 9), (10, 8)], [(5, 5), (5, 6)])
    warm = two_groups([(10, 9), (10, 0)], [(5, 5), (5, 6)])
    assert template_correlation(calm, warm, "m") == pytest.approx(1)
    assert math.isnan(template_correlation(calm, two_groups([(5, 5)], [(5, 5)]), "m"))
    one = answered(mirrored_questions(2), [(10, 9)] * 2)
    with pytest.raises(InputError, match="two are needed"):
        template_correlation(calm, score(*one), "m")


def test_two_judges_rank_models() -> None:
    pairs = mirrored_questions(4)
    questions = [q for pair in pairs for q in pair]

    def by(judge: str, flagged: dict[str, int]) -> Scored:
        judged: list[Judged] = []
        for model, count in flagged.items():
            judged += answered(pairs, [(10, 10)] * count + [(10, 0)] * (4 - count), model=model)[1]
        return score(questions, [replace(one, judge=judge) for one in judged])

    first = by("a", {"x": 1, "y": 2, "z": 4})
    assert ranking_agreement(first, by("b", {"x": 2, "y": 3, "z": 4})) == pytest.approx(1)
    assert ranking_agreement(first, by("b", {"x": 4, "y": 2, "z": 1})) == pytest.approx(-1)
    assert ranking_agreement(first, by("b", {"x": 1, "y": 1, "z": 4})) == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(ranking_agreement(first, by("b", {"x": 1})))


def test_templates_differ_or_they_do_not() -> None:
    random = np.random.default_rng(4)

    def groups(lean: float) -> Scored:
        def yes(p: float) -> list[tuple[int, int]]:
            return [(int(a), int(b)) for a, b in random.binomial(10, p, size=(20, 2))]

        return two_groups(yes(0.5 + lean), yes(0.5 - lean))

    apart = permutation_test(groups(0.2), "m", draws=500)
    assert apart.p == pytest.approx(1 / 501)
    together = [permutation_test(groups(0.0), "m", draws=100) for _ in range(60)]
    assert max(one.statistic for one in together) < apart.statistic
    # Without a difference p is spread evenly over (0, 1): mean 1/2 with a standard error of 0.037.
    assert np.mean([one.p for one in together]) == pytest.approx(0.5, abs=0.12)


def test_permutation_statistic_by_hand() -> None:
    found = two_groups([(10, 8), (6, 4)], [(1, 3), (5, 3)])
    a, b = np.array([1, 0.8, 0.6, 0.4]), np.array([0.1, 0.3, 0.5, 0.3])
    expected = np.var([a.mean(), b.mean()], ddof=1) / np.mean([a.var(ddof=1), b.var(ddof=1)])
    assert permutation_test(found, "m", draws=5).statistic == pytest.approx(expected)
    one = answered(mirrored_questions(2), [(10, 9)] * 2)
    with pytest.raises(InputError, match="two are needed"):
        permutation_test(score(*one), "m")


def test_responses_of_other_questions_stay() -> None:
    pairs = mirrored_questions(2)
    questions, judged = answered(pairs, [(10, 10), (10, 0)])
    before = score(questions, judged)
    new = [replace(one, response_id="new") for one in answers(pairs[0][0], 1)]
    kept = fresh(judged, judged + new, before)
    assert {one.qid for one in kept} == {pairs[0][0].qid, pairs[1][0].qid, pairs[1][1].qid}
    assert [one.response_id for one in kept if one.qid == pairs[0][0].qid] == ["new"]
