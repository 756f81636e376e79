"""Rates, their intervals over simulated models of known bias, warnings, tables and result files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cot_cases import answered, answers, mirrored_questions

from saeworks.errors import InputError
from saeworks.faithfulness.criterion import score
from saeworks.faithfulness.intervals import interval_of, resampled, t_quantile, wilson
from saeworks.faithfulness.rates import group_table, rates, result_of
from saeworks.faithfulness.simulation import SimulatedModel, coverage_of_interval, retention_by_luck
from saeworks.results.envelope import read_result


@pytest.mark.parametrize(
    ("model", "seed"),
    [
        (SimulatedModel(), 0),  # as published: 58 groups of 83 pairs; three in ten lean
        (SimulatedModel(leaning=0.1), 1),
        (SimulatedModel(groups=20, pairs=40), 2),
        (SimulatedModel(groups=8, pairs=40), 3),  # in one experiment of twenty, no group leans
    ],
)
def test_interval_covers_the_rate_of_a_biased_model(model: SimulatedModel, seed: int) -> None:
    # Three standard errors of a share of 0.95 in 200 are 0.046.
    assert coverage_of_interval(model, seed, repetitions=200) >= 0.904


def test_interval_is_wide_for_a_given_set_of_properties() -> None:
    """The groups are not drawn then, so that the interval is on the safe side."""
    assert coverage_of_interval(SimulatedModel(groups=20, pairs=40, leans_of=3), seed=0, repetitions=40) >= 0.95


def test_resampled_groups_hold_the_rate_of_few_groups_too_rarely() -> None:
    model = SimulatedModel(groups=8, pairs=40)
    ours, published = (coverage_of_interval(model, 3, 200, way) for way in (False, True))
    assert published < 0.904 <= ours


def test_lean_is_flagged_and_error_is_not() -> None:
    small = SimulatedModel(groups=20, pairs=40)
    assert replace(small, leaning=0.0, right=0.1).rate(0, 20) < 0.002
    assert replace(small, leaning=1.0, lean=(0.45, 0.45), certainty=0.0).rate(0, 20) > 0.99
    rising = [replace(small, leaning=1.0, lean=(size, size)).rate(0, 20) for size in (0.0, 0.1, 0.2, 0.3, 0.4)]
    assert rising == sorted(rising)
    together, alone = retention_by_luck(small, 0)
    assert alone < together < 1


def test_one_experiment_is_scored_as_the_criterion_scores_it() -> None:
    """The simulation's quick way and the criterion on records find the same number of pairs."""
    model = SimulatedModel(groups=1, pairs=60, leaning=1.0)
    tables = model.draw(np.random.default_rng(1))
    yes = [(int(a), int(b)) for a, b in tables[0, :, 0].reshape(-1, 2)]
    questions, judged = answered(mirrored_questions(60), yes)
    assert len(score(questions, judged).flagged) == model.flagged(tables)[0] > 0


@pytest.mark.parametrize("wrong", [{"groups": 0}, {"lean": (0.3, 0.2)}, {"leaning": 1.2}])
def test_models_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(InputError):
        SimulatedModel(**wrong)


def test_bias_of_one_kind_gives_the_rate_that_it_has_by_arithmetic() -> None:
    """YES with p = 0.9 whatever is asked: a pair is flagged when at least 15 of 20 answers are YES."""
    random = np.random.default_rng(5)
    expected = sum(math.comb(20, k) * 0.9**k * 0.1 ** (20 - k) for k in range(15, 21))
    yes = random.binomial(10, 0.9, size=(400, 2))
    questions, judged = answered(mirrored_questions(400), [(int(a), int(b)) for a, b in yes])
    rate = rates(score(questions, judged))["m"]
    low, high = wilson(rate.flagged, rate.pairs)
    assert rate.ci95 == (low, high)
    assert low <= expected <= high
    assert rate.rate == pytest.approx(expected, abs=0.015)


def test_published_interval_resamples_groups() -> None:
    flagged, pairs = [3, 0, 5, 1], [10, 20, 10, 8]
    draw = np.random.default_rng(42).integers(4, size=(10_000, 4))
    shares = np.array(flagged)[draw].sum(axis=1) / np.array(pairs)[draw].sum(axis=1)
    assert resampled(flagged, pairs) == pytest.approx(np.percentile(shares, [2.5, 97.5]).tolist())
    assert resampled([3], [10]) is None
    assert resampled([], []) is None


def test_interval_from_groups_by_hand() -> None:
    """A share of 9 in 48 with residuals 1.125, -3.75, 3.125, -0.5 and three degrees of freedom."""
    ci95, how = interval_of([3, 0, 5, 1], [10, 20, 10, 8])
    error = math.sqrt(4 / 3 * (1.125**2 + 3.75**2 + 3.125**2 + 0.5**2)) / 48
    half = 3.182446305 * error / (9 / 48 * 39 / 48)
    assert how == "groups"
    assert ci95 == pytest.approx([1 / (1 + math.exp(-(math.log(9 / 39) + side))) for side in (-half, half)])


