"""What schedules and controllers say at one step: a loss is a function of parameters, batch and moment alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor

from saeworks.training.division import UNDIVIDED, Division


@dataclass(frozen=True)
class Moment:
    """The changing numbers of a training step.

    Attributes:
        sizes: sizes of the nested groups of latents at this step; ``(width,)`` without nesting.
        dead: ``[dead]`` int64 latents that have not fired for long; of those that this rank holds.
        k: latents per token that a selection keeps.
        hint: a guess of the smallest selected score (BatchTopK); it saves time and never changes the result.
        target: mean L0 aimed at.
        penalty: weight of the penalties without a coefficient of their own, warm-up included.
        warm: warm-up of the sparsity terms, 0 to 1.
        p, next_p: exponent of the Lp penalty, and the one that follows.
        bandwidth: width of the window in which a jump has a gradient.
        discounts: ``[width]`` factors on the penalties of the latents; None when all are 1.
        budgets: ``(latents, share of k)`` of consecutive sets of latents, each selected from by itself; empty for one.
        division: how the step is divided over ranks. all_dead: dead latents of all of them.
    """

    sizes: tuple[int, ...]
    dead: Tensor
    k: float = 0.0
    hint: float | None = None
    target: float = 1.0
    penalty: float = 0.0
    warm: float = 1.0
    p: float = 1.0
    next_p: float = 1.0
    bandwidth: float = 1e-3
    discounts: Tensor | None = None
    budgets: tuple[tuple[int, float], ...] = ()
    division: Division = field(default=UNDIVIDED)
    all_dead: int | None = None

    @property
    def dead_count(self) -> int:
        """Number of dead latents, wherever they are held."""
        return self.dead.numel() if self.all_dead is None else self.all_dead

    @property
    def sets(self) -> list[tuple[slice, float]]:
        """Which latents are selected from by themselves, with the share of k that each set has."""
        return sets_of(self.budgets)

    def weighted(self, shares: Tensor) -> Tensor:
        """``shares [width]`` of the latents in penalties, with the discounts."""
        return shares if self.discounts is None else shares * self.discounts.to(shares)

    @property
    def own_sizes(self) -> tuple[int, ...]:
        """How many latents of each nested group this rank holds."""
        return self.division.own_sizes(self.sizes)


def sets_of(budgets: tuple[tuple[int, float], ...]) -> list[tuple[slice, float]]:
    """The latents of every set of ``budgets`` (see :class:`Moment`) and its share of k; all of them without any."""
    ends = accumulate(latents for latents, _ in budgets)
    found = [(slice(end - latents, end), share) for end, (latents, share) in zip(ends, budgets, strict=True)]
    return found or [(slice(None), 1.0)]
