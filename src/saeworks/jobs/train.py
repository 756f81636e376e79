"""Train the grid of a run into its workspace."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError
from saeworks.jobs.config import RunConfig
from saeworks.jobs.inputs import open_activations
from saeworks.jobs.plan import check_disk, check_settings, grid
from saeworks.jobs.workspace import Workspace, open_run

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.models.language_model import LanguageModel


@dataclass(frozen=True)
class Trained:
    """What training leaves behind for measuring: resolved configuration, dictionaries by name, failures.

    ``model`` is None when the activations came from a store.
    """

    config: RunConfig
    workspace: Workspace
    model: LanguageModel | None
    dictionaries: dict[str, Dictionary]
    failures: dict[str, str]
    seconds: float


def train(overrides: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """Train the grid and return a summary ``{"out", "site", "seconds", "table", "failures"}``.

    ``overrides`` are keys of :class:`saeworks.jobs.config.RunConfig`; they win over the YAML ``file``.
    Raises ``InputError`` for bad input and ``RunError`` when the work cannot be finished.
    """
    trained = train_grid(*open_run(overrides, file))
    trained.workspace.write(trained.config, trained=time.time(), training_seconds=trained.seconds)
    return {
        "out": str(trained.workspace.root),
        "site": trained.config.site,
        "seconds": trained.seconds,
        "table": [recorded_row(name, dictionary) for name, dictionary in trained.dictionaries.items()],
        "failures": trained.failures,
    }


def train_grid(config: RunConfig, workspace: Workspace) -> Trained:
    """Check everything, start the workspace, train. The configuration that comes back has its site resolved."""
    from saeworks.runtime import resolve_device
    from saeworks.training.trainer import Trainer, TrainerConfig

    started = time.monotonic()
    check_settings(config)
    members = grid(config)
    activations = open_activations(config)
    workspace.check_site(activations.site)
    config = config.model_copy(update={"site": activations.site})
    check_disk(config, members, activations.stream.width)
    trainer = Trainer(
        activations.stream,
        members,
        TrainerConfig(
            tokens=config.tokens,
            batch_size=config.batch_size,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
        ),
        workspace.root,
        resolve_device(config.device),
        activations.metadata,
    )
    with workspace.locked(), _started(workspace, config):
        dictionaries = trainer.run(resume=config.resume)
    failures = {member.name: member.failure for member in trainer.members if member.failure}
    return Trained(config, workspace, activations.model, dictionaries, failures, round(time.monotonic() - started, 2))


def recorded_row(name: str, dictionary: Dictionary) -> dict[str, Any]:
    """Row of the summary table from what was measured when the dictionary was saved."""
    metadata = dictionary.cfg.metadata
    recorded = metadata.get("recorded") or {}
    return {
        "dictionary": name,
        "latents": dictionary.cfg.d_sae,
        "k": metadata.get("k"),
        "l0": recorded.get("l0"),
        "explained_variance": recorded.get("explained_variance"),
    }


@contextmanager
def _started(workspace: Workspace, config: RunConfig) -> Generator[None]:
    """Write the run file; take it back when the input turns out bad before any progress was saved.

    A run on texts that have to be mended cannot be resumed, so nothing of it is worth keeping.
    """
    fresh = not workspace.exists()
    workspace.write(config)
    try:
        yield
    except InputError:
        if fresh and {p.name for p in workspace.checkpoints.glob("step-*")} <= {"step-0"}:
            workspace.discard()
        raise
