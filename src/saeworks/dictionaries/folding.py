"""Exact rewrites: the same function ``x -> x_hat`` with other parameters.

Orders matter: normalisation first, then decoder norms, then (if wanted) the pre-bias. Everything is computed in the
dtype of the weights; fold in float32 or better and cast last.
"""

from __future__ import annotations

from typing import Literal

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.errors import InputError


def fold_normalization(dictionary: Dictionary, scale: float, units: Literal["raw", "normalised"] = "raw") -> Dictionary:
    """Turn a dictionary trained on ``scale * x`` into one for ``x``.

    ``raw`` keeps the decoder rows and puts latents in the units of ``x`` (dictionary_learning, Gemma Scope): the
    latents become ``f / scale``. ``normalised`` keeps the latents and shrinks the rows (SAELens).
    """
    if not scale > 0:
        raise InputError(f"A normalisation scale must be positive, but {scale} was given.")
    d = dictionary
    if units == "raw":
        threshold = None if d.threshold is None else d.threshold / scale
        return d.replace(b_enc=d.b_enc / scale, b_dec=d.b_dec / scale, threshold=threshold)
    return d.replace(W_enc=d.W_enc * scale, W_dec=d.W_dec / scale, b_dec=d.b_dec / scale)


def fold_decoder_norm(dictionary: Dictionary) -> Dictionary:
    """Give every decoder row the norm 1; latents become ``f_i * |W_dec[i]|``.

    Refused for ``topk`` with rows of unequal norm: it would change which latents win. Rows of norm zero are kept.
    """
    d = dictionary
    norms = d.W_dec.norm(dim=1)
    spread = float((norms.max() - norms.min()) / norms.mean())
    if d.cfg.architecture == "topk" and spread > 1e-3:
        raise InputError(
            "Folding decoder norms changes the ranking of a 'topk' dictionary whose rows have unequal norms; "
            "keep the rows as they are."
        )
    norms = norms.masked_fill(norms == 0, 1.0)
    threshold = None if d.threshold is None else d.threshold * norms
    return d.replace(W_enc=d.W_enc * norms, b_enc=d.b_enc * norms, W_dec=d.W_dec / norms[:, None], threshold=threshold)


def fold_pre_bias(dictionary: Dictionary) -> Dictionary:
    """Move the subtraction of ``b_dec`` into ``b_enc`` (``apply_b_dec_to_input`` becomes false)."""
    d = dictionary
    if not d.cfg.apply_b_dec_to_input:
        return d
    cfg = d.cfg.model_copy(update={"apply_b_dec_to_input": False})
    return Dictionary(cfg, d.W_enc, d.W_dec, d.b_enc - d.encoder @ d.b_dec, d.b_dec, d.threshold)


def unfold_pre_bias(dictionary: Dictionary) -> Dictionary:
    """The inverse of :func:`fold_pre_bias`."""
    d = dictionary
    if d.cfg.apply_b_dec_to_input:
        return d
    cfg = d.cfg.model_copy(update={"apply_b_dec_to_input": True})
    return Dictionary(cfg, d.W_enc, d.W_dec, d.b_enc + d.encoder @ d.b_dec, d.b_dec, d.threshold)
