"""``saeworks cot run``: ask a model mirrored questions, or problems, and judge its reasoning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from saeworks.cli.flags import JsonFlag
from saeworks.cli.output import print_json, print_line, print_table

COST = Group("What it may cost", sort_key=2)
MORE = Group("More settings", sort_key=3)
SHORTCUTS = Group("Shortcut task", sort_key=4)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CotRunFlags:
    """Who is asked what."""

    out: Path | None = None
    "Directory of the run."
    model: str | None = None
    "Model under test, as Inspect names it: saeworks/world:chat (embedded), openai/gpt-4o-mini, hf/OWNER/NAME …"
    task: str | None = None
    "iphr (mirrored questions, the default), restoration, shortcuts; oversampling and patterns go on with an iphr run."
    grader: str | None = None
    "Model that judges, or keyword (the default), which needs none. With --resume another one re-reads the responses."
    questions: str | None = None
    "world (embedded), or a file or directory of questions."
    problems: Path | None = None
    "Problems with answers, for restoration and shortcuts: JSON lines, JSON, YAML or CSV."
    limit: int | None = None
    "Pairs per template group, or problems, at most."
    epochs: int | None = None
    "Draws for each question."
    resume: bool | None = None
    "Go on with the run in --out; no call that ended is made again."
    budget: Annotated[int | None, Parameter(group=COST)] = None
    "Tokens, read and written, of all calls together; the run stops before it is exceeded."
    budget_cost: Annotated[float | None, Parameter(group=COST)] = None
    "US dollars; needs --prices."
    prices: Annotated[Path | None, Parameter(group=COST)] = None
    "YAML file, MODEL: {input: DOLLARS, output: DOLLARS}, for a million tokens."
    max_connections: Annotated[int | None, Parameter(group=COST)] = None
    "Calls at a time."
    max_retries: Annotated[int | None, Parameter(group=COST)] = None
    "Further attempts at a call that failed."
    timeout: Annotated[int | None, Parameter(group=COST)] = None
    "Seconds for one attempt at a call."
    prompt: Annotated[str | None, Parameter(group=MORE)] = None
    "cot, cot-paragraph, or plain (the question alone; the default for embedded models)."
    temperature: Annotated[float | None, Parameter(group=MORE)] = None
    "Of the model under test; 0.7 when not given (0 for problems)."
    top_p: Annotated[float | None, Parameter(group=MORE)] = None
    "Of the model under test; 0.9 when not given."
    max_tokens: Annotated[int | None, Parameter(group=MORE)] = None
    "Tokens of one response; 2000 when not given (32000 for problems)."
    base_url: Annotated[str | None, Parameter(group=MORE)] = None
    "Address of an OpenAI-compatible server, for models openai-api/SERVICE/NAME."
    grader_base_url: Annotated[str | None, Parameter(group=MORE)] = None
    "The same for the grader."
    seed: Annotated[int | None, Parameter(group=MORE)] = None
    "Of the draws of embedded models."
    rule: Annotated[str | None, Parameter(group=MORE)] = None
    "Thresholds of the criterion: final or early."
    battery: Annotated[str | None, Parameter(group=SHORTCUTS)] = None
    "Questions about every step: shortcut, or latent-correction."
    splitting: Annotated[str | None, Parameter(group=SHORTCUTS)] = None
    "How solutions are cut into steps: model, paragraphs or lines."
    critical_only: Annotated[bool | None, Parameter(group=SHORTCUTS)] = None
    "Judge only the steps on the path to the answer."
    show_reference: Annotated[bool | None, Parameter(group=SHORTCUTS, negative="--hide-reference")] = None
    "Show the judge a correct solution (the default), which anchors it."


def cot_run(flags: CotRunFlags | None = None, *, json: JsonFlag = False) -> int | None:
    """Ask a model mirrored yes/no questions, judge the answers, and find pairs whose answer stays put when reversed.

    Repeat the command with --resume to go on after an interruption or a spent budget. Exit code 1 when the budget
    stopped the run.
    """
    from saeworks.jobs.cot_run import cot_run as job

    summary = job(_given(flags))
    if json:
        print_json(summary)
    else:
        _print(summary)
    return 1 if summary["stopped_by_budget"] else None


def _given(flags: CotRunFlags | None) -> dict[str, Any]:
    if flags is None:
        return {}
    values = {field.name: getattr(flags, field.name) for field in fields(flags)}
    return {key: value for key, value in values.items() if value is not None}


def _print(summary: Mapping[str, Any]) -> None:
    for model, rate in summary.get("rates", {}).items():
        keys = ("rate", "flagged", "pairs", "accuracy", "unknown", "coverage")
        print_table(f"{model}, judged by {summary['judge']}", [{key: rate[key] for key in keys}])
        for sentence in rate["warnings"]:
            print_line(f"Note: {sentence}")
    for title in ("outcomes", "answers", "metrics"):
        if summary.get(title):
            print_table(title.capitalize(), [{title: key, "": value} for key, value in summary[title].items()])
    for pair in summary.get("flagged", [])[:10]:
        print_line(f"Flagged: {pair['question'].replace(chr(10), ' ')} {pair['reason']}")
    if summary.get("not_asked"):
        print_line(f"{summary['not_asked']} responses were not asked for.")
    if summary["stopped_by_budget"]:
        print_line("The budget is spent; raise it and add --resume to go on.")
    print_line(f"Spent: {summary['spent']['tokens']:,} tokens. Logs: {summary['out']}/logs")
