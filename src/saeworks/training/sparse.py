"""Recipes on the entries that take part: one dense product per step, the encoder's, and no ``[token, width]`` matrix.

Same functions and results as :mod:`saeworks.training.dense`. Decoding is a weighted bag of decoder rows per token, the
gradient of a latent a dot product with its row, the gradient of either weight matrix a weighted bag over the same
entries sorted by latent. Cost and memory after the product grow with the number of entries; where that is a large share
of all, dense matrices are faster (:mod:`saeworks.training.paths`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.kernels.sparse import squared_errors
from saeworks.training.deltas import delta_terms
from saeworks.training.dense import Parameters
from saeworks.training.entries import collect, shown
from saeworks.training.moment import Moment
from saeworks.training.objectives import (
    added_up,
    aux_k_loss,
    measured_errors,
    prefix_reconstructions,
    reconstruction_errors,
    score_norms,
    variance,
)
from saeworks.training.penalties import L1, Lp, Tanh, weight
from saeworks.training.recipes import Recipe
from saeworks.training.straight_through import near_threshold

# Terms that are zero, and flat, where a latent is zero. The others ask where z lies, which only these selections tell.
OF_LATENTS = (L1, Lp, Tanh)
BY_THRESHOLD = ("relu", "jumprelu")


def covers(recipe: Recipe) -> bool:
    """Whether this path computes the recipe."""
    return recipe.selection in BY_THRESHOLD or all(isinstance(penalty, OF_LATENTS) for penalty in recipe.penalties)


def select(recipe: Recipe, p: Parameters, x: Tensor, moment: Moment, widths: tuple[int, ...]) -> Codes:
    """The active latents of ``x [token, d_in]``, without gradients."""
    with torch.no_grad():
        return collect(recipe, p, x, moment, widths)[0].active()


def losses(
    recipe: Recipe,
    p: Parameters,
    x: Tensor,
    y: Tensor,
    moment: Moment,
    widths: tuple[int, ...],
    densest: float = 1.0,
) -> tuple[dict[str, Tensor], Codes]:
    """Loss terms by name and the active latents; see :func:`saeworks.training.dense.losses`.

    Raises:
        TooDense: more than the share ``densest`` of all entries takes part.
    """
    entries, *more = collect(recipe, p, x, moment, widths, densest)
    base = p["b_dec"] + x @ p["W_skip"] if recipe.skip else p["b_dec"]
    whole = (p["b_enc"].numel(),)
    errors, normalized, residual = _errors(recipe, entries.codes, p["decoder"], base, y, moment.sizes, widths)
    terms: dict[str, tuple[float, Tensor]] = {}
    if entries.gate is not None:
        alone = entries.codes.with_values(entries.gate)
        held = p["decoder"].detach(), p["b_dec"].detach()
        terms["gate"] = (1.0, _errors(recipe, alone, *held, y, whole, widths)[0][0])
    if recipe.multi is not None:
        second = _errors(recipe, more[0].codes, p["decoder"], base, y, whole, widths)[0][0]
        terms["multi"] = (recipe.multi.weight, second)
    terms |= delta_terms(recipe, p["decoder"], y, entries.codes, moment)
    seen = shown(recipe, p, x, entries, moment, widths) if recipe.penalties else None
    for penalty in recipe.penalties if seen is not None else ():
        terms[penalty.kind] = (weight(penalty, moment), penalty(seen))  # pyright: ignore
    aux = None
    if recipe.aux_k is not None and moment.dead.numel() > 0:
        k = min(recipe.aux_k.k or max(x.shape[1] // 2, 1), moment.dead.numel())
        b_dec = p["b_dec"] if recipe.pre_bias else None
        norms = score_norms(recipe, p["decoder"], widths)
        aux = aux_k_loss(x, residual, moment.dead, p["encoder"], p["b_enc"], b_dec, p["decoder"], k, norms)
    out = added_up(recipe, y, errors, normalized, terms, aux)
    with torch.no_grad():
        if recipe.lp is not None and seen is not None:
            out["lp_next"] = recipe.lp.at(seen, moment.next_p)
        if recipe.selection == "jumprelu" and seen is not None:
            near = near_threshold(entries.z, seen.threshold, moment.bandwidth)  # pyright: ignore
            out["in_window"] = near.sum() / (entries.codes.tokens * entries.codes.width)
    return out, entries.active()


def _errors(
    recipe: Recipe,
    codes: Codes,
    decoder: Tensor,
    base: Tensor,
    y: Tensor,
    sizes: tuple[int, ...],
    widths: tuple[int, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """``[group]`` errors of nested prefixes, as the recipe measures them and normalised; the residual of the last."""
    if recipe.reconstruction == "norm" or recipe.cross:
        nothing = torch.zeros_like(y[0])
        prefixes = prefix_reconstructions(codes, decoder, nothing, sizes) + base.reshape(-1, 1, base.shape[-1])
        errors = measured_errors(recipe, y, prefixes, widths)
        return errors, reconstruction_errors(y, prefixes.detach()), (y - prefixes[:, -1]).detach()
    sums, residual = squared_errors(codes, decoder, base, y, sizes)
    normalized = sums / variance(y)
    return normalized if recipe.reconstruction == "normalized" else sums / y.shape[0], normalized, residual
