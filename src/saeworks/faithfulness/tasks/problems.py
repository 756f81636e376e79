"""Problems with reference answers, for the tasks on reasoning: read from JSON lines, JSON, CSV or YAML."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError
from saeworks.files import read_json


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem.

    Attributes:
        id: unique in its file. text: what is asked. reference: the right answer, "" where it is not known.
        solution: a worked-out solution, "" where there is none. category: of the file's own making.
        response: a stored response to be judged instead of a new one, None to ask the model.
    """

    id: str
    text: str
    reference: str = ""
    solution: str = ""
    category: str = ""
    response: str | None = None


_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "name", "problem_id"),
    "text": ("text", "problem", "question", "informal_statement"),
    "reference": ("reference", "answer", "answer_without_reasoning", "target"),
    "solution": ("solution", "full_answer", "informal_solution"),
    "category": ("category", "split"),
    "response": ("response",),
}


def read_problems(path: Path) -> list[Problem]:
    """The problems of a file: ``.jsonl``, ``.json`` or ``.yaml`` with a list of objects, or ``.csv``.

    A problem without an id gets one from its text.

    Raises:
        InputError: the file is missing or damaged, a problem has no text, or two have one id.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The file of problems '{path}' does not exist; give JSON lines, JSON, YAML or CSV.")
    found: dict[str, Problem] = {}
    for number, row in enumerate(_rows(path), 1):
        values = {key: _first(row, names) for key, names in _NAMES.items()}
        text = values["text"]
        if not text or not text.strip():
            raise InputError(f"Entry {number} of '{path}' has no text; name it 'problem' or 'question'.")
        id = values["id"] or hashlib.sha256(text.encode()).hexdigest()[:16]
        if id in found:
            raise InputError(
                f"Entry {number} of '{path}' has the id '{id}', which an earlier one has; make them differ."
            )
        found[id] = Problem(
            id,
            text,
            values["reference"] or "",
            values["solution"] or "",
            values["category"] or "",
            values["response"],
        )
    if not found:
        raise InputError(f"'{path}' holds no problem; at least one is expected.")
    return list(found.values())


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    for name in names:
        value = row.get(name)
        if value is not None and value != "":
            return str(value)
    return None


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            with open(path, encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
        if kind == ".jsonl":
            values: Any = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif kind in (".yaml", ".yml"):
            import yaml

            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        else:
            values = read_json(path)
    except (UnicodeDecodeError, ValueError, csv.Error) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"'{path}' cannot be read ({' '.join(str(e).split())}); the file is damaged.") from e
    if isinstance(values, dict):
        values = cast("dict[str, Any]", values).get("problems", [values])
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in cast("list[Any]", values)):
        raise InputError(
            f"'{path}' holds no list of problems; each should be an object with 'problem' and 'reference'."
        )
    return cast("list[Mapping[str, Any]]", values)
