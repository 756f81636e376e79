"""The report on a run, or on stored answers: scored anew, with what is known of the judge's error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError, did_you_mean
from saeworks.faithfulness.agreement import Agreement, agreement, to_label
from saeworks.faithfulness.counts import draws
from saeworks.faithfulness.criterion import Scored, rule, score
from saeworks.faithfulness.importers import Study, holds_logs, read_study
from saeworks.faithfulness.keyword_judge import judge_by_keywords
from saeworks.faithfulness.labels import HAND, read_labels, write_to_label
from saeworks.faithfulness.patterns import PairPatterns
from saeworks.faithfulness.rates import rates
from saeworks.faithfulness.records import Judged, Response
from saeworks.faithfulness.report.content import Content, JudgedSolution, StepRates
from saeworks.faithfulness.report.page import write_page
from saeworks.faithfulness.robustness import Retention, fresh, retention
from saeworks.faithfulness.sensitivity import sensitivity
from saeworks.jobs.cot_run import require_inspect
from saeworks.jobs.cot_settings import saved_settings
from saeworks.version import __version__

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog


@dataclass
class Found:
    """What a path holds: stored answers, and what only Inspect's logs have."""

    study: Study
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    epochs: int | None = None
    unasked: int = 0
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    patterns: list[PairPatterns] = field(default_factory=list[PairPatterns])
    steps: list[StepRates] = field(default_factory=list[StepRates])
    solutions: list[JudgedSolution] = field(default_factory=list[JudgedSolution])
    notes: list[str] = field(default_factory=list[str])


def cot_report(
    path: Path,
    out: Path,
    *,
    judge: str | None = None,
    by: str | None = None,
    labels: Path | None = None,
    review: Path | None = None,
    label_sample: int | None = None,
) -> dict[str, Any]:
    """Write the report as one HTML page.

    Args:
        path: a run's directory, a log of Inspect, or stored answers in any layout that ``cot score`` reads.
        judge: whose readings count; the run's own when not given. Other judges are compared with it.
        by: ``final`` or ``early``; the run's own when not given.
        labels: readings by hand, see :func:`saeworks.faithfulness.labels.read_labels`.
        review: people's verdicts on flagged steps, a CSV.
        label_sample: also write ``to_label.csv`` beside the page, so many responses of each reading, to be labelled.

    Returns:
        ``{"out", "rates", "flagged", "agreement", "retention", "steps", "notes"}``.

    Raises:
        InputError: nothing to report on, an unknown judge, or damaged files.
    """
    found = read_path(Path(path), review)
    by = by or str(found.settings.get("rule") or "final")
    content, chosen = _content(found, judge, by, labels, str(path))
    target = write_page(out, content)
    if label_sample is not None:
        _write_sample(out.parent / "to_label.csv", found.study.responses, chosen, label_sample)
    return {
        "out": str(target),
        "rates": {model: one.as_json() for model, one in content.rates.items()},
        "flagged": 0 if content.scored is None else len(content.scored.flagged),
        "agreement": [
            {"with": one.reference, "n": one.n, "share": one.share, "kappa": one.kappa} for one in content.agreements
        ],
        "retention": list(content.retention),
        "steps": [{name: getattr(one, name) for name in one.__dataclass_fields__} for one in content.steps],
        "notes": list(content.notes),
    }


def read_path(path: Path, review: Path | None = None) -> Found:
    """Logs of Inspect, or stored answers, whichever ``path`` holds."""
    if not path.exists():
        raise InputError(f"'{path}' does not exist; give the directory of a run, a log, or stored answers.")
    if not holds_logs(path):
        study = read_study(path)
        return Found(study, notes=list(study.notes))
    require_inspect()
    return _read_logs(path, review)


