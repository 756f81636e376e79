"""One stored file as records: which layout it has, and what its fields mean. Damage is told with file and place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError, did_you_mean
from saeworks.faithfulness.questions import DatasetId, parse_dataset_id
from saeworks.faithfulness.records import (
    ANSWERS,
    COMPARISONS,
    KEYWORD_JUDGE,
    OUTCOMES,
    Answer,
    Comparison,
    Expected,
    Judged,
    Question,
    Response,
    question_id,
    storable,
)
from saeworks.files import read_json

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _DatasetOf:
    """What the questions of one file have in common."""

    property_id: str
    comparison: Comparison
    answer: Expected
    dataset_id: str
    suffix: str


@dataclass
class Records:
    """What a file holds, and remarks on it."""

    questions: list[Question] = field(default_factory=list[Question])
    responses: list[Response] = field(default_factory=list[Response])
    judged: list[Judged] = field(default_factory=list[Judged])
    notes: list[str] = field(default_factory=list[str])

    def extend(self, other: Records) -> None:
        """Add what another file holds."""
        self.questions += other.questions
        self.responses += other.responses
        self.judged += other.judged
        self.notes += other.notes


def read_records(path: Path) -> Records:
    """Read one file of any known layout.

    Raises:
        InputError: a file that cannot be read, of another layout, with a missing or wrong field, or whose question ids
            are not those of its texts.
    """
    path = Path(path)
    if path.suffix.lower() == ".jsonl":
        return _lines(path)
    value = read_json(path) if path.suffix.lower() == ".json" else _yaml(path)
    records = Records()
    if isinstance(value, list):
        for number, row in enumerate(cast("list[Any]", value)):
            where = f"'{path}', entry {number},"
            _add(records, where, _object(where, row))
    else:
        where = f"'{path}'"
        _add(records, where, _object(where, value))
    return records


def _yaml(path: Path) -> Any:
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # a date that does not exist is a ValueError
        told = " ".join(str(e).split())[:160]
        raise InputError(f"'{path}' is not valid YAML ({told}); the file is damaged or of another kind.") from e


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} holds no object with named fields; it is damaged or of another layout.")
    # The published files changed from "model-id" to "model_id" over time.
    return {str(key).replace("-", "_"): item for key, item in cast("dict[Any, Any]", value).items()}


def _add(records: Records, where: str, row: dict[str, Any]) -> None:
    """Recognise one object and read it."""
    kinds: tuple[tuple[set[str], Callable[[str, dict[str, Any]], Records]], ...] = (
        ({"question_by_qid", "params"}, _published_questions),
        ({"questions", "prop_id"}, _gathered_questions),
        ({"results_by_qid"}, _published_results),
        ({"responses_by_qid"}, _published_responses),
        ({"results", "model_id"}, _gathered_results),
        ({"responses", "qid8"}, _judged_sample),
        ({"text", "qid", "model_id"}, _gathered_response),
        ({"flagged", "rule"}, _verdicts),
    )
    for keys, read in kinds:
        if keys <= set(row):
            records.extend(read(where, row))
            return
    raise InputError(
        f"{where} has the fields {', '.join(sorted(row)[:8])}, which is no known layout of questions, responses or "
        "judgements; remove the file from the directory or convert it."
    )


def _need(where: str, row: Fields, key: str, kind: type | tuple[type, ...] = str) -> Any:
    if key not in row:
        raise InputError(f"{where} lacks the field '{key}'.{did_you_mean(key, map(str, row))}")
    if not isinstance(row[key], kind) or isinstance(row[key], bool):
        raise InputError(f"{where} has {_shown(row[key])} as '{key}', which is of the wrong kind.")
    return storable(row[key]) if isinstance(row[key], str) else row[key]


def _number(where: str, row: Fields, key: str) -> float:
    given = _need(where, row, key, (int, float))
    try:
        value = float(given)
    except OverflowError:  # an integer of hundreds of digits
        value = math.inf
    if not math.isfinite(value):
        raise InputError(f"{where} has {value} as '{key}'; a finite number is expected.")
    return value


def _one_of(where: str, what: str, value: Any, known: Sequence[str]) -> Any:
    if isinstance(value, bool):  # an unquoted YES or NO of YAML
        value = "YES" if value else "NO"
    if value not in known:
        like = did_you_mean(value if isinstance(value, str) else "", known)
        raise InputError(f"{where} has the {what} {_shown(value)}.{like}")
    return value


def _shown(value: Any) -> str:
    """The beginning of a wrong value. Of a collection only what it is: written out it may be endless."""
    plain = value is None or isinstance(value, (str, int, float))
    return repr(str(value)[:40]) if plain else f"a {type(value).__name__}"


def _question(where: str, qid: str, row: Fields, about: _DatasetOf) -> Question:
    text = _need(where, row, "q_str")
    if question_id(text) != qid:
        raise InputError(
            f"{where} has the id {qid[:8]} for a text whose SHA-256 begins with {question_id(text)[:8]}; "
            "the text or the id was changed."
        )
    names = (_need(where, row, "x_name"), _need(where, row, "y_name"))
    values = (_number(where, row, "x_value"), _number(where, row, "y_value"))
    return Question(qid, text, about.property_id, about.comparison, about.answer, *names, *values,
                    about.dataset_id, about.suffix)  # fmt: skip


def _about(where: str, row: Fields) -> _DatasetOf:
    property_id = _need(where, row, "prop_id")
    comparison: Comparison = _one_of(where, "comparison", row.get("comparison"), COMPARISONS)
    answer: Expected = _one_of(where, "expected answer", row.get("answer"), ("YES", "NO"))
    suffix, dataset_id = str(row.get("suffix") or ""), str(row.get("dataset_id") or "")
    if dataset_id:
        suffix = parse_dataset_id(dataset_id).suffix
    elif "uuid" in row:
        most = int(_number(where, row, "max_comparisons")) if row.get("max_comparisons") else 1
        dataset_id = str(DatasetId(property_id, comparison, answer, most, str(row["uuid"]), suffix))
    return _DatasetOf(property_id, comparison, answer, dataset_id, suffix)


def _published_questions(where: str, row: dict[str, Any]) -> Records:
    about = _about(where, _object(f"{where} in 'params'", row["params"]))
    table = _object_of(where, row["question_by_qid"])
    return Records([_question(f"{where} at {qid[:8]}", qid, _object(where, q), about) for qid, q in table.items()])


def _gathered_questions(where: str, row: dict[str, Any]) -> Records:
    about = _about(where, row)
    rows = [_object(where, q) for q in _need(where, row, "questions", list)]
    return Records([_question(f"{where} at {str(q.get('qid'))[:8]}", _need(where, q, "qid"), q, about) for q in rows])


def _object_of(where: str, value: Any) -> dict[str, Any]:
    """An object whose keys are ids and stay as they are."""
    if not isinstance(value, dict):
        raise InputError(f"{where} holds no table by question id; it is damaged or of another layout.")
    return {storable(str(key)): item for key, item in cast("dict[Any, Any]", value).items()}


def _judgement(where: str, qid: str, response_id: str, model: str, judge: str, value: Any) -> Judged:
    """A stored result: a bare answer, the judge's outputs, or nothing, which is a judge that could not be read."""
    if value is None:
        return Judged(qid, response_id, model, "FAILED_EVAL", None, judge)
    if not isinstance(value, dict):
        answer: Answer = _one_of(where, "result", value, ANSWERS)
        return Judged(qid, response_id, model, answer, False, judge)
    row = _object(where, cast("dict[Any, Any]", value))
    final = row.get("final_answer")
    if final is None:
        return Judged(qid, response_id, model, _one_of(where, "result", row.get("result"), ANSWERS), False, judge)
    answer = _one_of(where, "final answer", final, ANSWERS)
    told = storable(str(row.get("explanation_final_answer") or ""))
    return Judged(qid, response_id, model, answer, _flag(where, row.get("equal_values")), judge, told)


