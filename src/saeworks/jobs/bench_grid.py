"""The dictionaries of a bench, trained here or brought along, and the language model that they read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError, RunError
from saeworks.jobs.config import BenchConfig, resolve
from saeworks.jobs.eval_data import check_evals
from saeworks.jobs.evaluate import dictionary_folders, eval_config, trained_model
from saeworks.jobs.inputs import open_model
from saeworks.jobs.train import train_grid
from saeworks.jobs.workspace import Workspace, open_run_as
from saeworks.results.table_file import check_parquet

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import DictionaryConfig
    from saeworks.models.language_model import LanguageModel


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


def open_bench(overrides: Mapping[str, Any], file: Path | None) -> tuple[BenchConfig, Workspace]:
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
    for name in config.evals:
        eval_config(name, config, None)  # a wrong setting is refused now
    return config, workspace


def trained(config: BenchConfig, workspace: Workspace) -> Grid:
    """The grid, trained as far as it is not yet."""
    done = train_grid(config.training(), workspace)
    workspace.write(done.config, trained=time.time(), training_seconds=done.seconds)
    assert done.model is not None  # activations that are not from a store come from a model
    entries, broken = entries_of({name: workspace.dictionaries / name for name in done.dictionaries})
    return Grid(entries, done.model, None, done.seconds, {**done.failures, **broken})


def taken(config: BenchConfig) -> Grid:
    """The dictionaries that exist, and the model that they read."""
    entries, broken = entries_of(dictionary_folders(config.dictionary or ()))
    given = config.model_fields_set
    name = config.model if "model" in given else trained_model(entries)
    return Grid(entries, open_model(config, name), config.site if "site" in given else None, failures=broken)


def entries_of(folders: Mapping[str, Path]) -> tuple[dict[str, Entry], dict[str, str]]:
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


def sentence(error: Exception) -> str:
    """What an error says, on one line; of those that are not meant for a person, with their kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (InputError, RunError)) else f"{type(error).__name__}: {text or 'no message'}"
