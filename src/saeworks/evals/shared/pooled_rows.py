"""Tables of pooled latents: as they are, or their nonzeros alone where that takes less room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.dictionaries.codes import bags_of, offsets_of


@dataclass(frozen=True)
class Rows:
    """A table [row, width] of float32 on the CPU.

    Attributes:
        width: number of columns.
        values: [row, width], or in compressed rows (CSR) [nonzero].
        columns: [nonzero] int32, ascending within a row; None where ``values`` is the table itself.
        offsets: [row + 1] int64: row r owns the nonzeros ``offsets[r] : offsets[r + 1]``; None likewise.
    """

    width: int
    values: Tensor
    columns: Tensor | None = None
    offsets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as they are written to a file."""
        named = {"values": self.values, "columns": self.columns, "offsets": self.offsets}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @staticmethod
    def smallest(table: Tensor) -> Rows:
        """``table`` [row, width] in the form that takes less room."""
        mask = table != 0
        counts = mask.sum(1)
        if not _sparse(int(counts.sum()), *table.shape):
            return Rows(table.shape[1], table)
        return Rows(table.shape[1], table[mask], mask.nonzero()[:, 1].int(), offsets_of(counts))

    def dense(self) -> Tensor:
        """[row, width]."""
        if self.columns is None or self.offsets is None:
            return self.values
        places = bags_of(self.offsets, len(self.values)) * self.width + self.columns
        out = torch.zeros(len(self) * self.width)
        return out.index_put_((places,), self.values).view(len(self), self.width)

    def take(self, rows: Tensor) -> Rows:
        """The rows numbered ``rows`` [chosen] int64, in that order; a number may come twice."""
        if self.columns is None or self.offsets is None:
            return Rows(self.width, self.values[rows])
        counts = (self.offsets[1:] - self.offsets[:-1])[rows]
        offsets = offsets_of(counts)
        total = int(offsets[-1])
        bags = bags_of(offsets, total)
        places = self.offsets[:-1][rows][bags] + torch.arange(total) - offsets[:-1][bags]
        return Rows(self.width, self.values[places], self.columns[places], offsets)

    @staticmethod
    def joined(parts: Sequence[Rows], width: int) -> Rows:
        """All rows of the parts, one after another, in the form that takes less room."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return Rows(width, torch.zeros(0, width))
        nonzeros = sum(int((part.values != 0).sum()) for part in parts)
        rows = sum(map(len, parts))
        if not _sparse(nonzeros, rows, width):
            return Rows(width, torch.cat([part.dense() for part in parts]))
        given = [part.compressed() for part in parts]
        counts = torch.cat([offsets[1:] - offsets[:-1] for _, _, offsets in given])
        values, columns = torch.cat([v for v, _, _ in given]), torch.cat([c for _, c, _ in given])
        return Rows(width, values, columns, offsets_of(counts))

    def compressed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, columns and offsets, whatever the form."""
        if self.columns is not None and self.offsets is not None:
            return self.values, self.columns, self.offsets
        mask = self.values != 0
        return self.values[mask], mask.nonzero()[:, 1].int(), offsets_of(mask.sum(1))

    def fits(self, count: int) -> bool:
        """Whether this is a table of ``count`` rows whose numbers are finite and whose places exist."""
        if self.values.dtype != torch.float32 or not bool(torch.isfinite(self.values).all()):
            return False
        if self.columns is None or self.offsets is None:
            return self.columns is self.offsets and tuple(self.values.shape) == (count, self.width)
        if self.columns.dtype != torch.int32 or self.offsets.dtype != torch.int64 or len(self.offsets) != count + 1:
            return False
        if self.values.shape != self.columns.shape or self.values.dim() != 1:
            return False
        ends = bool((self.offsets[0] == 0) & (self.offsets[-1] == len(self.values)))
        ascending = bool((self.offsets[1:] >= self.offsets[:-1]).all())
        return ends and ascending and bool(((self.columns >= 0) & (self.columns < self.width)).all())


def _sparse(nonzeros: int, rows: int, width: int) -> bool:
    """Whether compressed rows are smaller: a nonzero and an offset take twice the room of a plain number."""
    return 2 * nonzeros + 2 * (rows + 1) < rows * width


class Tables(Mapping[str, Tensor]):
    """Name → table [row, width], made when it is asked for. Only the one asked for last is held."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)
        self._last: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._last is None or self._last[0] != name:
            self._last = None  # the one before is let go before the next is made
            self._last = (name, self._makers[name]())
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
