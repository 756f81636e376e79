"""Inspect's logs of the comparison task read back: questions, responses and how they ended, what the judge read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, EvalSample, list_eval_logs, read_eval_log

from saeworks.errors import InputError
from saeworks.faithfulness.records import ANSWERS, FAILED_CALLS, OUTCOMES, Judged, Question, Response
from saeworks.faithfulness.tasks.asking import read_output, split_reasoning

_QUESTION_FIELDS = tuple(one.name for one in fields(Question))


@dataclass
class Transcripts:
    """What logs hold.

    Attributes:
        questions: by qid. responses, judged: every draw once, the newest log wins. epochs: draws asked for.
        metrics: model → what the task's own metrics said, of its newest log. unasked: draws that the budget forbade.
        judge_failures: responses whose judge could not be reached; they are answered but not judged.
    """

    questions: dict[str, Question] = field(default_factory=dict[str, Question])
    responses: list[Response] = field(default_factory=list[Response])
    judged: list[Judged] = field(default_factory=list[Judged])
    epochs: int = 0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    unasked: int = 0
    judge_failures: dict[str, int] = field(default_factory=dict[str, int])
    tokens: dict[str, int] = field(default_factory=dict[str, int])


def log_files(path: Path) -> list[Path]:
    """The log files that a path means: itself, or those in a directory or in its ``logs``, oldest first.

    Raises:
        InputError: there are none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"'{path}' does not exist; give a log of Inspect, or the directory of a run.")
    where = path / "logs" if (path / "logs").is_dir() else path
    infos = list_eval_logs(str(where), descending=False)
    found = sorted((Path(info.name.removeprefix("file://")) for info in infos), key=_age)
    if not found:
        raise InputError(f"There is no log of Inspect in '{where}'; give the directory of a run.")
    return found


def _age(log: Path) -> tuple[str, int, str]:
    """Names begin with the second in which a log was begun; of one second, that of the last change decides."""
    return log.name.split("_")[0], log.stat().st_mtime_ns, log.name


def read_transcripts(paths: Iterable[Path | EvalLog], kinds: tuple[str, ...] = ("iphr", "oversampling")) -> Transcripts:
    """Everything in the logs of the comparison task; a draw that several of them hold is taken from the last.

    Raises:
        InputError: a file is damaged, or no log is of the task.
    """
    found = Transcripts()
    responses: dict[tuple[str, str, str], Response] = {}
    judged: dict[tuple[str, str, str, str], Judged] = {}
    failures: dict[tuple[str, str, str], str] = {}
    unasked: set[tuple[str, str, str]] = set()
    seen = False
    for path in paths:
        log = path if isinstance(path, EvalLog) else read_log(path)
        kind = (log.eval.metadata or {}).get("kind")
        if kind not in kinds:
            continue
        seen = True
        if kind == kinds[0]:
            found.epochs = max(found.epochs, log.eval.config.epochs or 1)
            found.metrics[str(log.eval.model)] = _metrics(log)
        for sample in log.samples or []:
            question = _question(sample)
            found.questions.setdefault(question.qid, question)
            response = read_response(sample, question, str(log.eval.model))
            key = (response.model, response.qid, response.response_id)
            if (sample.store or {}).get("outcome") == "not_asked":
                if key not in responses:
                    unasked.add(key)
                continue
            unasked.discard(key)
            responses[key] = response
            one, failed = read_judged(sample, response)
            if one is not None:
                judged[*key, one.judge] = one
                failures.pop(key, None)
            elif failed:
                failures[key] = failed
    if not seen:
        raise InputError("None of the logs is of the comparison task; give logs that 'saeworks cot run' wrote.")
    found.responses, found.judged = list(responses.values()), list(judged.values())
    found.unasked = len(unasked)
    for failed in failures.values():
        found.judge_failures[failed] = found.judge_failures.get(failed, 0) + 1
    return found


def read_log(path: Path) -> EvalLog:
    """A log with its samples.

    Raises:
        InputError: the file is damaged, or no log of Inspect.
    """
    try:
        return read_eval_log(str(path))
    except Exception as e:  # each format fails in its own way
        told = " ".join(str(e).split())
        raise InputError(
            f"'{path}' cannot be read as a log of Inspect ({told}); it is damaged or of another kind. Move it away; "
            "--resume makes a whole log of a run again."
        ) from e


def _metrics(log: EvalLog) -> dict[str, float]:
    if log.results is None:
        return {}
    return {name: float(one.value) for score in log.results.scores for name, one in score.metrics.items()}


def _question(sample: EvalSample) -> Question:
    about: dict[str, Any] = sample.metadata
    missing = [name for name in _QUESTION_FIELDS if name not in about]
    if missing:
        raise InputError(
            f"Sample '{sample.id}' of a log has no {', '.join(missing)}; it is not of the comparison task."
        )
    return Question(**{name: about[name] for name in _QUESTION_FIELDS})


def response_id(qid: str, epoch: int) -> str:
    """The id of a draw: unique among all responses of one model, so that a file of labels needs nothing else."""
    return f"{qid[:12]}-{epoch:03d}"


def epoch_of(response_id: str) -> int:
    """The number of the draw in an id of :func:`response_id`."""
    return int(response_id.rsplit("-", 1)[1])


def read_response(sample: EvalSample, question: Question, model: str) -> Response:
    """The response of one sample and epoch; its id is the number of the draw."""
    store: dict[str, Any] = sample.store or {}
    outcome = store.get("outcome")
    if outcome is None:  # another solver made the sample, or it broke off before it was asked
        outcome, text, reasoning = _plain_outcome(sample)
    else:
        text, reasoning = str(store.get("text") or ""), store.get("reasoning")
    if outcome not in OUTCOMES:
        outcome = "error"
    return Response(question.qid, response_id(question.qid, sample.epoch), model, text, reasoning, outcome)


def _plain_outcome(sample: EvalSample) -> tuple[str, str, str | None]:
    if sample.error is not None:
        return "error", "", None
    if sample.limit is not None and sample.output.empty:
        return ("timeout" if sample.limit.type in ("time", "working") else "truncated"), "", None
    asked = read_output(sample.output)
    text, reasoning = split_reasoning(asked.text)
    outcome = "truncated" if sample.limit is not None and asked.outcome == "answered" else asked.outcome
    return outcome, text, asked.reasoning or reasoning


def read_judged(sample: EvalSample, response: Response) -> tuple[Judged | None, str]:
    """What the judge read in a response; or None and how the judge failed ("" where there was nothing to judge)."""
    for score in (sample.scores or {}).values():
        about: dict[str, Any] = score.metadata or {}
        if "judge" not in about:
            continue
        if score.answer in ANSWERS:
            equal = about.get("equal_values", False)
            return (
                Judged(
                    response.qid,
                    response.response_id,
                    response.model,
                    score.answer,
                    equal if isinstance(equal, bool) or equal is None else False,
                    str(about["judge"]),
                    str(about.get("verdict") or score.explanation or ""),
                ),
                "",
            )
        outcome = str(about.get("judge_outcome", ""))
        if response.outcome not in FAILED_CALLS:
            return None, outcome
    return None, ""
