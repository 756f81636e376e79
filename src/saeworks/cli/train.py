"""``saeworks train``: train without measuring."""

from __future__ import annotations

from saeworks.cli.flags import DryRunFlag, JsonFlag, RunFlags, given
from saeworks.cli.output import print_json, print_line, print_table


def train(
    flags: RunFlags | None = None,
    *,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Train a grid of dictionaries on one stream of activations."""
    from saeworks.cli.plan import show_plan
    from saeworks.jobs.train import train as job

    overrides, file = given(flags), flags.config if flags else None
    if dry_run:
        return show_plan(overrides, file, json, measuring=False)
    summary = job(overrides, file)
    if json:
        return print_json(summary)
    print_table("Dictionaries", summary["table"])
    print_line(f"Workspace: {summary['out']}")
    return None
