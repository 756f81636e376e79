"""How much of a concept's direction other latents carry where the concept's own latents should: scores per word.

All functions work on plain tensors and one concept at a time, so the direction may be a probe's or one that is known
because it was planted (:func:`planted_absorption`). The arithmetic is that of SAEBench's absorption eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saeworks.errors import InputError

Mode = Literal["compat", "corrected"]


@dataclass(frozen=True)
class Thresholds:
    """SAEBench's constants.

    Attributes:
        full_cosine: least cosine between the probe and the latent that absorbs a word fully.
        absorber_cosine: least cosine of a latent that counts towards the absorbed fraction.
        proportion: least share of the word's projection on the probe that absorbers must carry.
        absorbers: most latents that may absorb one word.
        zero: activations below this are silent.
    """

    full_cosine: float = 0.025
    absorber_cosine: float = 0.1
    proportion: float = 0.4
    absorbers: int = 3
    zero: float = 1e-8


@dataclass(frozen=True)
class WordScores:
    """Scores of the words of one concept, each [word].

    Attributes:
        fraction: share of the concept's direction that was absorbed, 0 to 1; float64.
        full: the main latents are silent and one other latent carries the concept; bool.
        present: projection of the activation on the direction (``x · p``); float64.
        main: what the main latents add to it; float64.
        absorber: the latent outside the main ones that adds most, −1 where none is aligned; int64.
    """

    fraction: Tensor
    full: Tensor
    present: Tensor
    main: Tensor
    absorber: Tensor


def score_words(
    present: Tensor,
    latents: Tensor,
    W_dec: Tensor,
    direction: Tensor,
    main: Sequence[int],
    mode: Mode = "corrected",
    thresholds: Thresholds = Thresholds(),
) -> WordScores:
    """Absorption of one concept on each of its words.

    Args:
        present: ``x · p`` of every word [word].
        latents: activations [word, latent].
        W_dec: decoder rows of these latents [latent, d].
        direction: the concept's direction p [d], of any length above 0.
        main: the concept's own latents, as columns of ``latents``.
        mode: ``compat`` takes a latent's contribution to be ``f_i cos(p, d_i)``, which is right for unit rows alone,
            and a negative activation to be silence. ``corrected`` takes ``f_i (d_i · p)`` and lets a latent of either
            sign carry the concept. Both agree for unit rows and activations that are never negative.
        thresholds: constants of the definition.
    """
    present, f = present.double(), latents.double()
    rows, p = W_dec.double(), torch.nn.functional.normalize(direction.double(), dim=0)
    norms = rows.norm(dim=-1)
    cosine = (rows @ p) / norms.clamp_min(1e-30)
    contribution = f * (cosine if mode == "compat" else rows @ p)
    own = torch.zeros(f.shape[1], dtype=torch.bool, device=f.device)
    own[torch.as_tensor(list(main), dtype=torch.int64, device=f.device)] = True
    aligned = cosine if mode == "compat" else cosine.abs()
    m = contribution[:, own].sum(-1)
    candidate = contribution * (~own & (aligned >= thresholds.absorber_cosine))
    strongest = candidate.clamp_min(0).topk(min(thresholds.absorbers, f.shape[1]), dim=-1)
    absorbed = strongest.values.sum(-1)
    best = strongest.indices[:, 0]
    silent = (f[:, own] if mode == "compat" else f[:, own].abs() * norms[own]) < thresholds.zero
    return WordScores(
        fraction=_fraction(present, m, absorbed, thresholds.proportion),
        full=silent.all(-1) & _carried_by_one(present, contribution, aligned, thresholds),
        present=present,
        main=m,
        absorber=torch.where(strongest.values[:, 0] > 0, best, -1),
    )


def _fraction(present: Tensor, main: Tensor, absorbed: Tensor, proportion: float) -> Tensor:
    """0 where the main latents carry all of it or others carry too little; else the others' share of what is there."""
    needed = torch.minimum(absorbed, present - main)
    share = (needed / (needed + main)).clamp(0, 1)
    share = torch.where(main <= 0, 1.0, share)
    return torch.where((main >= present) | (absorbed / present < proportion), 0.0, share)


def _carried_by_one(present: Tensor, contribution: Tensor, aligned: Tensor, thresholds: Thresholds) -> Tensor:
    largest, latent = contribution.max(-1)
    enough = largest / present >= thresholds.proportion
    return enough & (present >= 0) & (aligned[latent] >= thresholds.full_cosine)


def planted_absorption(
    activations: Tensor,
    latents: Tensor,
    W_dec: Tensor,
    direction: Tensor,
    main: Sequence[int],
    thresholds: Thresholds = Thresholds(),
) -> WordScores:
    """The same scores where the concept's direction is known: no probe and no search for latents stand in between.

    Args:
        activations: tokens on which the concept is present [token, d], without a common offset (subtract the
            generator's bias first).
        latents: the dictionary's activations on them [token, latent].
        W_dec: decoder rows [latent, d].
        direction: the concept's true direction [d].
        main: the latents that were matched to the concept; none makes every present concept absent.

    Raises:
        InputError: shapes that do not fit, or a direction of length 0.
    """
    d = direction.shape[-1]
    if activations.shape[-1] != d or W_dec.shape != (latents.shape[-1], d) or not float(direction.norm()) > 0:
        raise InputError(
            f"Activations {tuple(activations.shape)}, latents {tuple(latents.shape)}, decoder {tuple(W_dec.shape)} and "
            f"direction {tuple(direction.shape)} do not fit; give [token, d], [token, latent], [latent, d] and a "
            "direction [d] that is not zero."
        )
    present = activations.double() @ torch.nn.functional.normalize(direction.double(), dim=0)
    return score_words(present, latents, W_dec, direction, main, "corrected", thresholds)
