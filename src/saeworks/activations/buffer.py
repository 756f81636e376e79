"""The shuffle buffer: a fixed block of memory from which rows leave in random order while new ones take their place.

All unread rows are named by one shuffled list of slots. Reading takes slots from its front (a gather of the batch,
nothing else); refilling writes new rows into the slots that were read and shuffles the list once. Between two refills
a fixed share of the capacity is read, so the work per row does not depend on the capacity.
"""

from __future__ import annotations

from typing import Any

import torch

from saeworks.activations.batches import ActivationBatch
from saeworks.errors import InputError


class ShuffleBuffer:
    """Rows go in by :meth:`push`, are mixed by :meth:`shuffle`, and come out, each exactly once, by :meth:`pop`.

    Args:
        capacity: rows held at most.
        shape: shape of one row: ``(d,)``, or ``(sites, d)``.
        generator: CPU generator that only this buffer draws from.
        dtype: how rows are stored; they come out as float32.
        mix: share of the capacity below which the buffer wants new rows. Unread rows of the old filling mix with the
            new ones: larger means better mixing and more frequent shuffles. 0 drains the buffer before it refills.
        device: where the rows are held.

    Memory: ``capacity × (row bytes + 32)``, allocated once.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        mix: float = 0.5,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= mix < 1:
            raise InputError(f"mix is {mix}; it is the share of the buffer left at a refill, at least 0 and below 1.")
        if capacity < 2:
            raise InputError(f"A shuffle buffer of {capacity} rows was asked for; it needs at least twice a batch.")
        self.capacity, self.mix = capacity, mix
        self.permutations = 0
        self._generator = generator
        self._rows = torch.empty((capacity, *shape), dtype=dtype, device=device)
        # Token id, document and position side by side: one gather instead of three.
        self._origin = torch.empty((capacity, 3), dtype=torch.int64, device=device)
        # _order[:_head] are free slots, _order[_head:] the unread ones in the order in which they will leave.
        self._order = torch.arange(capacity, device=device)
        self._head = capacity

    @property
    def unread(self) -> int:
        """Rows that have not left yet."""
        return self.capacity - self._head

    @property
    def free(self) -> int:
        """Rows that :meth:`push` would accept."""
        return self._head

    def check_batch(self, count: int) -> None:
        """``InputError`` unless the buffer holds at least two batches of ``count`` rows."""
        if count < 1:
            raise InputError(f"A batch of {count} rows was asked for; it needs at least 1.")
        if self.capacity < 2 * count:
            raise InputError(
                f"The shuffle buffer holds {self.capacity} rows, less than two batches of {count}; "
                f"make it at least {2 * count} rows (50 batches mix well) or the batch smaller."
            )

    def wants_rows(self, count: int) -> bool:
        """Whether new rows should come in before ``count`` rows are read."""
        return self.unread < max(count, self.mix * self.capacity)

    def push(self, batch: ActivationBatch) -> int:
        """Copy the leading rows of ``batch`` into free slots; returns how many found room. :meth:`shuffle` next."""
        count = min(len(batch), self.free)
        if count == 0:
            return 0
        free = slice(self._head - count, self._head)
        # Rows are written in the order of memory, which is several times faster; shuffle() follows in any case.
        slots = self._order[free].sort().values
        self._order[free] = slots
        device = self._rows.device
        self._rows[slots] = batch.activations[:count].to(device=device, dtype=self._rows.dtype)
        origin = torch.stack((batch.token_ids[:count], batch.document_ids[:count], batch.positions[:count]), dim=1)
        self._origin[slots] = origin.to(device)
        self._head -= count
        return count

    def shuffle(self) -> None:
        """Put the unread rows into a new random order: one permutation of slot numbers, no row moves."""
        permutation = torch.randperm(self.unread, generator=self._generator).to(self._order.device)
        self._order[self._head :] = self._order[self._head :][permutation]
        self.permutations += 1

    def pop(self, count: int) -> ActivationBatch:
        """Take ``count`` rows out (``[count, *shape]`` float32). Fewer unread rows than that is an ``InputError``."""
        if count > self.unread:
            raise InputError(f"{count} rows were asked for, but the buffer holds {self.unread}; push rows first.")
        slots = self._order[self._head : self._head + count]
        self._head += count
        origin = self._origin[slots]
        rows = self._rows.index_select(0, slots).to(torch.float32)
        return ActivationBatch(rows, origin[:, 0], origin[:, 1], origin[:, 2])

    def state_dict(self, contents: bool = True) -> dict[str, Any]:
        """Everything needed to continue with the same bits.

        ``contents=False`` leaves out the rows: a buffer that loads such a state starts empty, and the rows that were
        unread when it was saved never come out.
        """
        state: dict[str, Any] = {
            "capacity": self.capacity,
            "permutations": self.permutations,
            "generator": self._generator.get_state(),
        }
        if contents:
            unread = self._order[self._head :]
            state["order"] = self._order.cpu().clone()
            state["rows"] = self._rows.index_select(0, unread).cpu()
            state["origin"] = self._origin.index_select(0, unread).cpu()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`. ``InputError`` when the state is of a buffer of another size or shape."""
        if state["capacity"] != self.capacity:
            raise InputError(
                f"The saved shuffle buffer has {state['capacity']} rows, this one {self.capacity}; "
                "resume with the same size."
            )
        self._generator.set_state(state["generator"])
        self.permutations = int(state["permutations"])
        if "rows" not in state:
            self._order.copy_(torch.arange(self.capacity))
            self._head = self.capacity
            return
        rows, origin = state["rows"], state["origin"]
        if rows.shape[1:] != self._rows.shape[1:] or rows.dtype != self._rows.dtype:
            raise InputError(
                f"The saved shuffle buffer holds rows of shape {tuple(rows.shape[1:])} and {rows.dtype}, this one "
                f"{tuple(self._rows.shape[1:])} and {self._rows.dtype}; resume with the same site and dtype."
            )
        self._order.copy_(state["order"])
        self._head = self.capacity - rows.shape[0]
        unread = self._order[self._head :]
        self._rows[unread] = rows.to(self._rows.device)
        self._origin[unread] = origin.to(self._origin.device)
