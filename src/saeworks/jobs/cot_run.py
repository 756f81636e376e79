"""Measuring chain-of-thought faithfulness: ask a model, judge its answers, find pairs that contradict each other."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError
from saeworks.faithfulness.criterion import Scored, rule, score
from saeworks.faithfulness.rates import rates
from saeworks.faithfulness.records import KEYWORD_JUDGE, Question
from saeworks.files import atomic_write_text
from saeworks.jobs.cot_settings import CotRunConfig, open_settings, save_settings, saved_judge
from saeworks.jobs.workspace import Workspace

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import GenerateConfig, Model

    from saeworks.faithfulness.tasks.asking import Caller
    from saeworks.faithfulness.tasks.inspect_logs import Transcripts

JOURNAL, LOGS, RECORDS = "journal.jsonl", "logs", "records"


def cot_run(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Run one task, or go on with it; everything lies in the directory ``out``.

    ``journal.jsonl`` has every call that ended, ``logs/`` Inspect's logs, ``records/`` the questions, responses and
    judgements that ``saeworks cot score`` reads. A run that is killed, or stopped by its budget, is continued with
    ``resume``: no call that ended is made again, except those that failed for a reason that may pass.

    Args:
        overrides: keys of :class:`saeworks.jobs.cot_settings.CotRunConfig`.

    Returns:
        What ``saeworks cot run --json`` prints: counts of answers and of how calls ended, the rate with its warnings,
        what was spent, and whether the budget stopped the run.

    Raises:
        InputError: bad settings, questions or models. RunError: Inspect could not finish the task.
    """
    config = open_settings(overrides)
    require_inspect()
    workspace = Workspace(config.out)
    with workspace.locked():
        return _run(config)


def require_inspect() -> None:
    """Raises ``InputError`` where Inspect is not installed."""
    if importlib.util.find_spec("inspect_ai") is None:
        raise InputError("Asking models needs Inspect, which is not installed; run: pip install 'saeworks[cot]'.")


def _run(config: CotRunConfig) -> dict[str, Any]:
    from saeworks.faithfulness.tasks.asking import Caller
    from saeworks.faithfulness.tasks.budget import Budget, price_of, read_prices
    from saeworks.faithfulness.tasks.journal import Journal
    from saeworks.faithfulness.tasks.running import open_model

    prices = read_prices(config.prices) if config.prices else {}
    if config.budget_cost is not None and config.prices is None:
        raise InputError("--budget-cost needs the prices of the models; give them with --prices FILE.")
    # The pattern task asks the grader alone; the model whose answers are classified need not be there any more.
    asked = [] if config.task == "patterns" else [config.model]
    for name in (*asked, *([] if config.grader == KEYWORD_JUDGE else [config.grader])):
        price_of(name, prices, config.budget_cost is not None)  # a missing price is told before anything is spent
    journal = Journal(config.out / JOURNAL)
    budget = Budget(config.budget, config.budget_cost, journal.spent)
    caller = Caller(journal, budget, prices, config.budget_cost is not None, config.seed, config.max_retries)
    grader = None if config.grader == KEYWORD_JUDGE else open_model(config.grader, config.grader_base_url)
    logs: list[EvalLog]
    if config.task == "patterns":
        logs = [_patterns(config, caller, grader)]
        found = {"metrics": _metrics(logs[0]), "outcomes": _outcomes(logs[0])}
    elif config.task in ("restoration", "shortcuts"):
        logs = _reasoning(config, caller, open_model(config.model, config.base_url), grader)
        found = _solved_summary(config, logs)
    else:
        logs = [_comparisons(config, caller, open_model(config.model, config.base_url), grader)]
        found = _compared_summary(config)
    return {
        "out": str(config.out),
        "task": config.task,
        "model": config.model,
        "judge": config.grader,
        **found,
        "stopped_by_budget": budget.stopped,
        "spent": {"tokens": journal.spent.tokens, "dollars": round(journal.spent.cost, 6)},
        "logs": [str(log.location).removeprefix("file://") for log in logs],
    }


# --- the tasks --------------------------------------------------------------------------------------------------------


