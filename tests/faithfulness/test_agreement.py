"""Agreement with labels, and what a rate would be if the judge erred."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from cot_cases import answered, mirrored_questions
from sklearn.metrics import cohen_kappa_score, f1_score, precision_score, recall_score

from saeworks.errors import InputError
from saeworks.faithfulness.agreement import READINGS, agreement, binary_scores, cohen_kappa, to_label
from saeworks.faithfulness.criterion import RULES, score
from saeworks.faithfulness.rates import rates
from saeworks.faithfulness.records import Judged, opposite
from saeworks.faithfulness.sensitivity import sensitivity


def test_kappa_against_another_implementation() -> None:
    random = np.random.default_rng(0)
    for _ in range(10):
        a, b = random.choice(["x", "y", "z"], 40).tolist(), random.choice(["x", "y", "z"], 40).tolist()
        assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))
    assert math.isnan(cohen_kappa(["x"] * 4, ["x"] * 4))  # agreement was certain
    assert math.isnan(cohen_kappa([], []))
    with pytest.raises(InputError, match="one of each"):
        cohen_kappa(["x"], [])


def test_binary_scores_against_another_implementation() -> None:
    random = np.random.default_rng(1)
    true = random.random(60) < 0.4
    predicted = true ^ (random.random(60) < 0.2)
    found = binary_scores(predicted.tolist(), true.tolist())
    assert found.precision == pytest.approx(precision_score(true, predicted))
    assert found.recall == pytest.approx(recall_score(true, predicted))
    assert found.f1 == pytest.approx(f1_score(true, predicted))
    assert found.f1_ci95 is not None
    assert found.f1_ci95[0] < found.f1 < found.f1_ci95[1]
    none = binary_scores([False] * 5, [False] * 5)
    assert all(math.isnan(value) for value in (none.precision, none.recall, none.f1, none.kappa))
    assert none.f1_ci95 is None


def test_agreement_by_reading() -> None:
    ours = [Judged("q", str(i), "m", answer, False, "judge") for i, answer in enumerate(["YES"] * 6 + ["NO"] * 4)]
    hand = [replace(one, judge="hand") for one in ours[:9]]
    hand[0] = replace(hand[0], answer="NO", equal_values=True)  # UNKNOWN in truth
    hand[8] = replace(hand[8], answer="YES")
    found = agreement(ours, hand)
    assert (found.n, found.share, found.reference) == (9, 7 / 9, "hand")
    assert found.confusion["UNKNOWN"]["YES"] == 1
    assert found.confusion["YES"]["NO"] == 1
    assert found.precision["YES"] == pytest.approx(5 / 6)
    assert found.recall["YES"] == pytest.approx(5 / 6)
    assert math.isnan(found.precision["UNKNOWN"])
    given = found.given_judged(smoothing=0)
    assert given[0].tolist() == pytest.approx([5 / 6, 0, 1 / 6])
    assert given[READINGS.index("UNKNOWN")].tolist() == [0, 0, 1]  # the judge read none
    assert found.given_judged().sum(axis=1).tolist() == pytest.approx([1, 1, 1])
    with pytest.raises(InputError, match="both a judgement"):
        agreement(ours, [replace(hand[0], model="other")])


def test_sample_for_labelling_is_balanced_and_does_not_tell() -> None:
    items = [(i, "CLEAR" if i % 4 else "AMBIGUOUS") for i in range(400)]
    chosen = to_label(items, lambda item: item[1], 50, seed=3)
    assert Counter(item[1] for item in chosen) == {"CLEAR": 50, "AMBIGUOUS": 50}
    assert len(set(chosen)) == 100
    assert 15 < sum(item[1] == "CLEAR" for item in chosen[:50]) < 35
    assert chosen == to_label(items, lambda item: item[1], 50, seed=3)
    with pytest.raises(InputError, match="at least 1"):
        to_label(items, lambda item: item[1], 0)


def biased_model(seed: int = 0) -> tuple[list, list[Judged]]:
    random = np.random.default_rng(seed)
    belief = random.choice([-0.5, 0.5, 0.0], p=[0.2, 0.5, 0.3], size=60)
    yes = [
        (int(random.binomial(10, min(1, 0.65 + b))), int(random.binomial(10, max(0, min(1, 0.65 - b))))) for b in belief
    ]
    return answered(mirrored_questions(60), yes)


def test_without_errors_the_rate_is_the_rate() -> None:
    questions, judged = biased_model()
    for by in RULES.values():
        scored = score(questions, judged, by)
        found = sensitivity(scored, "m", errors=(0.0,), draws=3)
        rate = rates(scored)["m"].rate
        assert found.by_error[0.0].mean == found.by_error[0.0].low == pytest.approx(rate)


def test_a_rate_under_errors_is_that_of_judgements_with_these_errors() -> None:
    """Flipping stored judgements and scoring them gives what the quick way says."""
    questions, judged = biased_model()
    scored = score(questions, judged)
    quick = sensitivity(scored, "m", errors=(0.1,), draws=400).by_error[0.1]
    random = np.random.default_rng(9)
    slow = []
    for _ in range(40):
        wrong = random.random(len(judged)) < 0.1
        flipped = [
            replace(one, answer=opposite(one.answer)) if bad and one.answer in ("YES", "NO") else one
            for one, bad in zip(judged, wrong, strict=True)
        ]
        slow.append(rates(score(questions, flipped), draws=1)["m"].rate)
    assert np.mean(slow) == pytest.approx(quick.mean, abs=3 * np.std(slow) / np.sqrt(40) + 0.005)
    assert quick.low < quick.mean < quick.high


def test_labels_that_show_an_error_change_the_rate() -> None:
    questions, judged = biased_model()
    scored = score(questions, judged)
    # In truth every second YES of the judge was a refusal.
    labels = [
        replace(one, judge="hand", answer="REFUSED" if one.answer == "YES" and i % 2 else one.answer)
        for i, one in enumerate(judged)
    ]
    found = sensitivity(scored, "m", given_judged=agreement(judged, labels).given_judged())
    assert found.under_labels is not None
    assert found.under_labels.high < rates(scored)["m"].rate
    assert 0 <= found.fragile <= 1
    assert found.as_json()["rate_under_labelled_errors"][0] == found.under_labels.mean
    with pytest.raises(InputError, match="below"):
        sensitivity(scored, "m", errors=(0.6,))


def test_nothing_flagged_has_no_margin() -> None:
    questions, judged = answered(mirrored_questions(3), [(10, 0)] * 3)
    found = sensitivity(score(questions, judged), "m")
    assert math.isnan(found.fragile)
    assert math.isnan(found.median_margin)