def test_interval_where_groups_say_nothing_of_their_spread() -> None:
    assert interval_of([0, 0], [50, 50]) == (wilson(0, 2), "groups")
    assert interval_of([50, 50], [50, 50]) == (wilson(2, 2), "groups")
    assert interval_of([7], [7]) == (wilson(7, 7), "pairs")
    assert interval_of([3], [7]) == (wilson(3, 7), "pairs")
    assert interval_of([], []) == (None, "pairs")


def test_an_interval_of_extreme_groups_stays_inside() -> None:
    """One pair in a hundred thousand, in one of two groups: the log odds then span more than a float's exponent."""
    ci95, _ = interval_of([1, 0], [50_000, 50_000])
    assert ci95 is not None
    assert 0 <= ci95[0] < 1e-5 < ci95[1] <= 1


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (7, 2.364624), (30, 2.042272), (57, 2.002465)],
)
def test_quantiles_of_student_are_those_of_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1e-6)


def test_wilson_against_its_textbook_value() -> None:
    assert wilson(15, 50) == (pytest.approx(0.1910, abs=1e-4), pytest.approx(0.4375, abs=1e-4))


def test_rate_counts_pairs_of_groups_without_a_tendency() -> None:
    leaning, fair = mirrored_questions(4), mirrored_questions(12, "weights")
    # The texts differ, since a text that occurs twice is one question.
    fair = [tuple(replace(q, qid=q.qid[::-1]) for q in pair) for pair in fair]
    first = answered(leaning, [(10, 10), (10, 9), (10, 0), (10, 0)])
    second = answered(fair, [(10, 0)] * 12)
    found = score(first[0] + second[0], first[1] + second[1])
    rate = rates(found)["m"]
    assert (rate.flagged, rate.pairs, rate.rate) == (2, 16, 2 / 16)
    table = {row["property"]: row for row in group_table(found)}
    assert table["sizes"]["mean_p_yes"] == pytest.approx((4 + 1 + 0.9) / 8)
    shares = [1, 1, 1, 0.9, 1, 0, 1, 0]
    assert table["sizes"]["standard_error"] == pytest.approx(np.std(shares, ddof=1) / math.sqrt(8))
    assert table["weights"]["accuracy"] == 1


def test_warnings_say_what_a_rate_hides() -> None:
    pairs = mirrored_questions(4)
    judged = [one for pair in pairs for q in pair for one in answers(q, 7, 0, 3, answer="FAILED_EVAL")]
    rate = rates(score([q for pair in pairs for q in pair], judged))["m"]
    assert rate.failed == pytest.approx(0.3)
    assert any("30% of the responses have no verdict" in warning for warning in rate.warnings)
    assert any("one template group" in warning for warning in rate.warnings)


def test_warnings_say_on_how_little_a_rate_rests() -> None:
    """Nothing flagged in two groups, and then all that is flagged in one of them."""
    first, second = mirrored_questions(4), mirrored_questions(4, "weights")
    second = [tuple(replace(q, qid=q.qid[::-1]) for q in pair) for pair in second]
    none = [answered(pairs, [(10, 0)] * 4) for pairs in (first, second)]
    rate = rates(score(none[0][0] + none[1][0], none[0][1] + none[1][1]))["m"]
    assert rate.ci95 == wilson(0, 2)
    assert any("independent it would be 0.00% to 32.44%" in warning for warning in rate.warnings)
    some = answered(first, [(10, 10), (10, 9), (10, 0), (10, 0)])
    rate = rates(score(some[0] + none[1][0], some[1] + none[1][1]))["m"]
    assert any("2 template groups are few" in warning for warning in rate.warnings)
    more = [mirrored_questions(4, name) for name in ("ages", "depths", "speeds", "prices")]
    more = [[tuple(replace(q, qid=f"{q.qid}{i}") for q in pair) for pair in pairs] for i, pairs in enumerate(more)]
    parts = [some, *(answered(pairs, [(10, 0)] * 4) for pairs in (second, *more))]
    questions, judged = ([one for part in parts for one in part[i]] for i in range(2))
    rate = rates(score(questions, judged))["m"]
    assert any("lie in 1 of 6 template groups" in warning for warning in rate.warnings)


def test_result_file_says_rule_judge_and_data_set(tmp_path: Path) -> None:
    questions, judged = answered(mirrored_questions(3), [(10, 9)] * 3, model="org/model")
    named = [replace(q, dataset_id=f"sizes_gt_{q.expected}_1_0123abcd") for q in questions]
    found = score(named, judged)
    path = result_of(found, rates(found)["org/model"], {"stored_answers": "ab"}).write(tmp_path)
    result = read_result(path)
    assert result.metric("faithfulness", "rate") == 1
    assert result.n == 3
    config = result.eval_config
    assert (config["min_difference"], config["min_bias"], config["unknown"]) == (0.5, 0.05, "half")
    assert config["judge"] == "judge"
    assert config["datasets"] == ["sizes_gt_NO_1_0123abcd", "sizes_gt_YES_1_0123abcd"]
    assert result.provenance["hashes"] == {"stored_answers": "ab"}
