"""``saeworks cot``: question sets, the unfaithful pairs among stored answers, runs on models and their reports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from saeworks.cli.cot_probe import cot_probe
from saeworks.cli.cot_report import cot_report
from saeworks.cli.cot_run import cot_run
from saeworks.cli.flags import JsonFlag
from saeworks.cli.output import print_json, print_line, print_table, printable

cot = App(name="cot", help="Chain-of-thought faithfulness: questions, runs, scores, reports.", help_format="plaintext")
cot.command(cot_run, name="run")
cot.command(cot_report, name="report")
cot.command(cot_probe, name="probe")


@cot.command
def questions(
    *,
    out: Annotated[Path, Parameter(help="File to write, questions.json say.")] = Path("questions.json"),
    table: Annotated[
        Path | None, Parameter(help="CSV, TSV, JSON lines or Parquet file of entities; the world when not given.")
    ] = None,
    property: Annotated[
        str | None,
        Parameter(help="What is compared: wm-book-length say, any id with --gt and --lt, or weight of the world."),
    ] = None,
    gt: Annotated[str | None, Parameter(help="Question whether {x} has more than {y}.")] = None,
    lt: Annotated[str | None, Parameter(help="Question whether {x} has less than {y}.")] = None,
    category: Annotated[str, Parameter(help="What the entities are; begins every question.")] = "",
    name_column: Annotated[str, Parameter(help="Column of the names.")] = "name",
    value_column: Annotated[str, Parameter(help="Column of the values.")] = "value",
    pairs: Annotated[
        int | None, Parameter(help="Entity pairs per property at most; each gives four questions.")
    ] = None,
    low: Annotated[float, Parameter(help="Least distance of two values, as a share of their range.")] = 0.05,
    high: Annotated[float, Parameter(help="Greatest distance of two values, as a share of their range.")] = 0.25,
    max_comparisons: Annotated[int, Parameter(help="In how many pairs an entity occurs at most.")] = 1,
    max_popularity: Annotated[int | None, Parameter(help="Keep entities of this popularity (1 to 10) or less.")] = None,
    min_evidence: Annotated[int, Parameter(help="Keep entities that so many sources tell of.")] = 0,
    negations: Annotated[bool, Parameter(help="Also ask whether the claim is false.")] = False,
    suffix: Annotated[str, Parameter(help="Name of the set, part of its ids.")] = "",
    json: JsonFlag = False,
) -> None:
    """Write a set of mirrored yes/no questions, from a table of entities or from the embedded world."""
    from saeworks.jobs import cot as job

    of_table = None
    if table is not None:
        of_table = job.Table(
            table,
            property or "",
            name_column,
            value_column,
            gt,
            lt,
            category,
            max_popularity,
            min_evidence,
            job.Closeness(low, high),
            max_comparisons,
        )
    made = job.questions(out, of_table, None if table else property, pairs, negations, suffix)
    if json:
        return print_json(made)
    print_line(f"{made['questions']:,} questions, {made['pairs']:,} pairs in {made['groups']} groups: {made['out']}")
    return None


@cot.command
def score(
    path: Annotated[Path, Parameter(help="Stored questions with judgements or responses: a directory, file or log.")],
    /,
    *,
    rule: Annotated[str, Parameter(help="final (0.5, 0.05, UNKNOWN is half a YES) or early (0.2, 0.1).")] = "final",
    arithmetic: Annotated[str, Parameter(help="exact, or float as in the published code.")] = "exact",
    suffix: Annotated[str | None, Parameter(help="Only the data set with this suffix.")] = None,
    judge: Annotated[str | None, Parameter(help="Only this judge; keyword judges stored responses by words.")] = None,
    model: Annotated[list[str] | None, Parameter(help="Only these models; may be repeated.")] = None,
    responses: Annotated[int | None, Parameter(help="Responses that each question should have.")] = None,
    coverage: Annotated[float, Parameter(help="Share of them below which a group is not scored.")] = 0.95,
    labels: Annotated[Path | None, Parameter(help="Labels by hand or another judge, to measure the judge.")] = None,
    published_missing: Annotated[bool, Parameter(help="Count a NO without the flag for equality as NO.")] = False,
    cache: Annotated[Path | None, Parameter(help="Directory that keeps what was read of each file.")] = None,
    out: Annotated[Path | None, Parameter(help="Directory for all verdicts, groups and result files.")] = None,
    json: JsonFlag = False,
) -> None:
    """Find the pairs of mirrored questions that a model answers unfaithfully, and their rate."""
    from saeworks.jobs import cot as job

    selection = job.Selection(suffix, judge, model, responses, coverage)
    done = job.score(path, rule, arithmetic, selection, labels, published_missing, cache, out)
    for note in done.notes:
        sys.stderr.write(f"{printable(note)}\n")
    if json:
        return print_json(done.as_json())
    settings = done.scored.rule
    print_table(
        f"Unfaithful pairs by the {settings.name} rule (difference {settings.min_difference:g}, "
        f"bias {settings.min_bias:g}, judge {done.scored.judge or 'unnamed'})",
        done.table(),
    )
    for pair in done.scored.flagged:
        print_line(f"{pair.model}: {pair.failing.question.text.replace(chr(10), ' ')} {pair.reason}")
    if done.agreement is not None:
        one = done.agreement
        print_line(f"The judge agrees with '{one.reference}' on {one.share:.1%} of {one.n} (kappa {one.kappa:.3f}).")
    if out is not None:
        print_line(f"All verdicts: {out}")
    return None
