"""What is asked of a judge, how its answers are read in either mode, and what they are worth."""

import math

import pytest

from saeworks.evals.interpretation.detection import (
    Confusion,
    Example,
    confusion,
    detection_question,
    explanation_question,
    parse_explanation,
    parse_numbers,
    usable_explanation,
    usable_numbers,
)
from saeworks.evals.judges.protocol import Answer


def example(words, activations, active=True, kind="top"):
    tokens = tuple(f" {w}" for w in words.split())
    return Example(tokens, tuple(frozenset() for _ in tokens), tuple(map(float, activations)), active, kind, 0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1, 3, 5", [1, 3, 5]),
        ("1, 2 and 7.", [1, 2, 7]),
        ("None", []),
        ("None.", []),
        ("", []),
        ("example 3", None),
        ("1,2,2", [1, 2, 2]),
        (" 4 \n", [4]),
        ("1; 2", None),
    ],
)
def test_numbers_are_read_as_saebench_reads_them(text, expected):
    assert parse_numbers(text) == expected


@pytest.mark.parametrize(
    ("text", "compat", "corrected"),
    [
        ("1, 2, and 7", None, [1, 2, 7]),  # a comma before "and" leaves an empty piece
        ("none", None, []),
        ("[1, 2]", None, [1, 2]),
        ("3, 99", [3, 99], None),  # there is no passage 99
        ("0, 3", [0, 3], None),
        ("", [], None),  # an empty answer is no "None"
        ("Passages 1 and 2", None, None),
        ("1, 2 and 7.", [1, 2, 7], [1, 2, 7]),
    ],
)
def test_where_the_two_modes_read_differently(text, compat, corrected):
    assert parse_numbers(text, 14, compat=True) == compat
    assert parse_numbers(text, 14, compat=False) == corrected


def test_answers_that_were_cut_off_or_refused_are_read_in_compat_alone():
    half, refusal = Answer("1, 3, 1", "cut_off"), Answer("I'm sorry, I can't say.", "refused")
    assert usable_numbers(half, 14, compat=True) == [1, 3, 1]
    assert usable_numbers(half, 14, compat=False) is None
    assert usable_explanation(refusal, compat=True) == "I'm sorry, I can't say"
    assert usable_explanation(refusal, compat=False) is None
    sentence = Answer("This unit activates on names of", "cut_off")
    assert usable_explanation(sentence, compat=False) == "names of"
    for compat in (True, False):
        for outcome in ("malformed", "failed"):
            assert usable_explanation(Answer("", outcome), compat) is None
            assert usable_numbers(Answer("", outcome), 14, compat) is None


def test_explanations_begin_behind_the_last_stem():
    assert parse_explanation("This unit activates on dogs.") == "dogs"
    assert parse_explanation("It activates on what activates on  cats and dogs .") == "cats and dogs"
    assert parse_explanation("words about rain") == "words about rain"


def test_naming_none_gives_ten_fourteenths_and_a_balanced_accuracy_of_chance():
    active = [True] * 4 + [False] * 10
    none = confusion([], active)
    assert none.accuracy == pytest.approx(10 / 14)
    assert none.balanced_accuracy == 0.5
    assert none.recall == 0.0
    assert math.isnan(none.precision)
    every = confusion(range(1, 15), active)
    assert every.accuracy == pytest.approx(4 / 14)
    assert every.balanced_accuracy == 0.5


def test_scores_of_a_mixed_answer_by_hand():
    found = confusion([1, 2, 5, 5, 99], [True, False, True, False, True, False])
    assert found == Confusion(hits=2, false_alarms=1, misses=1, rejections=2)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert found.f1 == pytest.approx(4 / 6)
    assert found.precision == pytest.approx(2 / 3)


def test_one_kind_of_example_alone_tells_nothing_apart():
    found = confusion([1, 2, 3], [True, True, True])
    assert found.accuracy == 1.0
    assert found.one_sided
    assert found.balanced_accuracy == 0.5


def test_active_tokens_are_marked_to_explain_and_never_to_detect():
    shown = [example("the dog\n runs �x", [0.1, 2.0, 0.5, 0.6]), example("a cat", [0.0, 1.0])]
    asked = explanation_question(shown, demos=True, max_tokens=30)
    assert "1.  the<< dog>> runs<< x>>\n2.  a<< cat>>" in asked.user
    assert asked.max_tokens == 30
    assert asked.evidence.texts[0].active == (False, True, False, True)
    tested = detection_question("dogs", shown, (1, 2))
    assert "<<" not in tested.user
    assert "activates on dogs." in tested.user
    assert tested.max_tokens == 2 * 2 + 5
    assert all(text.active is None for text in tested.evidence.texts)
    assert "names of months" in asked.system
    assert "names of months" not in explanation_question(shown, demos=False).system


def test_lines_stay_lines():
    line = Example(("one", "\n", "two"), (frozenset(),) * 3, (0.0, 0.0, 0.0), False, "random", 0.5)
    assert line.text(marked=False) == "one↵two"
