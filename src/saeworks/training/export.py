"""From a dictionary in training to one for raw activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Architecture, Dictionary, DictionaryConfig
from saeworks.dictionaries.folding import fold_decoder_norm, fold_normalization, gated_to_jumprelu
from saeworks.training.objectives import score_norms

if TYPE_CHECKING:
    from saeworks.training.member import Member
    from saeworks.training.recipes import Selection

ARCHITECTURES: dict[Selection, Architecture] = {
    "relu": "relu",
    "gated": "jumprelu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batch_topk": "jumprelu",
    "groupmax": "groupmax",
}


def exported(
    member: Member,
    scale: float | Sequence[float],
    metadata: Mapping[str, Any],
    target_scale: float | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Dictionary:
    """The dictionary as trained so far, with normalisation folded in.

    Decoder rows get the norm 1, except for transcoders and for selections whose winners would change. Where scores were
    weighted with norms, latents become those scores, so that they need no weights. BatchTopK members use their moving
    average as threshold until it is calibrated (see ``calibrate``); a gated one becomes the JumpReLU that equals it.

    Args:
        member: what is trained. scale: of the input, one number or one per source.
        metadata: for ``cfg.json``, in addition to what the member knows. target_scale: of a transcoder's targets.
        weights: the member's, gathered from all ranks where each holds a part.
    """
    config, recipe = member.config, member.config.recipe
    p = member.exported_parameters() if weights is None else weights
    architecture = ARCHITECTURES[recipe.selection]
    by_k = architecture in ("topk", "groupmax")
    p = _by_scores(member, p) if by_k and recipe.norm_weighted else p
    W_enc, b_enc, threshold, source = _inference(member, p)
    own: dict[str, Any] = {
        "recipe": recipe.name,
        "k": None if recipe.sparsity == "coefficient" else config.sparsity,
        "seed": config.seed,
        "learning_rate": config.learning_rate,
        "normalization": {"convention": recipe.normalization, "scale": scale, "folded": True},
        "threshold_source": source,
    }
    if recipe.sparsity == "coefficient":
        own["penalty"] = config.sparsity
    if target_scale is not None:
        own["normalization"]["target_scale"] = target_scale
    if len(member.group_sizes) > 1:
        own["group_sizes"] = list(member.group_sizes)
    if described := member.partitions.described():
        own["partitions"] = described
    if budgets := member.partitions.budgets:  # each of these sets of latents, in this order, has a threshold of its own
        own["budgets"] = [{"latents": latents, "k": share * config.sparsity} for latents, share in budgets]
    cfg = DictionaryConfig(
        architecture=architecture,
        d_in=member.layout.d_in,
        d_out=member.layout.d_out,
        d_sae=config.width,
        k=int(config.sparsity) if by_k else None,
        apply_b_dec_to_input=recipe.pre_bias,
        skip=recipe.skip,
        sources=member.layout.sources,
        source_widths=member.layout.source_widths,
        input_op=recipe.input_op,
        metadata={**metadata, **own},
    )
    trained = Dictionary(cfg, W_enc, p["decoder"], b_enc, p["b_dec"], threshold, p.get("W_skip"))
    trained = fold_normalization(trained, scale, "raw", target_scale)
    # Rows of norm 1 do not stay so where every source is scaled by a number of its own.
    free = recipe.constraint == "free" or member.layout.sources is not None
    return fold_decoder_norm(trained) if free and not by_k and member.layout.d_out is None else trained


def _by_scores(member: Member, p: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same function with the scores ``z_i Σ_s |W_i,s|`` as latents: those that won as scores win as they are.

    In other units the norms of several sources would weigh differently. A latent without a direction stays at 0.
    """
    norms = score_norms(member.config.recipe, p["decoder"], member.widths)
    assert norms is not None
    decoder = p["decoder"] / norms.masked_fill(norms == 0, 1.0)[:, None]
    return {**p, "encoder": p["encoder"] * norms[:, None], "b_enc": p["b_enc"] * norms, "decoder": decoder}


def _inference(member: Member, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None, str | None]:
    """``W_enc``, ``b_enc``, threshold of inference and where it comes from, in normalised units."""
    selection = member.config.recipe.selection
    if selection == "gated":
        return *gated_to_jumprelu(p["encoder"].T, p["b_gate"], p["b_enc"], p["r_mag"]), "gate"
    if selection == "jumprelu":
        return p["encoder"].T, p["b_enc"], p["threshold"], "learned"
    if selection != "batch_topk":
        return p["encoder"].T, p["b_enc"], None, None
    sizes = torch.tensor([latents for latents, _ in member.partitions.budgets] or [len(p["b_enc"])])
    threshold = (
        p["b_enc"].new_tensor([one.value for one in member.smallest]).repeat_interleave(sizes.to(p["b_enc"].device))
    )
    norms = score_norms(member.config.recipe, p["decoder"], member.widths)
    if norms is not None:
        # z |W| > t is z > t / |W|; a latent without a direction scores 0 and is never selected.
        threshold = threshold / norms.clamp_min(torch.finfo(norms.dtype).tiny ** 0.5)
    return p["encoder"].T, p["b_enc"], threshold, "moving_average"
