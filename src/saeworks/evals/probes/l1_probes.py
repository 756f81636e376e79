"""L1-penalised logistic probes of several classes on sparse latents, solved to the minimum.

A few epochs of Adam order latents by how soon they began to move where words are few: every weight whose gradient keeps
its sign grows at the same speed. The minimum depends on the data alone: not on a seed, a number of steps, the order of
the latents, nor, since latents are measured in units of their common mean, on the scale of the activations.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from saeworks.dictionaries.codes import Codes

#: The search ends when no weight moves by more than this share of the largest one.
TOLERANCE = 1e-4
MAX_STEPS = 1000


def fit_l1(codes: Codes, targets: Tensor, positive_weight: Tensor, l1: float) -> tuple[Tensor, Tensor]:
    """Minimise, for each class c, mean_n w_nc · BCE(y_nc, f_n · w_c + b_c) + ``l1`` · Σ_i |w_ic|.

    Accelerated proximal gradient descent (FISTA, Beck and Teboulle 2009) that starts from 0 and restarts its momentum
    where that points uphill; b is not penalised.

    Args:
        codes: latents f [row, latent], float32 of either sign; they are divided by the mean of their nonzero |values|.
        targets: [row, class] 1 or 0.
        positive_weight: [class] weight w of the positives of a class; its negatives have weight 1.
        l1: strength of the penalty on the weights of scaled latents.

    Returns:
        Weights [class, latent] and biases [class] for the latents as given. Latents that never fire have weight 0.
    """
    scale = float(codes.values.abs().mean()) if codes.values.numel() else 1.0
    problem = _Problem(codes.with_values(codes.values / max(scale, 1e-30)), targets, positive_weight)
    step = 1 / problem.curvature()
    weights, bias = torch.zeros(codes.width, targets.shape[1]), torch.zeros(targets.shape[1])
    ahead, bias_ahead, momentum = weights, bias, 1.0
    for _ in range(MAX_STEPS):
        gradient, bias_gradient = problem.gradient(ahead, bias_ahead)
        moved = ahead - step * gradient
        moved = moved.sign() * (moved.abs() - step * l1).clamp_min(0)
        bias_moved = bias_ahead - step * bias_gradient
        change = moved - weights
        uphill = bool(((ahead - moved) * change).sum() > 0)
        following = 1.0 if uphill else (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        push = 0.0 if uphill else (momentum - 1) / following
        ahead, bias_ahead = moved + push * change, bias_moved + push * (bias_moved - bias)
        weights, bias, momentum = moved, bias_moved, following
        if float(change.abs().max()) <= TOLERANCE * float(weights.abs().max()) and not uphill:
            break
    return (weights / max(scale, 1e-30)).T.contiguous(), bias


class _Problem:
    """The smooth part of the objective, with both products of the latents at the cost of their nonzeros."""

    def __init__(self, codes: Codes, targets: Tensor, positive_weight: Tensor) -> None:
        self.codes, self.targets = codes, targets
        self.weight = torch.where(targets > 0, positive_weight, 1.0) / len(targets)
        order, self.starts = codes.by_latent()
        self.rows, self.values = codes.rows()[order], codes.values[order]

    def forward(self, weights: Tensor) -> Tensor:
        """[row, class] f · w for weights [latent, class]."""
        c = self.codes
        return embedding_bag(c.indices, weights, c.offsets[:-1], per_sample_weights=c.values, mode="sum")

    def backward(self, rows: Tensor) -> Tensor:
        """[latent, class] Σ_n f_n g_n for g [row, class]."""
        return embedding_bag(self.rows, rows, self.starts[:-1], per_sample_weights=self.values, mode="sum")

    def gradient(self, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Of the weighted loss, by weights and by bias."""
        residual = self.weight * ((self.forward(weights) + bias).sigmoid() - self.targets)
        return self.backward(residual), residual.sum(0)

    def curvature(self) -> Tensor:
        """[class] a bound of the second derivative: the largest eigenvalue of its form at even odds, by power steps."""
        v, c = torch.ones(self.codes.width, self.targets.shape[1]), torch.ones(self.targets.shape[1])
        size = torch.ones_like(c)
        for _ in range(30):
            h = self.weight * (self.forward(v) + c)
            v, c = self.backward(h), h.sum(0)
            size = (v.square().sum(0) + c.square()).sqrt().clamp_min(1e-30)
            v, c = v / size, c / size
        # The estimate comes from below, so a step of its inverse alone could overshoot.
        return 0.25 * 1.2 * size
