"""What adapts while training: the weight of a penalty, towards an L0 or across changes of its form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saeworks.training.penalties import Lp


@dataclass(frozen=True)
class L0Control:
    """Multiply the coefficient by a little more or less than 1 after every step, as the L0 is above its goal or below.

    The toy model of arXiv 2503.17547 does so with factors 1 ± 3e-4 over 40,000 steps, from 0.2; ``reach`` keeps their
    product whatever the length of the run. Latents answer late, so near the goal the factors come closer to 1.

    Attributes:
        initial: coefficient at the first step. reach: logarithm of the most it can change by over a run.
        near: relative distance from the goal within which the factor shrinks in proportion.
    """

    initial: float = 0.2
    reach: float = 12.0
    near: float = 0.5

    def factor(self, l0: float, target: float, steps: int) -> float:
        """What the coefficient is multiplied by after a step with ``l0`` active latents per token."""
        distance = min(max((l0 / target - 1) / self.near, -1.0), 1.0)
        return math.exp(self.reach / steps * distance)


@dataclass
class PenaltyState:
    """The adapted weight of the penalty, and what its next adaptation needs.

    Attributes:
        scale: the coefficient over the one asked for.
        falls: how often the exponent of an Lp penalty has fallen.
        sums: for the last batches, the penalty with the present exponent and with the next.
    """

    scale: float = 1.0
    falls: int = 0
    sums: list[list[float]] = field(default_factory=list[list[float]])

    def follow_exponent(self, penalty: Lp, now: float, following: float, step: int, steps: int) -> None:
        """Take in the sums of the batch of ``step``; where the exponent falls after it, keep the penalty continuous."""
        if not (math.isfinite(now) and math.isfinite(following)):  # of a member that is about to be frozen
            return
        self.sums = [*self.sums, [now, following]][-penalty.queue :]
        falls = penalty.falls(step + 1, steps)
        if falls == self.falls:
            return
        present, next_one = (sum(column) for column in zip(*self.sums, strict=True))
        # In a run so short that several falls come at once, only the first has been measured.
        if next_one > 0 and present > 0:
            self.scale *= present / next_one
        self.falls, self.sums = self.falls + 1, []

    def state_dict(self) -> dict[str, Any]:
        """Numbers for a checkpoint."""
        return {"scale": self.scale, "falls": self.falls, "sums": [list(pair) for pair in self.sums]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.scale, self.falls = float(state["scale"]), int(state["falls"])
        self.sums = [list(pair) for pair in state["sums"]]
