"""The main job: text and language model in; trained, measured, saved dictionaries and a report out."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeworks.jobs.evaluate import check_evals, run_evals, summary_rows
from saeworks.jobs.train import train_grid
from saeworks.jobs.workspace import open_run


def run(overrides: Mapping[str, Any] | None = None, file: Path | None = None) -> dict[str, Any]:
    """Harvest, train the grid, measure it, write the report. Transcoders and crosscoders are trained and reported.

    Args:
        overrides: keys of :class:`saeworks.jobs.config.RunConfig`; they win over the file.
        file: YAML file with the same keys.

    Returns:
        ``{"out", "report", "site", "seconds": {...}, "table": [one row per dictionary], "skipped", "notes",
        "failures"}``.

    Raises:
        InputError: bad input, found before anything is written wherever that is possible.
        RunError: the work could not be finished; what was saved is kept and ``resume`` continues.
    """
    started = time.monotonic()
    config, workspace = open_run(overrides or {}, file)
    check_evals(config.evals, config)
    trained = train_grid(config, workspace)
    if not trained.lead:  # measuring is the work of one process
        return {"out": str(workspace.root), "report": str(workspace.report), "table": []}
    config, model = trained.config, trained.model
    assert model is not None  # activations that are not from a store come from a model
    measured = run_evals(config.evals, trained.dictionaries, model, config, workspace.results)
    measuring = time.monotonic() - started - trained.seconds
    seconds = {"training": trained.seconds, "measuring": round(measuring, 2)}
    facts = {"seconds": seconds, "skipped": measured.skipped, "notes": measured.notes, "failures": trained.failures}
    workspace.write(config, finished=time.time(), **facts)
    from saeworks.results.report import write_report

    report = write_report(workspace.root)
    for name, failure in trained.failures.items():
        sys.stderr.write(f"{name} failed: {failure}\n")
    return {
        "out": str(workspace.root),
        "report": str(report),
        "site": config.site,
        "table": summary_rows(trained.dictionaries, measured.results),
        **facts,
        "seconds": {**seconds, "total": round(time.monotonic() - started, 2)},
    }
