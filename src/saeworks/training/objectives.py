"""What training minimises: nested reconstruction and the auxiliary term for dead latents.

Errors are divided by the variance of the batch by default: a dictionary that only predicts the mean scores 1, whatever
the scale of the input. Recipes whose coefficients were published for plain squared errors use those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.kernels.selection import largest
from saeworks.dictionaries.kernels.sparse import decode_codes, group_offsets
from saeworks.training.division import UNDIVIDED, Division

if TYPE_CHECKING:
    from saeworks.training.recipes import Recipe


def variance(x: Tensor, division: Division = UNDIVIDED) -> Tensor:
    """Sum over the tokens, those of all ranks, of ``|x - mean|^2`` for ``x [token, d]``; never zero.

    Divided over ranks it has no gradient; what it is taken of never needs one.
    """
    mean = x.mean(dim=0)
    total = (x - mean).square().sum()
    if division.by == "tokens":  # within the ranks, and between their means
        every = division.ranks.gathered(torch.cat([mean, total[None]]).detach())
        means = every[:, :-1]
        total = every[:, -1].sum() + x.shape[0] * (means - means.mean(dim=0)).square().sum()
    return total.clamp_min(torch.finfo(x.dtype).tiny)


def prefix_reconstructions(codes: Codes, decoder: Tensor, b_dec: Tensor, group_sizes: tuple[int, ...]) -> Tensor:
    """``[token, group, d]``: what the first group, the first two groups, … reconstruct.

    The sums over prefixes are one running sum over the groups' contributions, so the nested objective costs one
    sparse decode and ``groups * tokens * d`` additions, not one decode per prefix.
    """
    if len(group_sizes) == 1:
        return (decode_codes(codes, decoder) + b_dec)[:, None]
    parts = decode_codes(codes, decoder, group_offsets(codes, group_sizes))
    return parts.view(codes.tokens, len(group_sizes), -1).cumsum(dim=1) + b_dec


def reconstruction_errors(x: Tensor, prefixes: Tensor, division: Division = UNDIVIDED) -> Tensor:
    """``[group]`` normalised squared error of each prefix reconstruction (arXiv 2503.17547, equation for L)."""
    return division.over_tokens((prefixes - x[:, None]).square().sum(dim=(0, 2))) / variance(x, division)


def prefix_errors(
    kind: Literal["normalized", "squared", "norm"],
    y: Tensor,
    prefixes: Tensor,
    widths: tuple[int, ...],
    division: Division = UNDIVIDED,
) -> Tensor:
    """``[group]`` error of each prefix reconstruction of ``y [token, d_out]``, as the recipe measures it.

    ``norm`` is the mean over tokens and sources (of the given ``widths``) of the error's Euclidean norm, not squared.
    """
    if kind == "normalized":
        return reconstruction_errors(y, prefixes, division)
    residuals = prefixes - y[:, None]
    if kind == "squared":
        return division.mean(residuals.square().sum(dim=2))
    norms = torch.stack([part.norm(dim=2) for part in residuals.split(list(widths), dim=2)], dim=1)
    return division.mean(norms).mean(dim=0)


def decoder_norms(decoder: Tensor, widths: tuple[int, ...]) -> Tensor:
    """``[source, width]`` norms of the rows of ``decoder [width, d_out]`` in every source."""
    if len(widths) == 1:
        return decoder.norm(dim=1)[None]
    return torch.stack([part.norm(dim=1) for part in decoder.split(list(widths), dim=1)])


def score_norms(recipe: Recipe, decoder: Tensor, widths: tuple[int, ...]) -> Tensor | None:
    """``[width]`` factors by which pre-activations become the scores of a selection; None when they are the scores."""
    if not recipe.norm_weighted:
        return None
    decoder = decoder.detach()
    return decoder.norm(dim=1) if recipe.score_norms == "joint" else decoder_norms(decoder, widths).sum(dim=0)


def measured_errors(
    recipe: Recipe, y: Tensor, prefixes: Tensor, widths: tuple[int, ...], division: Division = UNDIVIDED
) -> Tensor:
    """:func:`prefix_errors` as the recipe has them: with the product of two sources' errors, where it asks for that."""
    errors = prefix_errors(recipe.reconstruction, y, prefixes, widths, division)
    if not recipe.cross:
        return errors
    first, second = (prefixes - y[:, None]).split(list(widths), dim=2)
    products = 2 * recipe.cross * division.over_tokens((first * second).sum(dim=(0, 2)))
    return errors + products / (
        variance(y, division) if recipe.reconstruction == "normalized" else division.tokens(y.shape[0])
    )


