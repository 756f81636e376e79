"""The grid of SAEBench in small: eight architectures, three sparsities, two widths on the embedded world.

The suite trains every architecture at six L0 on the same activations (arXiv 2503.09532, section 4). Here all cells of
one width and seed are trained on one stream, so that nothing but the recipe and the sparsity differs between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.evals.runner import Data, eval_module, run_evals
from saeworks.evals.shared.batches import DictionaryLike
from saeworks.evals.shared.pooling import TextPool
from saeworks.models.language_model import LanguageModel
from saeworks.papers import world_grid
from saeworks.results.envelope import Result
from saeworks.training.recipes import Recipe, recipe

#: What the recipes without a number of latents need to reach about 8, 16 and 32 active latents on the embedded model:
#: weights of the penalty, read off a sweep of six weights per recipe with 1,024 latents.
WEIGHTS = {
    "relu": (0.22, 0.14, 0.085),
    "relu_april": (0.18, 0.11, 0.072),
    "gated": (0.28, 0.2, 0.14),
    "p_anneal": (0.14, 0.08, 0.055),
}
BY_L0 = ("jumprelu", "topk", "batch_topk", "matryoshka_batch_topk")
L0 = (8.0, 16.0, 32.0)
#: Numbers of latents removed by which SCR is shown: with the 20 of the paper's figures it may be past its best.
REMOVED = (2, 5, 10, 20, 50)
#: How many dictionaries one pass of the evals holds.
AT_ONCE = 12


@dataclass(frozen=True)
class Settings:
    """All that decides the numbers.

    Attributes:
        grid: site, tokens and seeds of the dictionaries; its width is replaced by each of ``widths``.
        widths: numbers of latents.
        l0: how many of the three sparsities are trained.
    """

    grid: world_grid.Settings = field(default_factory=lambda: world_grid.Settings(tokens=400_000, seeds=2))
    widths: tuple[int, ...] = (1024, 4096)
    l0: int = 3

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "weights": WEIGHTS, "aimed_l0": L0[: self.l0], "recipes": [*WEIGHTS, *BY_L0]}


QUICK = Settings(world_grid.Settings(tokens=60_000, seeds=1, eval_tokens=8192), (512,), 2)


def cells(settings: Settings) -> list[tuple[Recipe, float]]:
    """Recipe and sparsity of every dictionary of one width."""
    by_weight = [(recipe(name), weight) for name, weights in WEIGHTS.items() for weight in weights[: settings.l0]]
    return by_weight + [(recipe(name), k) for name in BY_L0 for k in L0[: settings.l0]]


def train(model: LanguageModel, settings: Settings, out: Path) -> dict[str, Dictionary]:
    """Every dictionary of the grid, by name; what ``out`` holds is continued, or only read."""
    done: dict[str, Dictionary] = {}
    for width in settings.widths:
        grid = replace(settings.grid, width=width)
        done |= world_grid.train(model, grid, cells(settings), out / f"width{width}")
    return done


def measure(
    model: LanguageModel, dictionaries: Mapping[str, DictionaryLike], out: Path, configs: Mapping[str, Any]
) -> dict[str, dict[str, Result]]:
    """Dictionary → eval → result, for the evals of ``configs``; ``AT_ONCE`` dictionaries share what an eval computes.

    What ``out`` holds of the same bytes is not measured again, so that a run that was stopped goes on.
    """
    found: dict[str, dict[str, Result]] = {name: {} for name in dictionaries}
    order = list(dictionaries)
    data = {name: _data(name, model, config) for name, config in configs.items()}
    for start in range(0, len(order), AT_ONCE):
        group = {name: dictionaries[name] for name in order[start : start + AT_ONCE]}
        pool = TextPool()
        for eval_name in configs:
            done = run_evals([eval_name], group, model, data[eval_name], out / "results", configs, pool=pool)
            for name, result in done[eval_name].items():
                found[name][eval_name] = result
    return found


def by_removed(scr: Result) -> dict[str, float | None]:
    """``scr_N`` → the score with N latents removed."""
    return {f"scr_{n}": scr.metric("scr_metrics", f"scr_metric_threshold_{n}") for n in REMOVED}


def _data(name: str, model: LanguageModel, config: Any) -> Data:
    if name == "core":
        return Data(world_grid.held_out_texts())
    if name == "sparse_probing":
        return Data(labelled=eval_module(name).world_sets(config=config))
    return Data(own={name: eval_module(name).default_data(model, config)})
