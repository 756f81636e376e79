"""``--dry-run`` of ``saeworks run`` and ``saeworks train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeworks.cli.output import print_json, print_table


def show_plan(overrides: Mapping[str, Any], file: Path | None, as_json: bool, measuring: bool) -> None:
    """Print what a run would take, as tables or as one JSON object."""
    from saeworks.jobs.plan import plan, plan_rows

    made = plan(overrides, file, measuring)
    if as_json:
        return print_json(made)
    for title, rows in plan_rows(made).items():
        print_table(title, rows)
    return None
