"""``saeworks run``: the main job."""

from __future__ import annotations

from saeworks.cli.flags import DryRunFlag, JsonFlag, RunFlags, given
from saeworks.cli.output import print_json, print_line, print_table


def run(
    flags: RunFlags | None = None,
    *,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Train a grid of dictionaries, measure them and write a workspace with a report.

    With no arguments it uses the embedded world.
    """
    from saeworks.cli.plan import show_plan
    from saeworks.jobs.run import run as job

    overrides, file = given(flags), flags.config if flags else None
    if dry_run:
        return show_plan(overrides, file, json, measuring=True)
    summary = job(overrides, file)
    if json:
        return print_json(summary)
    print_table("Dictionaries", summary["table"])
    print_line(f"Report: {summary['report']}")
    return None
