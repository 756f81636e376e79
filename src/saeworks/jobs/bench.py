"""A benchmark: a grid of dictionaries, trained here or brought along, under any of the evals; one table of them all."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError, RunError
from saeworks.files import write_json
from saeworks.jobs.bench_board import Board, Cell
from saeworks.jobs.config import BenchConfig, plain, resolve
from saeworks.jobs.eval_data import TEXT_EVALS, check_evals, held_out, labelled_sets, own_data, why_not, why_not_own
from saeworks.jobs.evaluate import dictionary_folders, eval_config, foreign_models, trained_model
from saeworks.jobs.inputs import open_model
from saeworks.jobs.train import train_grid
from saeworks.jobs.workspace import Workspace, open_run_as
from saeworks.results.dictionary_table import dictionary_rows
from saeworks.results.envelope import Result
from saeworks.results.import_saebench import Imported, import_saebench
from saeworks.results.table_file import check_parquet, write_parquet
from saeworks.version import __version__

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
    from saeworks.evals.runner import Data
    from saeworks.models.language_model import LanguageModel

SCHEMA_VERSION = 1
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """What is known of a dictionary while it is not in memory; ``reason`` says why it cannot be measured."""

    folder: Path
    cfg: DictionaryConfig
    fingerprint: str
    reason: str | None


@dataclass(frozen=True)
class Grid:
    """The dictionaries of a bench by name, those that broke (``failures``), and the language model they read."""

    entries: dict[str, Entry]
    model: LanguageModel
    site: str | None
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict[str, str])


def bench(overrides: Mapping[str, Any] | None = None, file: Path | None = None) -> dict[str, Any]:
    """Train the grid (or take ``dictionary``), run ``evals`` on all of it, write results and ``bench.parquet``.

    What was trained and measured before is kept. A cell (eval × dictionary) that fails is recorded with its sentence
    and costs no other; it is tried again by the next call.

    Args:
        overrides: keys of :class:`saeworks.jobs.config.BenchConfig`; they win over the file.
        file: YAML file with the same keys.

    Returns:
        ``{"out", "table_file", "seconds": {...}, "table": [one row per dictionary], "cells": [...], "failures",
        "notes"}``; ``failures`` has dictionaries that could not be trained or loaded.

    Raises:
        InputError: bad input, found before anything is trained wherever that is possible.
        RunError: the disk is full, or not one cell could be measured.
    """
    started = time.monotonic()
    config, workspace = _open(overrides or {}, file)
    published = import_saebench(config.published) if config.published else Imported([], [])
    grid = _taken(config) if config.dictionary else _trained(config, workspace)
    work = _Bench(config, workspace.root, grid, published)
    with workspace.locked():
        work.run(started)
    return work.summary()


def _open(overrides: Mapping[str, Any], file: Path | None) -> tuple[BenchConfig, Workspace]:
    """The configuration and where to write; refuses what is known to be impossible before anything is loaded."""
    config = resolve(BenchConfig, overrides, file)
    if config.dictionary is None:
        config, workspace = open_run_as(BenchConfig, overrides, file)
    else:
        grid = config.model_fields_set & {"recipe", "width", "k", "penalty", "preset", "target_site"}
        if grid:
            raise InputError(
                f"Dictionaries to measure were given, and a grid to train ({', '.join(sorted(grid))}) too; "
                "leave out --dictionary or the grid."
            )
        workspace = Workspace(config.out)
        if config.out.exists() and not config.out.is_dir():
            raise InputError(f"--out '{config.out}' is a file; give a directory.")
    check_parquet()
    check_evals(config.evals, config)
    reasons = [why_not(name, config) or why_not_own(name, config) for name in config.evals]
    if all(reasons):
        raise InputError(str(reasons[0]))
    for name in config.evals:
        eval_config(name, config, None)  # a wrong setting is refused now
    return config, workspace


def _trained(config: BenchConfig, workspace: Workspace) -> Grid:
    trained = train_grid(config.training(), workspace)
    workspace.write(trained.config, trained=time.time(), training_seconds=trained.seconds)
    assert trained.model is not None  # activations that are not from a store come from a model
    entries, broken = _entries({name: workspace.dictionaries / name for name in trained.dictionaries})
    return Grid(entries, trained.model, None, trained.seconds, {**trained.failures, **broken})


def _taken(config: BenchConfig) -> Grid:
    entries, broken = _entries(dictionary_folders(config.dictionary or ()))
    given = config.model_fields_set
    name = config.model if "model" in given else trained_model(entries)
    return Grid(entries, open_model(config, name), config.site if "site" in given else None, failures=broken)


def _entries(folders: Mapping[str, Path]) -> tuple[dict[str, Entry], dict[str, str]]:
    """What is known of every dictionary, loaded one at a time, and the sentence of each that cannot be loaded."""
    from saeworks.dictionaries.formats import load
    from saeworks.evals.shared.batches import why_not_one_site

    found: dict[str, Entry] = {}
    broken: dict[str, str] = {}
    for name, folder in folders.items():
        try:
            dictionary = load(folder, "cpu")
        except Exception as e:
            broken[name] = sentence(e)
            continue
        found[name] = Entry(folder, dictionary.cfg, dictionary.fingerprint(), why_not_one_site(dictionary))
    if not found and broken:
        raise InputError("None of the dictionaries can be loaded: " + " ".join(broken.values()))
    return found, broken


class _Bench:
    """Measures the cells of a board group by group: the dictionaries of a group are in memory together."""

    def __init__(self, config: BenchConfig, root: Path, grid: Grid, published: Imported) -> None:
        self.config, self.root, self.grid, self.published = config, root, grid, published
        self.results = root / "results"
        self.entries, self.failures = grid.entries, grid.failures
        self.evals = tuple(dict.fromkeys(config.evals))
        self.configs = {name: eval_config(name, config, grid.site) for name in self.evals}
        self.board = Board({name: entry.cfg.d_sae for name, entry in self.entries.items()}, self.evals)
        self.data: dict[str, Data] = {}
        self.notes = [*foreign_models(self.entries, grid.model), *published.problems]
        self.seconds = {"training": grid.seconds, "measuring": 0.0, "total": 0.0}

    def run(self, started: float) -> None:
        """Measure what is not measured yet. Table and board are written after every eval of a group."""
        begun = time.monotonic()
        for name, entry in self.entries.items():
            if entry.reason:
                self.board.fell("skipped", self.board.of(name), entry.reason)
        for name in self.evals:
            self._open_data(name)
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
        cells = list(self.board.cells.values())
        if not any(cell.result for cell in cells):
            reasons = dict.fromkeys([*(c.sentence for c in cells if c.sentence), *self.failures.values()])
            raise RunError(f"Not one of {len(cells)} cells could be measured: {' '.join(reasons)}")

    def _open_data(self, name: str) -> None:
        """Open what an eval reads, and find the cells that an earlier call measured on the same bytes."""
        from saeworks.evals import runner

        waiting = self.board.waiting(eval_name=name)
        if not waiting:
            return
        if reason := why_not(name, self.config) or why_not_own(name, self.config):
            return self.board.fell("skipped", waiting, reason)
        with self._caught(waiting):
            self.data[name] = self._data_of(name)
            prints = {cell.dictionary: self.entries[cell.dictionary].fingerprint for cell in waiting}
            model, settings = self.grid.model, self.configs[name]
            self.board.keep(name, runner.finished(name, prints, model, self.data[name], self.results, settings))
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

    def _load(self, names: list[str]) -> dict[str, Dictionary]:
        from saeworks.dictionaries.formats import load
        from saeworks.runtime import resolve_device

        where, loaded = str(resolve_device(self.config.device)), dict[str, "Dictionary"]()
        for name in names:
            with self._caught(self.board.waiting([name])):
                loaded[name] = load(self.entries[name].folder, where)
        return loaded

    def _measure(self, name: str, dictionaries: Mapping[str, Dictionary]) -> None:
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

    def _together(self, name: str, dictionaries: Mapping[str, Dictionary], cells: list[Cell]) -> None:
        from saeworks.evals import runner

        chosen = {cell.dictionary: dictionaries[cell.dictionary] for cell in cells}
        start = time.monotonic()
        # What an earlier call measured is known already: nothing is looked up again.
        done = runner.run_evals(
            [name], chosen, self.grid.model, self.data[name], self.results, self.configs, force=True
        )
        self.board.measured(name, done[name], time.monotonic() - start)

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
        """One row per dictionary, measured or not, then those of published results; ``failed`` names evals."""
        own: list[Result] = []
        for name, entry in self.entries.items():
            # An empty result first: it gives a row to a dictionary that nothing was measured on.
            facts = entry.cfg.model_dump(mode="json")
            own.append(
                Result(eval_type_id="", eval_config={}, eval_result_metrics={}, sae_lens_id=name, sae_cfg_dict=facts)
            )
            own += [cell.result for cell in self.board.of(name) if cell.result]
        rows = dictionary_rows([*own, *self.published.results])
        for row, name in zip(rows, self.entries, strict=False):  # one's own come first
            row["failed"] = ", ".join(c.eval for c in self.board.of(name) if c.state == "failed") or None
        for row in rows[len(self.entries) :]:
            row["failed"] = None
        return rows

    def write(self) -> None:
        """Write ``bench.json`` and ``bench.parquet`` as things stand."""
        summary = self.summary()
        head = {"schema_version": SCHEMA_VERSION, "saeworks_version": __version__, "config": plain(self.config)}
        write_parquet(self.root / "bench.parquet", summary["table"])
        write_json(self.root / "bench.json", {**head, **summary})

    def summary(self) -> dict[str, Any]:
        """What :func:`bench` returns."""
        return {
            "out": str(self.root),
            "table_file": str(self.root / "bench.parquet"),
            "seconds": dict(self.seconds),
            "table": self.rows(),
            "cells": [cell.plain() for cell in self.board.cells.values()],
            "failures": dict(self.failures),
            "notes": list(self.notes),
        }


def sentence(error: Exception) -> str:
    """What an error says, on one line; of those that are not meant for a person, with their kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (InputError, RunError)) else f"{type(error).__name__}: {text or 'no message'}"


def _hopeless(error: BaseException | None) -> bool:
    """Whether nothing can be written any more, so that every further cell would fail too."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return True
        error = error.__cause__
    return False