def combined(
    recipe: Recipe,
    y: Tensor,
    prefixes: Tensor,
    widths: tuple[int, ...],
    terms: Mapping[str, tuple[float, Tensor]],
    aux: Tensor | None,
    division: Division = UNDIVIDED,
) -> dict[str, Tensor]:
    """All loss terms of a batch by name, with their ``total``.

    Args:
        recipe: how errors are measured and prefixes are reduced.
        y: ``[token, d_out]``; prefixes: ``[token, group, d_out]`` its reconstructions, the last one by all latents.
        terms: further terms by name, each with its weight.
        aux: the AuxK term; its weight is relative to a normalised error.
        division: how the tokens are divided over ranks; terms and ``aux`` are already those of all of them.

    Returns:
        ``total`` and ``reconstruction`` (minimised), the given terms without weights, ``sparsity`` (the weighted
        penalties), and, detached, ``full`` and ``prefixes``: normalised errors, 1 for predicting the mean.
    """
    errors = normalized = measured_errors(recipe, y, prefixes, widths, division)
    if recipe.reconstruction != "normalized" or recipe.cross:
        normalized = reconstruction_errors(y, prefixes.detach(), division)
    return added_up(recipe, y, errors, normalized, terms, aux, division)


def added_up(
    recipe: Recipe,
    y: Tensor,
    errors: Tensor,
    normalized: Tensor,
    terms: Mapping[str, tuple[float, Tensor]],
    aux: Tensor | None,
    division: Division = UNDIVIDED,
) -> dict[str, Tensor]:
    """:func:`combined`, given ``[group]`` errors of the prefixes: as the recipe measures them, and normalised."""
    losses = {
        "reconstruction": errors.sum() if recipe.prefix_sum else errors.mean(),
        "full": normalized[-1].detach(),
        "prefixes": normalized.detach(),
    }
    total = losses["reconstruction"]
    for name, (weight, value) in terms.items():
        losses[name] = value
        total = total + weight * value
    if aux is not None and recipe.aux_k is not None:
        scale = variance(y, division) / division.tokens(y.shape[0]) if recipe.reconstruction == "squared" else 1.0
        losses["aux"] = aux
        total = total + recipe.aux_k.coefficient * scale * aux
    losses["total"] = total
    return losses


def aux_k_loss(
    x: Tensor,
    residual: Tensor,
    dead: Tensor,
    encoder: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None,
    decoder: Tensor,
    k: int,
    norms: Tensor | None = None,
) -> Tensor:
    """Normalised squared error of explaining ``residual`` with the ``k`` most active dead latents of each token.

    The residual carries no gradient, the decoder bias takes no part, and only the dead columns are computed: live
    latents are not touched and the cost grows with the number of dead ones (arXiv 2406.04093, appendix A.2).

    Args:
        x: ``[token, d_in]`` inputs; residual: ``[token, d_out]`` error of the whole dictionary.
        dead: ``[dead]`` indices of dead latents.
        encoder, decoder: ``[width, d]``; b_enc: ``[width]``; b_dec: ``[d]``, None when there is no pre-bias.
        k: latents per token that take part.
        norms: ``[width]`` weights of the scores by which those are chosen; None chooses by the activation itself.
    """
    residual = residual.detach()
    rows, directions = _rows(encoder, dead), _rows(decoder, dead)
    # As in the encoder itself: with the bias on this side, its gradient is a matrix-vector product.
    bias = b_enc[dead] if b_dec is None else b_enc[dead] - rows @ b_dec
    z = torch.relu(torch.addmm(bias, x, rows.T))
    if k < dead.numel():
        scores = z.detach() if norms is None else z.detach() * norms[dead]
        z = z * torch.zeros_like(z).scatter_(1, largest(scores, k), 1.0)
    return (residual - z @ directions).square().sum() / variance(residual)


def _rows(matrix: Tensor, indices: Tensor) -> Tensor:
    """Some rows of a parameter; the gradient holds those alone, where the device has such gradients."""
    return F.embedding(indices, matrix, sparse=matrix.device.type != "mps")
