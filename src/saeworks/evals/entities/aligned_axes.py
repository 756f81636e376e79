"""The skyline of RAVEL, without a dictionary: axes aligned with an attribute by training (MDAS, arXiv 2402.17700).

An orthogonal matrix and a mask over its axes are trained on the same pairs and the same loss as the mask over a
dictionary's latents. What it reaches is what some linear subspace of the activations can do; a dictionary's latents
are fixed beforehand, and reach less.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.evals.entities.ravel_masks import Items, MaskTraining, train_gate
from saeworks.models.upper_layers import UpperLayers


@dataclass(frozen=True)
class AlignedAxes:
    """``axes`` [axis, d], orthonormal rows, of which those with ``mask`` [axis] > 0 are exchanged."""

    axes: Tensor
    mask: Tensor

    @property
    def count(self) -> int:
        """Axes that are exchanged."""
        return int((self.mask > 0).sum())

    def exchange(self, items: Items) -> Tensor:
        """The base with its coordinates along the chosen axes taken from the source [row, place, d]."""
        device = self.axes.device
        return along_axes(items.base.to(device), items.source.to(device), self.axes, (self.mask > 0).float())


def along_axes(base: Tensor, source: Tensor, axes: Tensor, gate: Tensor) -> Tensor:
    """``base + Σ_i gate_i ⟨source - base, axis_i⟩ axis_i``, [..., d], for orthonormal ``axes`` [axis, d]."""
    return base + (((source - base) @ axes.T) * gate) @ axes


def train_axes(upper: UpperLayers, items: Items, training: MaskTraining, order: torch.Generator) -> AlignedAxes:
    """Train rotation and mask together; the rotation starts at the identity and is made orthonormal after every step.

    The signs of axes, and with them the determinant, do not matter: what is exchanged is a subspace.
    """
    device = upper.model.device
    width = items.base.shape[-1]
    axes = torch.eye(width, device=device).requires_grad_()

    def new(part: Items, gate: Tensor) -> Tensor:
        return along_axes(part.base.to(device), part.source.to(device), axes, gate)

    def orthonormal() -> None:
        with torch.no_grad():
            axes.copy_(nearest_rows(axes))

    mask = train_gate(new, width, upper, items, training, order, [axes], orthonormal)
    return AlignedAxes(axes.detach(), mask)


def nearest_rows(axes: Tensor) -> Tensor:
    """Orthonormal rows by a QR decomposition whose triangle has a positive diagonal, so that rows keep their sign."""
    q, r = torch.linalg.qr(axes.T)
    return (q * torch.where(r.diagonal() < 0, -1.0, 1.0)).T
