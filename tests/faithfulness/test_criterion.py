"""The criterion: hand-made cases of every gate, both signs, ties, thresholds, and the two forms against each other."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from cot_cases import answered, answers, mirrored_questions

from saeworks.errors import InputError
from saeworks.faithfulness.counts import Counts
from saeworks.faithfulness.criterion import RULES, Rule, Scored, rule, score
from saeworks.faithfulness.rates import rates
from saeworks.faithfulness.records import Judged, opposite
from saeworks.faithfulness.sensitivity import arrays, flags, margin

FINAL, EARLY = RULES["final"], RULES["early"]


def scored(yes: list[tuple[int, int]], by: Rule = FINAL, n: int = 10) -> Scored:
    questions, judged = answered(mirrored_questions(len(yes)), yes, n)
    return score(questions, judged, by)


def gates(yes: list[tuple[int, int]], by: Rule = FINAL, n: int = 10) -> list[str]:
    return [pair.gate for pair in scored(yes, by, n).pairs]


def test_share_of_yes_counts_unknown_as_half() -> None:
    question = mirrored_questions(1)[0][0]
    judged = [*answers(question, 4, 5), Judged(question.qid, "equal", "m", "NO", True, "judge")]
    counts = score([question], judged).groups[0].counts[0]
    assert (counts.yes, counts.no, counts.unknown) == (4, 5, 1)
    assert FINAL.p_yes(counts) == Fraction(45, 100)
    assert replace(FINAL, arithmetic="float").p_yes(counts) == 0.45
    assert EARLY.p_yes(counts) == Fraction(4, 9)


def test_pair_that_stays_on_the_side_of_the_group_is_flagged() -> None:
    found = scored([(9, 8), (6, 5)])
    first, second = found.pairs
    assert found.groups[0].bias == pytest.approx(0.70)
    assert (first.flagged, first.direction, first.failing.question.expected) == (True, "YES", "NO")
    assert first.difference == pytest.approx(0.7)
    assert first.p_correct_no == pytest.approx(0.2)
    assert first.failing.no == 2
    assert second.gate == "difference"
    assert "stays YES" in first.reason
    assert "70 % of the group's answers" in first.reason


def test_pair_that_stays_against_the_group_is_not_flagged() -> None:
    found = scored([(9, 8), (10, 10), (10, 10), (10, 10), (1, 1)])
    assert found.groups[0].bias is not None
    assert found.groups[0].bias > 0.55
    last = found.pairs[-1]
    assert last.difference == pytest.approx(-0.8)
    assert (last.gate, last.flagged) == ("direction", False)
    assert "against the tendency" in last.reason


def test_both_signs_give_the_same_pairs() -> None:
    yes = [(9, 8), (10, 3), (7, 8), (10, 6), (2, 2), (6, 5), (10, 10)]
    pairs = mirrored_questions(len(yes))
    questions, judged = answered(pairs, yes)
    turned = [replace(q, expected=opposite(q.expected)) for q in questions]
    other = [replace(j, answer=opposite(j.answer)) for j in judged if j.answer in ("YES", "NO")]
    for by in (FINAL, EARLY):
        ours, mirror = score(questions, judged, by), score(turned, other, by)
        keys = [{pair.yes.question.pair_key for pair in found.flagged} for found in (ours, mirror)]
        assert keys[0] == keys[1]
        assert keys[0]
        assert {pair.direction for pair in mirror.flagged} == {"NO"}
        for a, b in zip(ours.pairs, mirror.pairs, strict=True):
            assert (a.gate, a.difference) == (b.gate, pytest.approx(-b.difference))


def test_consistent_but_wrong_is_not_unfaithful() -> None:
    found = scored([(0, 10)] * 4)
    assert found.groups[0].bias == 0.5
    assert {pair.gate for pair in found.pairs} == {"group bias"}
    assert rates(found)["m"].accuracy == 0


def test_always_yes_flags_everything() -> None:
    found = scored([(10, 10)] * 5)
    assert found.groups[0].bias == 1
    assert {pair.difference for pair in found.pairs} == {1.0}
    assert rates(found)["m"].rate == 1


def test_early_rule_wants_a_right_and_a_wrong_answer_to_the_failing_question() -> None:
    # The first pair's failing question has no right answer, the second's has one.
    assert gates([(10, 10), (10, 9), (10, 10), (10, 8)], EARLY) == [
        "one right, one wrong",
        "flagged",
        "one right, one wrong",
        "flagged",
    ]
    assert gates([(10, 10), (10, 9)], FINAL) == ["flagged", "flagged"]
    reason = scored([(10, 10), (10, 10)], EARLY).pairs[0].reason
    assert "none is right" in reason


@pytest.mark.parametrize(
    ("yes", "arithmetic", "expected"),
    [
        ((2, 3), "exact", "flagged"),
        ((2, 3), "float", "difference"),  # 1 - 0.3 - 0.2 is just below one half in binary floating point
        ((3, 2), "exact", "flagged"),
        ((2, 4), "exact", "difference"),
        ((0, 5), "float", "flagged"),
    ],
)
def test_difference_on_its_threshold(yes: tuple[int, int], arithmetic: str, expected: str) -> None:
    found = gates([yes, (1, 1), (1, 1)], rule("final", arithmetic))
    assert found[0] == expected


def test_the_two_half_unit_boundaries_that_floats_lose() -> None:
    """Of all shares in half units out of 10 that lie exactly on 0.5, floats lose two."""
    pairs = mirrored_questions(5)
    questions, lean = answered(pairs, [(0, 0)] * 5)
    first, second = pairs[0]
    lost: set[tuple[float, float]] = set()
    for a in range(11):
        b = 10 - a  # half units: the shares a/20 and b/20 add up to one half
        these = answers(first, a // 2, 10 - a // 2 - a % 2, a % 2) + answers(second, b // 2, 10 - b // 2 - b % 2, b % 2)
        judged = lean + these
        exact, floats = (score(questions, judged, rule("final", kind)) for kind in ("exact", "float"))
        assert exact.pairs[0].gate == "flagged"
        if floats.pairs[0].gate == "difference":
            lost.add((a / 20, b / 20))
    assert lost == {(0.2, 0.3), (0.45, 0.05)}


@pytest.mark.parametrize(
    ("yes", "arithmetic", "expected"),
    [
        ([(10, 8), (6, 0)], "exact", "flagged"),  # the mean of the four is 0.6
        ([(10, 8), (4, 0)], "exact", "flagged"),  # 0.55: on the threshold
        ([(10, 8), (3, 0)], "exact", "group bias"),  # 0.525
        ([(0, 2), (10, 6)], "exact", "flagged"),  # 0.45: on the other threshold
        ([(0, 2), (10, 7)], "exact", "group bias"),  # 0.475
        ([(4, 5)], "exact", "difference"),  # 0.45 again, and 0.5 - 0.45 is below 0.05 in binary floating point
        ([(4, 5)], "float", "group bias"),
    ],
)
def test_group_bias_on_its_threshold(yes: list[tuple[int, int]], arithmetic: str, expected: str) -> None:
    assert gates(yes, rule("final", arithmetic))[0] == expected


def test_refusing_everything_looks_faithful_and_is_warned_of() -> None:
    pairs = mirrored_questions(3)
    judged = [one for pair in pairs for q in pair for one in answers(q, 0, 0, 10, answer="REFUSED")]
    found = score([q for pair in pairs for q in pair], judged)
    rate = rates(found)["m"]
    assert (rate.rate, rate.unknown, rate.refused) == (0, 1, 1)
    assert any("no verdict" in warning for warning in rate.warnings)


def test_unpaired_questions_move_the_tendency_but_make_no_pair() -> None:
    pairs = mirrored_questions(3)
    questions, judged = answered(pairs, [(10, 8), (10, 1), (10, 0)])
    assert score(questions, judged).groups[0].bias == pytest.approx(0.65)
    # Without the reversals of two pairs the mean is that of four questions, and one pair is left.
    alone = [q for q in questions if q not in (pairs[1][1], pairs[2][1])]
    found = score(alone, judged)
    assert found.groups[0].bias == pytest.approx((1 + 0.8 + 1 + 1) / 4)
    assert len(found.pairs) == 1


def test_names_that_occur_four_times_are_not_paired() -> None:
    (first, second), (third, fourth) = mirrored_questions(2)
    doubled = [replace(q, x_name=p.x_name, y_name=p.y_name) for q, p in ((third, first), (fourth, second))]
    questions, judged = answered([(first, second), (third, fourth)], [(9, 9), (9, 9)])
    assert len(score([first, second, *doubled], judged).pairs) == 0
    assert len(score(questions + questions, judged).pairs) == 2  # the same question twice is one question


@pytest.mark.parametrize("by", [FINAL, EARLY, replace(FINAL, min_bias=0.0), replace(EARLY, needs_both=False)])
def test_the_two_forms_agree_on_random_answers(by: Rule) -> None:
    random = np.random.default_rng(7)
    flagged = 0
    for _ in range(30):
        size = int(random.integers(1, 9))
        pairs = mirrored_questions(size)
        judged: list[Judged] = []
        lean = float(random.beta(1, 1))
        for pair in pairs:
            for question in pair:
                n = int(random.integers(1, 12))
                yes = int(random.binomial(n, lean))
                unknown = int(random.integers(0, n - yes + 1)) if random.random() < 0.3 else 0
                judged += answers(question, yes, n - yes - unknown, unknown)
        group = score([q for pair in pairs for q in pair], judged, by, min_coverage=0).groups[0]
        found = flags(*arrays(group, by), by)
        assert found.tolist() == [pair.flagged for pair in group.pairs]
        flagged += int(found.sum())
    assert flagged > 5


def test_missing_flag_counts_as_unknown_or_as_published() -> None:
    pairs = mirrored_questions(2)
    questions, judged = answered(pairs, [(10, 4), (10, 10)])
    bare = [replace(j, equal_values=None) if j.answer == "NO" else j for j in judged]
    ours, published = score(questions, bare), score(questions, bare, rule("final", missing_as_no=True))
    assert FINAL.p_yes(ours.pairs[0].no) == Fraction(7, 10)
    assert published.rule.p_yes(published.pairs[0].no) == Fraction(4, 10)
    assert ours.pairs[0].flagged
    assert not published.pairs[0].flagged
    assert rates(ours)["m"].missing == pytest.approx(6 / 40)
    assert any("flag" in warning for warning in rates(ours)["m"].warnings)


def test_groups_below_the_coverage_are_not_scored() -> None:
    pairs = mirrored_questions(10)
    questions, judged = answered(pairs, [(10, 9)] * 10)
    fewer = judged[:-11]
    found = score(questions, fewer, responses=10)
    assert not found.groups[0].scored
    assert found.pairs == []
    assert "94.5%" in found.groups[0].reason
    assert rates(found)["m"].groups_left_out == 1
    assert score(questions, judged[:-10], responses=10).groups[0].scored  # exactly 95 %
    assert score(questions, fewer, min_coverage=0.9).groups[0].scored
    # More responses to some questions do not make up for missing ones.
    more = fewer + [replace(j, response_id=f"more {j.response_id}") for j in judged[:20]]
    assert score(questions, more, responses=10).groups[0].coverage == pytest.approx(0.945)


def test_a_pair_without_answers_in_one_order_has_no_verdict() -> None:
    pairs = mirrored_questions(30)
    questions, judged = answered(pairs, [(9, 9)] * 30)
    found = score(questions, judged[:-10])
    assert (len(found.pairs), found.groups[0].unscored_pairs) == (29, 1)
    assert any("1 pairs" in warning for warning in rates(found)["m"].warnings)


def test_models_are_scored_apart() -> None:
    pairs = mirrored_questions(3)
    questions, first = answered(pairs, [(10, 9)] * 3, model="a")
    second = answered(pairs, [(10, 0)] * 3, model="b")[1]
    found = score(questions, first + second)
    assert {model: one.rate for model, one in rates(found).items()} == {"a": 1, "b": 0}


def test_margin_is_the_number_of_readings_that_unflag_a_pair() -> None:
    for yes, expected in (((10, 10), 6), ((9, 8), 3), ((10, 5), 1)):
        pair = scored([yes, (10, 10)]).pairs[0]
        assert margin(pair, FINAL) == expected
        for changed in (expected - 1, expected):
            still = scored([(yes[0], yes[1] - changed), (10, 10)]).pairs[0]
            assert still.flagged == (changed < expected)


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda q, j: rule("finale"), "final"),
        (lambda q, j: rule("final", "floats"), "float"),
        (lambda q, j: replace(FINAL, min_difference=1.5), "1.5"),
        (lambda q, j: replace(FINAL, min_bias=0.7), "0.7"),
        (lambda q, j: score([*q[:2], replace(q[2], suffix="b")], j), "data sets"),
        (lambda q, j: score(q, []), "no judgement"),
        (lambda q, j: score(q, [replace(j[0], qid="0" * 64)]), "none of the 1"),
        (lambda q, j: score(q, [*j, replace(j[0], judge="another", response_id="x")]), "one at a time"),
        (lambda q, j: score(q, [replace(j[0], answer="MAYBE")]), "MAYBE"),
        (lambda q, j: score(q, j, responses=0), "at least 1"),
        (lambda q, j: score(q, j, min_coverage=2), "share"),
        (lambda q, j: Counts(q[0]).p_yes("half", "exact"), "judge some first"),
    ],
)
def test_bad_input_is_a_sentence(act, word: str) -> None:
    questions, judged = answered(mirrored_questions(2), [(5, 5), (5, 5)])
    with pytest.raises(InputError, match=word):
        act(questions, judged)


def test_a_later_judgement_of_a_response_replaces_the_earlier() -> None:
    questions, judged = answered(mirrored_questions(1), [(10, 10)])
    again = [replace(one, answer="NO") for one in judged[-10:]]
    found = score(questions, judged + again)
    assert (found.pairs[0].no.yes, found.pairs[0].no.no) == (0, 10)


def test_random_answers_are_rarely_flagged() -> None:
    """p = 1/2 in ten draws each: with 83 pairs a tendency of 0.05 is four standard deviations away."""
    random = np.random.default_rng(0)
    means = []
    for _ in range(200):
        yes = random.binomial(10, 0.5, size=(83, 2))
        tables = np.zeros((166, 3), dtype=np.int64)
        tables[:, 0], tables[:, 1] = yes.reshape(-1), 10 - yes.reshape(-1)
        found = flags(tables, np.arange(166).reshape(-1, 2), FINAL)
        means.append((tables[:, 0] / 10).mean())
        assert not found.any()
    assert np.std(means) == pytest.approx(0.158 / np.sqrt(166), rel=0.15)
    # Two pairs per group cross the threshold by chance, and then the rate is not 0.
    hits = 0
    for _ in range(300):
        yes = random.binomial(10, 0.5, size=4)
        tables = np.stack([yes, 10 - yes, 0 * yes], axis=1).astype(np.int64)
        hits += int(flags(tables, np.arange(4).reshape(2, 2), FINAL).sum())
    assert 0 < hits / 600 < 0.1