def _comparisons(config: CotRunConfig, caller: Caller, model: Model, grader: Model | None) -> EvalLog:
    """The comparison task over all questions, or more draws of those of flagged pairs."""
    from saeworks.faithfulness.tasks.iphr import iphr_task
    from saeworks.faithfulness.tasks.iphr_prompts import subject_prompt

    if config.task == "oversampling":
        chosen = _of_flagged(config)
    else:
        chosen = load_questions(config)
        _refuse_other_questions(config, chosen, caller.journal.samples(str(model)))
    style = config.prompt or ("plain" if config.model.startswith("saeworks/") else "cot")
    subject_prompt("", style)  # an unknown style is refused before anything is written
    save_settings(config)
    task = iphr_task(
        chosen,
        caller,
        judge=KEYWORD_JUDGE if grader is None else "model",
        epochs=config.epochs,
        prompt=style,
        rule=rule(config.rule),
        config=subject_config(config),
        name=config.task,
    )
    return _inspect(config, task, model, grader)


def _refuse_other_questions(config: CotRunConfig, chosen: Sequence[Question], asked: set[str]) -> None:
    """A continued run may get more questions; without some that were asked it would mix the tendencies of two sets."""
    # The samples of the pattern task are no questions; their ids have a space.
    gone = {sample for sample in asked if " " not in sample} - {one.qid for one in chosen}
    if gone:
        raise InputError(
            f"'{config.questions}' was changed: {len(gone)} of the questions that were asked in '{config.out}' are not "
            "in it any more. Put the old version back, or start another run in another --out."
        )


def _of_flagged(config: CotRunConfig) -> list[Question]:
    """The questions of the pairs that are flagged so far, of which more draws are wanted."""
    found = transcripts(config.out)
    if config.epochs <= found.epochs:
        raise InputError(
            f"The run in '{config.out}' has {found.epochs} draws of each question already, so that --epochs "
            f"{config.epochs} asks for none; give --epochs {2 * found.epochs}, say, for as many again."
        )
    pairs = score_transcripts(found, config).flagged
    if not pairs:
        raise InputError(f"No pair of the run in '{config.out}' is flagged, so that none needs more responses.")
    return [one.question for pair in pairs for one in (pair.yes, pair.no)]


def _patterns(config: CotRunConfig, caller: Caller, grader: Model | None) -> EvalLog:
    """The classifier over flagged pairs. Which are flagged was decided by the run's own judge, perhaps another one."""
    from saeworks.faithfulness.tasks.pattern_task import pattern_task

    if grader is None:
        raise InputError("Patterns are found by a model; name it with --grader.")
    found = transcripts(config.out)
    scored = score_transcripts(found, config, saved_judge(config.out))
    return _inspect(config, pattern_task(scored.pairs, found.responses, caller), grader, None)


def _reasoning(config: CotRunConfig, caller: Caller, model: Model, grader: Model | None) -> list[EvalLog]:
    """Rollouts, then the task that looks into them."""
    from saeworks.faithfulness.tasks import restoration_prompts, shortcut_prompts
    from saeworks.faithfulness.tasks.problems import read_problems
    from saeworks.faithfulness.tasks.restoration import restoration_task
    from saeworks.faithfulness.tasks.rollouts import read_solutions, rollout_task
    from saeworks.faithfulness.tasks.shortcuts import shortcuts_task

    if grader is None:
        raise InputError(f"The task '{config.task}' is judged by a model; name it with --grader.")
    if config.problems is None:
        raise InputError(f"The task '{config.task}' needs problems with their answers; give --problems FILE.")
    problems = read_problems(config.problems)[: config.limit]
    save_settings(config)
    restoring = config.task == "restoration"
    template = restoration_prompts.SOLVE if restoring else shortcut_prompts.SOLVE
    settings = subject_config(config, temperature=0.0, max_tokens=32_000)
    rollouts = rollout_task(problems, caller, template, config=settings, compare=not restoring)
    first = _inspect(config, rollouts, model, grader)
    solutions = read_solutions(first)
    usable = [one for one in solutions if one.outcome == "answered" and (restoring or one.correct)]
    if not usable:
        return [first]
    if restoring:
        task = restoration_task(usable, caller)
    else:
        task = shortcuts_task(
            usable,
            caller,
            questions=config.battery,
            splitting=config.splitting,
            critical_only=config.critical_only,
            show_reference=config.show_reference,
        )
    return [first, _inspect(config, task, model, grader)]


def _inspect(config: CotRunConfig, task: Task, model: Model, grader: Model | None) -> EvalLog:
    from saeworks.faithfulness.tasks.iphr import GRADER
    from saeworks.faithfulness.tasks.running import run_task

    roles = {} if grader is None else {GRADER: grader}
    return run_task(
        task,
        model,
        roles,
        config.out / LOGS,
        max_connections=config.max_connections,
        timeout=config.timeout,
    )


def subject_config(config: CotRunConfig, temperature: float = 0.7, max_tokens: int = 2000) -> GenerateConfig:
    """The settings of the model under test."""
    from inspect_ai.model import GenerateConfig

    return GenerateConfig(
        temperature=temperature if config.temperature is None else config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens or max_tokens,
    )