def _flag(where: str, value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    word = str(value).strip().upper()
    return {"TRUE": True, "FALSE": False}.get(word)


def _judge_of(row: Fields, key: str) -> str:
    return storable(str(row.get(key) or KEYWORD_JUDGE))


def _published_results(where: str, row: dict[str, Any]) -> Records:
    model, judge = _need(where, row, "model_id"), _judge_of(row, "evaluator")
    return Records(
        judged=[
            _judgement(f"{where} at {qid[:8]}", qid, response, model, judge, value)
            for qid, table in _object_of(where, row["results_by_qid"]).items()
            for response, value in _object_of(f"{where} at {qid[:8]}", table).items()
        ]
    )


def _published_responses(where: str, row: dict[str, Any]) -> Records:
    model = _need(where, row, "model_id")
    found: list[Response] = []
    for qid, table in _object_of(where, row["responses_by_qid"]).items():
        for response, text in _object_of(f"{where} at {qid[:8]}", table).items():
            if not isinstance(text, str):
                raise InputError(f"{where} at {qid[:8]} holds a response that is no text; the file is damaged.")
            found.append(Response(qid, response, model, storable(text), None, "answered" if text.strip() else "empty"))
    return Records(responses=found)


def _gathered_results(where: str, row: dict[str, Any]) -> Records:
    model, judge = _need(where, row, "model_id"), _judge_of(row, "judge")
    judged: list[Judged] = []
    for qid, results in _object_of(where, row["results"]).items():
        if not isinstance(results, list):
            raise InputError(f"{where} at {qid[:8]} holds no list of results; the file is damaged.")
        for position, value in enumerate(cast("list[Any]", results)):
            judged.append(_judgement(f"{where} at {qid[:8]}", qid, str(position), model, judge, value))
    return Records(judged=judged)


def _judged_sample(where: str, row: dict[str, Any]) -> Records:
    """Judgements with both outputs of the judge: ``[response id or null, answer, flag, result]``."""
    text, model = _need(where, row, "q_str"), _need(where, row, "model_id")
    qid = question_id(text)
    if not qid.startswith(_need(where, row, "qid8")):
        raise InputError(f"{where} has the id {row['qid8']}, but the SHA-256 of its text begins with {qid[:8]}.")
    about = _about(where, row)
    values = (_number(where, row, "x_value"), _number(where, row, "y_value"))
    # The names stand in the text only; the question has no partner in such a file, so that no pair needs them.
    question = Question(qid, text, about.property_id, about.comparison, about.answer, "x", "y", *values)
    judged: list[Judged] = []
    for position, entry in enumerate(_need(where, row, "responses", list)):
        if not isinstance(entry, list) or len(cast("list[Any]", entry)) != 4:
            raise InputError(f"{where} holds a response of another form than [id, answer, flag, result].")
        response, answer, flag, _ = cast("list[Any]", entry)
        known: Answer = _one_of(where, "answer", answer, ANSWERS)
        judged.append(
            Judged(qid, str(response or position), model, known, _flag(where, flag), str(row.get("judge") or ""))
        )
    return Records([question], judged=judged)


def _gathered_response(where: str, row: dict[str, Any]) -> Records:
    qid, text, model = _need(where, row, "qid"), _need(where, row, "text"), _need(where, row, "model_id")
    position = row.get("position")
    # Without a position a text is told from the others by its digest.
    response = str(position) if position is not None else f"text-{question_id(text)[:8]}"
    return Records(responses=[Response(qid, response, model, text, None, "answered" if text.strip() else "empty")])


def _verdicts(where: str, row: dict[str, Any]) -> Records:
    """Verdicts of others are not read: they are computed anew."""
    return Records()


def _lines(path: Path) -> Records:
    """JSON lines of this package's own records."""
    records = Records()
    # Line by line, so that a file of any size takes no more memory than its records.
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"'{path}', line {number},"
            try:
                value: Any = json.loads(line)
            except (ValueError, RecursionError) as e:
                if not line.endswith(b"\n"):  # the last line, which a kill cut off; what came before is whole
                    records.notes.append(f"The last line of '{path.name}' is cut off and was left out.")
                    break
                raise InputError(f"{where} is not valid JSON ({e}); remove the line.") from e
            _record(records, where, _object(where, value))
    return records


_FIELDS = {one.name for kind in (Question, Response, Judged) for one in fields(kind)}
_TEXTS = {one.name for kind in (Question, Response, Judged) for one in fields(kind) if one.type == "str"}


def _record(records: Records, where: str, row: dict[str, Any]) -> None:
    if not row.keys() <= _FIELDS:
        extra = sorted(row.keys() - _FIELDS)
        raise InputError(f"{where} has the unknown field '{extra[0]}'; it is no record of this package.")
    row = {key: storable(item) if isinstance(item, str) else item for key, item in row.items()}
    try:
        for key in row.keys() & _TEXTS:
            _need(where, row, key)
        if {"property_id", "x_name"} <= set(row):
            question = Question(**row)
            _one_of(where, "comparison", question.comparison, COMPARISONS)
            _one_of(where, "expected answer", question.expected, ("YES", "NO"))
            for key in ("x_value", "y_value"):
                _number(where, row, key)
            if question_id(question.text) != question.qid:
                raise InputError(f"{where} has an id that is not the SHA-256 of its text; one of them was changed.")
            records.questions.append(question)
        elif {"answer", "response_id"} <= set(row):
            _one_of(where, "answer", row["answer"], ANSWERS)
            if not (row.get("equal_values") is None or isinstance(row["equal_values"], bool)):
                raise InputError(f"{where} has {row['equal_values']!r} as 'equal_values'; write true, false or null.")
            records.judged.append(Judged(**row))
        else:
            _one_of(where, "outcome", row.get("outcome", "answered"), OUTCOMES)
            if row.get("reasoning") is not None:
                _need(where, row, "reasoning")
            records.responses.append(Response(**row))
    except TypeError as e:
        raise InputError(f"{where} is no record of this package ({e}).") from e
