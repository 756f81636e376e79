"""What a bench would do, before it starts: which cells, what each eval reads, what is kept, and how long it took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeworks.jobs.bench import Work
from saeworks.jobs.bench_grid import Entry, Grid, entries_of, open_bench, taken
from saeworks.jobs.config import BenchConfig, plain
from saeworks.jobs.inputs import choose_site, named, open_model
from saeworks.jobs.plan import duration, grid, plan, plan_rows
from saeworks.jobs.workspace import Workspace
from saeworks.results.import_saebench import Imported, import_saebench

#: Settings of an eval that say how much it reads, and of what.
_READS = {
    "tokens": "tokens",
    "train_texts": "texts to learn from",
    "test_texts": "texts to test on",
    "texts": "texts",
    "seeds": "seeds",
}
#: What a run may be resumed with otherwise; a plan of training takes it from the run that is there.
_MEASURING = ("evals", "eval_tokens", "probe_texts", "mode", "settings")


def plan_bench(overrides: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """Resolve the configuration, load what can be loaded, and say what there is to do. Writes and measures nothing.

    Returns:
        ``{"config", "training", "evals": [{"eval", "reads", "cells", "kept", "skipped", "measure", "seconds"}],
        "cells", "seconds", "not_timed", "notes"}``. ``training`` is the plan of the grid (None for dictionaries that
        exist, or are trained already); ``seconds`` what the cells to measure will take by the times of an earlier call
        in the same directory (None where there is none), and ``not_timed`` the evals that it says nothing of.

    Raises:
        InputError: bad input, as of :func:`saeworks.jobs.bench.bench`.
    """
    config, workspace = open_bench(overrides, file)
    published = import_saebench(config.published) if config.published else Imported([], [])
    training, chosen = (None, taken(config)) if config.dictionary else _grid(config, workspace)
    work = Work(config, workspace.root, chosen, published, quiet=True)
    work.survey(make=False)
    seconds, unknown = work.board.remaining()
    cells = list(work.board.cells.values())
    by_eval: list[dict[str, Any]] = []
    for name in work.evals:
        own = [cell for cell in cells if cell.eval == name]
        left = [cell for cell in own if cell.state == "waiting"]
        by_eval.append(
            {
                "eval": name,
                "reads": _reads(plain(work.configs[name])),
                "cells": len(own),
                "kept": sum(cell.state == "kept" for cell in own),
                "skipped": sum(cell.state == "skipped" for cell in own),
                "measure": len(left),
                "seconds": work.board.remaining(name)[0],
            }
        )
    return {
        "config": plain(config),
        "training": training,
        "evals": by_eval,
        "cells": [cell.plain() for cell in cells],
        "seconds": seconds,
        "not_timed": unknown,
        "notes": [*work.notes, *(f"{name}: {why}" for name, why in work.failures.items())],
    }


def bench_plan_rows(made: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The tables of a plan: title → rows."""
    evals = [
        {**row, "seconds": "not timed yet" if row["seconds"] is None and row["measure"] else _said(row["seconds"])}
        for row in made["evals"]
    ]
    total = {key: sum(row[key] for row in made["evals"]) for key in ("cells", "kept", "skipped", "measure")}
    timed = "not timed yet" if made["seconds"] is None and total["measure"] else _said(made["seconds"])
    timed += " and what is not timed" if made["seconds"] is not None and made["not_timed"] else ""
    evals.append({"eval": "all", "reads": None, **total, "seconds": timed})
    skipped: dict[str, list[str]] = {}
    for cell in made["cells"]:
        if cell["state"] == "skipped":
            skipped.setdefault(str(cell["sentence"]), []).append(f"{cell['eval']} of {cell['dictionary']}")
    reasons = [{"skipped": len(names), "such as": names[0], "why": why} for why, names in skipped.items()]
    training = plan_rows(made["training"]) if made["training"] else {}
    return {**training, "Cells: eval × dictionary (nothing was started)": evals, "Skipped": reasons}


def _said(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)


def _reads(settings: Mapping[str, Any]) -> str:
    """How much an eval reads, as far as its settings say."""
    parts: list[str] = []
    for key, what in _READS.items():
        value = settings.get(key)
        count = len(value) if isinstance(value, list) else value
        if isinstance(count, int) and not (key == "seeds" and count == 1):
            parts.append(f"{count:,} {what}")
    return ", ".join(parts)


def _grid(config: BenchConfig, workspace: Workspace) -> tuple[dict[str, Any] | None, Grid]:
    """The plan of training and the grid as far as it is there: dictionaries that will be have no content hash yet."""
    from saeworks.dictionaries.dictionary import DictionaryConfig

    model = open_model(config)
    site = choose_site(model, next(iter(named(config.site)), None))
    members = grid(config)
    folders = {m.name: workspace.dictionaries / m.name for m in members}
    there = {name: folder for name, folder in folders.items() if (folder / "cfg.json").is_file()}
    if len(there) == len(members):
        entries, broken = entries_of(there)
        return None, Grid(entries, model, None, failures=broken)
    keep = {key: value for key, value in config.training() if not (workspace.exists() and key in _MEASURING)}
    entries = {}
    for m in members:
        k = None if m.recipe.sparsity == "coefficient" else int(m.sparsity)
        metadata = {"site": site, "recipe": m.recipe.name, "k": k}
        cfg = DictionaryConfig(architecture="topk", d_in=model.site(site).width, d_sae=m.width, k=k, metadata=metadata)
        reason = None if m.recipe.inputs == "same" else f"{m.recipe.name} reads or writes several sites"
        entries[m.name] = Entry(folders[m.name], cfg, "", reason)
    return plan(keep, None, measuring=False), Grid(entries, model, None)
