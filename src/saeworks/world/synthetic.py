"""Synthetic activations with known features: no language model, the truth is in the generator.

``IndependentFeatures`` draws sparse features that know nothing of each other; ``TreeFeatures`` draws parents with
mutually exclusive children and independent leaves (the toy tree of Bussmann et al. 2025, "Learning Multi-Level
Features with Matryoshka Sparse Autoencoders", arXiv 2503.17547). Both return the activations together with the true
codes, and ``activations = codes @ directions`` holds exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.runtime import generator as seeded


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


def orthonormal_rows(n_features: int, d: int, generator: torch.Generator) -> Tensor:
    """Rows of a random orthogonal matrix ``[n_features, d]``; needs ``n_features <= d``."""
    if n_features > d:
        raise InputError(f"{n_features} orthonormal directions do not fit in {d} dimensions; give d >= n_features.")
    q, r = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).T[:n_features].float().contiguous()


def unit_rows(n_features: int, d: int, generator: torch.Generator) -> Tensor:
    """Random unit rows ``[n_features, d]``."""
    rows = torch.randn(n_features, d, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True)


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


@dataclass(frozen=True)
class TreeFeatures:
    """Parents with mutually exclusive children, and independent leaves; codes are binary.

    Features stand in depth-first order: parent 0, its children, parent 1, …, then the leaves. While a parent is active
    at most one of its children is: child c when a uniform draw falls in ``[c·p, (c+1)·p)``; the rest of the
    interval belongs to a child that is not read out. The defaults give an expected L0 of 1.12.

    Args:
        n_parents: Parents.
        n_children: Read-out children of every parent.
        n_leaves: Independent features.
        parent_probability: Chance of a parent.
        child_probability: Chance of each child given its parent; ``n_children`` times it must not exceed 1.
        leaf_probability: Chance of a leaf.
        d: Width of the activations; at least the number of features. None means exactly that number.
        scale_spread: Every direction's norm is ``1 + scale_spread · N(0, 1)``, drawn once.
        seed: Seed of the directions.

    Raises:
        InputError: Children that do not fit under their parent, or too many features for ``d``.
    """

    n_parents: int = 3
    n_children: int = 3
    n_leaves: int = 8
    parent_probability: float = 0.15
    child_probability: float = 0.2
    leaf_probability: float = 0.05
    d: int | None = None
    scale_spread: float = 0.05
    seed: int = 0
    directions: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n_children * self.child_probability > 1.0 + 1e-9:
            raise InputError(
                f"{self.n_children} exclusive children with chance {self.child_probability} each add up to more than "
                "1; lower child_probability."
            )
        generator = seeded(self.seed, "tree features")
        rows = orthonormal_rows(self.n_features, self.d or self.n_features, generator)
        scales = 1.0 + self.scale_spread * torch.randn(self.n_features, 1, generator=generator)
        object.__setattr__(self, "directions", rows * scales)

    @property
    def n_features(self) -> int:
        """Number of read-out features."""
        return self.n_parents * (1 + self.n_children) + self.n_leaves

    @property
    def parents(self) -> tuple[int, ...]:
        """Indices of the parents."""
        return tuple(i * (1 + self.n_children) for i in range(self.n_parents))

    def children(self, parent: int) -> tuple[int, ...]:
        """Indices of the children of the parent with feature index ``parent``."""
        return tuple(range(parent + 1, parent + 1 + self.n_children))

    @property
    def expected_l0(self) -> float:
        """Mean number of active features."""
        families = self.n_parents * self.parent_probability * (1.0 + self.n_children * self.child_probability)
        return families + self.n_leaves * self.leaf_probability

    def sample(self, count: int, generator: torch.Generator) -> SyntheticBatch:
        """``count`` activations and their binary codes."""
        on = torch.rand(count, self.n_parents, 1, generator=generator) < self.parent_probability
        u = torch.rand(count, self.n_parents, 1, generator=generator)
        edges = torch.arange(self.n_children + 1) * self.child_probability
        child = on & (u >= edges[:-1]) & (u < edges[1:])
        families = torch.cat([on, child], dim=2).flatten(1)
        leaves = torch.rand(count, self.n_leaves, generator=generator) < self.leaf_probability
        codes = torch.cat([families, leaves], dim=1).float()
        return SyntheticBatch(codes @ self.directions, codes)


@dataclass(frozen=True, slots=True)
class Matching:
    """Which latent stands for which feature, one to one.

    Attributes:
        latents: Matched latents ``[min(n, m)]``, int64.
        features: Their features ``[min(n, m)]``, int64, ascending.
        cosines: Cosine of each pair ``[min(n, m)]``.
        unmatched_latents, unmatched_features: What is left over, int64.
        mean_max_cosine: Mean over all features of the largest cosine with any latent, matched or not.
        mean_cosine: Mean cosine over the features under the matching; an unmatched feature counts 0.
    """

    latents: Tensor
    features: Tensor
    cosines: Tensor
    unmatched_latents: Tensor
    unmatched_features: Tensor
    mean_max_cosine: float
    mean_cosine: float

    def latent_of(self, feature: int) -> int | None:
        """The latent matched with the feature, or None."""
        at = (self.features == feature).nonzero()
        return int(self.latents[at[0, 0]]) if len(at) else None


def _assign(score: Tensor) -> tuple[Tensor, Tensor]:
    """Hungarian assignment that maximises the total score ``[latent, feature]``; features ascending."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(score.double().cpu().numpy(), maximize=True)
    latents, features = torch.as_tensor(rows), torch.as_tensor(columns)
    order = features.argsort()
    return latents[order].long(), features[order].long()


