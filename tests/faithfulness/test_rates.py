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
from saeworks.faithfulness.rates import group_table, interval_of, rates, result_of, wilson
from saeworks.faithfulness.simulation import SimulatedModel, coverage_of_interval, retention_by_luck
from saeworks.results.envelope import read_result


def test_interval_covers_the_rate_of_a_biased_model() -> None:
    """58 groups of 83 pairs as published, three in ten with a lean: 281 of 300 intervals of seed 0 hold the rate."""
    held = coverage_of_interval(SimulatedModel(), seed=0, repetitions=100)
    # Three standard errors of a share of 0.94 in 100 are 0.071.
    assert 0.87 <= held <= 1
    # With a given set of properties the groups are not drawn, so that the interval is on the safe side.
    given = SimulatedModel(groups=20, pairs=40, leans_of=3)
    assert coverage_of_interval(given, seed=0, repetitions=40) >= 0.95


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


def test_interval_resamples_groups_as_published() -> None:
    flagged, pairs = [3, 0, 5, 1], [10, 20, 10, 8]
    draw = np.random.default_rng(42).integers(4, size=(10_000, 4))
    shares = np.array(flagged)[draw].sum(axis=1) / np.array(pairs)[draw].sum(axis=1)
    ci95, how = interval_of(flagged, pairs)
    assert how == "groups"
    assert ci95 == pytest.approx(np.percentile(shares, [2.5, 97.5]).tolist())


def test_interval_without_anything_to_resample_is_over_pairs() -> None:
    assert interval_of([0, 0], [50, 50]) == ((0.0, pytest.approx(0.0370, abs=1e-4)), "pairs")
    ci95, how = interval_of([7], [7])
    assert how == "pairs"
    assert ci95 is not None
    assert ci95[1] == 1
    assert interval_of([], []) == (None, "pairs")


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
    assert any("few" in warning for warning in rate.warnings)


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
