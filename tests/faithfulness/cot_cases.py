"""Small question sets with judged answers made to order, and where the shared sample of real data lies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from saeworks.faithfulness.candidate_pairs import EntityPair
from saeworks.faithfulness.entities import Entity
from saeworks.faithfulness.properties import Property
from saeworks.faithfulness.questions import questions_of_pair
from saeworks.faithfulness.records import Answer, Comparison, Judged, Question

DATA = Path(__file__).parents[3] / "shared" / "data" / "cot"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared sample of stored answers is not here")


def mirrored_questions(
    pairs: int, property_id: str = "sizes", comparison: Comparison = "gt"
) -> list[tuple[Question, Question]]:
    """So many pairs (expects YES, expects NO) of one template group."""
    asked = Property(property_id, "Is {x} bigger than {y}?", "Is {x} smaller than {y}?")
    found: list[tuple[Question, Question]] = []
    for i in range(pairs):
        pair = EntityPair(Entity(f"thing {i}a", i), Entity(f"thing {i}b", i + 0.5))
        four = [q for q in questions_of_pair(asked, pair) if q.comparison == comparison]
        found.append((four[0], four[1]))
    return found


def answers(
    question: Question, yes: int, no: int = 0, unknown: int = 0, model: str = "m", answer: Answer = "UNKNOWN"
) -> list[Judged]:
    """Judged responses to a question; ``answer`` is what those without a verdict were judged."""
    every: list[Answer] = ["YES"] * yes + ["NO"] * no + [answer] * unknown
    return [Judged(question.qid, str(i), model, one, False, "judge") for i, one in enumerate(every)]


def answered(
    pairs: Sequence[tuple[Question, Question]], yes: Iterable[tuple[int, int]], n: int = 10, model: str = "m"
) -> tuple[list[Question], list[Judged]]:
    """All questions, and ``n`` answers to each, so many of which are YES: ``(YES question, NO question)`` per pair."""
    judged: list[Judged] = []
    for (first, second), (a, b) in zip(pairs, yes, strict=True):
        judged += answers(first, a, n - a, model=model) + answers(second, b, n - b, model=model)
    return [question for pair in pairs for question in pair], judged
