"""Crosscoders of dictionary_learning: what their tensors say, for training folders and for the layout of the hub.

``encoder.weight [source, d, n]``, ``decoder.weight [source, n, d]``; a BatchTopK one has ``threshold`` and
``code_normalization_id``, the norms by which scores are weighted: 1 the sum over the sources, 2 the norm over all of
them, 3 a mixture of both, 4 none, 5 the norm in every source by itself (*decoupled*).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.folding import fold_normalization
from saeworks.dictionaries.formats.format import Settings, Weights, k_of
from saeworks.errors import InputError

#: Configuration, tensors and metadata.
Parts = tuple[dict[str, Any], dict[str, Tensor | None], dict[str, Any]]
_SUM_OF_NORMS, _JOINT_NORM, _MIXED, _NO_NORM, _DECOUPLED = 1, 2, 3, 4, 5
_NEVER = 1e30


def crosscoder(weights: Weights, trainer: Settings) -> Parts:
    """Sources side by side. With a threshold, a latent is active where ``f · norm > threshold``.

    Without one (their class CrossCoder), latents are plain ReLUs, and a code normalisation was of the penalty alone.
    """
    encoder, decoder = weights.get("encoder.weight", 3), weights.get("decoder.weight", 3)
    sources, d, n = encoder.shape
    weights.shaped("decoder.weight", decoder, sources, n, d)
    bias = weights.shaped("decoder.bias", weights.get("decoder.bias", 2), sources, d)
    tensors: dict[str, Tensor | None] = {
        "W_enc": encoder.reshape(sources * d, n),
        "W_dec": decoder.transpose(0, 1).reshape(n, sources * d),
        "b_enc": weights.get("encoder.bias", 1),
        "b_dec": bias.reshape(-1),
    }
    cfg = {
        "architecture": "relu",
        "apply_b_dec_to_input": False,
        "sources": [f"source_{i}" for i in range(sources)],
    }
    if "k" not in weights and "threshold" not in weights:
        return cfg, tensors, {}
    kind = int(weights.scalar("code_normalization_id") or _SUM_OF_NORMS)
    if kind == _DECOUPLED:
        return _decoupled(weights, trainer, cfg, tensors)
    threshold = weights.scalar("threshold")
    if threshold is None or threshold < 0:
        raise _never_calibrated(weights)
    if kind == _MIXED:
        raise InputError(
            f"'{weights.path}' weighs its scores by a mixture of norms (code normalisation {kind}), whose two "
            "coefficients its tensors do not hold; only other code normalisations are read."
        )
    if kind not in (_SUM_OF_NORMS, _JOINT_NORM, _NO_NORM):
        raise InputError(
            f"'{weights.path}' has the code normalisation {kind}, which is unknown here; 1 to 5 are known."
        )
    norms = {
        _SUM_OF_NORMS: decoder.norm(dim=2).sum(dim=0),
        _JOINT_NORM: decoder.norm(dim=(0, 2)),
        _NO_NORM: torch.ones(n),
    }[kind]
    # A latent without a direction has the score 0 and is never active.
    limit = torch.where(norms > 0, threshold / norms, _NEVER)
    extra = {"recipe": "crosscoder_batch_topk", "k": k_of(weights, trainer)}
    return {**cfg, "architecture": "jumprelu"}, {**tensors, "threshold": limit}, extra


def _decoupled(weights: Weights, trainer: Settings, cfg: dict[str, Any], tensors: Mapping[str, Tensor | None]) -> Parts:
    """A crosscoder whose latents are switched on for each source by itself, as one that writes to one source at a time.

    Its pre-activation is one for all M sources, ``z_j``, and its code in source m is ``z_j`` where ``z_j |d_j^m|``
    exceeds the threshold of m, 0 elsewhere. That is exactly a crosscoder of M·n latents: latent ``m·n + j`` reads what
    j reads, writes ``d_j^m`` to source m and nothing to the others, and has the threshold ``threshold_m / |d_j^m|``.
    """
    encoder, decoder, bias = tensors["W_enc"], weights.get("decoder.weight", 3), tensors["b_enc"]
    assert encoder is not None
    assert bias is not None
    sources, n, d = decoder.shape
    limits = weights.shaped("threshold", weights.get("threshold", 1), sources)
    if not bool((limits >= 0).all()):
        raise _never_calibrated(weights)
    twice = _normaliser(weights)
    if twice is not None:
        # Where this class has a normaliser at all, ``encode`` normalises its input and the decoupled encoder that it
        # hands over to normalises once more, whoever calls; the output is scaled back once. A file is read as that
        # code runs it: this is the inner normalisation, ``unnormalised`` does the outer one. No file says which
        # version wrote it; should one normalise once, its files would look the same and be read wrongly.
        mean, scale = twice
        scales = scale.repeat_interleave(d)
        bias = bias - (mean.reshape(-1) * scales).to(encoder) @ encoder
        encoder = encoder * scales.to(encoder)[:, None]
    rows = decoder.new_zeros(sources, n, sources, d)
    for m in range(sources):
        rows[m, :, m] = decoder[m]
    norms = decoder.norm(dim=2)
    limit = torch.where(norms > 0, limits.to(norms)[:, None] / norms, _NEVER)
    parts = {
        "W_enc": encoder.repeat(1, sources),
        "W_dec": rows.reshape(sources * n, sources * d),
        "b_enc": bias.repeat(sources),
        "b_dec": tensors["b_dec"],
        "threshold": limit.reshape(-1),
    }
    extra = {
        "recipe": "crosscoder_batch_topk",
        "k": k_of(weights, trainer),  # of every source
        "decoupled": {"latents": n, "normalised": "twice" if twice is not None else "never"},
    }
    return {**cfg, "architecture": "jumprelu"}, parts, extra


def _never_calibrated(weights: Weights) -> InputError:
    return InputError(f"'{weights.path}' has no calibrated threshold, so what it does to one token is undefined.")


def unnormalised(dictionary: Dictionary, weights: Weights) -> Dictionary:
    """Fold ``(x − mean) · scale`` of every source, where a crosscoder carries one, into its weights."""
    found = _normaliser(weights)
    if found is None:
        return dictionary
    mean, scale = found
    folded = fold_normalization(dictionary, scale.tolist())
    offset = mean.reshape(-1).to(folded.dtype)
    return folded.replace(b_enc=folded.b_enc - offset @ folded.W_enc, b_dec=folded.b_dec + offset)


def _normaliser(weights: Weights) -> tuple[Tensor, Tensor] | None:
    """``mean [source, d]`` and ``scale [source]`` of a crosscoder's inputs; None where it has none."""
    mean, scale = weights.maybe("activation_mean", 2), weights.maybe("activation_global_scale", 1)
    return None if mean is None or scale is None or bool(mean.isnan().any()) else (mean, scale)
