"""What a synthetic source of activations is, and the plainest one: sparse features that know nothing of each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.runtime import generator as seeded
from saeworks.world.synthetic.directions import orthonormal_rows, unit_rows


@dataclass(frozen=True, slots=True)
class SyntheticBatch:
    """``activations [token, d]`` and the ``codes [token, feature]`` that made them, float32."""

    activations: Tensor
    codes: Tensor


class SyntheticFeatures(Protocol):
    """What every synthetic source offers."""

    @property
    def directions(self) -> Tensor:
        """The true features ``[feature, d]``."""
        ...

    def sample(self, count: int, generator: torch.Generator) -> SyntheticBatch:
        """``count`` activations and their codes."""
        ...


@dataclass(frozen=True)
class IndependentFeatures:
    """Features that are active independently of each other.

    Args:
        n_features: Number of features.
        d: Width of the activations.
        probability: Chance of each feature to be active; with ``zipf`` that of the average feature.
        zipf: Exponent of a power law over the features' ranks; 0 gives all the same probability.
        magnitude: Mean of an active feature's code.
        magnitude_spread: Half-width of the uniform law around ``magnitude``; 0 gives binary codes.
        orthogonal: Orthonormal directions (needs ``n_features <= d``) instead of random unit ones.
        noise: Standard deviation of Gaussian noise on every coordinate.
        seed: Seed of the directions.

    Raises:
        InputError: Probabilities outside (0, 1), or magnitudes that could be negative.
    """

    n_features: int
    d: int
    probability: float = 0.05
    zipf: float = 0.0
    magnitude: float = 1.0
    magnitude_spread: float = 0.0
    orthogonal: bool = False
    noise: float = 0.0
    seed: int = 0
    directions: Tensor = field(init=False, repr=False, compare=False)
    probabilities: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.magnitude_spread <= self.magnitude:
            raise InputError(
                f"magnitude_spread {self.magnitude_spread} would make codes negative at magnitude {self.magnitude}; "
                "give a spread between 0 and the magnitude."
            )
        ranks = torch.arange(1, self.n_features + 1, dtype=torch.float64)
        weights = ranks.pow(-self.zipf)
        probabilities = self.probability * weights / weights.mean()
        if not (0.0 < self.probability < 1.0) or float(probabilities.max()) > 1.0:
            raise InputError(
                f"probability {self.probability} with zipf {self.zipf} gives a feature a chance of "
                f"{float(probabilities.max()):.3g}; chances lie between 0 and 1, so lower one of the two."
            )
        rows = orthonormal_rows if self.orthogonal else unit_rows
        directions = rows(self.n_features, self.d, seeded(self.seed, "independent features"))
        object.__setattr__(self, "directions", directions)
        object.__setattr__(self, "probabilities", probabilities.float())

    def sample(self, count: int, generator: torch.Generator) -> SyntheticBatch:
        """``count`` activations; the expected number of active features is ``probabilities.sum()``."""
        active = torch.rand(count, self.n_features, generator=generator) < self.probabilities
        spread = 2.0 * torch.rand(count, self.n_features, generator=generator) - 1.0
        codes = active * (self.magnitude + self.magnitude_spread * spread)
        activations = codes @ self.directions
        if self.noise:
            activations = activations + self.noise * torch.randn(count, self.d, generator=generator)
        return SyntheticBatch(activations, codes)