def _read_logs(path: Path, review: Path | None) -> Found:
    from saeworks.faithfulness.report.steps_read import read_reviews, read_steps
    from saeworks.faithfulness.tasks.inspect_logs import log_files, read_log, read_transcripts
    from saeworks.faithfulness.tasks.pattern_task import read_patterns

    files = log_files(path)
    found = Found(Study(), saved_settings(path) or {})
    logs = {file: read_log(file) for file in files}
    kinds = {file: (log.eval.metadata or {}).get("kind") for file, log in logs.items()}
    if compared := [log for file, log in logs.items() if kinds[file] == "iphr"]:
        transcripts = read_transcripts(logs.values())
        found.study = Study(list(transcripts.questions.values()), transcripts.responses, transcripts.judged)
        found.epochs, found.unasked, found.metrics = transcripts.epochs, transcripts.unasked, transcripts.metrics
        for outcome, count in transcripts.judge_failures.items():
            found.notes.append(f"In {count} responses the judge gave no verdict ({outcome}); they are not scored.")
        found.notes += _differences(compared, kinds.values())
    if patterns := [log for file, log in logs.items() if kinds[file] == "patterns"]:
        found.patterns = read_patterns(patterns[-1])
    found.steps, found.solutions = read_steps(list(logs.values()), read_reviews(review) if review else {})
    if not compared and not found.steps:
        raise InputError(f"'{path}' holds no log of a task of ours; give the directory of 'saeworks cot run'.")
    return found


def _differences(logs: Sequence[EvalLog], kinds: Iterable[Any]) -> list[str]:
    prompts = {str((log.eval.metadata or {}).get("prompt")) for log in logs}
    return [f"The logs put the questions in different ways ({', '.join(sorted(prompts))})."] if len(prompts) > 1 else []


def _content(found: Found, judge: str | None, by: str, labels: Path | None, name: str) -> tuple[Content, list[Judged]]:
    study = found.study
    facts = {"Stored answers": name, "saeworks": __version__}
    base = Content(
        title="Do the stated reasons hold?",
        facts=facts,
        patterns={(one.model, one.pair_id): one for one in found.patterns},
        steps=found.steps,
        solutions=found.solutions,
        notes=found.notes,
    )
    if not study.questions:
        return base, []
    judged, notes = _of_judge(found, judge)
    name_of_judge = judged[0].judge
    scored = score(study.questions, judged, rule(by), found.epochs or draws(judged, study.responses))
    agreements = _agreements(study, judged, labels)
    measured = next((one.given_judged() for one in agreements if one.reference == HAND), None)
    found_rates = rates(scored)
    use = scored.rule
    settings = found.settings
    facts = {
        "Models": ", ".join(found_rates) or "–",
        "Questions": f"{len(study.questions)} of {settings.get('questions') or scored.suffix or 'one data set'}",
        "Draws": str(found.epochs or "as stored"),
        "Judge": name_of_judge or "unnamed",
        "Rule": f"{use.name}: difference {use.min_difference:g}, bias {use.min_bias:g}",
        "No verdict": "half a YES" if use.unknown == "half" else "left out",
        **facts,
    }
    kept, sentences = _retention(found, scored, judged, by)
    content = Content(
        title=base.title,
        facts=facts,
        scored=scored,
        rates=found_rates,
        responses=_by_question(study.responses),
        judged=_judged_by_question(judged),
        outcomes=_outcomes(found),
        agreements=agreements,
        sensitivity={model: sensitivity(scored, model, given_judged=measured) for model in found_rates},
        patterns=base.patterns,
        retention=sentences,
        steps=found.steps,
        solutions=found.solutions,
        notes=[*found.notes, *notes, *_against_inspect(found, scored, kept)],
    )
    return content, judged


def _of_judge(found: Found, judge: str | None) -> tuple[list[Judged], list[str]]:
    """The readings that count, and remarks."""
    study = found.study
    wanted = judge or found.settings.get("grader")
    if not study.judged:
        if not study.responses:
            raise InputError("There is neither a response nor a judgement to report on; give stored answers.")
        judged, warnings = judge_by_keywords(study.responses)
        if not judged:
            raise InputError(f"All {len(study.responses)} responses are failed calls; there is nothing to report on.")
        return judged, ["Nothing had judged the responses; keywords did it for this page.", *warnings]
    if wanted is None and len(study.judges) > 1:
        raise InputError(f"The answers were judged by {', '.join(study.judges)}; name one of them with --judge.")
    wanted = str(wanted or study.judges[0])
    judged = [one for one in study.judged if one.judge == wanted]
    if not judged:
        raise InputError(f"No answer was judged by '{wanted}'.{did_you_mean(wanted, study.judges)}")
    return judged, []


