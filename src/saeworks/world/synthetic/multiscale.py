"""Concepts at several scales: small dictionaries can hold the coarse ones, large ones split them and find novel ones.

A coarse concept refines into exclusive children with given chances, these into grandchildren, and so on; every finer
level adds a smaller detail in a direction of its own. Beside them stand rare novel features for which only a large
dictionary has room. For every scale the ideal dictionary and its error are known, and between two scales it is known
which latent of the larger is novel and which one the smaller already holds, as stitching asks (arXiv 2502.04878).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.runtime import generator as seeded
from saeworks.world.synthetic.amplitudes import AmplitudeLaw, ClippedNormal
from saeworks.world.synthetic.directions import near_orthogonal_rows
from saeworks.world.synthetic.features import SyntheticBatch


@dataclass(frozen=True, slots=True)
class Scale:
    """The ideal dictionary of one size.

    Attributes:
        level: The finest level of concepts that it tells apart.
        features: The feature that each latent stands for ``[latent]``, int64: a concept, or a novel feature.
        rows: What a latent of activation 1 writes ``[latent, d]``, not normalised: the concept with all above it, and
            the mean of the finer detail that this dictionary cannot tell.
    """

    level: int
    features: Tensor
    rows: Tensor


@dataclass(frozen=True)
class MultiScaleFeatures:
    """Concepts that split into finer ones, and novel features. Features stand level by level, novel ones last.

    Args:
        n_coarse: Number of coarse concepts, level 0; they are independent of each other.
        splits: For every finer level, the chances of a concept's exclusive children given the concept. What is
            missing to 1 is the chance of the concept without a child.
        detail: Code of a child relative to its parent's: 1 makes all levels equally strong.
        coarse_probability: Chance of a coarse concept.
        novel: Number of novel features, independent of all others.
        novel_probabilities: Chances of the first and of the last novel feature, the rest between them at equal
            distances of the logarithm.
        d: Width of the activations.
        amplitude: Law of an active coarse concept's code, which its finer ones share, and of novel features.
        noise: Standard deviation of Gaussian noise on every coordinate.
        seed: Seed of the directions.

    Attributes:
        directions: Unit directions ``[feature, d]`` with small overlaps; a child's is its detail alone.
        parents: The parent of each feature ``[feature]``, int64; -1 for coarse and novel ones.
        levels: Level of each feature ``[feature]``, int64; -1 for novel ones.
        coarse: The coarse concept above each feature ``[feature]``, int64 (itself for a coarse one); -1 for novel ones.
        probabilities: Chance of each feature to be active ``[feature]``.

    Raises:
        InputError: Children whose chances exceed 1 together, or chances outside their range.
    """

    n_coarse: int = 4
    splits: tuple[tuple[float, ...], ...] = ((0.5, 0.3, 0.2), (0.6, 0.4))
    detail: float = 0.5
    coarse_probability: float = 0.15
    novel: int = 24
    novel_probabilities: tuple[float, float] = (0.02, 0.002)
    d: int = 64
    amplitude: AmplitudeLaw = field(default_factory=ClippedNormal)
    noise: float = 0.0
    seed: int = 0
    directions: Tensor = field(init=False, repr=False, compare=False)
    parents: Tensor = field(init=False, repr=False, compare=False)
    levels: Tensor = field(init=False, repr=False, compare=False)
    coarse: Tensor = field(init=False, repr=False, compare=False)
    probabilities: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self)
        parents = [-1] * self.n_coarse
        levels = [0] * self.n_coarse
        coarse = list(range(self.n_coarse))
        chances = [self.coarse_probability] * self.n_coarse
        for level, split in enumerate(self.splits, start=1):
            for parent in [i for i, at in enumerate(levels) if at == level - 1]:
                for chance in split:
                    parents.append(parent)
                    levels.append(level)
                    coarse.append(coarse[parent])
                    chances.append(chances[parent] * chance)
        high, low = (math.log10(p) for p in self.novel_probabilities)
        chances += torch.logspace(high, low, self.novel, dtype=torch.float64).tolist()
        nothing = [-1] * self.novel
        draw = seeded(self.seed, "multi-scale features")
        for name, value in (
            ("directions", near_orthogonal_rows(len(chances), self.d, draw)),
            ("parents", torch.tensor(parents + nothing)),
            ("levels", torch.tensor(levels + nothing)),
            ("coarse", torch.tensor(coarse + nothing)),
            ("probabilities", torch.tensor(chances)),
        ):
            object.__setattr__(self, name, value)

    @property
    def n_features(self) -> int:
        """Number of features of all levels and novel ones."""
        return len(self.probabilities)

    @property
    def n_levels(self) -> int:
        """Number of levels, the coarse one among them."""
        return 1 + len(self.splits)

    def concepts(self, level: int) -> Tensor:
        """Indices of the concepts of a level ``[concept]``, int64; level -1 gives the novel features."""
        if not -1 <= level < self.n_levels:
            raise InputError(f"Level {level} was asked for; there are the levels 0 to {self.n_levels - 1}.")
        return (self.levels == level).nonzero().flatten()

    @property
    def strengths(self) -> Tensor:
        """Code of each feature at amplitude 1 ``[feature]``: ``detail`` to the power of its level."""
        return torch.tensor(self.detail).pow(self.levels.clamp_min(0))

    @property
    def concept_rows(self) -> Tensor:
        """Each concept with all that stands above it, at amplitude 1 ``[feature, d]``, not normalised.

        This is what a latent that was split off for the concept points to.
        """
        rows = self.strengths[:, None] * self.directions
        for level in range(1, self.n_levels):
            members = self.concepts(level)
            rows[members] += rows[self.parents[members]]
        return rows

    def sample(self, count: int, generator: torch.Generator) -> SyntheticBatch:
        """``count`` activations and the codes of the features of all levels."""
        on = torch.rand(count, self.n_coarse, generator=generator) < self.coarse_probability
        amplitude = self.amplitude.sample((count, self.n_coarse), generator)
        parts = [on * amplitude]
        for split in self.splits:
            u = torch.rand(*on.shape, 1, generator=generator)
            edges = torch.tensor([0.0, *split], dtype=torch.float64).cumsum(0).float()
            on = (on[:, :, None] & (u >= edges[:-1]) & (u < edges[1:])).flatten(1)
            amplitude = self.detail * amplitude.repeat_interleave(len(split), dim=1)
            parts.append(on * amplitude)
        chances = self.probabilities[self.levels < 0]
        active = torch.rand(count, self.novel, generator=generator) < chances
        parts.append(active * self.amplitude.sample((count, self.novel), generator))
        codes = torch.cat(parts, dim=1)
        activations = codes @ self.directions
        if self.noise:
            activations = activations + self.noise * torch.randn(count, self.d, generator=generator)
        return SyntheticBatch(activations, codes)

    @property
    def expected_codes(self) -> Tensor:
        """E[code] ``[feature]``."""
        return self.probabilities * self.strengths * self.amplitude.mean

    @property
    def expected_squares(self) -> Tensor:
        """E[code²] ``[feature]``."""
        return self.probabilities * self.strengths.square() * self.amplitude.mean_square

    @property
    def expected_l0(self) -> float:
        """Mean number of active features, every level counted."""
        return float(self.probabilities.double().sum())

    def scale(self, level: int, novel: int = 0) -> Scale:
        """The ideal dictionary that tells concepts down to ``level`` and holds the first ``novel`` novel features.

        It has a latent for every concept of that level, one for every coarser concept that also occurs without a
        child, and one per novel feature; at most one latent per coarse concept is active at a time.
        """
        if not 0 <= level < self.n_levels or not 0 <= novel <= self.novel:
            raise InputError(
                f"A scale of level {level} with {novel} novel features was asked for; there are the levels 0 to "
                f"{self.n_levels - 1} and {self.novel} novel features."
            )
        alone = [self.concepts(at) for at in range(level) if sum(self.splits[at]) < 1.0 - 1e-9]
        members, novelties = self.concepts(level), self.concepts(-1)[:novel]
        rows = self.concept_rows
        expected, _ = self._detail()
        features = torch.cat([*alone, members, novelties])
        rows[members] += expected[members]
        return Scale(level, features, rows[features])

    def ideal_latents(self, scale: Scale, codes: Tensor) -> Tensor:
        """Activations ``[token, latent]`` of an ideal dictionary: the amplitude of the finest concept it can tell."""
        codes = codes.cpu()
        finer = torch.zeros_like(codes)
        told = ((self.levels >= 1) & (self.levels <= scale.level)).nonzero().flatten()
        finer.index_add_(1, self.parents[told], (codes[:, told] > 0).to(codes.dtype))
        amplitude = codes / self.strengths
        return (amplitude * (finer == 0))[:, scale.features]

    def expected_error(self, scale: Scale) -> float:
        """Exact ``E‖x - latents @ rows‖²`` of an ideal dictionary, summed over coordinates, noise included.

        Detail below the scale has mean 0 once the rows hold its mean, so concepts add up without cross terms; novel
        features that are left out do not, as their mean stays.
        """
        _, variance = self._detail()
        square = self.amplitude.mean_square
        members = self.concepts(scale.level)
        error = float((self.probabilities[members] * variance[members]).sum()) * square
        novelties = self.concepts(-1)
        left = novelties[~torch.isin(novelties, scale.features)]
        means = self.expected_codes[left][:, None] * self.directions[left]
        error += float(self.expected_squares[left].sum() + means.sum(0).square().sum() - means.square().sum())
        return error + self.d * self.noise**2

    def counterparts(self, small: Scale, large: Scale) -> Tensor:
        """For each latent of ``large`` the latent of ``small`` that already holds its concept ``[latent]``, int64.

        That is the latent of the same feature or of the nearest concept above it; -1 marks the novel ones, whose
        insertion into the small dictionary lowers its error.
        """
        place = {int(feature): i for i, feature in enumerate(small.features)}
        found: list[int] = []
        for feature in large.features.tolist():
            at = int(feature)
            while at not in place and at >= 0:
                at = int(self.parents[at])
            found.append(place.get(at, -1))
        return torch.tensor(found)

    def _detail(self) -> tuple[Tensor, Tensor]:
        """Mean ``[feature, d]`` and variance ``[feature]`` of all that stands below a concept, at amplitude 1."""
        mean = torch.zeros_like(self.directions)
        variance = torch.zeros(self.n_features)
        for level in reversed(range(1, self.n_levels)):
            split = torch.tensor(self.splits[level - 1])
            children = self.concepts(level).view(-1, len(split))
            whole = self.strengths[children, None] * self.directions[children] + mean[children]
            above = self.concepts(level - 1)
            mean[above] = (split[:, None] * whole).sum(dim=1)
            second = (split * (variance[children] + whole.square().sum(dim=2))).sum(dim=1)
            variance[above] = second - mean[above].square().sum(dim=1)
        return mean, variance


def _check(features: MultiScaleFeatures) -> None:
    for split in features.splits:
        if not split or min(split) <= 0.0 or sum(split) > 1.0 + 1e-9:
            raise InputError(
                f"A concept's children were given the chances {split}; they exclude each other, so give positive "
                "numbers that add up to 1 at most."
            )
    for p in (features.coarse_probability, *features.novel_probabilities):
        if not 0.0 < p <= 1.0:
            raise InputError(f"A feature was given the chance {p} of being active; chances lie above 0 and up to 1.")
    if features.n_coarse < 1 or features.novel < 0 or features.detail <= 0.0:
        raise InputError(
            f"{features.n_coarse} coarse concepts, {features.novel} novel features and detail {features.detail} were "
            "asked for; give at least one concept, no negative number, and a positive detail."
        )
