"""``saeworks doctor``: what is here, what is missing, and how to add it."""

from __future__ import annotations

from saeworks.cli.flags import JsonFlag
from saeworks.cli.output import print_json, print_table


def doctor(*, json: JsonFlag = False) -> int:
    """Say what this installation can do, what is missing and how to add it.

    Exit code 0 when the main job can run here, 1 when it cannot.
    """
    from saeworks.jobs.doctor import doctor as job

    report = job()
    if json:
        print_json(report)
    else:
        print_table("saeworks doctor", report["checks"])
    return 0 if report["healthy"] else 1
