"""``saeworks bench``: a grid of dictionaries under many evals, as one table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from saeworks.cli.flags import BenchFlags, JsonFlag, given
from saeworks.cli.output import print_json, print_line, print_table

# Columns of numbers that fit beside the name of a dictionary.
COLUMNS = 8


def bench(flags: BenchFlags | None = None, *, json: JsonFlag = False) -> int | None:
    """Train a grid of dictionaries, or take those given, run evals on all of it, and make one table.

    Repeat the command with --resume to go on: what was trained and measured is kept. Exit code 1 when a cell failed.
    """
    from saeworks.jobs.bench import bench as job

    summary = job(given(flags), flags.config if flags else None)
    failed = [cell for cell in summary["cells"] if cell["state"] == "failed"]
    if json:
        print_json(summary)
    else:
        _print_columns(summary["table"])
        for cell in failed:
            sys.stderr.write(f"{cell['eval']} failed on {cell['dictionary']}: {cell['sentence']}\n")
        for name, failure in summary["failures"].items():
            sys.stderr.write(f"{name} failed: {failure}\n")
        print_line(f"Table: {summary['table_file']}")
    return 1 if failed or summary["failures"] else None


def _print_columns(rows: Sequence[Mapping[str, Any]]) -> None:
    """The numbers of the table, a few columns at a time; facts of the dictionaries stand in their names."""
    facts = ("mode", "model", "site", "architecture", "width", "setting", "seed", "tokens")
    several = len({row["source"] for row in rows}) > 1
    lead = ["dictionary", *(["source"] if several else [])]
    shown = [
        column
        for column in (rows[0] if rows else ())
        if column not in (*facts, "dictionary", "source") and any(row[column] is not None for row in rows)
    ]
    for i in range(0, max(len(shown), 1), COLUMNS):
        chosen = [*lead, *shown[i : i + COLUMNS]]
        print_table("Bench" if i == 0 else "", [{column: row[column] for column in chosen} for row in rows])
