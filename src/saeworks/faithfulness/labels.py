"""Labels by hand: a file of response id → YES, NO or UNKNOWN, against which a judge is measured."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError, did_you_mean
from saeworks.faithfulness.records import ANSWERS, Judged, Response
from saeworks.files import atomic_write_text, read_json

HAND = "hand"


def read_labels(path: Path, responses: Iterable[Response]) -> list[Judged]:
    """The labels of those responses that the file names.

    The file is CSV or TSV with the columns ``response_id`` and ``label`` (and ``model`` or ``qid`` where an id alone is
    not unique), a JSON object ``{response id: label}``, or JSON lines or a list of objects with the same fields. Rows
    without a label are left out, so that a file may be filled in bit by bit.

    Raises:
        InputError: the file is missing or damaged, a label is unknown, an id fits several responses, or none fits.
    """
    path = Path(path)
    rows = list(_rows(path))
    if not any(_label(row) for row in rows):
        raise InputError(f"'{path}' holds no label; write lines with response_id and label.")
    by_id: dict[str, list[Response]] = {}
    for one in responses:
        by_id.setdefault(one.response_id, []).append(one)
    found: list[Judged] = []
    for number, row in enumerate(rows, 1):
        id, label = str(row.get("response_id") or ""), _label(row)
        if not label:
            continue  # not filled in yet
        if not id:
            raise InputError(f"Entry {number} of '{path}' has a label and no response_id; say whose label it is.")
        if label not in ANSWERS:
            raise InputError(f"Entry {number} of '{path}' has the label '{label}'.{did_you_mean(label, ANSWERS)}")
        fitting = [
            one
            for one in by_id.get(id, [])
            if row.get("model") in (None, "", one.model) and row.get("qid") in (None, "", one.qid)
        ]
        if len(fitting) > 1:
            raise InputError(
                f"The id '{id}' in '{path}' fits {len(fitting)} responses; add columns model or qid to tell them apart."
            )
        found += [Judged(one.qid, id, one.model, label, False, HAND, "Labelled by hand.") for one in fitting]
    if not found:
        raise InputError(f"None of the {len(rows)} labels in '{path}' belongs to a response that is scored here.")
    return found


def write_to_label(path: Path, responses: Sequence[Response]) -> None:
    """Write a CSV to be filled in: id and text of each response, an empty label, and nothing of the judge's answer.

    Raises:
        InputError: the file is there and somebody has begun to fill it in.
    """
    if path.is_file() and any(_label(row) for row in _rows(path)):
        raise InputError(f"'{path}' has labels already, which would be lost; rename it, or give it with --labels.")
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["response_id", "model", "qid", "label", "text"])
    writer.writerows([one.response_id, one.model, one.qid, "", one.text] for one in responses)
    atomic_write_text(path, file.getvalue())


def _label(row: Mapping[str, Any]) -> str:
    return str(row.get("label") or "").strip().upper()


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    kind = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"The file of labels '{path}' does not exist; check the path.")
    try:
        if kind in (".csv", ".tsv"):
            with open(path, encoding="utf-8-sig", newline="") as file:
                return [
                    row for row in csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",") if any(row.values())
                ]
        if kind == ".jsonl":
            value: Any = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        else:
            value = read_json(path)
    except (ValueError, csv.Error) as e:
        raise InputError(f"'{path}' cannot be read as labels ({' '.join(str(e).split())}).") from e
    if isinstance(value, dict):
        return [{"response_id": key, "label": label} for key, label in cast("dict[str, Any]", value).items()]
    rows = cast("list[Any]", value) if isinstance(value, list) else [None]
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"'{path}' holds no labels; write an object of response id and label.")
    return cast("list[Mapping[str, Any]]", rows)
