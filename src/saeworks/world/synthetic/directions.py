"""Where the true features point: orthonormal, random, nearly orthogonal, or at a given angle to another feature."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saeworks.errors import InputError


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


def near_orthogonal_rows(
    n_features: int, d: int, generator: torch.Generator, steps: int = 600, learning_rate: float = 1e-2
) -> Tensor:
    """Unit rows ``[n_features, d]`` pushed apart by minimising the sum of ``cos^4`` over all pairs with Adam.

    The fourth power punishes the largest overlaps most, so that no two features are confusable even where
    ``n_features > d`` forces them to overlap.
    """
    rows = torch.randn(n_features, d, generator=generator, dtype=torch.float64)
    rows = normalize(rows, dim=1).requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=learning_rate)
    with torch.enable_grad():
        for _ in range(steps):
            unit = normalize(rows, dim=1)
            gram = unit @ unit.T
            # The diagonal is 1 whatever the rows are; it adds a constant.
            loss = gram.pow(4).sum() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return normalize(rows.detach(), dim=1).float()


def rows_at_cosine(rows: Tensor, cosine: Tensor, generator: torch.Generator) -> Tensor:
    """Unit rows whose cosine with the unit ``rows [n, d]`` is ``cosine [n]``; where that is 1, the row itself.

    Raises:
        InputError: A cosine outside [-1, 1], or one dimension only, in which nothing can be turned.
    """
    if bool((cosine.abs() > 1).any()):
        raise InputError(f"Cosines lie between -1 and 1, but {float(cosine.abs().max()):g} was asked for.")
    if rows.shape[1] < 2:
        raise InputError("A direction cannot be turned in one dimension; give d >= 2.")
    other = torch.randn(rows.shape, generator=generator)
    other = normalize(other - (other * rows).sum(dim=1, keepdim=True) * rows, dim=1)
    along = cosine[:, None]
    turned = along * rows + (1.0 - along.square()).clamp_min(0.0).sqrt() * other
    return torch.where(along == 1.0, rows, normalize(turned, dim=1))
