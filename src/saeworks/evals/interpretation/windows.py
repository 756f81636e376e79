"""Which windows of text show what a latent does: its strongest, a sample by strength, and a random one.

A latent's firings are two lists: ``tokens`` [firing], flat places row · columns + position, and ``values`` [firing]
> 0, from the strongest down, ties in the order of places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Place = tuple[int, int]


@dataclass(frozen=True)
class Firings:
    """Where one latent fires, and how strongly, ordered as the module says."""

    tokens: Tensor
    values: Tensor
    columns: int

    def places(self, order: Tensor | None = None) -> Iterable[Place]:
        """(row, position) of the firings, in the given order of their numbers."""
        tokens = self.tokens if order is None else self.tokens[order]
        # In pieces: the first hundred are enough nearly always, and there may be millions.
        for piece in tokens.split(512):
            yield from ((t // self.columns, t % self.columns) for t in piece.tolist())

    def among(self, mask: Tensor) -> Firings:
        """Those firings where ``mask`` [firing] is true."""
        return Firings(self.tokens[mask], self.values[mask], self.columns)

    def row(self, row: int) -> dict[int, float]:
        """Position → activation of one row."""
        inside = (self.tokens >= row * self.columns) & (self.tokens < (row + 1) * self.columns)
        positions = (self.tokens[inside] - row * self.columns).tolist()
        return dict(zip(positions, self.values[inside].tolist(), strict=True))


def firings(tokens: Tensor, values: Tensor, columns: int) -> Firings:
    """Firings in any order, put in order; those at 0 are dropped."""
    positive = values > 0
    tokens, values = tokens[positive], values[positive]
    order = tokens.argsort(stable=True)
    order = order[values[order].argsort(descending=True, stable=True)]
    return Firings(tokens[order], values[order], columns)


def spaced(
    candidates: Iterable[Place],
    count: int,
    gap: int,
    taken: Sequence[Place] = (),
    fits: Callable[[Place], bool] | None = None,
) -> list[Place]:
    """The first ``count`` candidates of which none lies within ``gap`` positions of an earlier one, or of one
    ``taken``, in the same row, and which fit (asked last, so that ``fits`` may count)."""
    by_row: dict[int, list[int]] = {}
    for row, position in taken:
        by_row.setdefault(row, []).append(position)
    chosen: list[Place] = []
    for row, position in candidates:
        if len(chosen) == count:
            break
        others = by_row.setdefault(row, [])
        apart = all(abs(position - other) > gap for other in others)
        if apart and (fits is None or fits((row, position))):
            others.append(position)
            chosen.append((row, position))
    return chosen


def by_strength(found: Firings, draws: torch.Generator) -> Iterable[Place]:
    """All firings in random order, drawn one by one without replacement, each with probability ∝ activation²."""
    # The largest of log(u) / weight are such a draw (Efraimidis and Spirakis 2006).
    u = torch.rand(len(found.values), generator=draws, dtype=torch.float64).clamp_min(1e-300)
    weight = (found.values.double() / found.values.double().amax().clamp_min(1e-300)).square()
    return found.places((u.log() / weight.clamp_min(1e-300)).argsort(descending=True, stable=True))


def random_centres(rows: int, low: int, high: int, count: int, draws: torch.Generator) -> list[Place]:
    """``count`` centres at random: any row, positions from ``low`` to below ``high``. They may repeat."""
    row = torch.randint(rows, (count,), generator=draws).tolist()
    return list(zip(row, torch.randint(low, high, (count,), generator=draws).tolist(), strict=True))


def random_places(valid: Tensor, count: int, draws: torch.Generator) -> list[Place]:
    """``count`` places at random among those where ``valid`` [row, position]. They may repeat."""
    flat = valid.flatten().nonzero().squeeze(1)
    chosen = flat[torch.randint(len(flat), (count,), generator=draws)].tolist()
    return [(t // valid.shape[1], t % valid.shape[1]) for t in chosen]
