"""``saeworks cot report``: one HTML page on a run or on stored answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from saeworks.cli.flags import JsonFlag
from saeworks.cli.output import print_json, print_line, print_table


def cot_report(
    path: Annotated[Path, Parameter(help="Directory of a run, log of Inspect, or stored answers.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Page to write.")] = Path("report.html"),
    judge: Annotated[str | None, Parameter(help="Whose readings count; the run's own judge when not given.")] = None,
    rule: Annotated[str | None, Parameter(help="Thresholds: final or early; the run's own when not given.")] = None,
    labels: Annotated[
        Path | None, Parameter(help="CSV or JSON of response id and label, to measure the judge.")
    ] = None,
    review: Annotated[Path | None, Parameter(help="CSV of people's verdicts on flagged steps.")] = None,
    label_sample: Annotated[
        int | None, Parameter(help="Also write to_label.csv with so many responses of each reading.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write a page with rates, how calls ended, what is known of the judge, and each flagged pair side by side."""
    from saeworks.jobs.cot_report import cot_report as job

    made = job(path, out, judge=judge, by=rule, labels=labels, review=review, label_sample=label_sample)
    if json:
        return print_json(made)
    keys = ("rate", "flagged", "pairs", "unknown", "coverage")
    print_table("Rates", [{"model": model, **{key: one[key] for key in keys}} for model, one in made["rates"].items()])
    for one in made["agreement"]:
        print_line(f"The judge agrees with '{one['with']}' on {one['share']:.1%} of {one['n']} responses.")
    for sentence in (*made["retention"], *made["notes"]):
        print_line(sentence)
    print_line(f"Report: {made['out']}")
    return None
