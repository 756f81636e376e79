"""Streams: endless, seeded, resumable sequences of shuffled activation batches, all with one interface.

``LiveStream`` runs a language model, ``StoredStream`` reads a store on disk, ``SyntheticStream`` draws from features
whose directions are known. Whoever trains on a stream need not know which one it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from saeworks.activations.batches import ActivationBatch, Layout, concatenate
from saeworks.activations.buffered import BufferedStream, StreamState, check_state
from saeworks.activations.harvest import Harvestable, Harvester
from saeworks.activations.store import ActivationStore
from saeworks.activations.texts import TextSource
from saeworks.errors import InputError
from saeworks.files import sha256_bytes, sha256_json
from saeworks.runtime import generator

__all__ = ["ActivationBatch", "LiveStream", "StoredStream", "Stream", "StreamState", "SyntheticStream"]


@runtime_checkable
class Stream(Protocol):
    """Endless activation batches.

    Attributes:
        width: floats per row.
        site: canonical site name, several joined by ``+``; None for synthetic activations.

    A stream whose rows are more than one vector has an attribute ``layout`` as well (see ``batches.layout_of``).
    """

    width: int
    site: str | None

    def next_batch(self, count: int) -> ActivationBatch:
        """The next ``count`` rows, ``[count, width]`` float32 (see ``Layout`` for other shapes)."""
        ...

    def state_dict(self) -> StreamState:
        """Everything needed to go on with the same bits: tensors, numbers and strings."""
        ...

    def load_state_dict(self, state: StreamState) -> None:
        """Continue from a state; ``InputError`` when it belongs to another stream."""
        ...

    def fingerprint(self) -> str:
        """Digest of all that decides which rows come in which order."""
        ...

    @property
    def statistics(self) -> dict[str, int | float]:
        """Counts since the start of the stream."""
        ...


class LiveStream(BufferedStream):
    """Activations of a language model at one site or several, harvested as needed and mixed in a shuffle buffer.

    The source is read again and again; ``statistics["epochs"]`` counts complete passes, and every pass mixes anew.

    Args:
        model: a ``LanguageModel``.
        source: texts; see ``open_texts``.
        site: name or alias of a site; of several, the activations at one token form one row (crosscoders).
        target: name or alias of the site to predict, or of several, whose activations become the targets (transcoders).
        context_length: tokens per window at most, special tokens included.
        buffer_tokens: rows of the shuffle buffer; at least two batches, 50 mix well.
        harvest_batch_size: windows per forward pass.
        seed: of all shuffling.
        max_norm_ratio: drop rows whose norm exceeds this many times the median of their harvest batch; None keeps all.
        buffer_dtype: ``float32`` or ``bfloat16`` (half the memory; rows then come out rounded to 8 bits).
        buffer_device: where the buffer lies; the model's device when None.
        mix: share of the buffer left when it is refilled.
        prefetch: read and tokenise ahead in a second thread.

    Memory: ``buffer_tokens × (width × bytes + 32)`` plus one harvest batch, whatever the length of the run.

    Raises:
        InputError: unknown site, context too long for the model, a buffer too small for a batch, activations that are
            not finite, or texts without a usable token.
    """

    def __init__(
        self,
        model: Harvestable,
        source: TextSource,
        site: str | Sequence[str],
        context_length: int = 128,
        buffer_tokens: int = 65536,
        harvest_batch_size: int = 64,
        seed: int = 0,
        max_norm_ratio: float | None = None,
        buffer_dtype: str = "float32",
        buffer_device: str | torch.device | None = None,
        mix: float = 0.5,
        prefetch: bool = True,
        target: str | Sequence[str] | None = None,
    ) -> None:
        harvester = Harvester(
            model, source, site, context_length, harvest_batch_size, seed, max_norm_ratio, prefetch, target
        )
        super().__init__(harvester, model.device, buffer_tokens, seed, buffer_dtype, buffer_device, mix)
        self._harvester: Harvester = harvester
        self._asked = {
            "site": self.site,
            "context_length": context_length,
            "buffer_tokens": buffer_tokens,
            "harvest_batch_size": harvest_batch_size,
            "seed": seed,
            "max_norm_ratio": max_norm_ratio,
            "buffer_dtype": buffer_dtype,
            "mix": mix,
        }
        if harvester.targets:
            self._asked["target"] = "+".join(harvester.targets)
        self._fingerprint: str | None = None

    @property
    def statistics(self) -> dict[str, int | float]:
        """Counts of positions and rows (see ``HarvestStatistics``) and ``empty_documents``."""
        return {**asdict(self._harvester.statistics), "empty_documents": self._harvester.source.skipped_empty}

    def fingerprint(self) -> str:
        """Digest of model, texts and all settings that change a batch."""
        if self._fingerprint is None:
            model, source = self._harvester.model.fingerprint(), self._harvester.source.fingerprint()
            self._fingerprint = sha256_json(["live", model, source, self._asked])
        return self._fingerprint


class StoredStream:
    """Rows of an activation store, read in contiguous blocks whose order is drawn anew for every pass.

    The store's rows were shuffled when it was written, so neighbours in a block come from many documents; a buffer is
    not needed, and the state is a few numbers. Block borders move from pass to pass.

    Args:
        directory: of the store.
        seed: of the order of blocks.
        device: where batches go.
        block_rows: rows read at a time.
    """

    def __init__(
        self, directory: str | Path, seed: int = 0, device: str | torch.device = "cpu", block_rows: int = 256
    ) -> None:
        if block_rows < 1:
            raise InputError(f"block_rows is {block_rows}; it must be at least 1.")
        self.store = ActivationStore(directory)
        self.width = self.store.width
        self.layout = self.store.layout
        self.site: str | None = self.store.site
        self.device = torch.device(device)
        self._seed, self._block = seed, block_rows
        self._epoch, self._taken = 0, 0  # passes done, rows taken of this one
        self._order: Tensor
        self._edges: Tensor
        self._plan()

    @property
    def statistics(self) -> dict[str, int | float]:
        """``tokens`` handed out and complete passes, ``epochs``."""
        return {"tokens": self._epoch * len(self.store) + self._taken, "epochs": self._epoch}

    def fingerprint(self) -> str:
        """Digest of the store's contents, of seed and block size."""
        return sha256_json(["stored", self.store.fingerprint(), self._seed, self._block])

    def next_batch(self, count: int) -> ActivationBatch:
        """The next ``count`` rows, float32; a batch may span two passes."""
        if count < 1:
            raise InputError(f"A batch of {count} rows was asked for; it needs at least 1.")
        parts: list[ActivationBatch] = []
        while count:
            if self._taken == len(self.store):
                self._epoch, self._taken = self._epoch + 1, 0
                self._plan()
            block = int(torch.searchsorted(self._edges, self._taken, right=True)) - 1
            inside = self._taken - int(self._edges[block])
            rows = int(self._edges[block + 1]) - int(self._edges[block])
            start, _ = self._span(int(self._order[block]))
            take = min(count, rows - inside)
            parts.append(self.store.rows(start + inside, start + inside + take))
            self._taken += take
            count -= take
        return self.layout.shaped(concatenate(parts)).to(self.device)

    def skip(self, count: int) -> None:
        """Leave out the next ``count`` rows without reading them."""
        while count:
            if self._taken == len(self.store):
                self._epoch, self._taken = self._epoch + 1, 0
                self._plan()
            take = min(count, len(self.store) - self._taken)
            self._taken, count = self._taken + take, count - take

    def _plan(self) -> None:
        """Draw the order of blocks of this pass. ``_edges[i]``: rows before the i-th block in that order."""
        draw = generator(self._seed, "blocks", self._epoch)
        self._first = int(torch.randint(1, self._block + 1, (1,), generator=draw))
        count = len(self.store)
        blocks = 1 + max(0, -(-(count - self._first) // self._block))
        self._order = torch.randperm(blocks, generator=draw)
        # All blocks hold block_rows rows but the first, which has the drawn length, and the last.
        ends = (self._first + torch.arange(blocks) * self._block).clamp(max=count)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
        sizes = (ends - starts)[self._order]
        self._edges = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])

    def _span(self, block: int) -> tuple[int, int]:
        start = 0 if block == 0 else self._first + (block - 1) * self._block
        return start, min(self._first + block * self._block, len(self.store))

    def state_dict(self) -> StreamState:
        """Pass and rows taken of it."""
        return {"kind": "stored", "fingerprint": self.fingerprint(), "epoch": self._epoch, "taken": self._taken}

    def load_state_dict(self, state: StreamState) -> None:
        """Continue from :meth:`state_dict` with the same bits."""
        check_state(state, "stored", self.fingerprint())
        self._epoch, self._taken = int(state["epoch"]), int(state["taken"])
        self._plan()


