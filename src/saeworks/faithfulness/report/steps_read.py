"""Solutions with flagged steps, read from Inspect's logs of the shortcut and restoration tasks, and their reviews."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError
from saeworks.faithfulness.report.content import JudgedSolution, JudgedStep, StepRates

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample

# (response id, step) → (verdict, note)
Reviews = Mapping[tuple[str, int], tuple[str, str]]
CONFIRMED = "confirmed"
REJECTED = "rejected"


def read_reviews(path: Path) -> Reviews:
    """A CSV of people's verdicts on flagged steps: ``response_id``, ``step``, ``verdict`` and ``note``.

    The response's id is that of its problem; the verdict is ``confirmed`` or ``rejected``.

    Raises:
        InputError: the file is missing, lacks a column, or holds another verdict.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as e:
        raise InputError(f"The file of reviews '{path}' does not exist; check --review.") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"'{path}' cannot be read as CSV ({e}).") from e
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for number, row in enumerate(rows, 2):
        id, step, verdict = (str(row.get(key) or "").strip() for key in ("response_id", "step", "verdict"))
        if not id or not step.isdigit() or verdict.lower() not in (CONFIRMED, REJECTED):
            raise InputError(
                f"Line {number} of '{path}' has response_id '{id}', step '{step}' and verdict '{verdict}'; an id, a "
                f"number and {CONFIRMED} or {REJECTED} are expected."
            )
        found[id, int(step)] = (verdict.lower(), str(row.get("note") or ""))
    return found


def read_steps(logs: Sequence[EvalLog], reviews: Reviews) -> tuple[list[StepRates], list[JudgedSolution]]:
    """Rates and flagged solutions of the newest log of each measurement and model; ``logs`` are the oldest first."""
    newest: dict[tuple[str, str], EvalLog] = {}
    asked: dict[str, EvalLog] = {}
    for log in logs:
        kind = str((log.eval.metadata or {}).get("kind"))
        if kind == "rollouts":
            asked[log.eval.model] = log
        elif kind in ("shortcuts", "restoration"):
            name = str((log.eval.metadata or {}).get("questions", "shortcut")) if kind == "shortcuts" else kind
            newest[name, log.eval.model] = log
    rates: list[StepRates] = []
    solutions: list[JudgedSolution] = []
    for (kind, model), log in newest.items():
        flagged: list[JudgedSolution] = []
        judged = 0
        for sample in log.samples or []:
            about = _score(sample)
            if about is None:
                continue
            judged += 1
            if found := _flagged(sample, kind, model, about, reviews):
                flagged.append(found)
        seen = [one for one in flagged if all(step.review for step in one.steps) or _confirmed(one)]
        rates.append(
            StepRates(
                kind,
                model,
                solutions=len(asked[model].samples or []) if model in asked else len(log.samples or []),
                usable=_right(log, kind),
                judged=judged,
                flagged=len(flagged),
                reviewed=len(seen),
                confirmed=sum(_confirmed(one) for one in flagged),
                details=_details(log, kind),
            )
        )
        solutions += flagged
    return rates, solutions


def _confirmed(one: JudgedSolution) -> bool:
    return any(step.review.startswith(CONFIRMED) for step in one.steps)


def _score(sample: EvalSample) -> dict[str, Any] | None:
    """The metadata of the score; None for a sample that could not be judged."""
    for one in (sample.scores or {}).values():
        if isinstance(one.value, dict):
            return one.metadata or {}
    return None


def _flagged(
    sample: EvalSample, kind: str, model: str, about: Mapping[str, Any], reviews: Reviews
) -> JudgedSolution | None:
    store: dict[str, Any] = sample.store or {}
    texts: list[str] = store.get("steps") or []
    if kind == "restoration":
        found = {int(one["step"]): str(one["reason"]) for one in about.get("confirmed") or [] if one["unfaithful"]}
    else:
        said: Mapping[str, str] = store.get("said") or {}
        answers: Mapping[str, str] = about.get("answers") or {}
        found = {
            int(n): _words(answers.get(str(n), ""), said.get(str(n), "")) for n in about.get("flagged_steps") or []
        }
    if not found:
        return None
    id = str(sample.id)
    steps = [
        JudgedStep(n, texts[n], words, ": ".join(filter(None, reviews.get((id, n), ())))) for n, words in found.items()
    ]
    problem, response = sample.metadata["problem"]["text"], sample.metadata["response"]
    return JudgedSolution(id, model, kind, str(problem), str(response), steps)


def _words(answers: str, said: str) -> str:
    """The answers as one string, and what the judge wrote around their tags."""
    return "\n".join(filter(None, (answers, re.sub(r"<(\w+)>[^<]*</\1>", "", said).strip())))


def _right(log: EvalLog, kind: str) -> int:
    """Solutions with a right final answer: all that the shortcut task sees, those that pass 0 found for restoration."""
    samples = log.samples or []
    if kind != "restoration":
        return len(samples)
    return sum((sample.store or {}).get("correctness") == "CORRECT" for sample in samples)


def _details(log: EvalLog, kind: str) -> dict[str, Any]:
    values: list[Mapping[str, Any]] = [
        one.value for s in log.samples or [] for one in (s.scores or {}).values() if isinstance(one.value, dict)
    ]
    if kind == "restoration":
        return {"steps called wrong": int(sum(float(v["incorrect_steps"]) for v in values))}
    named = {"steps": "n_steps", "flagged steps": "n_flagged", "unreadable": "n_unparsed", "judge failed": "n_failed"}
    return {name: int(sum(float(v[key]) for v in values)) for name, key in named.items()}
