"""``saeworks eval``: measure dictionaries."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from saeworks.cli.flags import EvalFlags, JsonFlag, given
from saeworks.cli.output import print_json, print_line, print_readings, print_table


def evaluate(
    *names: Annotated[str, Parameter(name="NAME")],
    flags: EvalFlags | None = None,
    json: JsonFlag = False,
) -> None:
    """Measure dictionaries; ``saeworks eval --help`` names the evals, and says what each of their numbers means."""
    from saeworks.jobs.evaluate import evaluate as job

    overrides = {**given(flags), **({"names": names} if names else {})}
    summary = job(overrides, flags.config if flags else None)
    if json:
        return print_json(summary)
    print_table("Results", summary["table"])
    print_table("Controls", [{k: v for k, v in row.items() if k != "control"} for row in summary["controls"]])
    print_readings(summary["readings"])
    reasons: dict[str, list[str]] = {}
    for name, reason in summary["skipped"].items():
        reasons.setdefault(reason, []).append(name)
    for reason, skipped in reasons.items():
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        print_line(f"Skipped {skipped[0]}{more}: {reason}")
    print_line(f"Results: {summary['out']}")
    return None
