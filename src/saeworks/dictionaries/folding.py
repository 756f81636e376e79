"""Exact rewrites: the same function ``x -> x_hat`` with other parameters.

Orders matter: normalisation first, then decoder norms, then (if wanted) the pre-bias. Everything is computed in the
dtype of the weights; fold in float32 or better and cast last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.errors import InputError


def fold_normalization(
    dictionary: Dictionary,
    scale: float | Sequence[float],
    units: Literal["raw", "normalised"] = "raw",
    output_scale: float | None = None,
) -> Dictionary:
    """Turn a dictionary trained on ``scale * x`` into one for ``x``.

    ``raw`` keeps the decoder rows and puts latents in the units of ``x`` (dictionary_learning, Gemma Scope): the
    latents become ``f / scale``. ``normalised`` keeps the latents and shrinks the rows (SAELens).

    Args:
        dictionary: trained on scaled activations.
        scale: of the input; of a crosscoder, one per source where they differ (``raw`` then means ``f`` divided by
            their geometric mean).
        units: see above.
        output_scale: of the target of a transcoder; None means that of the input.

    Raises:
        InputError: a scale that is not positive, or a dictionary whose ``input_op`` already undoes any scale.
    """
    d = dictionary
    scales = [float(scale)] if isinstance(scale, int | float) else [float(s) for s in scale]
    if not all(s > 0 for s in (*scales, 1.0 if output_scale is None else output_scale)):
        raise InputError(f"A normalisation scale must be positive, but {scale} was given.")
    if len(scales) not in (1, len(d.cfg.widths)):
        raise InputError(f"{len(scales)} scales were given for {len(d.cfg.widths)} sources; give one, or one each.")
    if d.cfg.input_op != "none" and set(scales) != {1.0}:
        raise InputError(f"'{d.cfg.input_op}' acts on raw tokens, so a scale of {scale} cannot be folded; use 1.")
    s_in = _per_coordinate(d, scales)
    s_out = s_in if output_scale is None and d.cfg.d_out is None else d.b_dec.new_tensor(output_scale or scales[0])
    common = d.b_dec.new_tensor(scales).log().mean().exp() if len(set(scales)) > 1 else d.b_dec.new_tensor(scales[0])
    skip = None if d.W_skip is None else d.W_skip * (s_in[:, None] / s_out)
    if units == "raw":
        return d.replace(
            W_enc=d.W_enc * (s_in / common)[:, None],
            W_dec=d.W_dec * (common / s_out),
            b_enc=d.b_enc / common,
            b_dec=d.b_dec / s_out,
            threshold=None if d.threshold is None else d.threshold / common,
            W_skip=skip,
        )
    return d.replace(W_enc=d.W_enc * s_in[:, None], W_dec=d.W_dec / s_out, b_dec=d.b_dec / s_out, W_skip=skip)


def fold_decoder_norm(dictionary: Dictionary) -> Dictionary:
    """Give every decoder row the norm 1; latents become ``f_i * |W_dec[i]|``.

    Exact for ``topk`` and ``groupmax`` that select by norm-weighted scores; refused for those that do not and have
    rows of unequal norm: it would change which latents win. Rows of norm zero are kept. The rows of a crosscoder get
    the norm 1 over all sources together.
    """
    d = dictionary
    norms = d.W_dec.norm(dim=1)
    if d.cfg.architecture in ("topk", "groupmax") and not d.cfg.norm_weighted:
        spread = float((norms.max() - norms.min()) / norms.mean())
        if spread > 1e-3:
            raise InputError(
                f"Folding decoder norms changes the ranking of a '{d.cfg.architecture}' dictionary whose rows have "
                "unequal norms; keep the rows as they are."
            )
    norms = norms.masked_fill(norms == 0, 1.0)
    return d.replace(
        # With one source all scores are now the latents themselves; several sources still have norms of their own.
        {"norm_weighted": d.cfg.norm_weighted and (d.cfg.sources is not None or bool((d.W_dec == 0).all(dim=1).any()))},
        W_enc=d.W_enc * norms,
        b_enc=d.b_enc * norms,
        W_dec=d.W_dec / norms[:, None],
        threshold=None if d.threshold is None else d.threshold * norms,
    )


def rescale_latents(dictionary: Dictionary, factors: Tensor) -> Dictionary:
    """The same function with latents ``factors · f``: the decoder rows of all sources are divided by the same number.

    No other rescaling keeps what the norms of a crosscoder's sources say of each other.

    Args:
        dictionary: of any kind but ``topk`` and ``groupmax`` that select by the latents themselves.
        factors: ``[d_sae]``, all positive.

    Raises:
        InputError: factors that are not positive or of another number, or a selection whose winners would change.
    """
    d = dictionary
    if factors.shape != (d.cfg.d_sae,) or not bool((factors > 0).all()) or not bool(factors.isfinite().all()):
        raise InputError(f"A positive factor for each of the {d.cfg.d_sae} latents is needed to rescale them.")
    if d.cfg.architecture in ("topk", "groupmax") and not d.cfg.norm_weighted:
        raise InputError(
            f"Rescaling the latents of a '{d.cfg.architecture}' dictionary changes which of them win; it has to select "
            "by norm_weighted scores."
        )
    c = factors.to(d.b_enc)
    return d.replace(
        W_enc=d.W_enc * c,
        b_enc=d.b_enc * c,
        W_dec=d.W_dec / c[:, None],
        threshold=None if d.threshold is None else d.threshold * c,
    )


def fold_pre_bias(dictionary: Dictionary) -> Dictionary:
    """Move the subtraction of ``b_dec`` into ``b_enc`` (``apply_b_dec_to_input`` becomes false)."""
    d = dictionary
    if not d.cfg.apply_b_dec_to_input:
        return d
    return d.replace({"apply_b_dec_to_input": False}, b_enc=d.b_enc - d.encoder @ d.b_dec)


def unfold_pre_bias(dictionary: Dictionary) -> Dictionary:
    """The inverse of :func:`fold_pre_bias`; ``InputError`` for a transcoder, whose ``b_dec`` lives in its output."""
    d = dictionary
    if d.cfg.apply_b_dec_to_input:
        return d
    if d.cfg.d_out is not None:
        raise InputError("A transcoder cannot subtract b_dec from its input: it has the width of the output.")
    return d.replace({"apply_b_dec_to_input": True}, b_enc=d.b_enc + d.encoder @ d.b_dec)


def gated_to_jumprelu(W_enc: Tensor, b_gate: Tensor, b_mag: Tensor, r_mag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The exact JumpReLU form of a gated encoder (arXiv 2404.16014, appendix on weight tying).

    With ``u = (x - b_dec) W_enc``, the gate is open where ``u + b_gate > 0`` and the magnitude is
    ``z = e^r u + b_mag``; the gate is therefore open where ``z > b_mag - e^r b_gate``. Where that is negative, the
    ReLU of the magnitude decides, so the threshold may be 0 there.

    Args:
        W_enc: ``[d_in, d_sae]``. b_gate, b_mag, r_mag: ``[d_sae]``.

    Returns:
        ``W_enc [d_in, d_sae]``, ``b_enc [d_sae]``, ``threshold [d_sae]``.
    """
    gain = r_mag.exp()
    return W_enc * gain, b_mag.clone(), (b_mag - gain * b_gate).clamp_min(0)


def _per_coordinate(d: Dictionary, scales: list[float]) -> Tensor:
    """``[d_in]``: the scale of every coordinate of the input."""
    if len(scales) == 1:
        return d.b_dec.new_full((d.cfg.d_in,), scales[0])
    return torch.cat([d.b_dec.new_full((w,), s) for w, s in zip(d.cfg.widths, scales, strict=True)])
