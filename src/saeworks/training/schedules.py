"""What changes over a run: learning rate, weight of the penalties, number of selected latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The scaling rule of dictionary_learning and sparsify, lr = 2e-4 / sqrt(width / 2^14), and where it is cut off.
REFERENCE_LEARNING_RATE = 2e-4
REFERENCE_WIDTH = 2**14
LARGEST_DEFAULT_LEARNING_RATE = 4e-4
# Shorter runs take proportionally larger steps, up to a factor: measured on the embedded world, where runs of 600 to
# 1,800 steps at 6e-3 left fewer latents dead and explained more variance than at half or at nearly twice that rate.
SHORT_RUN_STEPS = 20_000
SHORT_RUN_FACTOR = 15.0


def scaled_learning_rate(rate: float, width: int) -> float:
    """``rate / sqrt(width / 2^14)``, the rule of arXiv 2406.04093."""
    return rate / (width / REFERENCE_WIDTH) ** 0.5


def default_learning_rate(width: int, steps: int) -> float:
    """The learning rate when none is given, for a dictionary of ``width`` latents trained for ``steps`` steps."""
    long = min(scaled_learning_rate(REFERENCE_LEARNING_RATE, width), LARGEST_DEFAULT_LEARNING_RATE)
    return long * min(max(SHORT_RUN_STEPS / steps, 1.0), SHORT_RUN_FACTOR)


@dataclass(frozen=True)
class Span:
    """A part of a run: so many steps (None: no such bound), but never more than a share of it.

    Published settings count steps of long runs; the share keeps them in proportion in short ones.
    """

    steps: int | None
    share: float

    def of(self, total: int) -> int:
        """Its length in a run of ``total`` steps."""
        most = int(self.share * total + 1e-9)
        return most if self.steps is None else min(self.steps, most)


@dataclass(frozen=True)
class Timing:
    """The schedule of a recipe, whatever the length of the run.

    Attributes:
        warm_up: of the learning rate. warm_up_from: factor it begins at. cosine: shape of the warm-up; else linear.
        decay: share of the run at its end over which the learning rate falls linearly. decay_to: factor it falls to.
        sparsity_warm_up: of the penalties, linearly from 0.
    """

    warm_up: Span = Span(1000, 0.02)
    warm_up_from: float = 0.0
    cosine: bool = False
    decay: float = 0.2
    decay_to: float = 0.0
    sparsity_warm_up: Span = Span(5000, 0.1)


@dataclass(frozen=True)
class KAnneal:
    """k falls linearly over the first part of a run, from at most the number of latents.

    dictionary_learning starts at the width of the input, sparsify at ten times that, crosscoders at an absolute number.

    Attributes:
        widths: k begins at so many times ``d_in``. k_max: … at this number instead. times: … at so many times the k
            that it ends at.
        over: while it falls.
    """

    widths: float = 1.0
    over: Span = Span(None, 0.1)
    k_max: float | None = None
    times: float | None = None

    @property
    def never(self) -> bool:
        """Whether there is no step in which it could fall, so that a k to begin at would mean nothing."""
        return self.over.steps == 0 or self.over.share <= 0

    def begins_at(self, k: float, width: int, d_in: int) -> float:
        """The k of the first step, for a final ``k``."""
        start = self.widths * d_in if self.times is None else self.times * k
        return min(start if self.k_max is None else self.k_max, width)

    def k(self, k: float, width: int, d_in: int, step: int, steps: int) -> float:
        """The k of ``step``; whole numbers while it falls."""
        span = self.over.of(steps)
        if step >= span:
            return k
        start = self.begins_at(k, width, d_in)
        return max(float(round(start + (k - start) * step / span)), k)


@dataclass(frozen=True)
class Schedule:
    """Warm-up, constant, linear decay; the warm-up starts again after every resampling of dead latents.

    Attributes:
        steps: length of the run. warm_up: steps of warm-up. decay_from: first step of the decay.
        warm_up_from, cosine, decay_to: see :class:`Timing`.
        sparsity_warm_up: steps of the penalties' warm-up.
        restart_every, restarts: steps between resamplings, and how many there are.
    """

    steps: int
    warm_up: int
    decay_from: int
    warm_up_from: float = 0.0
    cosine: bool = False
    decay_to: float = 0.0
    sparsity_warm_up: int = 0
    restart_every: int = 0
    restarts: int = 0

    @staticmethod
    def for_run(steps: int, timing: Timing | None = None, restart_every: int = 0, restarts: int = 0) -> Schedule:
        """The schedule of a run; by default warm-up over 1,000 steps or 2 %, and decay to zero over the last 20 %."""
        t = timing or Timing()
        return Schedule(
            steps,
            warm_up=t.warm_up.of(steps),
            decay_from=steps - Span(None, t.decay).of(steps),
            warm_up_from=t.warm_up_from,
            cosine=t.cosine,
            decay_to=t.decay_to,
            sparsity_warm_up=t.sparsity_warm_up.of(steps),
            restart_every=restart_every,
            restarts=restarts,
        )

    def multiplier(self, step: int) -> float:
        """Factor on the learning rate at ``step`` (0-based)."""
        since = step
        if self.restart_every:
            since = step - min(step // self.restart_every, self.restarts) * self.restart_every
        factor = 1.0
        if since < self.warm_up:
            done = (since + 1) / self.warm_up
            done = (1 - math.cos(math.pi * done)) / 2 if self.cosine else done
            factor = self.warm_up_from + (1 - self.warm_up_from) * done
        if step >= self.decay_from:
            left = (self.steps - step) / (self.steps - self.decay_from)
            factor = min(factor, self.decay_to + (1 - self.decay_to) * left)
        return factor

    def sparsity(self, step: int) -> float:
        """Factor on the penalties at ``step``: 0 at the first, 1 from the end of their warm-up on."""
        return min(step / self.sparsity_warm_up, 1.0) if self.sparsity_warm_up else 1.0
