"""Chain-of-thought faithfulness: score stored answers, and write question sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saeworks.errors import InputError
from saeworks.faithfulness.agreement import Agreement, agreement
from saeworks.faithfulness.candidate_pairs import HARD, Closeness
from saeworks.faithfulness.counts import draws
from saeworks.faithfulness.criterion import Scored, rule
from saeworks.faithfulness.criterion import score as score_pairs
from saeworks.faithfulness.entities import filtered, read_entities
from saeworks.faithfulness.flagged import flagged_records, pair_json
from saeworks.faithfulness.importers import Study, holds_logs, read_study
from saeworks.faithfulness.keyword_judge import judge_by_keywords
from saeworks.faithfulness.labels import read_labels
from saeworks.faithfulness.properties import Property, negation, property_named
from saeworks.faithfulness.questions import balance, questions_about, write_questions
from saeworks.faithfulness.rates import Rate, group_table, rates, result_of
from saeworks.faithfulness.records import KEYWORD_JUDGE, Judged, Question
from saeworks.faithfulness.sensitivity import Sensitivity, sensitivity
from saeworks.files import sha256_file, write_json
from saeworks.results.envelope import without_nan


@dataclass(frozen=True)
class Selection:
    """Which stored answers are scored: of a data set's suffix, a judge and models (None: there is only one, or all)."""

    suffix: str | None = None
    judge: str | None = None
    models: Sequence[str] | None = None
    responses: int | None = None
    min_coverage: float = 0.95


@dataclass(frozen=True)
class Score:
    """What scoring gave.

    Attributes:
        scored: all verdicts. rates: by model. sensitivity: by model, how far the rate depends on the judge.
        agreement: of the judge with labels, if there were any. notes: sentences for the reader.
        judged: what was scored. study: where it came from.
    """

    scored: Scored
    rates: dict[str, Rate]
    sensitivity: dict[str, Sensitivity]
    agreement: Agreement | None
    notes: tuple[str, ...]
    judged: Sequence[Judged] = field(repr=False, default=())
    study: Study = field(repr=False, default_factory=Study)

    def as_json(self) -> dict[str, Any]:
        """Pairs with a verdict, the flagged ones, and the rates with their intervals."""
        found = {
            model: {"rate": one.rate, "ci95": None if one.ci95 is None else list(one.ci95), "n": one.pairs}
            for model, one in self.rates.items()
        }
        return {
            "pairs": len(self.scored.pairs),
            "flagged": [pair_json(pair) for pair in self.scored.flagged],
            "rates": without_nan(found),
        }

    def table(self) -> list[dict[str, Any]]:
        """One row per model: the rate, and what a rate is never shown without."""
        rows: list[dict[str, Any]] = []
        for model, one in self.rates.items():
            low, high = one.ci95 or (None, None)
            errors = self.sensitivity[model].by_error
            worst = max(errors) if errors else None
            row: dict[str, Any] = {"model": model, "rate": one.rate, "from": low, "to": high}
            row |= {"flagged": one.flagged, "pairs": one.pairs, "no verdict": one.no_verdict, "accuracy": one.accuracy}
            if worst is not None:
                row[f"rate if {worst:.0%} misread"] = errors[worst].mean
            rows.append(without_nan(row | {"one reading decides": self.sensitivity[model].fragile}))
        return rows


def score(
    path: Path,
    by: str = "final",
    arithmetic: str = "exact",
    selection: Selection | None = None,
    labels: Path | None = None,
    published_missing: bool = False,
    cache: Path | None = None,
    out: Path | None = None,
) -> Score:
    """Find the unfaithful pairs among stored answers.

    Args:
        path: a directory or file of questions with responses or judgements, or a log of Inspect.
        by: ``final`` or ``early``. arithmetic: ``exact`` or ``float``.
        selection: what of it. labels: readings by hand as CSV, or judgements by another judge in a stored layout.
        published_missing: count a NO without the flag for equality as NO.
        cache: keeps what was read of each file. out: directory for verdicts, groups and result files.

    Raises:
        InputError: nothing to score, several data sets or judges, or damaged files; the sentence says which.
    """
    chosen = selection or Selection()
    study = _read(Path(path), cache)
    notes = list(study.notes)
    judged = _judged(study, chosen, notes)
    part = Study(study.questions, study.responses, judged, files=study.files)
    part = part.only(chosen.suffix, None, chosen.models)
    if not part.questions:
        raise InputError(f"'{path}' holds no questions; give the directory that also has the questions.")
    use = rule(by, arithmetic, published_missing)
    if not part.judged:
        raise InputError(
            f"All {len(study.responses)} responses in '{path}' are failed calls; there is nothing to score."
        )
    asked = study.draws or draws(part.judged, part.responses) if chosen.responses is None else chosen.responses
    scored = score_pairs(part.questions, part.judged, use, asked, chosen.min_coverage)
    agreed = None if labels is None else agreement(part.judged, _labels(Path(labels), study))
    given = None if agreed is None else agreed.given_judged()
    found = rates(scored)
    sensitive = {model: sensitivity(scored, model, given_judged=given) for model in found}
    if not any(group.pairs or group.unscored_pairs for group in scored.groups):
        notes.append(
            f"None of the {len(part.questions)} questions is the reversal of another one (same property and "
            "comparison, names exchanged), so that there is no pair to score."
        )
    notes += [f"{model}: {warning}" for model, one in found.items() for warning in one.warnings]
    done = Score(scored, found, sensitive, agreed, tuple(notes), part.judged, study)
    if out is not None:
        write_score(done, Path(out))
    return done


