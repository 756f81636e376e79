"""A stream out of whatever harvests rows: harvest batches are mixed in a shuffle buffer, with exact resume."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from saeworks.activations.batches import ActivationBatch, Layout
from saeworks.activations.buffer import ShuffleBuffer
from saeworks.errors import InputError
from saeworks.runtime import generator, resolve_dtype

StreamState = dict[str, Any]  # tensors, numbers and strings, nested


class Harvesting(Protocol):
    """Rows of activations in an order that can be returned to.

    Attributes:
        layout: what a row consists of. site: where it was read. width: floats of the input.
    """

    layout: Layout
    site: str
    width: int

    def batches(self, epochs: int | None = None) -> Iterator[ActivationBatch]:
        """Rows from the present place on; without end for None."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place after the batch that came last."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place; iterators handed out before are void."""
        ...


class BufferedStream(ABC):
    """A stream (see :class:`saeworks.activations.streams.Stream`) that mixes harvested rows.

    The parts of a row, sources and target, lie side by side in the buffer and never part.

    Args:
        harvester: where rows come from.
        device: where batches go.
        buffer_tokens: rows of the shuffle buffer; at least two batches, 50 mix well.
        seed: of the shuffling.
        buffer_dtype: ``float32`` or ``bfloat16`` (half the memory; rows then come out rounded to 8 bits).
        buffer_device: where the buffer lies; ``device`` when None.
        mix: share of the buffer left when it is refilled.

    Memory: ``buffer_tokens × (width × bytes + 32)`` plus one harvest batch, whatever the length of the run.
    """

    kind = "live"

    def __init__(
        self,
        harvester: Harvesting,
        device: torch.device,
        buffer_tokens: int,
        seed: int,
        buffer_dtype: str = "float32",
        buffer_device: str | torch.device | None = None,
        mix: float = 0.5,
    ) -> None:
        self._rows_from = harvester
        self.layout = harvester.layout
        self.site: str | None = harvester.site
        self.width = harvester.width
        self.device = device
        self._buffer = ShuffleBuffer(
            buffer_tokens,
            (self.width + (self.layout.d_out or 0),),
            generator(seed, "shuffle"),
            dtype=resolve_dtype(buffer_dtype),
            mix=mix,
            device=device if buffer_device is None else buffer_device,
        )
        self._pending: ActivationBatch | None = None
        self._rows: Iterator[ActivationBatch] | None = None

    @property
    @abstractmethod
    def statistics(self) -> dict[str, int | float]:
        """Counts since the start of the stream."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Digest of all that decides which rows come in which order."""

    def next_batch(self, count: int) -> ActivationBatch:
        """The next ``count`` rows, float32, on the model's device."""
        self._buffer.check_batch(count)
        if self._buffer.wants_rows(count):
            self._refill()
        return self._unpacked(self._buffer.pop(count).to(self.device))

    def _packed(self, batch: ActivationBatch) -> ActivationBatch:
        """Input and target side by side in one vector per token, as the buffer holds them."""
        if batch.targets is None and batch.activations.dim() == 2:
            return batch
        flat = batch.activations.flatten(1)
        rows = flat if batch.targets is None else torch.cat([flat, batch.targets.to(flat.dtype)], dim=1)
        return ActivationBatch(rows, batch.token_ids, batch.document_ids, batch.positions)

    def _unpacked(self, batch: ActivationBatch) -> ActivationBatch:
        """The inverse of :meth:`_packed`."""
        if self.layout.d_out is not None:
            batch.activations, batch.targets = batch.activations.split([self.width, self.layout.d_out], dim=1)
        return self.layout.shaped(batch)

    def _refill(self) -> None:
        if self._rows is None:
            self._rows = self._rows_from.batches()
        while self._buffer.free:
            if self._pending is None:
                self._pending = self._packed(next(self._rows))
            taken = self._buffer.push(self._pending)
            left = len(self._pending) - taken
            # The rest of a harvest batch waits for the next refill, so that no row is lost.
            self._pending = self._pending[slice(taken, None)] if left else None
        self._buffer.shuffle()

    def state_dict(self, contents: bool = True) -> StreamState:
        """Place, counts and buffer.

        Args:
            contents: with False the state is a few kilobytes: the buffer refills from the saved place on, and the rows
                that were waiting in it (at most ``buffer_tokens`` plus one harvest batch) do not come again.
        """
        state: StreamState = {
            "kind": self.kind,
            "fingerprint": self.fingerprint(),
            "harvester": self._rows_from.state_dict(),
            "buffer": self._buffer.state_dict(contents),
        }
        if contents and self._pending is not None:
            pending = self._pending
            state["pending"] = {
                "activations": pending.activations.cpu().clone(),
                "token_ids": pending.token_ids.clone(),
                "document_ids": pending.document_ids.clone(),
                "positions": pending.positions.clone(),
            }
        return state

    def load_state_dict(self, state: StreamState) -> None:
        """Continue from :meth:`state_dict` with the same bits."""
        check_state(state, self.kind, self.fingerprint())
        self._rows_from.load_state_dict(state["harvester"])
        self._buffer.load_state_dict(state["buffer"])
        self._rows = None
        self._pending = None
        if "pending" in state:
            pending = ActivationBatch(**{name: tensor.clone() for name, tensor in state["pending"].items()})
            pending.activations = pending.activations.to(self.device)
            self._pending = pending


def check_state(state: StreamState, kind: str, fingerprint: str) -> None:
    """``InputError`` unless a saved state is one of this very stream."""
    if state.get("kind") != kind:
        raise InputError(
            f"The saved state is of a {state.get('kind')} stream, this one is {kind}; resume with the same."
        )
    if state.get("fingerprint") != fingerprint:
        raise InputError(
            "The saved state belongs to a stream with another model, text or setting; resume with the same command, "
            "or start anew in another directory."
        )
