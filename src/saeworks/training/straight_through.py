"""Gradients where there are none: the pseudo-derivatives of the jump (arXiv 2407.14435, equations 11 and 12).

With the rectangle ``K(u) = 1 where |u| < 1/2`` of width ``bandwidth`` around the threshold:

====================  ==================================  ================================================
function              with respect to the threshold       with respect to ``z``
====================  ==================================  ================================================
``z · 1[z > θ]``      ``-(θ / ε) K((z - θ) / ε)``         ``1[z > θ]``, and ``+(θ / ε) K`` if everywhere
``1[z > θ]``          ``-(1 / ε) K((z - θ) / ε)``         0, or ``+(1 / ε) K`` if everywhere
====================  ==================================  ================================================

``everywhere`` sends the gradient of the jump to all parameters and not only to the threshold (Anthropic, January 2025).
Both functions look at ``z``, before the jump: looking at what is left after it would lose the lower half of the window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float, everywhere: bool) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth, ctx.everywhere = bandwidth, everywhere
        return z * ((z > threshold) & (z > 0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, threshold = ctx.saved_tensors
        jump = grads[0] * near_threshold(z, threshold, ctx.bandwidth) * (threshold / ctx.bandwidth)
        grad_z = grads[0] * ((z > threshold) & (z > 0))
        return grad_z + jump if ctx.everywhere else grad_z, -jump.sum_to_size(threshold.shape), None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float, everywhere: bool) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth, ctx.everywhere = bandwidth, everywhere
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, threshold = ctx.saved_tensors
        jump = grads[0] * near_threshold(z, threshold, ctx.bandwidth) / ctx.bandwidth
        return jump if ctx.everywhere else None, -jump.sum_to_size(threshold.shape), None, None


def jump(z: Tensor, threshold: Tensor, bandwidth: float, everywhere: bool = False) -> Tensor:
    """``z · 1[z > threshold]``, never below zero, for ``z [token, width]`` and ``threshold [width]``, or by entry."""
    out: Tensor = _Jump.apply(z, threshold, bandwidth, everywhere)  # type: ignore[assignment]
    return out


def step(z: Tensor, threshold: Tensor, bandwidth: float, everywhere: bool = False) -> Tensor:
    """``1[z > threshold]`` as floats ``[token, width]``."""
    out: Tensor = _Step.apply(z, threshold, bandwidth, everywhere)  # type: ignore[assignment]
    return out


def in_window(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Share of the entries of ``z`` close enough to their threshold to move it; healthy from about 1e-4 on."""
    return near_threshold(z, threshold, bandwidth).to(torch.float32).mean()


def near_threshold(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Which entries of ``z`` are close enough to their threshold to move it."""
    return (z - threshold).abs() < bandwidth / 2