def _agreements(study: Study, judged: list[Judged], labels: Path | None) -> list[Agreement]:
    """With labels first, then with every other judge that read some of the same responses."""
    found: list[Agreement] = []
    if labels is not None:
        found.append(agreement(judged, read_labels(labels, study.responses)))
    for other in study.judges:
        theirs = [one for one in study.judged if one.judge == other]
        ours = {(one.model, one.qid, one.response_id) for one in judged}
        if other != judged[0].judge and any((one.model, one.qid, one.response_id) in ours for one in theirs):
            found.append(agreement(judged, theirs))
    return found


def _retention(found: Found, scored: Scored, judged: Sequence[Judged], by: str) -> tuple[bool, list[str]]:
    """Whether flagged pairs were asked again, and what became of them, in sentences.

    The pairs were chosen on the first draws, so those decide what was flagged before; of the new draws alone, the rest
    of the luck of the choice is gone.
    """
    from saeworks.faithfulness.tasks.inspect_logs import epoch_of  # only logs number their draws

    if found.epochs is None or not any(epoch_of(one.response_id) > found.epochs for one in judged):
        return False, []
    first = [one for one in judged if epoch_of(one.response_id) <= found.epochs]
    before = score(found.study.questions, first, rule(by), found.epochs)
    new = score(found.study.questions, fresh(first, judged, before), rule(by), found.epochs, min_coverage=0.0)
    told: list[str] = []
    for model in before.models:
        together, alone = retention(before, scored, model), retention(before, new, model)
        if together.before:
            told.append(
                f"{model}: of {together.before} pairs flagged on the first {found.epochs} draws {_kept(together)} stay "
                f"flagged on all draws, and {_kept(alone)} on the new draws alone."
            )
    return True, told


def _kept(one: Retention) -> str:
    return f"{one.after} ({one.share:.0%})"


def _against_inspect(found: Found, scored: Scored, oversampled: bool) -> list[str]:
    """Where the metric in the log and the verdicts here differ. They are computed in two ways and must agree."""
    told: list[str] = []
    for model, metrics in found.metrics.items():
        here = sum(pair.flagged for pair in scored.pairs if pair.model == model)
        same_rule = scored.rule.name == str(found.settings.get("rule") or "final")
        whole = not found.unasked and all(group.scored for group in scored.of(model))
        comparable = same_rule and whole and not oversampled and scored.judge == found.settings.get("grader")
        if comparable and "flagged" in metrics and here != metrics["flagged"]:
            told.append(
                f"{model}: Inspect's metric in the log counts {metrics['flagged']:.0f} flagged pairs, the criterion "
                f"here {here}; the metric sees one log, this page all of them."
            )
    return told


def _by_question(responses: Iterable[Response]) -> dict[tuple[str, str], list[Response]]:
    table: dict[tuple[str, str], list[Response]] = {}
    for one in sorted(responses, key=lambda r: r.response_id):
        table.setdefault((one.model, one.qid), []).append(one)
    return table


def _judged_by_question(judged: Iterable[Judged]) -> dict[tuple[str, str], dict[str, Judged]]:
    table: dict[tuple[str, str], dict[str, Judged]] = {}
    for one in judged:
        table.setdefault((one.model, one.qid), {})[one.response_id] = one
    return table


def _outcomes(found: Found) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for one in found.study.responses:
        counts = table.setdefault(one.model, Counter())
        counts[one.outcome] = counts.get(one.outcome, 0) + 1
    if found.unasked and len(table) == 1:
        next(iter(table.values()))["not_asked"] = found.unasked
    return {model: dict(counts) for model, counts in table.items()}


def _write_sample(path: Path, responses: Sequence[Response], judged: Sequence[Judged], each: int) -> None:
    texts = {(one.model, one.qid, one.response_id): one for one in responses}
    known = [one for one in judged if (one.model, one.qid, one.response_id) in texts]
    if not known:
        raise InputError("The responses were not stored, only what a judge read in them; there is nothing to label.")
    chosen = to_label(known, lambda one: one.result or "UNKNOWN", each)
    write_to_label(path, [texts[one.model, one.qid, one.response_id] for one in chosen])
