"""Train the grid of a run into its workspace."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.jobs.config import RunConfig
from saeworks.jobs.inputs import open_activations
from saeworks.jobs.plan import check_disk, check_settings, grid
from saeworks.jobs.workspace import Workspace, open_run

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.models.language_model import LanguageModel
    from saeworks.training.ranks import Ranks


@dataclass(frozen=True)
class Trained:
    """What training leaves behind for measuring: resolved configuration, dictionaries by name, failures.

    ``model`` is None when the activations came from a store. Of the processes of a run only the ``lead`` has
    dictionaries, and it alone writes.
    """

    config: RunConfig
    workspace: Workspace
    model: LanguageModel | None
    dictionaries: dict[str, Dictionary]
    failures: dict[str, str]
    seconds: float
    lead: bool = True


def train(overrides: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """Train the grid and return a summary ``{"out", "site", "seconds", "table", "failures"}``.

    ``overrides`` are keys of :class:`saeworks.jobs.config.RunConfig`; they win over the YAML ``file``.
    Raises ``InputError`` for bad input and ``RunError`` when the work cannot be finished.
    """
    trained = train_grid(*open_run(overrides, file))
    if trained.lead:
        trained.workspace.write(trained.config, trained=time.time(), training_seconds=trained.seconds)
    return {
        "out": str(trained.workspace.root),
        "site": trained.config.site,
        "seconds": trained.seconds,
        "table": [recorded_row(name, dictionary) for name, dictionary in trained.dictionaries.items()],
        "failures": trained.failures,
    }


def train_grid(config: RunConfig, workspace: Workspace) -> Trained:
    """Check everything, start the workspace, train. The configuration that comes back has its site resolved.

    In a process that ``torchrun`` started together with others, all of them train together.
    """
    from saeworks.runtime import resolve_device
    from saeworks.training.ranks import joined

    check_settings(config)
    grid(config)  # what cannot be is refused before the language model is loaded
    with joined(resolve_device(config.device)) as ranks:
        return _train(config, workspace, ranks)


def _train(config: RunConfig, workspace: Workspace, ranks: Ranks) -> Trained:
    from saeworks.activations.batches import layout_of
    from saeworks.runtime import resolve_device
    from saeworks.training.division import Division
    from saeworks.training.trainer import Trainer, TrainerConfig

    started = time.monotonic()
    activations = open_activations(config, ranks)
    workspace.check_site(activations.site)
    config = config.model_copy(update={"site": activations.site})
    layout = layout_of(activations.stream)
    members = grid(config, layout)
    check_disk(config, members, layout)
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
        Division.of(ranks, config.parallel),
    )
    ranks.barrier()  # nobody looks at the workspace any more when the first rank begins to write it
    with (
        workspace.locked() if ranks.lead else nullcontext(),
        workspace.started(config) if ranks.lead else nullcontext(),
    ):
        dictionaries = trainer.run(resume=config.resume)
    failures = {member.name: member.failure for member in trainer.members if member.failure}
    seconds = round(time.monotonic() - started, 2)
    return Trained(config, workspace, activations.model, dictionaries, failures, seconds, ranks.lead)


def recorded_row(name: str, dictionary: Dictionary) -> dict[str, Any]:
    """Row of the summary table from what was measured when the dictionary was saved."""
    metadata = dictionary.cfg.metadata
    recorded = metadata.get("recorded") or {}
    sparsity = metadata.get("k")
    if sparsity is None and metadata.get("penalty") is not None:
        sparsity = f"penalty {metadata['penalty']:g}"
    return {
        "dictionary": name,
        "latents": dictionary.cfg.d_sae,
        "k": sparsity,
        "l0": recorded.get("l0"),
        "explained_variance": recorded.get("explained_variance"),
    }
