"""Logistic regression for many small problems at once.

Sparse probing fits thousands of two-class probes on the same few hundred texts: one per class, seed, number of
latents and regularisation strength. Fitted one by one, the overhead of each call dominates; fitted in one batch by
Newton's method they take well under a second. The objective is the usual one (that of scikit-learn's
``LogisticRegression``): ½||w||² + C Σ_i log(1 + exp(-y_i (w·x_i + b))), with b not penalised.

Where there are more features than rows, the same problem is solved in the span of the rows (w = Σ_i a_i x_i), where a
Newton step costs O(rows³) whatever the number of features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Prior variance of b in the row-space solver; large enough that b is free in all but the last digits.
BIAS_VARIANCE = 1e4
MAX_STEPS = 50
TOLERANCE = 1e-6
#: Bytes of Newton matrices held at a time.
MEMORY = 1 << 28


@dataclass(frozen=True)
class Fit:
    """Probes of a batch of problems: ``weights`` [problem, feature] and ``bias`` [problem], float64."""

    weights: Tensor
    bias: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """Log-odds of class 1: [problem, row] for x [row, feature] or [problem, row, feature]."""
        if x.dim() == 2:
            return self.weights @ x.double().T + self.bias[:, None]
        return (x.double() @ self.weights[:, :, None]).squeeze(-1) + self.bias[:, None]


def fit(x: Tensor, y: Tensor, strength: Tensor) -> Fit:
    """Fit one probe per problem.

    Args:
        x: [problem, row, feature].
        y: [problem, row], 1 or 0.
        strength: [problem, row] ≥ 0: C for the rows of the problem and 0 for padding.
    """
    x, y, strength = x.double(), y.double(), strength.double()
    problems, rows, features = x.shape
    solve = _fit_features if features <= rows else _fit_rows
    side = min(features + 1, rows)
    # The primal step also forms a weighted copy of x, the row-space step two [row, row] matrices.
    each = 8 * (2 * side * side + (rows * features if features <= rows else 0))
    step = max(1, MEMORY // each)
    parts = [solve(x[i : i + step], y[i : i + step], strength[i : i + step]) for i in range(0, problems, step)]
    return Fit(torch.cat([p.weights for p in parts]), torch.cat([p.bias for p in parts]))


def _negative_log_likelihood(z: Tensor, y: Tensor, strength: Tensor) -> Tensor:
    return (strength * (torch.nn.functional.softplus(z) - y * z)).sum(-1)


def _fit_features(x: Tensor, y: Tensor, strength: Tensor) -> Fit:
    x = torch.cat([x, torch.ones_like(x[:, :, :1])], dim=-1)
    penalty = torch.ones_like(x[0, 0])
    penalty[-1] = 0.0
    w = torch.zeros_like(x[:, 0])

    def objective(w: Tensor) -> Tensor:
        z = (x @ w[:, :, None]).squeeze(-1)
        return 0.5 * (penalty * w * w).sum(-1) + _negative_log_likelihood(z, y, strength)

    # A trace of curvature keeps the bias solvable where all rows of a problem are padding.
    diagonal = torch.diag(penalty + 1e-9)
    value = objective(w)
    for _ in range(MAX_STEPS):
        p = (x @ w[:, :, None]).squeeze(-1).sigmoid()
        gradient = penalty * w + ((strength * (p - y))[:, None] @ x).squeeze(1)
        hessian = (x * (strength * p * (1 - p))[:, :, None]).mT @ x + diagonal
        factor = torch.linalg.cholesky(hessian)
        step = torch.cholesky_solve(gradient[:, :, None], factor).squeeze(-1)
        w, value, moved = _damped(w, w - step, value, objective)
        if moved < TOLERANCE:
            break
    return Fit(w[:, :-1], w[:, -1])


def _fit_rows(x: Tensor, y: Tensor, strength: Tensor) -> Fit:
    a = fit_kernel(x @ x.mT, y, strength)
    return Fit((a[:, None] @ x).squeeze(1), BIAS_VARIANCE * a.sum(-1))


def fit_kernel(inner: Tensor, y: Tensor, strength: Tensor, start: Tensor | None = None) -> Tensor:
    """Coefficients a [problem, row] of w = Σ_i a_i x_i, given the inner products of the rows.

    The log-odds of a new row z are Σ_i a_i (x_i·z + BIAS_VARIANCE).

    Args:
        inner: [problem, row, row] float64, x_i·x_j; y, strength: as in :func:`fit`.
        start: coefficients to start from, such as those for another C.
    """
    kernel = inner + BIAS_VARIANCE
    a = torch.zeros_like(y) if start is None else start
    identity = torch.eye(kernel.shape[1], dtype=kernel.dtype, device=kernel.device)

    def objective(a: Tensor) -> Tensor:
        z = (kernel @ a[:, :, None]).squeeze(-1)
        return 0.5 * (a * z).sum(-1) + _negative_log_likelihood(z, y, strength)

    value = objective(a)
    for _ in range(MAX_STEPS):
        z = (kernel @ a[:, :, None]).squeeze(-1)
        p = z.sigmoid()
        curvature = strength * p * (1 - p)
        root = curvature.sqrt()
        # The symmetric form I + W^½ K W^½ is well conditioned even where K is singular (repeated texts).
        factor = torch.linalg.cholesky(identity + root[:, :, None] * kernel * root[:, None, :])
        target = curvature * z + strength * (y - p)
        weighted = root * (kernel @ target[:, :, None]).squeeze(-1)
        solved = torch.cholesky_solve(weighted[:, :, None], factor).squeeze(-1)
        a, value, moved = _damped(a, target - root * solved, value, objective)
        if moved < TOLERANCE:
            break
    return a


def _damped(
    current: Tensor, proposed: Tensor, value: Tensor, objective: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, float]:
    """Take the Newton step, halved for those problems whose objective would rise; returns the largest change."""
    reached = objective(proposed)
    for _ in range(20):
        worse = reached > value + 1e-12 * value.abs()
        if not bool(worse.any()):
            break
        proposed = torch.where(worse[:, None], (proposed + current) / 2, proposed)
        reached = objective(proposed)
    change = float((value - reached).abs().div(value.abs().clamp_min(1e-12)).max()) if len(value) else 0.0
    return proposed, reached, change


def auc(scores: Tensor, y: Tensor) -> float:
    """Area under the ROC curve: the chance that a positive row scores above a negative one, ties counting half."""
    positive, negative = scores[y > 0], scores[y <= 0]
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive, side="left")
    up_to = torch.searchsorted(ordered, positive, side="right")
    return float((below + up_to).double().mean() / 2 / len(negative))
