"""Sums over contiguous blocks of tokens: exact to merge, small however many tokens there were, and good for errors.

A statistic that is a function of sums over tokens can be computed from the sum of all blocks, and its standard error
from the same function with one block left out at a time. Tokens of one text depend on each other, so blocks have to be
long and contiguous, and tokens must not be resampled one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.runtime import generator

Sums = dict[str, Tensor]


class Adds(Protocol):
    """Whoever sums a tensor over processes, in place, such as :class:`saeworks.training.ranks.Ranks`."""

    def add(self, tensor: Tensor) -> Tensor: ...


class BlockSums:
    """Named float64 sums, held for at most ``most`` blocks.

    A block is closed once it has ``block_tokens`` tokens; when there are too many, neighbours are joined and
    ``block_tokens`` doubles. So there are between half of ``most`` and ``most`` blocks, whatever the number of tokens.

    Args:
        most: the most blocks that are held, at least 2. block_tokens: tokens of a block to begin with.
    """

    def __init__(self, most: int = 32, block_tokens: int = 1024) -> None:
        if most < 2 or block_tokens < 1:
            raise InputError(f"{most} blocks of {block_tokens} tokens were asked for; give at least 2 blocks of 1.")
        self.most, self.block_tokens = most, block_tokens
        self._blocks: list[Sums] = []

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def tokens(self) -> int:
        """Tokens in all blocks."""
        return int(sum(float(block["tokens"]) for block in self._blocks))

    def add(self, sums: Sums) -> None:
        """Add the sums of the next tokens in order; ``sums["tokens"]`` (scalar) says how many."""
        if float(sums["tokens"]) == 0:
            return  # a block without tokens has no place among those that are left out in turn
        if self._blocks and float(self._blocks[-1]["tokens"]) < self.block_tokens:
            for name, value in sums.items():
                self._blocks[-1][name] += value
            return
        self._blocks.append({name: value.double().clone() for name, value in sums.items()})
        self._join()

    def __add__(self, other: BlockSums) -> BlockSums:
        """The blocks of both, those of ``other`` after one's own."""
        merged = BlockSums(max(self.most, other.most), max(self.block_tokens, other.block_tokens))
        merged._blocks = [{k: v.clone() for k, v in block.items()} for block in (*self._blocks, *other._blocks)]
        merged._join()
        return merged

    def total(self) -> Sums:
        """Sums over everything; ``InputError`` when nothing was added yet."""
        self._refuse_empty()
        return {name: torch.stack([block[name] for block in self._blocks]).sum(dim=0) for name in self._blocks[0]}

    def stacked(self) -> Sums:
        """Sums ``[block, ...]`` of every block."""
        self._refuse_empty()
        return {name: torch.stack([block[name] for block in self._blocks]) for name in self._blocks[0]}

    def reduce(self, ranks: Adds) -> None:
        """Add up the blocks of several processes, in place: the first of all, the second of all, and so on.

        Every process must have added something, of the same shapes.
        """
        self._refuse_empty()
        shapes = self._blocks[0]
        for i in range(self.most):
            missing = i >= len(self._blocks)
            block = {k: torch.zeros_like(v) for k, v in shapes.items()} if missing else self._blocks[i]
            for name in sorted(block):
                ranks.add(block[name])
            if missing and float(block["tokens"]) > 0:
                self._blocks.append(block)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and numbers."""
        return {"most": self.most, "block_tokens": self.block_tokens, "sums": self.stacked() if self._blocks else {}}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None = None) -> None:
        """Continue from :meth:`state_dict` with the same bits, on ``device`` or where the state lies."""
        self.most, self.block_tokens = int(state["most"]), int(state["block_tokens"])
        sums: Sums = state["sums"]
        count = len(sums["tokens"]) if sums else 0
        self._blocks = [{name: value[i].to(device, copy=True) for name, value in sums.items()} for i in range(count)]

    def _join(self) -> None:
        while len(self._blocks) > self.most:
            last = self._blocks[-1:] if len(self._blocks) % 2 else []
            pairs = zip(self._blocks[::2], self._blocks[1::2], strict=False)
            self._blocks = [{name: a[name] + b[name] for name in a} for a, b in pairs] + last
            self.block_tokens *= 2

    def _refuse_empty(self) -> None:
        if not self._blocks:
            raise InputError("Nothing has been measured yet: no batch was added, so there is nothing to compute.")


def jackknife(sums: Sums, statistic: Callable[[Sums], Tensor]) -> tuple[Tensor, Tensor]:
    """A statistic of sums, and its standard error by leaving out one block at a time.

    Blocks may differ in size: this is the delete-m jackknife for unequal m (Busing, Meijer and van der Leeden 1999,
    equations 7 and 8). The error is not a number where the statistic is not without some block, or for one block.

    Args:
        sums: ``[block, ...]``, with ``tokens [block]``.
        statistic: from sums ``[many, ...]`` to values ``[many, ...]``.
    """
    total = {name: value.sum(dim=0, keepdim=True) for name, value in sums.items()}
    value = statistic(total)[0]
    count = len(sums["tokens"])
    if count < 2:
        return value, torch.full_like(value, torch.nan)
    without = statistic({name: total[name] - sums[name] for name in sums})
    ratio = (total["tokens"] / sums["tokens"]).reshape(-1, *[1] * value.dim())
    estimate = count * value - ((1 - 1 / ratio) * without).sum(dim=0)
    pseudo = ratio * value - (ratio - 1) * without
    variance = ((pseudo - estimate).square() / (ratio - 1)).sum(dim=0) / count
    return value, variance.sqrt()


def bootstrap(
    sums: Sums, statistic: Callable[[Sums], Tensor], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[Tensor, Tensor]:
    """The two ends of an interval of a statistic, by drawing blocks with replacement.

    A resample is a row of counts, how often each block was drawn, and its sums are those counts times the sums of the
    blocks: one matrix product for all. Resamples in which the statistic is not a number are left out; where these are
    more than half, or there is one block only, both ends are not a number.

    Args:
        sums: ``[block, ...]``. statistic: as for :func:`jackknife`. resamples: number of draws. level: of the interval.
    """
    count = len(sums["tokens"])
    drawn = torch.randint(count, (resamples, count), generator=generator(seed, "blocks"))
    weights = torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(resamples, count, dtype=torch.float64)
    )
    values: list[Tensor] = []
    for part in weights.to(sums["tokens"].device).split(64):
        values.append(statistic({name: torch.tensordot(part, value, dims=1) for name, value in sums.items()}))
    found = torch.cat(values)
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=found.dtype, device=found.device)
    low, high = torch.nanquantile(found, edges, dim=0)
    unknown = (found.isnan().sum(dim=0) * 2 > resamples) | (count < 2)
    return low.masked_fill(unknown, torch.nan), high.masked_fill(unknown, torch.nan)
