"""Parents with mutually exclusive children and independent leaves: the toy tree of Bussmann et al. 2025, "Learning
Multi-Level Features with Matryoshka Sparse Autoencoders", arXiv 2503.17547."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.runtime import generator as seeded
from saeworks.world.synthetic.directions import orthonormal_rows
from saeworks.world.synthetic.features import SyntheticBatch


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
