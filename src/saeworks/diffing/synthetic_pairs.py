"""Pairs of models that were drawn, not trained: it is known what they share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from saeworks.diffing.paired_batches import PairedBatch, cut
from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.world.synthetic.paired import PairedFeatures


class SyntheticPairs:
    """A pair of models that was drawn, not trained; see :func:`synthetic_source`."""

    def __init__(self, features: PairedFeatures, tokens: int, batch_size: int, seed: int) -> None:
        if tokens < 1 or batch_size < 1:
            raise InputError(f"{tokens} synthetic tokens in batches of {batch_size} were asked for; give 1 or more.")
        self.features, self.tokens, self.batch_size, self.seed = features, tokens, batch_size, seed
        self.widths = (features.d, features.d)

    def batches(self, tokens: int | None = None) -> Iterator[PairedBatch]:
        """One pass; every token is a sequence of its own."""
        return cut((batch for batch, _ in self.with_codes()), tokens)

    def with_codes(self) -> Iterator[tuple[PairedBatch, Tensor]]:
        """The same batches with the true codes ``[token, model, feature]`` of their tokens."""
        draw = generator(self.seed, "paired source")
        for start in range(0, self.tokens, self.batch_size):
            count = min(self.batch_size, self.tokens - start)
            drawn = self.features.sample(count, draw)
            numbers = torch.arange(start, start + count)
            batch = PairedBatch(
                (drawn.activations[:, 0].float(), drawn.activations[:, 1].float()),
                token_ids=torch.full((count,), -1),
                sequence_ids=numbers,
                positions=torch.zeros_like(numbers),
                is_template=torch.zeros(count, dtype=torch.bool),
                answer_index=torch.full((count,), -1),
                data_set="synthetic",
            )
            yield batch, drawn.codes


def synthetic_source(
    features: PairedFeatures, tokens: int = 100_000, batch_size: int = 4096, seed: int = 0
) -> SyntheticPairs:
    """Paired activations of which it is known what the models share.

    Args:
        features: what the two models hold; ``features.swapped()`` and ``features.null()`` are the controls.
        tokens: length of a pass. batch_size: rows per batch.
        seed: of the tokens; training streams draw others, whatever their seed.
    """
    return SyntheticPairs(features, tokens, batch_size, seed)