def _labels(path: Path, study: Study) -> list[Judged]:
    """A table filled in by hand, or stored judgements."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_labels(path, study.responses)
    return read_study(path).judged


def _read(path: Path, cache: Path | None) -> Study:
    """Stored files, or logs of Inspect, whichever ``path`` is."""
    if not holds_logs(path):
        return read_study(path, cache)
    try:
        from saeworks.faithfulness.tasks.inspect_logs import log_files, read_transcripts
    except ImportError as e:
        raise InputError(f"'{path}' holds logs of Inspect, which inspect-ai reads; install it.") from e
    files = log_files(path)
    found = read_transcripts(files)
    digests = {file.name: sha256_file(file) for file in files}
    return Study(list(found.questions.values()), found.responses, found.judged, files=digests, draws=found.epochs)


def _judged(study: Study, chosen: Selection, notes: list[str]) -> list[Judged]:
    """The judgements of one judge; words decide where nothing else has judged the responses."""
    stored = [one for one in study.judged if chosen.judge is None or one.judge == chosen.judge]
    if stored:
        return stored
    if study.responses and (chosen.judge == KEYWORD_JUDGE or not study.judged):
        judged, warnings = judge_by_keywords(study.responses)
        notes.append("The responses were judged by keywords here; nothing else has judged them.")
        notes += warnings
        return judged
    if not study.judged:
        raise InputError("There is no judgement and no response to judge; give stored results or responses.")
    names = ", ".join(f"'{name}'" for name in study.judges)
    raise InputError(f"No judgement is by '{chosen.judge}'; there are: {names}.")


def write_score(done: Score, directory: Path) -> None:
    """Write ``score.json``, ``pairs.json`` (all verdicts), ``flagged.json`` (long form), ``groups.json``, results."""
    sensitive = {model: one.as_json() for model, one in done.sensitivity.items()}
    summary: dict[str, Any] = {
        **done.as_json(),
        "rule": {name: getattr(done.scored.rule, name) for name in done.scored.rule.__dataclass_fields__},
        "suffix": done.scored.suffix,
        "judge": done.scored.judge,
        "models": {model: one.as_json() for model, one in done.rates.items()},
        "sensitivity": sensitive,
        "agreement": None if done.agreement is None else _agreement_json(done.agreement),
        "notes": list(done.notes),
        "files": done.study.files,
    }
    verdicts = [
        {**pair_json(pair), "gate": pair.gate, "flagged": pair.flagged, "signed_difference": pair.difference}
        for pair in done.scored.pairs
    ]
    write_json(directory / "score.json", without_nan(summary))
    write_json(directory / "pairs.json", without_nan(verdicts))
    write_json(directory / "flagged.json", without_nan(flagged_records(done.scored, done.judged)))
    write_json(directory / "groups.json", without_nan(group_table(done.scored)))
    hashes = {"stored_answers": done.study.fingerprint()}
    for model, one in done.rates.items():
        result_of(done.scored, one, hashes, without_nan(sensitive[model])).write(directory / "results")


def _agreement_json(one: Agreement) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


@dataclass(frozen=True)
class Table:
    """A table of entities to ask about: file, columns, and which entities of it.

    ``property`` is one of the published ids, or any id together with the two questions ``gt`` and ``lt``.
    """

    path: Path
    property: str
    name_column: str = "name"
    value_column: str = "value"
    gt: str | None = None
    lt: str | None = None
    category: str = ""
    max_popularity: int | None = None
    min_evidence: int = 0
    closeness: Closeness = HARD
    max_comparisons: int = 1

    def asked(self) -> Property:
        """The property with its sentences."""
        if (self.gt is None) != (self.lt is None):
            raise InputError("One of the two questions is missing; give both --gt and --lt, with {x} and {y}.")
        if self.gt is None or self.lt is None:
            return property_named(self.property)
        return Property(self.property, self.gt, self.lt, self.category)


def questions(
    out: Path,
    table: Table | None = None,
    world: str | None = None,
    pairs: int | None = None,
    negations: bool = False,
    suffix: str = "",
) -> dict[str, Any]:
    """Write a question set, from a table of entities or from the embedded world.

    Args:
        out: the file, ``questions.json`` say. table: entities; without it the world's comparisons are asked about.
        world: a property of the world, None for all. pairs: entity pairs per property at most (100 of a table).
        negations: also ask "is it false that …". suffix: part of the data set's id.

    Returns:
        ``{"out", "questions", "expected_yes", "pairs", "groups"}``.

    Raises:
        InputError: a table that cannot be read, or from which no pair can be made.
    """
    if table is None:
        from saeworks.faithfulness.world_questions import world_questions

        asked: list[Question] = world_questions(world, pairs, negations)
    else:
        if world is not None:
            raise InputError("Both a table and a property of the world were given; choose one.")
        asked = _of_table(table, 100 if pairs is None else pairs, negations, suffix)
    write_questions(out, asked)
    return {"out": str(out), **balance(asked)}


def _of_table(table: Table, pairs: int, negations: bool, suffix: str) -> list[Question]:
    plain = table.asked()
    entities = read_entities(table.path, table.name_column, table.value_column)
    kept = filtered(plain.id, entities, table.max_popularity, table.min_evidence)
    if not kept:
        raise InputError(f"No entity of the {len(entities)} in '{table.path}' passes the filters; loosen them.")
    ways: Iterable[Property] = [plain, *([negation(plain)] if negations else [])]
    return [
        question
        for way in ways
        for question in questions_about(
            way, kept, pairs, table.closeness, max_comparisons=table.max_comparisons, suffix=suffix
        )
    ]