def load_questions(config: CotRunConfig) -> list[Question]:
    """The questions of a run: whole pairs, ``limit`` of each template group at most.

    Raises:
        InputError: no questions, or those of several data sets, whose tendencies must not be mixed.
    """
    if config.questions == "world":
        from saeworks.faithfulness.world_questions import world_questions

        return world_questions(pairs=config.limit)
    from saeworks.faithfulness.importers import read_study

    study = read_study(Path(config.questions))
    if not study.questions:
        raise InputError(f"'{config.questions}' holds no questions; give a file or directory of questions.")
    if len(study.suffixes) > 1:
        shown = ", ".join(f"'{suffix}'" for suffix in study.suffixes)
        raise InputError(f"'{config.questions}' holds the data sets {shown}; give one of them, in files of its own.")
    return first_pairs(study.questions, config.limit)


def first_pairs(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """Of every template group the questions of its first ``limit`` pairs; all of them without a limit."""
    if limit is None:
        return list(questions)
    kept: dict[tuple[str, str], dict[str, None]] = {}
    for one in questions:
        keys = kept.setdefault(one.template, {})
        if len(keys) < limit:
            keys[one.pair_key] = None
    return [one for one in questions if one.pair_key in kept[one.template]]


# --- what came of it --------------------------------------------------------------------------------------------------


def transcripts(out: Path) -> Transcripts:
    """Everything that the comparison task has left in a directory, over all continuations."""
    from saeworks.faithfulness.tasks.inspect_logs import log_files, read_transcripts

    return read_transcripts(log_files(out))


def score_transcripts(found: Transcripts, config: CotRunConfig, judge: str | None = None) -> Scored:
    """The verdicts on all pairs, by the judge of the settings (or another that was used)."""
    wanted = judge or config.grader
    judged = [one for one in found.judged if one.judge == wanted]
    if not judged:
        raise InputError(
            f"The judge '{wanted}' has not judged one response yet; run the task with that --grader first."
        )
    return score(list(found.questions.values()), judged, rule(config.rule), found.epochs)


def write_records(out: Path, found: Transcripts) -> None:
    """Write questions, responses and judgements as JSON lines, which ``saeworks cot score`` reads."""
    for name, rows in (
        ("questions", found.questions.values()),
        ("responses", found.responses),
        ("judged", found.judged),
    ):
        _write_lines(out / RECORDS / f"{name}.jsonl", [asdict(row) for row in rows])


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _compared_summary(config: CotRunConfig) -> dict[str, Any]:
    found = transcripts(config.out)
    write_records(config.out, found)
    judged = [one for one in found.judged if one.judge == config.grader]
    summary: dict[str, Any] = {
        "questions": len(found.questions),
        "draws": found.epochs,
        "responses": len(found.responses),
        "outcomes": dict(Counter(one.outcome for one in found.responses)),
        "not_asked": found.unasked,
        "answers": dict(Counter(one.answer for one in judged)),
        "judge_failures": found.judge_failures,
        "inspect_metrics": found.metrics,
        "records": str(config.out / RECORDS),
    }
    if not judged:
        return summary | {"rates": {}, "flagged": []}
    scored = score_transcripts(found, config)
    flagged = [
        {"model": p.model, "pair": p.pair_id, "question": p.failing.question.text, "reason": p.reason}
        for p in scored.flagged
    ]
    return summary | {"rates": {m: one.as_json() for m, one in rates(scored).items()}, "flagged": flagged}


def _solved_summary(config: CotRunConfig, logs: Sequence[EvalLog]) -> dict[str, Any]:
    summary: dict[str, Any] = {"problems": len(logs[0].samples or []), "outcomes": _outcomes(logs[0])}
    if config.task == "shortcuts":
        summary["correct"] = _metrics(logs[0]).get("mean")
    return summary | {"judged": len(logs[1].samples or []) if len(logs) > 1 else 0, "metrics": _metrics(logs[-1])}


def _outcomes(log: EvalLog) -> dict[str, int]:
    return dict(Counter(str((sample.store or {}).get("outcome")) for sample in log.samples or []))


def _metrics(log: EvalLog) -> dict[str, float]:
    """Metrics by name; those of a score with several values as ``value/metric``."""
    found: dict[str, float] = {}
    for one in log.results.scores if log.results else []:
        for name, value in one.metrics.items():
            key = name if one.name == one.scorer else f"{one.name}/{name}"
            found[key] = float(value.value)
    return found
