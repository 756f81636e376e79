"""Rewrites that formats need: the same function in the form that a target can hold."""

from __future__ import annotations

import torch

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.folding import fold_decoder_norm


def without_norm_weighting(dictionary: Dictionary) -> Dictionary:
    """The same dictionary with selection by the latents alone: its decoder norms move into the encoder.

    Latents become ``f_i · |W_dec[i]|``. A latent with a zero decoder row has the score 0 and is never selected, which a
    zero encoder column and bias say without the norm. Crosscoders, whose scores are sums of norms, stay as they are.
    """
    d = dictionary
    if not d.cfg.norm_weighted or d.cfg.sources is not None:
        return d
    alive = (d.W_dec != 0).any(dim=1).to(d.dtype)
    folded = fold_decoder_norm(d)
    return folded.replace({"norm_weighted": False}, W_enc=folded.W_enc * alive, b_enc=folded.b_enc * alive)


def thresholds(dictionary: Dictionary) -> torch.Tensor:
    """``[d_sae]`` thresholds of at least 0 that say what the dictionary does: of ``relu`` they are 0.

    A latent is never negative here, whatever its threshold, so raising negative ones to 0 changes nothing.
    """
    if dictionary.threshold is None:
        return torch.zeros_like(dictionary.b_enc)
    return dictionary.threshold.clamp_min(0)


def common_threshold(dictionary: Dictionary) -> float | None:
    """The one threshold of at least 0 that all latents share; None when they differ or there is none."""
    if dictionary.threshold is None:
        return None
    raised = thresholds(dictionary)
    return float(raised[0]) if bool((raised == raised[0]).all()) else None


def why_not_autoencoder(dictionary: Dictionary) -> str | None:
    """Why a format for plain autoencoders of raw activations cannot hold this dictionary; None when it can."""
    cfg = dictionary.cfg
    if cfg.sources is not None:
        return "it is a crosscoder, and the format knows one site only"
    if cfg.d_out is not None:
        return "it is a transcoder, and the format reconstructs its own input only"
    if cfg.skip:
        return "it adds x W_skip, and the format has no such matrix"
    if cfg.input_op != "none":
        return f"it applies '{cfg.input_op}' to every token, which weights cannot do and the format has no setting for"
    return None
