"""The recipes that select k latents, on the nonzeros, with tokens or latents divided over ranks.

Same functions and results as :mod:`saeworks.training.dense`. Divided by latents, a step sends each token's ``k`` best
scores (or the counts of a few hundred digits, for a BatchTopK) and one sum of reconstructions ``[token, group, d]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.kernels.sparse import encode_selected
from saeworks.training.deltas import delta_terms
from saeworks.training.dense import Parameters
from saeworks.training.moment import Moment
from saeworks.training.objectives import combined, measured_errors, prefix_reconstructions, score_norms, variance
from saeworks.training.recipes import SELECTIONS_BY_K, Recipe
from saeworks.training.selecting import largest_per_token, selected


def covers(recipe: Recipe) -> bool:
    """Whether this path computes the recipe."""
    return recipe.selection in SELECTIONS_BY_K and not recipe.penalties


def select(recipe: Recipe, p: Parameters, x: Tensor, moment: Moment, widths: tuple[int, ...]) -> Codes:
    """The active ones of this rank's latents, for its rows ``x [token, d_in]``, with gradients."""
    return _selected(recipe, p, x, moment, widths, [moment.k])[0]


def losses(
    recipe: Recipe, p: Parameters, x: Tensor, y: Tensor, moment: Moment, widths: tuple[int, ...]
) -> tuple[dict[str, Tensor], Codes]:
    """Loss terms by name, the same on every rank, and this rank's active latents; see ``dense.losses``."""
    division, width = moment.division, sum(moment.sizes)
    ks = [moment.k] if recipe.multi is None else [moment.k, min(recipe.multi.factor * moment.k, width)]
    codes, *more = _selected(recipe, p, x, moment, widths, ks)
    prefixes = _prefixes(recipe, p, x, codes, moment.own_sizes, moment)
    terms: dict[str, tuple[float, Tensor]] = {}
    if recipe.multi is not None:
        whole = _prefixes(recipe, p, x, more[0], (p["b_enc"].numel(),), moment)
        terms["multi"] = (recipe.multi.weight, measured_errors(recipe, y, whole, widths, division)[0])
    terms |= delta_terms(recipe, p["decoder"], y, codes, moment)
    aux = None
    if recipe.aux_k is not None and moment.dead_count > 0:
        aux = _aux(recipe, p, x, (y - prefixes[:, -1]).detach(), moment, widths)
    return combined(recipe, y, prefixes, widths, terms, aux, division), codes


def _selected(
    recipe: Recipe, p: Parameters, x: Tensor, moment: Moment, widths: tuple[int, ...], ks: list[float]
) -> list[Codes]:
    """The latents that each of ``ks`` selects, from one product with the encoder."""
    found: list[Codes] = []
    with torch.no_grad():
        bias = p["b_enc"] - p["encoder"] @ p["b_dec"] if recipe.pre_bias else p["b_enc"]
        z = torch.addmm(bias, x, p["encoder"].T)
        norms = score_norms(recipe, p["decoder"], widths)
        for number, k in enumerate(ks):
            # The hint is of the first k; a larger one selects lower scores.
            hint = moment.hint if number == 0 else None
            codes = selected(recipe, z if norms is None else z * norms, k, moment, hint)
            found.append(codes if norms is None else codes.with_values(z[codes.rows(), codes.indices]))
    return [encode_selected(x, p["encoder"], p["b_enc"], p["b_dec"], codes, recipe.pre_bias) for codes in found]


def _prefixes(recipe: Recipe, p: Parameters, x: Tensor, codes: Codes, sizes: tuple[int, ...], moment: Moment) -> Tensor:
    """``[token, group, d_out]``: what the first group of latents, the first two groups, … reconstruct."""
    division = moment.division
    nothing = torch.zeros_like(p["b_dec"])
    out = division.over_latents(prefix_reconstructions(codes, p["decoder"], nothing, sizes))
    out = out + division.once(p["b_dec"])
    return out + (x @ division.once(p["W_skip"]))[:, None] if recipe.skip else out


def _aux(recipe: Recipe, p: Parameters, x: Tensor, residual: Tensor, moment: Moment, widths: tuple[int, ...]) -> Tensor:
    """The AuxK term on the dead columns alone; see ``objectives.aux_k_loss``."""
    assert recipe.aux_k is not None
    dead, division = moment.dead, moment.division
    k = recipe.aux_k.k or max(x.shape[1] // 2, 1)
    z = torch.relu((x - p["b_dec"] if recipe.pre_bias else x) @ p["encoder"][dead].T + p["b_enc"][dead])
    if k < moment.dead_count:
        norms = score_norms(recipe, p["decoder"], widths)
        scores = z.detach() if norms is None else z.detach() * norms[dead]
        z = z * largest_per_token(scores, k, division)
    explained = division.over_latents(z @ p["decoder"][dead])
    return division.over_tokens((residual - explained).square().sum()) / variance(residual, division)
