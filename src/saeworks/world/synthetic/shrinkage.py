"""What a crosscoder must do to one isolated concept that two models hold in different strength, in closed form.

A concept adds ``s · b · u`` to the base and ``s · c · u`` to the chat model, and one latent with code ``s`` writes
``x`` and ``y`` along ``u``. The objective is ``E[s²] ((b - x)² + (c - y)²)`` plus a penalty ``λ E[s]`` times a norm of
``(x, y)``; squared errors are summed over models and coordinates, ``s`` is taken given that the concept is active.
The functions below hold for one latent per concept whose code is not shrunk.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from saeworks.errors import InputError, did_you_mean

Norm = Literal["sum", "concatenated", "none"]
NORMS = ("sum", "concatenated", "none")


def shrinkage_threshold(penalty: float, mean: float, mean_square: float) -> float:
    """``a* = λ μ₁ / (2 μ₂)``: the strength up to which a penalty on the sum of norms removes a concept from a model.

    Args:
        penalty: λ.
        mean: μ₁, mean of the code given that it is active.
        mean_square: μ₂, mean of its square. Moments that were measured on a trained dictionary serve as well, and
            must be used where the encoder drops small coefficients.
    """
    if mean_square <= 0.0:
        raise InputError(f"A mean square of {mean_square} was given; an active code has a positive one.")
    return penalty * mean / (2 * mean_square)


def shrunk_norms(strengths: Tensor, threshold: float, norm: Norm = "sum") -> Tensor:
    """Decoder norms of the one latent of each concept ``[model, concept]``.

    Args:
        strengths: Norms in each model ``[model, concept]``.
        threshold: :func:`shrinkage_threshold`.
        norm: ``sum`` of the models' norms: every model loses the same amount, so a weak one falls to 0; the
            norm of the ``concatenated`` decoder: every model loses the same share; ``none``: no penalty, as with
            BatchTopK, and nothing is lost.
    """
    if norm == "sum":
        return (strengths - threshold).clamp_min(0.0)
    if norm == "concatenated":
        length = strengths.norm(dim=0)
        return strengths * (1.0 - threshold / length).clamp_min(0.0)
    if norm == "none":
        return strengths.clone()
    raise InputError(f"There is no penalty norm '{norm}'.{did_you_mean(norm, NORMS)}")


def norm_difference(norms: Tensor) -> Tensor:
    """``Δ = ½ (1 + (chat - base) / max(chat, base))`` ``[concept]`` of norms ``[2, concept]``.

    1 is chat-only, 0 base-only, 0.5 equally strong in both (arXiv 2504.02922). Not a number where both are 0.
    """
    base, chat = norms
    return 0.5 * (1.0 + (chat - base) / torch.maximum(base, chat))


def error_ratio(strengths: Tensor) -> Tensor:
    """``ν^ε`` of an isolated concept ``[concept]``: base over chat strength, however far the latent was shrunk.

    The error target adds the latent's own contribution back, so it holds the whole concept in either model.
    """
    return strengths[0] / strengths[1]


def reconstruction_ratio(norms: Tensor) -> Tensor:
    """``ν^r`` of an isolated concept ``[concept]``: the reconstructions hold what the decoders kept."""
    return norms[0] / norms[1]
