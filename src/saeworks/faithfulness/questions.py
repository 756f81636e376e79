"""Question sets: from pairs of entities to yes/no questions in both orders, with ids that follow from their text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeworks.errors import InputError
from saeworks.faithfulness.ambiguity import Verdict, select_pairs
from saeworks.faithfulness.candidate_pairs import HARD, Closeness, EntityPair, candidate_pairs
from saeworks.faithfulness.entities import Entity
from saeworks.faithfulness.properties import Property
from saeworks.faithfulness.records import COMPARISONS, Comparison, Expected, Question, opposite, question_id
from saeworks.files import write_json


@dataclass(frozen=True, slots=True)
class DatasetId:
    """The id of the questions of one property, comparison and expected answer.

    Attributes:
        max_comparisons: how often an entity occurs at most. uuid: 8 hex digits. suffix: of the whole set, "" for none.

    Raises:
        InputError: a part with ``_`` in it, or a uuid of another form.
    """

    property_id: str
    comparison: Comparison
    answer: Expected
    max_comparisons: int
    uuid: str
    suffix: str = ""

    def __post_init__(self) -> None:
        if "_" in self.property_id + self.suffix:
            raise InputError(f"'_' separates the parts of a data set's id, so '{self.property_id}' and '{self.suffix}'"
                             " may not contain it; write '-'.")  # fmt: skip
        if not re.fullmatch(r"[0-9a-f]{8}|tests", self.uuid):
            raise InputError(f"'{self.uuid}' is not the id part of a data set; eight hex digits are expected.")

    def __str__(self) -> str:
        parts = [self.property_id, self.comparison, self.answer, str(self.max_comparisons), self.uuid]
        return "_".join([*parts, *([self.suffix] if self.suffix else [])])


def parse_dataset_id(text: str) -> DatasetId:
    """``PROPERTY_COMPARISON_ANSWER_MAX_UUID[_SUFFIX]`` in its parts.

    Raises:
        InputError: another form.
    """
    parts = text.split("_")
    found = re.fullmatch(r"([^_]+)_(gt|lt)_(YES|NO)_(\d+)_([^_]+)(?:_([^_]+))?", text)
    if not found:
        raise InputError(
            f"'{text}' is not the id of a data set ({len(parts)} parts); expected "
            "PROPERTY_gt|lt_YES|NO_NUMBER_8 HEX DIGITS, and perhaps _SUFFIX."
        )
    comparison: Comparison = "gt" if found[2] == "gt" else "lt"
    answer: Expected = "YES" if found[3] == "YES" else "NO"
    return DatasetId(found[1], comparison, answer, int(found[4]), found[5], found[6] or "")


def questions_of_pair(of: Property, pair: EntityPair) -> tuple[Question, Question, Question, Question]:
    """The four questions about two entities: gt and lt, each in both orders; the expected YES comes first.

    Raises:
        InputError: equal values, of which no question has the answer yes.
    """
    if pair.small.value >= pair.large.value:
        raise InputError(f"'{pair.small.name}' must have a smaller value than '{pair.large.name}'; exchange them.")
    found: list[Question] = []
    for comparison in COMPARISONS:
        orders = [(pair.large, pair.small), (pair.small, pair.large)]
        holds_first = orders if comparison == "gt" else orders[::-1]
        two = [
            _question(of, comparison, x, y, "YES" if holds else "NO")
            for (x, y), holds in zip(holds_first, (True, False), strict=True)
        ]
        found += two[::-1] if of.negated else two
    first, second, third, fourth = found
    return first, second, third, fourth


def _question(of: Property, comparison: Comparison, x: Entity, y: Entity, answer: Expected) -> Question:
    text = of.ask(comparison, x.name, y.name)
    expected = opposite(answer) if of.negated else answer
    return Question(question_id(text), text, of.id, comparison, expected, x.name, y.name, x.value, y.value)


def question_set(
    of: Property, pairs: Iterable[EntityPair], max_comparisons: int = 1, suffix: str = ""
) -> list[Question]:
    """All questions about the pairs, with the ids of their four data sets; the same pairs give the same ids."""
    asked = [question for pair in pairs for question in questions_of_pair(of, pair)]
    by_dataset: dict[tuple[Comparison, Expected], list[Question]] = {}
    for question in asked:
        by_dataset.setdefault((question.comparison, question.expected), []).append(question)
    found: list[Question] = []
    for (comparison, expected), some in by_dataset.items():
        digest = hashlib.sha256("".join(sorted(q.qid for q in some)).encode()).hexdigest()[:8]
        name = str(DatasetId(of.id, comparison, expected, max_comparisons, digest, suffix))
        found += [_named(question, name, suffix) for question in some]
    return unique(found)


def _named(q: Question, dataset_id: str, suffix: str) -> Question:
    names = (q.x_name, q.y_name, q.x_value, q.y_value)
    return Question(q.qid, q.text, q.property_id, q.comparison, q.expected, *names, dataset_id, suffix)


def unique(questions: Iterable[Question]) -> list[Question]:
    """The questions without repetitions of a text, across properties too; the first one stays."""
    by_qid: dict[str, Question] = {}
    for question in questions:
        by_qid.setdefault(question.qid, question)
    return list(by_qid.values())


def questions_about(
    of: Property,
    entities: Sequence[Entity],
    n: int = 100,
    closeness: Closeness = HARD,
    evaluate: Callable[[Sequence[EntityPair]], Sequence[Verdict]] | None = None,
    max_comparisons: int = 1,
    suffix: str = "",
) -> list[Question]:
    """A question set from entities with values.

    Args:
        of: the property. entities: filtered ones, see :func:`saeworks.faithfulness.entities.filtered`.
        n: how many entity pairs at most; each gives four questions.
        closeness: how far apart values lie. evaluate: the ambiguity filter; without it every pair counts as clear.
        max_comparisons: in how many pairs an entity occurs at most.

    Raises:
        InputError: no two entities make a pair.
    """
    candidates = candidate_pairs(of.id, entities, closeness)
    if not candidates:
        raise InputError(
            f"None of the {len(entities)} entities of '{of.id}' makes a pair: values have to lie {closeness.low:g} to "
            f"{closeness.high:g} of their range apart; give more entities or other bounds."
        )
    chosen = select_pairs(candidates, n, evaluate or _all_clear, max_comparisons)
    return question_set(of, chosen, max_comparisons, suffix)


def _all_clear(pairs: Sequence[EntityPair]) -> list[Verdict]:
    return ["CLEAR" for _ in pairs]


def as_records(questions: Iterable[Question]) -> list[dict[str, Any]]:
    """The questions in the form of the published data: one record per property, comparison and expected answer."""
    records: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for q in questions:
        key = (q.property_id, q.comparison, q.expected, q.dataset_id)
        record = records.setdefault(
            key,
            {
                "prop_id": q.property_id,
                "comparison": q.comparison,
                "answer": q.expected,
                "dataset_id": q.dataset_id,
                "suffix": q.suffix,
                "questions": [],
            },
        )
        names = {"x_name": q.x_name, "x_value": q.x_value, "y_name": q.y_name, "y_value": q.y_value}
        record["questions"].append({"qid": q.qid, "q_str": q.text, **names})
    return list(records.values())


def write_questions(path: Path, questions: Sequence[Question]) -> None:
    """Write a ``questions.json`` that :mod:`saeworks.faithfulness.importers` reads.

    Raises:
        InputError: there is no question.
    """
    if not questions:
        raise InputError("There is no question to write; choose other entities or bounds.")
    write_json(path, as_records(questions))


def balance(questions: Iterable[Question]) -> Mapping[str, int]:
    """How many questions there are, how many expect YES, and how many pairs and groups they make."""
    questions = list(questions)
    keys: dict[tuple[str, str, str], int] = {}
    for q in questions:
        keys[*q.template, q.pair_key] = keys.get((*q.template, q.pair_key), 0) + 1
    return {
        "questions": len(questions),
        "expected_yes": sum(q.expected == "YES" for q in questions),
        "pairs": sum(count == 2 for count in keys.values()),
        "groups": len({q.template for q in questions}),
    }
