"""What the reproductions on the embedded world share: train a grid per seed, measure it on texts not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.activations.streams import LiveStream
from saeworks.activations.texts import TextSource, open_texts
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.evals import core, latents
from saeworks.evals.runner import Data, run_evals
from saeworks.evals.shared.batches import document_batches, fingerprint_of_model, harvest, kept_activations
from saeworks.models.language_model import LanguageModel
from saeworks.results.envelope import Result
from saeworks.training.cells import MemberConfig
from saeworks.training.recipes import Recipe
from saeworks.training.schedules import default_learning_rate
from saeworks.training.trainer import Trainer, TrainerConfig


@dataclass(frozen=True)
class Settings:
    """A grid on the world.

    Attributes:
        site: where activations are read. width: number of latents.
        tokens: activations every dictionary is trained on, in batches of ``batch_size``.
        seeds: of weights and of the order of the activations.
        eval_tokens: held-out tokens that are measured.
    """

    site: str = "layers.2.resid_post"
    width: int = 1024
    tokens: int = 600_000
    batch_size: int = 512
    seeds: int = 3
    eval_tokens: int = 32_768

    @property
    def learning_rate(self) -> float:
        """The default of the width and the number of steps."""
        return default_learning_rate(self.width, self.tokens // self.batch_size)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "learning_rate": self.learning_rate}


def train(
    model: LanguageModel, settings: Settings, cells: Sequence[tuple[Recipe, float]], out: Path
) -> dict[str, Dictionary]:
    """Every cell (recipe and sparsity) with every seed: one run per seed, all cells on one stream.

    ``out`` holds one run directory per seed; what is found there is continued, or only read.
    """
    done: dict[str, Dictionary] = {}
    for seed in range(settings.seeds):
        stream = LiveStream(
            model, open_texts(["world"]), settings.site, buffer_tokens=64 * settings.batch_size, seed=seed
        )
        members = [
            MemberConfig(recipe, settings.width, sparsity, seed, recipe.learning_rate or settings.learning_rate)
            for recipe, sparsity in cells
        ]
        config = TrainerConfig(settings.tokens, settings.batch_size)
        done |= Trainer(stream, members, config, out / f"seed{seed}", model.device, {"site": settings.site}).run(
            resume=True
        )
    return done


def measure(
    model: LanguageModel, settings: Settings, dictionaries: Mapping[str, Dictionary], out: Path, *names: str
) -> dict[str, dict[str, Result]]:
    """Eval → dictionary → result for the evals named (``core``, ``latents``), all on the same held-out tokens.

    The language model's loss is measured on all of them. What ``out`` holds of the same bytes is not measured again.
    """
    tokens = settings.eval_tokens
    configs = {
        "core": core.Config(tokens=tokens, behaviour_tokens=None),
        "latents": latents.Config(tokens=tokens, show=0),
    }
    return run_evals(names, dictionaries, model, Data(held_out_texts()), out / "results", configs)


def held_out_texts() -> TextSource:
    """Texts of the world that no dictionary was trained on."""
    return open_texts(["world"], split="validation")


@torch.no_grad()
def held_out_rows(model: LanguageModel, settings: Settings) -> Tensor:
    """``[token, d]`` activations of the held-out tokens that :func:`measure` sees."""
    rows: list[Tensor] = []
    config = core.Config()
    for batch in document_batches(
        model, held_out_texts().documents(), config.context_length, config.batch_size, settings.eval_tokens
    ):
        rows.append(kept_activations(harvest(model, batch, [settings.site])[settings.site], batch).x.cpu())
    return torch.cat(rows)


def hashes(model: LanguageModel) -> dict[str, str]:
    """Content hashes of the language model and of the held-out texts."""
    return {"model": fingerprint_of_model(model), "data": held_out_texts().fingerprint()}


def by_cell(
    dictionaries: Mapping[str, Dictionary], measured: Callable[[str, Dictionary], dict[str, float]]
) -> dict[tuple[str, float], list[dict[str, float]]]:
    """(recipe, sparsity asked for) → what ``measured(name, dictionary)`` says, by seed."""
    groups: dict[tuple[str, float], list[dict[str, float]]] = {}
    for name, dictionary in dictionaries.items():
        metadata = dictionary.cfg.metadata
        groups.setdefault((str(metadata["recipe"]), float(metadata["k"])), []).append(measured(name, dictionary))
    return groups
