"""A benchmark: a grid of dictionaries, trained here or brought along, under any of the evals; one table of them all."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError, RunError
from saeworks.files import read_json, write_json
from saeworks.jobs.bench_board import Board, Cell
from saeworks.jobs.bench_grid import Entry, Grid, open_bench, sentence, taken, trained
from saeworks.jobs.config import BenchConfig, plain
from saeworks.jobs.controls import Controls
from saeworks.jobs.eval_data import TEXT_EVALS, WEIGHTS_ALONE, held_out, labelled_sets, own_data, why_not
from saeworks.jobs.evaluate import eval_config, foreign_models
from saeworks.results.comparison_report import Comparison, facts_of, write_comparison
from saeworks.results.dictionary_table import dictionary_rows
from saeworks.results.envelope import Result
from saeworks.results.import_saebench import Imported, import_saebench
from saeworks.results.readings import readings
from saeworks.results.remarks import remarks
from saeworks.results.table_file import write_parquet
from saeworks.version import __version__

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.evals.runner import Data
    from saeworks.evals.shared.batches import DictionaryLike

SCHEMA_VERSION = 1
Row = dict[str, Any]


def bench(overrides: Mapping[str, Any] | None = None, file: Path | None = None) -> dict[str, Any]:
    """Train the grid (or take ``dictionary``), run ``evals`` on all of it, write results and ``bench.parquet``.

    What was trained and measured before is kept. A cell (eval × dictionary) that fails is recorded with its sentence
    and costs no other; it is tried again by the next call.

    Args:
        overrides: keys of :class:`saeworks.jobs.config.BenchConfig`; they win over the file.
        file: YAML file with the same keys.

    Returns:
        ``{"out", "table_file", "report", "seconds": {...}, "table": [one row per dictionary and control], "readings":
        [every number between its floor and its ceiling], "cells": [...], "failures", "notes"}``; ``failures`` has
        dictionaries that could not be trained or loaded.

    Raises:
        InputError: bad input, found before anything is trained wherever that is possible.
        RunError: the disk is full, or not one cell could be measured.
    """
    started = time.monotonic()
    config, workspace = open_bench(overrides or {}, file)
    published = import_saebench(config.published) if config.published else Imported([], [])
    grid = taken(config) if config.dictionary else trained(config, workspace)
    work = Work(config, workspace.root, grid, published)
    with workspace.locked():
        work.run(started)
    return work.summary()


class Work:
    """Measures the cells of a board group by group: the dictionaries of a group are in memory together.

    ``quiet`` says nothing of single cells.
    """

    def __init__(self, config: BenchConfig, root: Path, grid: Grid, published: Imported, quiet: bool = False) -> None:
        from saeworks.evals.shared.pooling import TextPool

        self.config, self.root, self.grid, self.published = config, root, grid, published
        self.results = root / "results"
        self.entries, self.failures = grid.entries, grid.failures
        self.evals = tuple(dict.fromkeys(config.evals))
        self.configs = {name: eval_config(name, config, grid.site) for name in self.evals}
        self.controls = Controls(config, self.measurable(), grid.model, grid.site, root / "controls", self._one)
        plans = self.controls.plans
        widths = {name: entry.cfg.d_sae for name, entry in self.entries.items()}
        widths |= {name: plan.width for name, plan in plans.items()}
        kinds = {name: plan.kind for name, plan in plans.items()}
        self.board = Board(widths, self.evals, _say_nothing if quiet else None, kinds)
        self.data: dict[str, Data] = {}
        self.pool = TextPool()
        with suppress(InputError):  # without an earlier call's times, nothing is said of the time left at first
            earlier: Any = read_json(root / "bench.json")
            self.board.recall(earlier.get("cells", ()) if isinstance(earlier, dict) else ())
        self.notes = [*foreign_models(self.entries, grid.model), *published.problems]
        self.seconds = {"training": grid.seconds, "measuring": 0.0, "total": 0.0}

    def measurable(self) -> dict[str, Entry]:
        """The dictionaries that all evals can measure."""
        return {name: entry for name, entry in self.entries.items() if not entry.reason}

    def run(self, started: float) -> None:
        """Measure what is not measured yet. Table and board are written after every eval of a group."""
        begun = time.monotonic()
        self.survey()
        for note in self.notes:
            sys.stderr.write(note + "\n")
        self.board.start()
        names = list(dict.fromkeys(cell.dictionary for cell in self.board.waiting()))
        size = self.config.at_once
        for group in (names[i : i + size] for i in range(0, len(names), size)):
            dictionaries = self._load(group)
            for name in self.evals:
                self._measure(name, dictionaries)
                self._clock(begun, started)
                self.write()
        self._clock(begun, started)
        self.write()
        self._report()
        cells = list(self.board.cells.values())
        if not any(cell.result for cell in cells):
            reasons = dict.fromkeys([*(c.sentence for c in cells if c.sentence), *self.failures.values()])
            raise RunError(f"Not one of {len(cells)} cells could be measured: {' '.join(reasons)}")

    def survey(self, make: bool = True) -> None:
        """Find what cannot be measured, and what an earlier call measured.

        Without ``make``, no control is made to see whether it was measured: it is known from an earlier call or not.
        """
        for name, entry in self.entries.items():
            if entry.reason:
                cells = [cell for cell in self.board.of(name) if cell.eval not in WEIGHTS_ALONE]
                self.board.fell("skipped", cells, entry.reason)
        for cell in self.board.waiting(self.controls.plans):
            if reason := self.controls.why_not(cell.dictionary, cell.eval):
                self.board.fell("skipped", [cell], reason)
        for name in self.evals:
            self._open_data(name, make)

    def _open_data(self, name: str, make: bool) -> None:
        """Open what an eval reads, and find the cells that an earlier call measured on the same bytes."""
        from saeworks.evals import runner

        waiting = self.board.waiting(eval_name=name)
        if not waiting:
            return
        if reason := why_not(name, self.config):
            return self.board.fell("skipped", waiting, reason)
        with self._caught(waiting):
            self.data[name] = self._data_of(name)
            cells = self._makeable(waiting) if make else waiting
            found = {cell.dictionary: self._fingerprint(cell.dictionary, make) for cell in cells}
            prints = {dictionary: fingerprint for dictionary, fingerprint in found.items() if fingerprint}
            model, settings = self.grid.model, self.configs[name]
            kept = runner.finished(name, prints, model, self.data[name], self.results, settings)
            self.notes += remarks(kept.values())
            self.board.keep(name, kept)
        return None

    def _data_of(self, name: str) -> Data:
        from saeworks.evals.runner import Data

        if name in TEXT_EVALS:
            for other in TEXT_EVALS:  # they read the same texts
                if other in self.data:
                    return self.data[other]
            text, note = held_out(self.config)
            self.notes += [note] if note else []
            return Data(text)
        if name == "sparse_probing":
            return Data(labelled=labelled_sets(self.config, self.configs[name]))
        return Data(own={name: own_data(name, self.config, self.grid.model, self.configs[name])})

    def _makeable(self, cells: list[Cell]) -> list[Cell]:
        """These cells without those of controls that cannot be made, which are skipped with the reason."""
        for name in dict.fromkeys(cell.dictionary for cell in cells if cell.control):
            try:
                self._fingerprint(name)
            except InputError as e:
                self.board.fell("skipped", self.board.waiting([name]), sentence(e))
        return [cell for cell in cells if cell.state == "waiting"]

    def _fingerprint(self, name: str, make: bool = True) -> str | None:
        if name in self.entries:
            return self.entries[name].fingerprint
        return self.controls.fingerprint(name) if make else self.controls.recorded(name)

    def _one(self, name: str) -> Dictionary:
        from saeworks.dictionaries.formats import load
        from saeworks.runtime import resolve_device

        return load(self.entries[name].folder, str(resolve_device(self.config.device)))

    def _load(self, names: list[str]) -> dict[str, DictionaryLike]:
        loaded: dict[str, DictionaryLike] = {}
        for name in names:
            with self._caught(self.board.waiting([name])):
                loaded[name] = self._one(name) if name in self.entries else self.controls.make(name)
        return loaded

    def _measure(self, name: str, dictionaries: Mapping[str, DictionaryLike]) -> None:
        """One eval on a group; when that fails, on each dictionary alone, so that only those that fail are lost."""
        cells = self.board.waiting(dictionaries, name)
        if len(cells) > 1:
            try:
                self._together(name, dictionaries, cells)
            except Exception as e:
                if _hopeless(e):
                    raise
        for cell in cells:
            if cell.state == "waiting":
                with self._caught([cell]):
                    self._together(name, dictionaries, [cell])

    def _together(self, name: str, dictionaries: Mapping[str, DictionaryLike], cells: list[Cell]) -> None:
        from saeworks.evals import runner

        chosen = {cell.dictionary: dictionaries[cell.dictionary] for cell in cells}
        start = time.monotonic()
        # What an earlier call measured is known already: nothing is looked up again.
        done = runner.run_evals(
            [name], chosen, self.grid.model, self.data[name], self.results, self.configs, force=True, pool=self.pool
        )
        self.board.measured(name, done[name], time.monotonic() - start)
        for remark in remarks(done[name].values()):
            self.notes.append(remark)
            sys.stderr.write(remark + "\n")

    @contextmanager
    def _caught(self, cells: list[Cell]) -> Generator[None]:
        """These cells fail with whatever is raised, unless nothing else could succeed either."""
        from saeworks.evals.probes.problems import NothingToProbe

        try:
            yield
        except Exception as e:
            if _hopeless(e):
                raise
            # Labels too rare to probe are nobody's failure.
            state = "skipped" if isinstance(e, NothingToProbe) else "failed"
            self.board.fell(state, [cell for cell in cells if cell.state == "waiting"], sentence(e))

    def _clock(self, begun: float, started: float) -> None:
        now = time.monotonic()
        self.seconds |= {"measuring": round(now - begun, 2), "total": round(now - started, 2)}

    def rows(self) -> list[Row]:
        """One row per dictionary, measured or not, then those of controls and of published results; ``failed`` names
        evals."""
        facts = {name: entry.cfg.model_dump(mode="json") for name, entry in self.entries.items()}
        facts |= {name: plan.described() for name, plan in self.controls.plans.items()}
        own: list[Result] = []
        for name, cfg in facts.items():
            results = [cell.result for cell in self.board.of(name) if cell.result]
            # An empty result gives a row to a dictionary that nothing was measured on.
            empty = Result(eval_type_id="", eval_config={}, eval_result_metrics={}, sae_lens_id=name, sae_cfg_dict=cfg)
            own += results or [empty]
        rows = dictionary_rows([*own, *self.published.results], intervals=True)
        for row, name in zip(rows, facts, strict=False):  # one's own come first
            row["failed"] = ", ".join(c.eval for c in self.board.of(name) if c.state == "failed") or None
        for row in rows[len(facts) :]:
            row["failed"] = None
        return rows

    def write(self) -> None:
        """Write ``bench.json`` and ``bench.parquet`` as things stand."""
        summary = self.summary()
        head = {"schema_version": SCHEMA_VERSION, "saeworks_version": __version__, "config": plain(self.config)}
        write_parquet(self.root / "bench.parquet", summary["table"])
        write_json(self.root / "bench.json", {**head, **summary})

    def _report(self) -> None:
        """Write ``bench.html``; without the library that draws, say so and go on."""
        cells = list(self.board.cells.values())
        rows = self.rows()
        count = {
            state: sum(cell.state == state for cell in cells) for state in ("measured", "kept", "skipped", "failed")
        }
        done = ", ".join(f"{number} {state}" for state, number in count.items() if number)
        missing = {f"{c.eval} of {c.dictionary} {c.state}": c.sentence or "" for c in cells if c.sentence}
        missing |= {f"{name} could not be loaded or trained": why for name, why in self.failures.items()}
        models = sorted({str(row["model"]) for row in rows if row["model"] and not row["control"]})
        comparison = Comparison(
            f"Bench: dictionaries of {', '.join(models) or 'unknown models'}",
            rows,
            {**facts_of(rows), "Evals": ", ".join(self.evals), "Cells": done},
            self.notes,
            missing,
        )
        try:
            write_comparison(self.root / "bench.html", comparison)
        except InputError as e:
            self.notes.append(f"bench.html was not written: {e}")
            sys.stderr.write(self.notes[-1] + "\n")

    def summary(self) -> dict[str, Any]:
        """What :func:`bench` returns."""
        rows = self.rows()
        return {
            "out": str(self.root),
            "table_file": str(self.root / "bench.parquet"),
            "report": str(self.root / "bench.html"),
            "seconds": dict(self.seconds),
            "table": rows,
            "readings": readings(row for row in rows if row["source"] == "saeworks"),
            "cells": [cell.plain() for cell in self.board.cells.values()],
            "failures": dict(self.failures),
            "notes": list(self.notes),
        }


def _say_nothing(_: str) -> None:
    pass


def _hopeless(error: BaseException | None) -> bool:
    """Whether nothing can be written any more, so that every further cell would fail too."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return True
        error = error.__cause__
    return False
