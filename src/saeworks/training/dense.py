"""Every recipe's loss on dense matrices: the mathematics as it is written, and the reference of all faster paths.

A faster path has the same two functions, ``select`` and ``losses``, with the same results up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.training.deltas import delta_terms
from saeworks.training.division import Division
from saeworks.training.moment import Moment
from saeworks.training.objectives import combined, decoder_norms, measured_errors, score_norms, variance
from saeworks.training.penalties import Latents, weight
from saeworks.training.recipes import SELECTIONS_BY_K, Recipe
from saeworks.training.selecting import largest_per_token, selected
from saeworks.training.straight_through import in_window, jump

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Forward:
    """Pre-activations ``z``, latents ``f`` and, of a gated encoder, the pre-activations of its ``gate``."""

    z: Tensor
    f: Tensor
    gate: Tensor | None = None


def select(recipe: Recipe, p: Parameters, x: Tensor, moment: Moment, widths: tuple[int, ...]) -> Codes:
    """The active latents of ``x [token, d_in]``, without gradients."""
    with torch.no_grad():
        return Codes.from_dense(forward(recipe, p, x, moment, widths, moment.k).f)


def losses(
    recipe: Recipe, p: Parameters, x: Tensor, y: Tensor, moment: Moment, widths: tuple[int, ...]
) -> tuple[dict[str, Tensor], Codes]:
    """Loss terms by name (see :func:`saeworks.training.objectives.combined`) and the active latents.

    Args:
        p: ``encoder [width, d_in]``, ``decoder [width, d_out]``, ``b_enc``, ``b_dec``, and by recipe ``b_gate`` and
            ``r_mag`` (then ``b_enc`` is the bias of the magnitude), ``threshold``, ``W_skip [d_in, d_out]``.
        x: ``[token, d_in]`` normalised inputs. y: ``[token, d_out]`` what is reconstructed, ``x`` itself but for
            transcoders.
        moment: what schedules and controllers say.
        widths: of the sources that lie side by side in ``y``.

    Divided over ranks, ``p`` and ``x`` are this rank's, and every rank gets the same losses (see ``Division``).
    """
    division, width = moment.division, sum(moment.sizes)
    latents = forward(recipe, p, x, moment, widths, moment.k)
    prefixes = _prefixes(recipe, p, x, latents.f, moment.own_sizes, division)
    terms: dict[str, tuple[float, Tensor]] = {}
    penalised = latents.f if latents.gate is None else latents.gate.relu()
    if latents.gate is not None:
        # The gate has to reconstruct by itself; the decoder is held still, lest it serve the gate (arXiv 2404.16014).
        alone = division.over_latents(penalised @ p["decoder"].detach()) + p["b_dec"].detach()
        terms["gate"] = (1.0, measured_errors(recipe, y, alone[:, None], widths, division)[0])
    if recipe.multi is not None:
        more = forward(recipe, p, x, moment, widths, min(recipe.multi.factor * moment.k, width))
        whole = _prefixes(recipe, p, x, more.f, (p["b_enc"].numel(),), division)
        terms["multi"] = (recipe.multi.weight, measured_errors(recipe, y, whole, widths, division)[0])
    terms |= delta_terms(recipe, p["decoder"], y, latents.f, moment)
    shown = _shown(recipe, p, latents.z, penalised, moment, widths)
    for penalty in recipe.penalties:
        terms[penalty.kind] = (weight(penalty, moment), penalty(shown))
    aux = None
    if recipe.aux_k is not None and moment.dead_count > 0:
        aux = _aux(recipe, p, latents.z, y - prefixes[:, -1], moment, widths)
    out = combined(recipe, y, prefixes, widths, terms, aux, division)
    with torch.no_grad():
        if recipe.lp is not None:
            out["lp_next"] = recipe.lp.at(shown, moment.next_p)
        if recipe.selection == "jumprelu":
            near = in_window(latents.z, p["threshold"], moment.bandwidth) * latents.z.shape[1]
            out["in_window"] = division.over_latents(division.mean(near[None])) / width
    return out, Codes.from_dense(latents.f.detach())


def forward(recipe: Recipe, p: Parameters, x: Tensor, moment: Moment, widths: tuple[int, ...], k: float) -> Forward:
    """Pre-activations and latents ``[token, width]`` of ``x [token, d_in]`` by the selection of training."""
    u = (x - p["b_dec"] if recipe.pre_bias else x) @ p["encoder"].T
    if recipe.selection == "gated":
        gate, z = u + p["b_gate"], p["r_mag"].exp() * u + p["b_enc"]
        return Forward(z, z.relu() * (gate > 0), gate)
    z = u + p["b_enc"]
    if recipe.selection == "jumprelu":
        return Forward(z, jump(z, p["threshold"], moment.bandwidth, recipe.jump.everywhere))
    if recipe.selection in SELECTIONS_BY_K:
        norms = score_norms(recipe, p["decoder"], widths)
        scores = z.detach() if norms is None else z.detach() * norms
        return Forward(z, z * (selected(recipe, scores, k, moment, moment.hint).dense() > 0))
    return Forward(z, z.relu())


def _prefixes(
    recipe: Recipe, p: Parameters, x: Tensor, f: Tensor, sizes: tuple[int, ...], division: Division
) -> Tensor:
    """``[token, group, d_out]``: what the first group of latents, the first two groups, … reconstruct."""
    parts = [g @ rows for g, rows in zip(f.split(list(sizes), 1), p["decoder"].split(list(sizes)), strict=True)]
    out = division.over_latents(torch.stack(parts, dim=1).cumsum(dim=1)) + division.once(p["b_dec"])
    return out + (x @ division.once(p["W_skip"]))[:, None] if recipe.skip else out


def _shown(recipe: Recipe, p: Parameters, z: Tensor, f: Tensor, moment: Moment, widths: tuple[int, ...]) -> Latents:
    groups = len(moment.sizes)
    held = torch.arange(groups, 0, -1, device=z.device)  # the first group is in all prefixes, the last in one
    sizes = torch.tensor(moment.own_sizes, device=z.device)
    return Latents(
        z=z,
        f=f,
        threshold=p.get("threshold"),
        norms=decoder_norms(p["decoder"], widths),
        joint=p["decoder"].norm(dim=1),
        shares=moment.weighted((held.to(z.dtype) / groups).repeat_interleave(sizes)),
        everywhere=recipe.jump.everywhere,
        moment=moment,
    )


def _aux(recipe: Recipe, p: Parameters, z: Tensor, residual: Tensor, moment: Moment, widths: tuple[int, ...]) -> Tensor:
    """What the dead latents miss of explaining the residual, over its variance (arXiv 2406.04093, appendix A.2)."""
    assert recipe.aux_k is not None
    residual = residual.detach()
    norms = score_norms(recipe, p["decoder"], widths)
    scores = z.relu().detach() if norms is None else z.relu().detach() * norms
    only_dead = torch.full_like(scores, -torch.inf)
    only_dead[:, moment.dead] = scores[:, moment.dead]
    k = min(recipe.aux_k.k or max(p["encoder"].shape[1] // 2, 1), moment.dead_count)
    division = moment.division
    explained = division.over_latents((z.relu() * largest_per_token(only_dead, k, division)) @ p["decoder"])
    return division.over_tokens((residual - explained).square().sum()) / variance(residual, division)
