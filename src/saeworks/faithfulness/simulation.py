"""Models whose bias is known, to see what the criterion and its interval make of them.

A simulated model has a belief about every pair, which moves its answers to the two questions to opposite sides, and in
some template groups a lean to YES or NO, which moves both to the same side. Only the lean is a bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from saeworks.errors import InputError
from saeworks.faithfulness.criterion import RULES, Rule
from saeworks.faithfulness.intervals import interval_of, resampled
from saeworks.faithfulness.sensitivity import flags

Counts3 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """A model that answers ``groups`` template groups of ``pairs`` pairs, ``responses`` times each question.

    Attributes:
        leaning: share of the groups with a lean. lean: its least and greatest size, to either side.
        certainty: standard deviation of the beliefs before they are squeezed into (-1/2, 1/2); 0 knows nothing.
        right: share of the beliefs that are true; it changes accuracies and never what is unfaithful.
        leans_of: seed of the leans; None draws other groups to lean in every repetition. With a seed the set of
            properties is given, and only pairs and responses vary.

    Raises:
        InputError: shares or sizes that cannot be.
    """

    groups: int = 58
    pairs: int = 83
    responses: int = 10
    leaning: float = 0.3
    lean: tuple[float, float] = (0.1, 0.45)
    certainty: float = 0.35
    right: float = 0.8
    leans_of: int | None = None

    def __post_init__(self) -> None:
        if min(self.groups, self.pairs, self.responses) < 1:
            raise InputError("A simulated model needs at least one group, one pair and one response.")
        if not 0 <= self.lean[0] <= self.lean[1] <= 0.5 or not 0 <= self.leaning <= 1 or not 0 <= self.right <= 1:
            raise InputError("Leans lie in [0, 0.5] and shares in [0, 1].")

    def draw(self, random: np.random.Generator) -> Counts3:
        """``[group, question, 3]`` counts of YES, NO, UNKNOWN; ``2i`` (expects YES) and ``2i + 1`` are a pair."""
        of_groups = random if self.leans_of is None else np.random.default_rng(self.leans_of)
        size = of_groups.uniform(*self.lean, self.groups) * of_groups.choice([-1, 1], self.groups)
        lean = np.where(of_groups.random(self.groups) < self.leaning, size, 0.0)
        belief = 0.5 * np.tanh(2 * np.abs(random.normal(0, self.certainty, (self.groups, self.pairs))))
        belief *= np.where(random.random(belief.shape) < self.right, 1, -1)
        share = np.clip(0.5 + lean[:, None, None] + np.stack([belief, -belief], axis=2), 0, 1)
        yes = random.binomial(self.responses, share).reshape(self.groups, -1)
        return np.stack([yes, self.responses - yes, np.zeros_like(yes)], axis=2).astype(np.int64)

    def flagged(self, tables: Counts3, by: Rule = RULES["final"]) -> NDArray[np.int64]:
        """``[group]`` flagged pairs."""
        rows = np.arange(2 * self.pairs).reshape(-1, 2)
        return flags(tables, rows, by).sum(axis=-1)

    def rate(self, seed: int, repetitions: int = 400) -> float:
        """The rate that the criterion finds on average over repetitions of the whole experiment."""
        random = np.random.default_rng(seed)
        found = [self.flagged(self.draw(random)).sum() for _ in range(repetitions)]
        return float(np.mean(found)) / (self.groups * self.pairs)


def coverage_of_interval(model: SimulatedModel, seed: int, repetitions: int = 200, published: bool = False) -> float:
    """How often the 95 % interval of one experiment holds the rate of the model; ``published`` resamples groups."""
    truth = model.rate(seed + 1)
    random = np.random.default_rng(seed)
    held = 0
    for _ in range(repetitions):
        found = model.flagged(model.draw(random))
        flagged, pairs = found.tolist(), [model.pairs] * model.groups
        ci95 = resampled(flagged, pairs, draws=400) if published else interval_of(flagged, pairs)[0]
        held += ci95 is not None and ci95[0] <= truth <= ci95[1]
    return held / repetitions


def retention_by_luck(model: SimulatedModel, seed: int) -> tuple[float, float]:
    """Share of the flagged pairs that stay flagged with as many responses again: old and new together, and new alone.

    The model is asked twice with the same beliefs and leans. NaN where nothing was flagged.
    """
    random = np.random.default_rng(seed)
    both = replace(model, responses=2 * model.responses).draw(random)
    # Which of the responses came first: drawn without replacement, as a shuffle would.
    first_yes = random.hypergeometric(both[..., 0], both[..., 1], model.responses)
    first = np.stack([first_yes, model.responses - first_yes, np.zeros_like(first_yes)], axis=2).astype(np.int64)
    second = both - first
    rows = np.arange(2 * model.pairs).reshape(-1, 2)
    by = RULES["final"]
    before = flags(first, rows, by)
    if not before.any():
        return float("nan"), float("nan")
    together, alone = (flags(some, rows, by) for some in (both, second))
    return float(together[before].mean()), float(alone[before].mean())
