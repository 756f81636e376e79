"""``saeworks bench``: a grid of dictionaries under many evals, as one table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from saeworks.cli.flags import BenchFlags, JsonFlag, given
from saeworks.cli.output import print_json, print_line, print_readings, print_table

BenchDryRun = Annotated[
    bool,
    Parameter(help="Print the cells, what is kept, what each eval reads and, where known, the time; start none."),
]
# Characters of a line, and of a column of numbers.
LINE, COLUMN = 116, 13


def bench(flags: BenchFlags | None = None, *, dry_run: BenchDryRun = False, json: JsonFlag = False) -> int | None:
    """Train a grid of dictionaries, or take those given, run evals on all of it, and make one table.

    Repeat the command with --resume to go on: what was trained and measured is kept. Exit code 1 when a cell failed.
    """
    overrides, file = given(flags), flags.config if flags else None
    if dry_run:
        return _show_plan(overrides, file, json)
    from saeworks.jobs.bench import bench as job

    summary = job(overrides, file)
    failed = [cell for cell in summary["cells"] if cell["state"] == "failed"]
    if json:
        print_json(summary)
    else:
        rows = summary["table"]
        _print_columns("Bench", [row for row in rows if not row["control"]])
        _print_columns("Controls", [row for row in rows if row["control"]])
        print_readings(summary["readings"])
        for cell in failed:
            sys.stderr.write(f"{cell['eval']} failed on {cell['dictionary']}: {cell['sentence']}\n")
        for name, failure in summary["failures"].items():
            sys.stderr.write(f"{name} failed: {failure}\n")
        print_line(f"Table: {summary['table_file']}")
        print_line(f"Report: {summary['report']}")
    return 1 if failed or summary["failures"] else None


def _show_plan(overrides: Mapping[str, Any], file: Path | None, as_json: bool) -> None:
    from saeworks.jobs.bench_plan import bench_plan_rows, plan_bench

    made = plan_bench(overrides, file)
    if as_json:
        return print_json(made)
    for title, rows in bench_plan_rows(made).items():
        print_table(title, rows)
    for note in made["notes"]:
        print_line(note)
    return None


def _print_columns(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The numbers of the table, a few columns at a time; facts of the dictionaries stand in their names."""
    facts = ("control", "mode", "model", "site", "architecture", "width", "setting", "seed", "tokens")
    several = len({row["source"] for row in rows}) > 1
    lead = ["dictionary", *(["source"] if several else [])]
    shown = [
        column
        for column in (rows[0] if rows else ())
        if column not in (*facts, "dictionary", "source")
        and not column.endswith(("_low", "_high"))
        and any(row[column] is not None for row in rows)
    ]
    longest = max((len(row["dictionary"]) for row in rows), default=0) + (COLUMN if several else 0)
    columns = max((LINE - longest) // COLUMN, 3)
    for i in range(0, max(len(shown), 1), columns):
        chosen = [*lead, *shown[i : i + columns]]
        print_table(title if i == 0 else "", [{column: row[column] for column in chosen} for row in rows])