def _matching(cosine: Tensor, score: Tensor) -> Matching:
    latents, features = _assign(score)
    n, m = cosine.shape
    cosines = cosine[latents, features]
    left = torch.ones(n, dtype=torch.bool).index_fill(0, latents, False)
    missed = torch.ones(m, dtype=torch.bool).index_fill(0, features, False)
    return Matching(
        latents=latents,
        features=features,
        cosines=cosines,
        unmatched_latents=left.nonzero().flatten(),
        unmatched_features=missed.nonzero().flatten(),
        mean_max_cosine=float(cosine.max(dim=0).values.mean()),
        mean_cosine=float(cosines.sum() / m),
    )


def cosines(rows: Tensor, directions: Tensor) -> Tensor:
    """Cosine of every row ``[n, d]`` with every direction ``[m, d]``; a zero row has cosine 0."""
    if rows.shape[1] != directions.shape[1]:
        raise InputError(
            f"Decoder rows have width {rows.shape[1]}, the true directions {directions.shape[1]}; they must agree."
        )
    a = torch.nn.functional.normalize(rows.detach().cpu().double(), dim=1)
    b = torch.nn.functional.normalize(directions.detach().cpu().double(), dim=1)
    return (a @ b.T).float()


def match_features(W_dec: Tensor, directions: Tensor) -> Matching:
    """Match decoder rows ``[n, d]`` with true directions ``[m, d]`` by the Hungarian assignment on cosines."""
    cosine = cosines(W_dec, directions)
    return _matching(cosine, cosine)


def match_by_activity(latents: Tensor, codes: Tensor, W_dec: Tensor, directions: Tensor) -> Matching:
    """Match by when latents and features are active instead of where they point.

    Latents are weighted by their decoder norms and features by theirs, every column is scaled to a maximum of 1, and
    the un-centred inner product over tokens is the score that the assignment maximises.

    Args:
        latents: Latent activations ``[token, n]``.
        codes: True codes ``[token, m]`` of the same tokens.
        W_dec: Decoder rows ``[n, d]``.
        directions: True directions ``[m, d]``.
    """
    found = latents.detach().cpu().float() * W_dec.detach().cpu().norm(dim=1)
    truth = codes.cpu().float() * directions.cpu().norm(dim=1)
    found = found / found.amax(dim=0).clamp_min(1e-12)
    truth = truth / truth.amax(dim=0).clamp_min(1e-12)
    return _matching(cosines(W_dec, directions), found.T @ truth)


@dataclass(frozen=True, slots=True)
class Absorption:
    """How far the parents of a tree are absorbed into their children.

    Attributes:
        absorption: P(parent's latent silent | a read-out child active), mean over parents: 0 is good.
        alone: P(parent's latent active | parent active without a read-out child), mean over parents; the control.
        parent_content: Mean cosine of the children's decoder rows with their parent's direction: 0 is good.
    """

    absorption: float
    alone: float
    parent_content: float


def measure_absorption(
    tree: TreeFeatures, latents: Tensor, codes: Tensor, W_dec: Tensor, matching: Matching
) -> Absorption:
    """The toy model's measures of absorption.

    Args:
        tree: The generator of ``codes``.
        latents: Latent activations ``[token, n]``; active means above 0.
        codes: True codes ``[token, feature]``.
        W_dec: Decoder rows ``[n, d]``.
        matching: Latents by feature. An unmatched parent counts as always silent, an unmatched child is left out.
    """
    active = latents.detach().cpu() > 0
    truth = codes.cpu() > 0
    cosine = cosines(W_dec, tree.directions)
    absorbed: list[float] = []
    alone: list[float] = []
    content: list[float] = []
    for parent in tree.parents:
        latent = matching.latent_of(parent)
        fires = active[:, latent] if latent is not None else torch.zeros(len(truth), dtype=torch.bool)
        child = truth[:, list(tree.children(parent))].any(dim=1)
        only = truth[:, parent] & ~child
        if child.any():
            absorbed.append(float((~fires[child]).float().mean()))
        if only.any():
            alone.append(float(fires[only].float().mean()))
        matched = [matching.latent_of(c) for c in tree.children(parent)]
        content += [
            float(cosine[latent_of_child, parent]) for latent_of_child in matched if latent_of_child is not None
        ]
    if not absorbed or not alone:
        raise InputError("The sample holds no active child, or no parent alone; give more tokens.")
    return Absorption(_mean(absorbed), _mean(alone), _mean(content) if content else 0.0)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
