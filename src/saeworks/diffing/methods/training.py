"""Training the dictionary of a method on the pairs that it was given."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saeworks.activations.batches import ActivationBatch, Layout, layout_of
from saeworks.activations.streams import Stream, StreamState
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing.model_pair import ModelPair
from saeworks.diffing.paired_stream import PairedStream, synthetic_stream
from saeworks.diffing.pairs import PairedSource, SyntheticPairs
from saeworks.errors import InputError, RunError
from saeworks.files import sha256_json
from saeworks.training.cells import MemberConfig
from saeworks.training.recipes import Recipe
from saeworks.training.schedules import default_learning_rate
from saeworks.training.trainer import Trainer, TrainerConfig


class DifferenceStream:
    """``h_chat − h_base`` of the rows of a stream of pairs, for dictionaries of what changed.

    Args:
        pairs: a stream of two sources of one width.

    Raises:
        InputError: a stream of something else.
    """

    def __init__(self, pairs: Stream) -> None:
        layout = layout_of(pairs)
        if len(layout.widths) != 2 or len(set(layout.widths)) != 1:
            raise InputError(
                f"Differences need two sources of one width, but the stream has widths {list(layout.widths)}."
            )
        self.pairs = pairs
        self.width = layout.widths[0]
        self.site = None if pairs.site is None else f"difference at {pairs.site}"
        self.layout = Layout(self.width)

    @property
    def statistics(self) -> dict[str, int | float]:
        """Those of the pairs."""
        return self.pairs.statistics

    def next_batch(self, count: int) -> ActivationBatch:
        """``[count, d]`` float32, subtracted in float32."""
        batch = self.pairs.next_batch(count)
        x = batch.activations.view(count, 2, self.width)
        return replace(batch, activations=x[:, 1] - x[:, 0])

    def state_dict(self) -> StreamState:
        """That of the pairs."""
        return self.pairs.state_dict()

    def load_state_dict(self, state: StreamState) -> None:
        """Continue from :meth:`state_dict` with the same bits."""
        self.pairs.load_state_dict(state)

    def fingerprint(self) -> str:
        """Digest of the pairs, and that these are differences."""
        return sha256_json(["difference", self.pairs.fingerprint()])


def training_stream(source: PairedSource, seed: int = 0) -> Stream:
    """An endless shuffled stream of a source's pairs; ``InputError`` for a source that has none."""
    if isinstance(source, ModelPair):
        return PairedStream(source, seed=seed)
    if isinstance(source, SyntheticPairs):
        return synthetic_stream(source.features, seed)
    raise InputError(
        f"A {type(source).__name__} gives activations to measure on, but no stream to train on; "
        "train the dictionary first and hand it to the method."
    )


def train(
    recipe: Recipe,
    stream: Stream,
    width: int,
    sparsity: float,
    tokens: int,
    *,
    batch_size: int = 2048,
    learning_rate: float | None = None,
    seed: int = 0,
    directory: str | None = None,
    device: torch.device | None = None,
    metadata: dict[str, Any] | None = None,
) -> Dictionary:
    """One dictionary, kept in ``directory`` (as a training run lies there) or, without one, in memory only."""
    config = TrainerConfig(tokens, min(batch_size, max(tokens // 4, 2)))
    rate = learning_rate or recipe.published_rate(width) or default_learning_rate(width, config.steps)
    member = MemberConfig(recipe, width, sparsity, seed, rate)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(directory or scratch)
        trainer = Trainer(stream, [member], config, place, device, {**(metadata or {}), "seed": seed})
        found = trainer.run(resume=directory is not None)
    if member.name not in found:
        raise RunError(f"The training of '{member.name}' failed; see train_log.jsonl in its directory.")
    return found[member.name]
