"""``saeworks compare``: result files against each other, without measuring anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from saeworks.cli.flags import JsonFlag
from saeworks.cli.output import print_json, print_line, print_readings, print_table


def compare(
    *places: Annotated[str, Parameter(name="PLACE")],
    at_l0: str | None = None,
    metric: str | None = None,
    pareto: str | None = None,
    baseline: str | None = None,
    out: Path | None = None,
    json: JsonFlag = False,
) -> None:
    """Compare measured dictionaries at equal L0, on fronts, and as one page.

    Reads workspaces, benches, folders of results and folders of SAEBench's result files, in any mixture.

    Parameters
    ----------
    places
        Where the result files lie.
    at_l0
        L0s to compare at, comma-separated; round ones that the dictionaries cover when not given.
    metric
        Numbers to compare, comma-separated, as 'saeworks eval --help' names them; all that are there when not given.
    pareto
        Two numbers X,Y: the dictionaries that no other one beats in both, for example l0,ce_loss_score.
    baseline
        The kind of dictionary, as the first column names it, whose values are taken from all others'.
    out
        HTML file to write: tables, sweeps of sparsity and fronts on one page that needs no network.
    """
    from saeworks.jobs.compare import compare as job
    from saeworks.jobs.config import numbers, parts

    made = job(
        places,
        at_l0=numbers(at_l0, "--at-l0") if at_l0 is not None else None,
        metrics=parts(metric) if metric is not None else None,
        pareto=parts(pareto) if pareto is not None else None,
        baseline=baseline,
        out=out,
    )
    if json:
        return print_json(made)
    end = f", less {baseline}" if baseline else ""
    for column, rows in made["matched"].items():
        print_table(f"{column} at matched L0{end}", [{k: v for k, v in r.items() if "_l0" not in k} for r in rows])
    print_table("Front", made["front"])
    print_readings(made["readings"])
    for note in made["notes"]:
        print_line(note)
    if made["report"]:
        print_line(f"Report: {made['report']}")
    return None
