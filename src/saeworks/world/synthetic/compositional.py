"""Objects made of attributes: composites that a large dictionary learns as units though their atoms are known.

A token may show an object, which is one attribute of every group (a colour and a shape), all with the same amplitude,
before a background of independent features. A dictionary with room for every combination stores composites; a
meta-dictionary trained on its decoder should give the attributes back (arXiv 2502.04878).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saeworks.errors import InputError
from saeworks.runtime import generator as seeded
from saeworks.world.synthetic.amplitudes import AmplitudeLaw, ClippedNormal
from saeworks.world.synthetic.directions import near_orthogonal_rows
from saeworks.world.synthetic.features import SyntheticBatch


@dataclass(frozen=True)
class CompositionalFeatures:
    """Objects of two or more attributes before a background.

    Features ("atoms") stand group after group, the background last.

    Args:
        groups: Number of attributes of each group, such as 12 colours and 12 shapes.
        background: Number of independent features.
        d: Width of the activations.
        object_probability: Chance of a token to show an object; every combination is equally likely.
        p_single: Chance of a token to show one attribute alone instead; every attribute is equally likely. With 0
            no attribute is ever seen without a partner, and a vector may be moved from one group's atoms to the
            other's without changing any object.
        background_probabilities: Chances of the first and of the last background feature; the rest lie between them
            at equal distances of the logarithm.
        amplitude: Law of the object's amplitude and, independently, of every background feature's.
        bias_norm: Norm of the constant vector in every activation.
        noise: Standard deviation of Gaussian noise on every coordinate.
        seed: Seed of the directions.

    Attributes:
        directions: Unit atoms ``[feature, d]`` with small overlaps.
        bias: ``[d]``.
        probabilities: Chance of each feature to be active ``[feature]``.
        composites: Atoms of each possible object ``[object, group]``, int64.

    Raises:
        InputError: Chances outside their range, fewer than two groups, or an empty group.
    """

    groups: tuple[int, ...] = (12, 12)
    background: int = 40
    d: int = 64
    object_probability: float = 0.6
    p_single: float = 0.0
    background_probabilities: tuple[float, float] = (0.05, 0.002)
    amplitude: AmplitudeLaw = field(default_factory=ClippedNormal)
    bias_norm: float = 1.0
    noise: float = 0.0
    seed: int = 0
    directions: Tensor = field(init=False, repr=False, compare=False)
    bias: Tensor = field(init=False, repr=False, compare=False)
    probabilities: Tensor = field(init=False, repr=False, compare=False)
    composites: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self)
        draw = seeded(self.seed, "compositional features")
        directions = near_orthogonal_rows(self.n_features, self.d, draw)
        bias = self.bias_norm * normalize(torch.randn(self.d, generator=draw), dim=0)
        lone = self.p_single / self.n_attributes
        chances = [torch.full((size,), self.object_probability / size + lone) for size in self.groups]
        high, low = (math.log10(p) for p in self.background_probabilities)
        chances.append(torch.logspace(high, low, self.background))
        object.__setattr__(self, "directions", directions)
        object.__setattr__(self, "bias", bias)
        object.__setattr__(self, "probabilities", torch.cat(chances))
        object.__setattr__(
            self,
            "composites",
            torch.cartesian_prod(*(torch.tensor(self.attributes(g)) for g in range(len(self.groups)))),
        )

    @classmethod
    def superposition(cls, seed: int = 0) -> CompositionalFeatures:
        """64 atoms in 48 dimensions: 8 x 8 objects and 48 background features, which must overlap."""
        return cls(groups=(8, 8), background=48, d=48, seed=seed)

    @classmethod
    def three_way(cls, seed: int = 0) -> CompositionalFeatures:
        """Objects of three attributes, 8 x 8 x 8, and 8 background features."""
        return cls(groups=(8, 8, 8), background=8, seed=seed)

    @property
    def n_attributes(self) -> int:
        """Number of attributes of all groups."""
        return sum(self.groups)

    @property
    def n_features(self) -> int:
        """Number of atoms, the background among them."""
        return self.n_attributes + self.background

    def attributes(self, group: int) -> tuple[int, ...]:
        """Indices of the attributes of a group."""
        start = sum(self.groups[:group])
        return tuple(range(start, start + self.groups[group]))

    @property
    def composite_directions(self) -> Tensor:
        """Unit direction of every possible object ``[object, d]``: the normalised sum of its atoms."""
        return normalize(self.directions[self.composites].sum(dim=1), dim=1)

    def composite_of(self, codes: Tensor) -> Tensor:
        """Which object a token shows ``[token]``, int64, a row of ``composites``; -1 for none or a lone attribute."""
        index = torch.zeros(len(codes), dtype=torch.int64)
        shown = torch.ones(len(codes), dtype=torch.bool)
        for group, size in enumerate(self.groups):
            part = codes.cpu()[:, list(self.attributes(group))] > 0
            index = index * size + part.int().argmax(dim=1)
            shown &= part.any(dim=1)
        return torch.where(shown, index, -1)

    def sample(self, count: int, generator: torch.Generator) -> SyntheticBatch:
        """``count`` activations and the atoms' codes."""
        kind = torch.rand(count, generator=generator)
        amplitude = self.amplitude.sample((count,), generator)
        composite = torch.randint(len(self.composites), (count,), generator=generator)
        lone = torch.randint(self.n_attributes, (count,), generator=generator)
        is_object = kind < self.object_probability
        is_single = ~is_object & (kind < self.object_probability + self.p_single)
        codes = torch.zeros(count, self.n_features)
        codes.scatter_(1, self.composites[composite], (amplitude * is_object)[:, None].expand(-1, len(self.groups)))
        codes.scatter_add_(1, lone[:, None], (amplitude * is_single)[:, None])
        shape = (count, self.background)
        active = torch.rand(shape, generator=generator) < self.probabilities[self.n_attributes :]
        codes[:, self.n_attributes :] = active * self.amplitude.sample(shape, generator)
        activations = codes @ self.directions + self.bias
        if self.noise:
            activations = activations + self.noise * torch.randn(count, self.d, generator=generator)
        return SyntheticBatch(activations, codes)

    @property
    def expected_codes(self) -> Tensor:
        """E[code] ``[feature]``."""
        return self.probabilities * self.amplitude.mean

    @property
    def expected_squares(self) -> Tensor:
        """E[code²] ``[feature]``."""
        return self.probabilities * self.amplitude.mean_square

    @property
    def expected_l0(self) -> float:
        """Mean number of active atoms per token; an object counts as many as it has attributes."""
        return float(self.probabilities.double().sum())


def _check(features: CompositionalFeatures) -> None:
    if len(features.groups) < 2 or min(features.groups) < 1 or features.background < 0:
        raise InputError(
            f"Groups {features.groups} with {features.background} background features were asked for; an object takes "
            "two groups or more with at least one attribute each."
        )
    chances = (features.object_probability, features.p_single)
    if min(chances) < 0.0 or sum(chances) > 1.0:
        raise InputError(
            f"Objects have the chance {chances[0]} and lone attributes {chances[1]}; both are at least 0 and together "
            "at most 1."
        )
    if not all(0.0 < p <= 1.0 for p in features.background_probabilities):
        raise InputError(
            f"The background was given the chances {features.background_probabilities}; they lie above 0 and up to 1."
        )
