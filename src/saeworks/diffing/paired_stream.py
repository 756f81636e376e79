"""Training on pairs: the rows of two models, shuffled together, with exact resume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from saeworks.activations.batches import ActivationBatch
from saeworks.activations.buffered import BufferedStream
from saeworks.activations.harvest import HarvestStatistics
from saeworks.activations.store_writing import write_rows
from saeworks.activations.streams import SyntheticStream
from saeworks.diffing.model_pair import ModelPair, Turns
from saeworks.diffing.paired_batches import SOURCES
from saeworks.errors import InputError
from saeworks.files import sha256_json
from saeworks.world.synthetic.paired import PairedFeatures


class PairedHarvester:
    """The rows of a :class:`ModelPair` for a buffer: its data sets are read again and again.

    Both models' activations of a token lie in one row, and with them the token's id, sequence and position.
    """

    def __init__(self, pair: ModelPair) -> None:
        self.pair = pair
        self.layout, self.site, self.width = pair.layout, pair.site, pair.layout.d_in
        self._turns = Turns(pair, epochs=None)

    def batches(self, epochs: int | None = None) -> Iterator[ActivationBatch]:
        """Rows from the present place on: without end, or to the end of one pass."""
        if epochs not in (None, 1):
            raise InputError(f"{epochs} passes over a pair's texts were asked for; one is possible, or no end.")
        self._turns.epochs = epochs
        empty_since: int | None = None
        for context in self._turns.contexts():
            found = self.pair.harvest(context)
            if len(found):
                empty_since = None
                yield ActivationBatch(found.flat(), found.token_ids, found.sequence_ids, found.positions)
                continue
            epoch = self.pair.statistics.epochs
            empty_since = epoch if empty_since is None else empty_since
            if epoch > empty_since + 1:
                raise InputError(
                    "The texts of a pair gave no usable token in a whole pass; check them, skip_first and "
                    "max_norm_ratio."
                )

    def state_dict(self) -> dict[str, Any]:
        """Place and counts."""
        return {**self._turns.state_dict(), "statistics": asdict(self.pair.statistics)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place."""
        self._turns.load_state_dict(state)
        self.pair.statistics = HarvestStatistics(**state["statistics"])


class PairedStream(BufferedStream):
    """Paired activations for training: both models run as rows are needed, and a buffer mixes them.

    Batches are ``[count, 2, d]``, of models of different width ``[count, d_0 + d_1]``; ``document_ids`` are the
    sequences of :class:`saeworks.diffing.paired_batches.PairedBatch`.

    Args:
        pair: the models and what they read. The others: see ``BufferedStream``.
    """

    kind = "paired"

    def __init__(
        self,
        pair: ModelPair,
        buffer_tokens: int = 65536,
        seed: int = 0,
        buffer_dtype: str = "float32",
        buffer_device: str | torch.device | None = None,
        mix: float = 0.5,
    ) -> None:
        super().__init__(
            PairedHarvester(pair), pair.models[1].device, buffer_tokens, seed, buffer_dtype, buffer_device, mix
        )
        self.pair = pair
        self._asked = [buffer_tokens, seed, buffer_dtype, mix]

    @property
    def statistics(self) -> dict[str, int | float]:
        """Counts of positions and rows; see ``HarvestStatistics``."""
        return asdict(self.pair.statistics)

    def fingerprint(self) -> str:
        """Digest of models, data and all settings that change a batch."""
        return sha256_json(["paired", self.pair.fingerprint(), self._asked])


def write_paired_store(
    pair: ModelPair,
    tokens: int,
    directory: str | Path,
    *,
    dtype: str = "bfloat16",
    shard_rows: int = 65536,
    window_shards: int = 4,
    resume: bool = False,
) -> Path:
    """Store ``tokens`` rows of a pair, both models' side by side, for ``StoredStream``. Returns the directory.

    Pays off when several crosscoders are trained on one pair. What tells of tokens but their id, sequence and position
    is not stored: measurements read the pair itself. The other arguments and errors are those of ``write_store``.
    """
    if tokens < 1 or shard_rows < 1 or window_shards < 1:
        raise InputError(
            f"tokens {tokens}, shard_rows {shard_rows} and window_shards {window_shards} must all be at least 1."
        )
    base, chat = pair.models
    config: dict[str, Any] = {
        "model": f"{base.name} + {chat.name}",
        "model_fingerprint": pair.fingerprint(),
        "site": pair.site,
        "text": " + ".join(source.name for source in pair.sources.values()),
        "requested_tokens": tokens,
        "dtype": dtype,
        "shard_rows": shard_rows,
        "window_shards": window_shards,
        "seed": pair.seed,
    }
    return write_rows(PairedHarvester(pair), config["text"], config, directory, resume)


def synthetic_stream(features: PairedFeatures, seed: int = 0, device: str | torch.device = "cpu") -> SyntheticStream:
    """Training batches of a synthetic pair, ``[count, 2, d]``, with the sources named as those of models are."""
    stream = SyntheticStream(features, seed, device)
    stream.layout = replace(stream.layout, sources=SOURCES)
    return stream
