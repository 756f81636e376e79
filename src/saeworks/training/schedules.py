"""Learning rates over a run."""

from __future__ import annotations

from dataclasses import dataclass

# The scaling rule of dictionary_learning and sparsify, lr = 2e-4 / sqrt(width / 2^14), and where it is cut off.
REFERENCE_LEARNING_RATE = 2e-4
REFERENCE_WIDTH = 2**14
LARGEST_DEFAULT_LEARNING_RATE = 4e-4
# Shorter runs take proportionally larger steps, up to a factor: measured on the embedded world, where runs of 600 to
# 1,800 steps at 6e-3 left fewer latents dead and explained more variance than at half or at nearly twice that rate.
SHORT_RUN_STEPS = 20_000
SHORT_RUN_FACTOR = 15.0


def default_learning_rate(width: int, steps: int) -> float:
    """The learning rate when none is given, for a dictionary of ``width`` latents trained for ``steps`` steps."""
    long = min(REFERENCE_LEARNING_RATE / (width / REFERENCE_WIDTH) ** 0.5, LARGEST_DEFAULT_LEARNING_RATE)
    return long * min(max(SHORT_RUN_STEPS / steps, 1.0), SHORT_RUN_FACTOR)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, constant, linear decay to zero.

    Attributes:
        steps: length of the run. warm_up: steps of warm-up. decay_from: first step of the decay.
    """

    steps: int
    warm_up: int
    decay_from: int

    @staticmethod
    def for_run(steps: int) -> Schedule:
        """Warm-up over 1,000 steps or 2 %, whichever is shorter; decay over the last 20 %."""
        return Schedule(steps, warm_up=min(1000, steps // 50), decay_from=steps - steps // 5)

    def multiplier(self, step: int) -> float:
        """Factor on the learning rate at ``step`` (0-based)."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        if step >= self.decay_from:
            return (self.steps - step) / (self.steps - self.decay_from)
        return 1.0
