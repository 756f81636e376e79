"""Crosscoders of two synthetic models whose differences are known: does a measure of differences find them?

The pair has concepts that are shared, exclusive to one model, weaker in one of them, or active on other tokens. Trained
on it, a crosscoder whose penalty sums the models' norms calls concepts chat-only that both models hold; the measures of
:mod:`saeworks.diffing` have to tell these from the true ones. Artifacts: arXiv 2504.02922; the bench is our own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing.paired_stream import synthetic_stream
from saeworks.diffing.synthetic_pairs import SyntheticPairs, synthetic_source
from saeworks.errors import InputError, did_you_mean
from saeworks.training.cells import MemberConfig
from saeworks.training.initialisation import Initialisation
from saeworks.training.partitions import Across, Delta
from saeworks.training.penalties import L1
from saeworks.training.recipes import AuxK, Recipe
from saeworks.training.schedules import KAnneal, Span, Timing
from saeworks.training.trainer import Trainer, TrainerConfig
from saeworks.world.synthetic.paired import PairedFeatures

WIDTH, STEPS, BATCH, RATE = 192, 4000, 1024, 1e-3
MEASURED_TOKENS = 100_000
PENALTY = 1.2

_COMMON: dict[str, Any] = {
    "inputs": "sources",
    "reconstruction": "squared",
    "normalization": "none",
    "constraint": "free",
    "pre_bias": False,
    "timing": Timing(warm_up=Span(200, 0.1), decay=0.3, sparsity_warm_up=Span(None, 0.05)),
}
_L1 = Recipe(
    "bench-l1",
    "relu",
    penalties=(L1(norms="sum"),),
    sparsity="coefficient",
    aux_k=None,
    initialisation=Initialisation(weights="same", row_norm=0.1, scale="none", b_dec="mean"),
    **_COMMON,
)
_TOPK = Recipe(
    "bench-batch_topk",
    "batch_topk",
    norm_weighted=True,
    aux_k=AuxK(),
    dead_after=20_000,
    k_anneal=KAnneal(k_max=16, over=Span(None, 0.2)),
    initialisation=Initialisation(weights="same", divided=True, scale="none", b_dec="mean"),
    **_COMMON,
)


@dataclass(frozen=True)
class Configuration:
    """What is trained: a recipe at a sparsity and a width."""

    recipe: Recipe
    sparsity: float
    width: int = WIDTH


CONFIGURATIONS: dict[str, Configuration] = {
    "l1_sum": Configuration(_L1, PENALTY),
    "l1_concatenated": Configuration(replace(_L1, name="bench-l1c", penalties=(L1(norms="joint"),)), PENALTY),
    "batch_topk": Configuration(_TOPK, 3),
    "batch_topk_k2": Configuration(_TOPK, 2),
    "batch_topk_k6": Configuration(_TOPK, 6),
    "batch_topk_plain": Configuration(replace(_TOPK, name="bench-plain", k_anneal=None), 3),
    "batch_topk_concatenated": Configuration(replace(_TOPK, name="bench-concatenated", score_norms="joint"), 3),
    "dedicated": Configuration(replace(_TOPK, name="bench-dedicated", across=Across(exclusive=0.1)), 3),
    "tied": Configuration(replace(_L1, name="bench-tied", across=Across(tied=0.5, discount=0.7)), PENALTY),
    "difference": Configuration(replace(_TOPK, name="bench-difference", across=Across(cross=-0.5)), 3),
    "delta": Configuration(replace(_TOPK, name="bench-delta", across=Across(delta=Delta())), 3),
    "narrow_l1_sum": Configuration(_L1, PENALTY, 64),
    "narrow_batch_topk": Configuration(_TOPK, 3, 64),
}
HEADLINES = ("l1_sum", "l1_concatenated", "batch_topk", "batch_topk_k2")


@dataclass(frozen=True)
class Bench:
    """Dictionaries trained on one pair, and fresh tokens of it.

    Attributes:
        features: the truth. dictionaries: by the name of their configuration.
        source: tokens that none of them was trained on.
    """

    features: PairedFeatures
    dictionaries: Mapping[str, Dictionary]
    source: SyntheticPairs


def bench(
    names: Sequence[str] = HEADLINES,
    seed: int = 0,
    steps: int = STEPS,
    features: PairedFeatures | None = None,
    directory: Path | None = None,
    measured_tokens: int = MEASURED_TOKENS,
) -> Bench:
    """Train configurations on one stream of paired activations.

    Args:
        names: keys of :data:`CONFIGURATIONS`.
        seed: of the pair, of the tokens and of all weights.
        steps: batches of 1,024 tokens; the whole schedule is stretched to them.
        features: another pair, such as ``PairedFeatures().null()``; None for the default one with this seed.
        directory: where the run is kept, and continued from when it is there already; None for none.
        measured_tokens: fresh tokens of the source.

    Raises:
        InputError: an unknown configuration.
    """
    for name in names:
        if name not in CONFIGURATIONS:
            raise InputError(f"The bench has no configuration '{name}'.{did_you_mean(name, CONFIGURATIONS)}")
    pair = PairedFeatures(seed=seed) if features is None else features
    cells = {name: CONFIGURATIONS[name] for name in names}
    members = {name: MemberConfig(c.recipe, c.width, c.sparsity, seed, RATE) for name, c in cells.items()}
    config = TrainerConfig(
        tokens=steps * BATCH,
        batch_size=BATCH,
        log_every=max(steps // 40, 1),
        checkpoint_every=max(steps // 4, 1),
        normalization_tokens=8192,
        calibration_tokens=1 << 17,
    )
    stream = synthetic_stream(pair, seed)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(stream, list(members.values()), config, Path(scratch) if directory is None else directory)
        done = trainer.run(resume=directory is not None)
    found = {name: done[member.name] for name, member in members.items()}
    return Bench(pair, found, synthetic_source(pair, measured_tokens, seed=seed))


def explained_variances(dictionary: Dictionary, source: SyntheticPairs) -> list[float]:
    """Fraction of variance explained of every source on a pass over ``source``, by the path of inference."""
    sums = [torch.zeros(width, dtype=torch.float64) for width in source.widths]
    squares, errors, count = [0.0] * len(sums), [0.0] * len(sums), 0
    for batch in source.batches():
        x = batch.flat()
        decoded = dictionary.decode(dictionary.encode_sparse(x)).split(list(source.widths), dim=1)
        count += len(batch)
        for m, part in enumerate(batch.x):
            exact = part.double()
            sums[m] += exact.sum(dim=0)
            squares[m] += float(exact.square().sum())
            errors[m] += float((exact - decoded[m].double()).square().sum())
    totals = [square - float(total.square().sum()) / count for square, total in zip(squares, sums, strict=True)]
    return [1 - error / total for error, total in zip(errors, totals, strict=True)]
