"""Stored questions, responses and judgements, read from the layouts they are published and written in.

Three layouts are known, and every file is recognised by what is in it, not by its name:

- the data published with arXiv 2503.08679: YAML files of questions (``question_by_qid``), of responses
  (``responses_by_qid``) and of judgements (``results_by_qid``), with ``-`` or ``_`` in the keys;
- the same gathered in JSON arrays (``questions.json``, ``responses.json``, ``evals.json``, ``judged.json``);
- the records of this package in JSON lines (``questions.jsonl``, ``responses.jsonl``, ``judged.jsonl``).
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError
from saeworks.faithfulness.records import Judged, Question, Response
from saeworks.faithfulness.stored_records import Records, read_records
from saeworks.files import atomic_write_text, read_json, sha256_file, sha256_json, write_json
from saeworks.progress import progress

SUFFIXES = (".json", ".jsonl", ".yaml", ".yml")
# Bumped when the same file would be read as something else, so that a cache of an older version is not used.
CACHE_VERSION = 1


@dataclass
class Study:
    """What was read: questions, responses, judgements, remarks for the reader, and the digest of every file.

    ``draws`` is how often every question was to be asked, where that is known.
    """

    questions: list[Question] = field(default_factory=list[Question])
    responses: list[Response] = field(default_factory=list[Response])
    judged: list[Judged] = field(default_factory=list[Judged])
    notes: list[str] = field(default_factory=list[str])
    files: dict[str, str] = field(default_factory=dict[str, str])
    draws: int | None = None

    def fingerprint(self) -> str:
        """Digest of all files that were read, independent of where they lie."""
        return sha256_json(sorted(self.files.values()))

    def only(self, suffix: str | None = None, judge: str | None = None, models: Sequence[str] | None = None) -> Study:
        """The part with this suffix, judge and these models; None leaves a choice out.

        Raises:
            InputError: nothing is left; the sentence says what there is.
        """
        questions = [q for q in self.questions if suffix is None or q.suffix == suffix]
        if not questions and self.questions:
            raise InputError(f"No question has the suffix '{suffix}'; there are: {_listed(self.suffixes)}.")
        known = {q.qid for q in questions}
        judged = [
            j
            for j in self.judged
            if (j.qid in known or suffix is None)
            and (judge is None or j.judge == judge)
            and (models is None or j.model in models)
        ]
        if not judged and self.judged:
            have = f"judges: {_listed(self.judges)}; models: {_listed(sorted({j.model for j in self.judged}))}"
            raise InputError(f"No judgement is left of the chosen suffix, judge and models. There are {have}.")
        responses = [r for r in self.responses if models is None or r.model in models]
        return Study(questions, responses, judged, list(self.notes), dict(self.files), self.draws)

    @property
    def suffixes(self) -> list[str]:
        """The suffixes of the questions."""
        return sorted({q.suffix for q in self.questions})

    @property
    def judges(self) -> list[str]:
        """The judges."""
        return sorted({j.judge for j in self.judged})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def read_study(path: Path, cache: Path | None = None) -> Study:
    """Read a file, or all files below a directory.

    Args:
        path: a file of one of the layouts, or a directory of such files.
        cache: directory in which what each file holds is kept, so that reading goes on after an interruption and the
            next reading is quick. A file that changed is read again.

    Raises:
        InputError: nothing to read, or a file that is damaged or holds something else.
    """
    path = Path(path)
    files = _files(path)
    study = Study()
    merged = Records()
    own = {file.name for file in files}
    bar = progress(len(files), "Reading", "file", disable=True if len(files) < 20 else None)
    for file in files:
        if file.name == "judged.json" and "evals.json" in own and path.is_dir():
            study.notes.append(
                f"'{file.name}' was left out: it holds single questions of another set and judge; give the file itself."
            )
            continue
        digest = sha256_file(file)
        study.files[str(file.relative_to(path)) if path.is_dir() else file.name] = digest
        merged.extend(_cached(file, digest, cache))
        bar.update(1)
    bar.close()
    # A question may belong to several data sets, of which one is chosen later.
    per_set: dict[tuple[str, str], Question] = {}
    unlike = sum(
        (one.expected, one.pair_key) != (first.expected, first.pair_key)
        for one in merged.questions
        if (first := per_set.setdefault((one.qid, one.suffix), one)) is not one
    )
    study.questions = list(per_set.values())
    study.responses, study.judged = merged.responses, merged.judged
    study.notes += merged.notes
    if unlike:
        study.notes.append(f"{unlike} questions are stored again with another right answer or names; the first counts.")
    _check(path, study)
    return study


def holds_logs(path: Path) -> bool:
    """Whether a path is a log of Inspect or a directory with some, which :func:`read_study` does not read."""
    return path.suffix == ".eval" or (path.is_dir() and any(path.rglob("*.eval")))


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"'{path}' does not exist; give a file or a directory of questions and judgements.")
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"'{path}' has another form than {', '.join(SUFFIXES)}; give one of those.")
        beside = path.with_name("questions.json")
        return [path, beside] if path.name == "evals.json" and beside.is_file() else [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not found:
        raise InputError(f"The directory '{path}' holds no file of the forms {', '.join(SUFFIXES)}.")
    return found


def _cached(file: Path, digest: str, cache: Path | None) -> Records:
    if cache is None:
        return read_records(file)
    kept = Path(cache) / f"{digest[:32]}.json"
    if (known := _restored(kept)) is not None:
        return known
    records = read_records(file)
    write_json(kept, {"version": CACHE_VERSION, **asdict(records)})
    return records


def _restored(kept: Path) -> Records | None:
    """What the cache holds of a file; None where it has nothing, is damaged or of another version."""
    if not kept.is_file():
        return None
    try:
        value = cast("dict[str, Any]", read_json(kept))
        if value["version"] != CACHE_VERSION:
            return None
        return Records(
            [Question(**row) for row in value["questions"]],
            [Response(**row) for row in value["responses"]],
            [Judged(**row) for row in value["judged"]],
            [str(note) for note in value["notes"]],
        )
    except (InputError, KeyError, TypeError):
        return None


def _check(path: Path, study: Study) -> None:
    """What fits together, and remarks on what does not."""
    if not study.questions and not study.responses and not study.judged:
        raise InputError(f"'{path}' holds no question, no response and no judgement; check the path.")
    known = {question.qid for question in study.questions}
    strange = {one.qid for one in study.judged} - known
    if study.questions and strange:
        study.notes.append(f"{len(strange)} judged questions are not among the questions and are left out.")
    without = known - {one.qid for one in study.judged}
    if study.judged and without:
        study.notes.append(f"{len(without)} of {len(known)} questions have no judgement.")
    again = {
        "responses": _changed(((r.model, r.qid, r.response_id), (r.text, r.outcome)) for r in study.responses),
        "judgements": _changed(
            ((j.model, j.qid, j.response_id, j.judge), (j.answer, j.equal_values)) for j in study.judged
        ),
    }
    study.notes += [
        f"{number} {what} have the id of an earlier one and say something else; the last one counts."
        for what, number in again.items()
        if number
    ]


def _changed(rows: Iterable[tuple[Hashable, Hashable]]) -> int:
    """How many of these ``(id, what it says)`` differ from an earlier one of the same id."""
    last: dict[Hashable, Hashable] = {}
    changed = 0
    for key, said in rows:
        changed += last.get(key, said) != said
        last[key] = said
    return changed


def write_study(directory: Path, study: Study) -> None:
    """Write ``questions.jsonl``, ``responses.jsonl`` and ``judged.jsonl`` (only those with content), atomically."""
    parts: dict[str, Sequence[Any]] = {
        "questions": study.questions,
        "responses": study.responses,
        "judged": study.judged,
    }
    for name, rows in parts.items():
        if rows:
            lines = (json.dumps(asdict(row), ensure_ascii=False) for row in rows)
            atomic_write_text(Path(directory) / f"{name}.jsonl", "\n".join(lines) + "\n")
