"""How far the parents of a tree of features are absorbed into their children."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.world.synthetic.matching import Matching, cosines
from saeworks.world.synthetic.tree import TreeFeatures


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
