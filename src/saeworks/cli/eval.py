"""``saeworks eval``: measure dictionaries."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from saeworks.cli.flags import EvalFlags, JsonFlag, given
from saeworks.cli.output import print_json, print_line, print_table


def evaluate(
    *names: Annotated[str, Parameter(name="NAME")],
    flags: EvalFlags | None = None,
    json: JsonFlag = False,
) -> None:
    """Measure dictionaries with the named evals: core, sparse_probing, latents (these three when none is named), scr,
    tpp, shift, absorption, autointerp, ravel, unlearning, meta_structure, mdl."""
    from saeworks.jobs.evaluate import evaluate as job

    overrides = {**given(flags), **({"names": names} if names else {})}
    summary = job(overrides, flags.config if flags else None)
    if json:
        return print_json(summary)
    print_table("Results", summary["table"])
    print_line(f"Results: {summary['out']}")
    return None
