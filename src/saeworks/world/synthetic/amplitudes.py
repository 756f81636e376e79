"""Laws of how strongly an active feature is active, each with its exact first two moments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from saeworks.errors import InputError


class AmplitudeLaw(Protocol):
    """A law of non-negative amplitudes."""

    @property
    def mean(self) -> float:
        """``E[s]``."""
        ...

    @property
    def mean_square(self) -> float:
        """``E[s²]``."""
        ...

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Independent amplitudes of this shape, float32."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Amplitudes spread evenly between ``low`` and ``high``."""

    low: float = 1.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high or self.high == 0.0:
            raise InputError(f"Amplitudes between {self.low} and {self.high} were asked for; give 0 <= low <= high.")

    @property
    def mean(self) -> float:
        """``(low + high) / 2``."""
        return (self.low + self.high) / 2

    @property
    def mean_square(self) -> float:
        """``(low² + low·high + high²) / 3``."""
        return (self.low**2 + self.low * self.high + self.high**2) / 3

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Independent amplitudes."""
        return self.low + (self.high - self.low) * torch.rand(shape, generator=generator)


@dataclass(frozen=True)
class Exponential:
    """Exponentially distributed amplitudes: most are small, which an encoder finds hard to see."""

    mean: float = 1.0

    def __post_init__(self) -> None:
        if self.mean <= 0.0:
            raise InputError(f"An exponential law needs a positive mean, and {self.mean} was given.")

    @property
    def mean_square(self) -> float:
        """``2 · mean²``."""
        return 2 * self.mean**2

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Independent amplitudes."""
        return torch.empty(shape).exponential_(1.0 / self.mean, generator=generator)


@dataclass(frozen=True)
class ClippedNormal:
    """``1 + spread · clip(N(0, 1), -clip, clip)``: about 1 and never near 0.

    Raises:
        InputError: A spread and a clip with which an amplitude could be 0 or less.
    """

    spread: float = 0.25
    clip: float = 2.0

    def __post_init__(self) -> None:
        if self.spread < 0.0 or self.clip < 0.0 or self.spread * self.clip >= 1.0:
            raise InputError(
                f"A spread of {self.spread} clipped at {self.clip} reaches amplitudes of 0 or less; "
                "give two numbers that are not negative and whose product is below 1."
            )

    @property
    def mean(self) -> float:
        """1 by symmetry."""
        return 1.0

    @property
    def mean_square(self) -> float:
        """``1 + spread² · Var(clip(N))``, the variance being that of a normal censored on both sides."""
        c = self.clip
        inside = math.erf(c / math.sqrt(2))
        density = math.exp(-c * c / 2) / math.sqrt(2 * math.pi)
        variance = inside - 2 * c * density + c * c * (1 - inside)
        return 1.0 + self.spread**2 * variance

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Independent amplitudes."""
        return 1.0 + self.spread * torch.randn(shape, generator=generator).clamp(-self.clip, self.clip)
