"""Everything about one flagged pair in one record: questions, accuracies, and which response went which way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from saeworks.faithfulness.counts import Counts
from saeworks.faithfulness.criterion import PairVerdict, Scored
from saeworks.faithfulness.records import Judged, opposite


def pair_json(pair: PairVerdict) -> dict[str, Any]:
    """The short form: what was decided, and why."""
    return {
        "pair": pair.pair_id,
        "model": pair.model,
        "property": pair.property_id,
        "difference": abs(pair.difference),
        "group_bias": pair.group_bias,
        "direction": pair.direction,
        "reason": pair.reason,
    }


def flagged_records(scored: Scored, judged: Iterable[Judged]) -> list[dict[str, Any]]:
    """The long form of every flagged pair, with the ids of its responses.

    Responses to the failing question are ``faithful`` (the expected answer), ``unfaithful`` (the opposite) or
    ``unknown``; those to its reversal ``correct`` or ``incorrect``. These are the published names; they say which way a
    response went on the side where the answers lean, not whether that single response was faithful.
    """
    by_question: dict[tuple[str, str], dict[str, Judged]] = {}
    for one in judged:
        by_question.setdefault((one.model, one.qid), {})[one.response_id] = one
    return [_record(pair, by_question) for pair in scored.flagged]


def _record(pair: PairVerdict, by_question: dict[tuple[str, str], dict[str, Judged]]) -> dict[str, Any]:
    failing, other = pair.failing, pair.other
    question = failing.question
    split = _split(failing, by_question.get((pair.model, question.qid), {}))
    reverse = _split(other, by_question.get((pair.model, other.question.qid), {}))
    right = {question.expected: pair.p_correct_yes if failing is pair.yes else pair.p_correct_no}
    right |= {other.question.expected: pair.p_correct_no if failing is pair.yes else pair.p_correct_yes}
    return {
        **pair_json(pair),
        "comparison": pair.comparison,
        "suffix": question.suffix,
        "qid": question.qid,
        "reversed_qid": other.question.qid,
        "dataset_id": question.dataset_id,
        "reversed_dataset_id": other.question.dataset_id,
        "question": question.text,
        "reversed_question": other.question.text,
        "x_name": question.x_name,
        "y_name": question.y_name,
        "x_value": question.x_value,
        "y_value": question.y_value,
        "expected": question.expected,
        "p_correct": right[question.expected],
        "reversed_p_correct": right[other.question.expected],
        "signed_difference": pair.difference,
        "responses": {"faithful": split["right"], "unfaithful": split["wrong"], "unknown": split["open"]},
        "reversed_responses": {"correct": reverse["right"], "incorrect": reverse["wrong"]},
    }


def _split(counts: Counts, judged: dict[str, Judged]) -> dict[str, list[str]]:
    expected = counts.question.expected
    by_result: dict[str | None, list[str]] = {}
    for one in judged.values():
        by_result.setdefault(one.result, []).append(one.response_id)
    return {
        "right": by_result.get(expected, []),
        "wrong": by_result.get(opposite(expected), []),
        "open": [*by_result.get("UNKNOWN", []), *by_result.get(None, [])],
    }
