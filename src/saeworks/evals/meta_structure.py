"""Meta-structure: are the directions of a dictionary sums of fewer common ones?

A BatchTopK dictionary of a quarter of the width is trained on the decoder rows; the more of their variance it explains,
the less atomic the latents are (SAEBench, after arXiv 2503.17547, appendix D.1). Lower is better.

``compat`` takes SAEBench's definition as it is: all rows, whatever their norm and whether their latents ever fire, and
the latents of each evaluation batch chosen together. ``corrected`` takes the directions alone, leaves out the rows of
latents that do not fire on a sample of texts, chooses among all rows at once, revives dead latents in training, and
reports what the same training explains of random directions and the excess over it: without it the number compares no
two dictionaries of different sizes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from saeworks.errors import InputError
from saeworks.evals.shared.batches import (
    DictionaryLike,
    fingerprint_documents,
    fingerprint_of_model,
    sites_of,
    why_not_one_site,
)
from saeworks.evals.shared.bootstrap import Resampling, intervals
from saeworks.evals.shared.clamping import firing
from saeworks.evals.shared.described import result_of
from saeworks.evals.shared.settings import Seeds
from saeworks.evals.structure.decoder_structure import (
    LEARNING_RATE,
    STEPS,
    Explained,
    Training,
    explained,
    gaussian_rows,
    meta_width,
    train,
)
from saeworks.progress import progress
from saeworks.results.envelope import Metrics, Result
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "meta_structure_decoder_variance"
DEFINITION = "saeworks/meta_structure_decoder_variance/2"


class Config(BaseModel):
    """Defaults are SAEBench's, but for the length of the training.

    The small dictionary has ``width_ratio`` as many latents as there are rows, of which ``k`` are active per row, and
    is trained for ``train_steps`` batches of ``train_batch_size`` rows at ``learning_rate``; None for either is 1,500
    and 5e-4 in compat, 225 and 5e-3 in corrected, which explain the same in a seventh of the time. ``corrected`` only:
    ``alive_texts`` texts tell which latents fire (0: all rows count), ``control_seeds`` of the seeds are trained on
    random directions as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["compat", "corrected"] = "corrected"
    seeds: Seeds = (0, 1, 2)
    site: str | None = None
    context_length: int = Field(default=128, gt=1)
    batch_size: int = Field(default=64, gt=0)
    resamples: int = Field(default=500, gt=0)
    width_ratio: float = Field(default=0.25, gt=0)
    k: float = Field(default=4.0, gt=0)
    train_steps: int | None = Field(default=None, gt=0)
    train_batch_size: int = Field(default=1024, gt=1)
    learning_rate: float | None = Field(default=None, gt=0)
    eval_batch_size: int = Field(default=4096, gt=0)
    alive_texts: int = Field(default=512, ge=0)
    control_seeds: int = Field(default=1, ge=0)


@dataclass(frozen=True)
class Data:
    """Texts that show which latents fire; none: the rows of all latents count."""

    texts: Sequence[Document] = ()


def default_data(model: LanguageModel, config: Config) -> Data:
    """Texts of the world for its own models; none for others, whose latents they would not show."""
    from saeworks.world import corpus
    from saeworks.world.model_files import NAMES

    if config.mode == "compat" or model.name not in NAMES:
        return Data()
    return Data(list(corpus.documents(None, "validation", count=config.alive_texts)))


def from_documents(sets: Mapping[str, Sequence[Document]], label: str, model: LanguageModel, config: Config) -> Data:
    """Your own texts, ``alive_texts`` of each set; their labels do not matter."""
    return Data([document for documents in sets.values() for document in documents[: config.alive_texts]])


def data_hashes(data: Data, config: Config) -> dict[str, str]:
    """``data:texts`` → content hash."""
    return {"data:texts": fingerprint_documents(data.texts)}