class Features(Protocol):
    """A synthetic generator of activations, such as ``IndependentFeatures`` or ``TreeFeatures`` of the world."""

    @property
    def directions(self) -> Tensor:
        """``[feature, d]``."""
        ...

    def sample(self, count: int, generator: torch.Generator) -> Any:
        """A batch with ``activations [count, d]`` and ``codes [count, feature]``.

        Activations ``[count, source, d]`` are those of several models, and ``targets [count, d_out]`` make a stream
        for transcoders.
        """
        ...


class SyntheticStream:
    """Activations drawn from features with known directions. ``document_ids`` number the samples.

    Args:
        features: the generator.
        seed: of the samples.
        device: where batches go.
    """

    def __init__(self, features: Features, seed: int = 0, device: str | torch.device = "cpu") -> None:
        self.features = features
        shown = features.sample(1, generator(seed, "shapes"))
        shape = tuple(shown.activations.shape[1:])
        targets: Tensor | None = getattr(shown, "targets", None)
        self.layout = Layout(
            math.prod(shape),
            sources=tuple(f"source{i}" for i in range(shape[0])) if len(shape) == 2 else None,
            d_out=None if targets is None else targets.shape[1],
        )
        self.width = self.layout.d_in
        self.site: str | None = None
        self.device = torch.device(device)
        self._seed, self._drawn = seed, 0
        self._generator = generator(seed, "synthetic")

    @property
    def statistics(self) -> dict[str, int | float]:
        """``tokens``: samples drawn."""
        return {"tokens": self._drawn, "epochs": 0}

    def fingerprint(self) -> str:
        """Digest of directions, settings of the features, and seed."""
        directions = self.features.directions.detach().to("cpu", torch.float32).contiguous()
        settings = sorted((k, str(v)) for k, v in _settings(self.features).items() if not isinstance(v, Tensor))
        text = f"{type(self.features).__name__} {settings} {self._seed}"
        return sha256_bytes(text.encode(), directions.numpy().tobytes())

    def next_batch(self, count: int) -> ActivationBatch:
        """``count`` new samples, float32."""
        if count < 1:
            raise InputError(f"A batch of {count} rows was asked for; it needs at least 1.")
        drawn = self.features.sample(count, self._generator)
        activations: Tensor = drawn.activations
        targets: Tensor | None = getattr(drawn, "targets", None)
        numbers = torch.arange(self._drawn, self._drawn + count)
        self._drawn += count
        nothing = torch.full((count,), -1)
        batch = ActivationBatch(
            activations.to(torch.float32),
            nothing,
            numbers,
            torch.zeros_like(numbers),
            None if targets is None else targets.to(torch.float32),
        )
        return batch.to(self.device)

    def state_dict(self) -> StreamState:
        """State of the random generator and samples drawn."""
        return {
            "kind": "synthetic",
            "fingerprint": self.fingerprint(),
            "generator": self._generator.get_state(),
            "drawn": self._drawn,
        }

    def load_state_dict(self, state: StreamState) -> None:
        """Continue from :meth:`state_dict` with the same bits."""
        check_state(state, "synthetic", self.fingerprint())
        self._generator.set_state(state["generator"])
        self._drawn = int(state["drawn"])


def _settings(value: object) -> dict[str, Any]:
    names: tuple[str, ...] = tuple(getattr(value, "__dataclass_fields__", ()))
    return {name: getattr(value, name) for name in names}