def run(
    dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, data: Data, config: Config
) -> dict[str, Result]:
    """Measure every dictionary; returns name → result. The model is needed only to see which latents fire.

    Raises:
        InputError: fewer than four rows to explain, or a site whose width differs from the dictionary's.
    """
    alive = _alive(dictionaries, model, data, config)
    hashes = {"model": fingerprint_of_model(model), **data_hashes(data, config)}
    controls: dict[tuple[int, int], list[float]] = {}
    results: dict[str, Result] = {}
    for name, dictionary in dictionaries.items():
        rows = rows_of(dictionary.W_dec, alive.get(name), config.mode)
        if len(rows) < 4:
            raise InputError(
                f"Dictionary '{name}' has {len(rows)} decoder rows of latents that fire, too few to share anything; "
                "give more texts, or a dictionary with more latents."
            )
        by_seed: list[Explained] = []
        seconds: list[float] = []
        shape = (int(rows.shape[0]), int(rows.shape[1]))
        wanted = config.control_seeds if config.mode == "corrected" and shape not in controls else 0
        bar = progress(len(config.seeds) + wanted, f"structure of {name}", unit="training")
        for seed in config.seeds:
            started = time.perf_counter()
            member = train(rows, training_of(config, shape[0], seed))
            seconds.append(time.perf_counter() - started)
            by_seed.append(explained(member, rows, config.mode, config.eval_batch_size))
            bar.update()
        for seed in config.seeds[:wanted]:
            random = gaussian_rows(*shape, seed).to(rows.device)
            member = train(random, training_of(config, shape[0], seed))
            controls.setdefault(shape, []).append(explained(member, random, config.mode).fraction())
            bar.update()
        bar.close()
        results[name] = _result(name, dictionary, by_seed, seconds, controls.get(shape, []), config, hashes)
    return results


def training_of(config: Config, rows: int, seed: int) -> Training:
    """How the dictionary of so many rows is trained."""
    width = meta_width(rows, config.width_ratio, config.k)
    steps, rate = config.train_steps or STEPS[config.mode], config.learning_rate or LEARNING_RATE[config.mode]
    return Training(width, config.k, steps, config.train_batch_size, rate, seed, config.mode)


def rows_of(decoder: Tensor, alive: Tensor | None, mode: Literal["compat", "corrected"]) -> Tensor:
    """The rows [row, d] float32 that are explained.

    Args:
        decoder: [latent, d]. alive: [latent] bool, None where it is not known.

    ``compat``: all of them, as they are. ``corrected``: those that are alive and not zero, with norm 1.
    """
    rows = decoder.detach().float()
    if mode == "compat":
        return rows.contiguous()
    norms = rows.norm(dim=-1)
    kept = norms > 0 if alive is None else (norms > 0) & alive.to(norms.device)
    return rows[kept] / norms[kept, None]


def _alive(
    dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, data: Data, config: Config
) -> dict[str, Tensor]:
    """Dictionary → [latent] bool; those that do not read and write one site are left out: all of their rows count."""
    readable = {name: d for name, d in dictionaries.items() if why_not_one_site(d) is None}
    if config.mode == "compat" or not data.texts or not readable:
        return {}
    sites = sites_of(readable, model, config.site)
    once = torch.ones(1, len(data.texts))
    found = firing(
        readable, model, data.texts, once, sites, True, config.context_length, config.batch_size, "latents that fire"
    )
    return {name: frequency[0] > 0 for name, frequency in found.frequencies.items()}


def _result(
    name: str,
    dictionary: DictionaryLike,
    by_seed: list[Explained],
    seconds: list[float],
    control: list[float],
    config: Config,
    hashes: dict[str, str],
) -> Result:
    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    fractions = [one.fraction() for one in by_seed]
    count = len(by_seed[0].residual)
    random = mean(control) if control else None
    metrics: Metrics = {
        "meta_structure": {
            "decoder_fraction_variance_explained": mean(fractions),
            "train_time_seconds": mean(seconds),
            "final_reconstruction_mse": mean([one.mse() for one in by_seed]),
            "gaussian_fraction_variance_explained": random,
            "excess_fraction_variance_explained": None if random is None else mean(fractions) - random,
            "meta_l0": mean([one.l0 for one in by_seed]),
            "meta_frac_alive": mean([one.alive for one in by_seed]),
            "meta_width": training_of(config, count, 0).width,
            "rows": count,
        }
    }
    sums = {f"residual{i}": one.residual for i, one in enumerate(by_seed)} | {"total": by_seed[0].total}

    def resampled(s: Mapping[str, Tensor]) -> Tensor:
        return 1 - torch.stack([s[f"residual{i}"] for i in range(len(by_seed))]).mean(0) / s["total"]

    statistics = {"meta_structure.decoder_fraction_variance_explained": resampled}
    if random is not None:
        statistics["meta_structure.excess_fraction_variance_explained"] = lambda s: resampled(s) - random
    details: list[dict[str, Any]] = [
        {
            "by_seed": dict(zip(map(str, config.seeds), fractions, strict=True)),
            "gaussian_by_seed": dict(zip(map(str, config.seeds), control, strict=False)),
            "latents": int(dictionary.W_dec.shape[0]),
            "direction": "lower is more atomic",
        }
    ]
    return result_of(
        name,
        dictionary,
        config,
        hashes,
        eval_type=EVAL_TYPE,
        definition=DEFINITION,
        metrics=metrics,
        details=details,
        n=count,
        ci95=intervals(sums, statistics, Resampling(count, config.resamples, config.seeds[0])),
    )
