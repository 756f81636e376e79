"""Llama Scope: ``hyperparams.json`` and ``checkpoints/final.safetensors`` of the release, and the layout since then.

The later one is ``config.json`` and ``sae_weights.safetensors``. Both were trained on activations of a common norm: the
network sees ``x · √d / norm_in`` and its output is divided by ``√d / norm_out``. Latents compete by ``z · |W_dec_i|``,
so that the decoder's norms move into the encoder. The threshold of the first layout was published for raw inputs after
all this; that of the later one belongs to the scores as trained.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.folding import fold_decoder_norm, fold_normalization
from saeworks.dictionaries.formats import reading
from saeworks.dictionaries.formats.exact import common_threshold, without_norm_weighting
from saeworks.dictionaries.formats.format import (
    Format,
    Hints,
    Settings,
    Weights,
    about,
    beside,
    build,
    filled,
    site_out,
    tensors_of,
    weights_file,
    write_folder,
)
from saeworks.dictionaries.formats.names import hook_of, site_of
from saeworks.errors import InputError

_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
_NAMED = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}


def load_first(path: Path, hints: Hints) -> Dictionary:
    """The layout of the release: one threshold for all latents, in ``hyperparams.json``."""
    file = weights_file(path, "checkpoints/final.safetensors", "final.safetensors")
    folder = path if path.is_dir() else path.parent.parent
    config = reading.inside(folder, "hyperparams.json")
    if file is None or config is None:
        raise InputError(
            f"'{path}' lacks hyperparams.json or checkpoints/final.safetensors; give a Llama Scope folder."
        )
    settings = Settings.read(config)
    value = settings.number("jump_relu_threshold")
    norms = settings.part("dataset_average_activation_norm")
    return _assemble(
        file, settings, Weights.read(file), hints, (norms.number("in"), norms.number("out")), published_threshold=value
    )


def load_later(path: Path, hints: Hints) -> Dictionary:
    """The layout since: a threshold per latent as a logarithm, and the average norms among the weights."""
    file, config = weights_file(path, "sae_weights.safetensors", "*.safetensors"), beside(path, "config.json")
    if file is None or config is None:
        raise InputError(f"'{path}' lacks config.json or sae_weights.safetensors; give a folder of the later layout.")
    settings, weights = Settings.read(config), Weights.read(file)
    start = "dataset_average_activation_norm."
    norm_in, norm_out = (weights.scalar(start + settings.text(f"hook_point_{end}")) for end in ("in", "out"))
    factor, d = hints.get("norm_scaling_factor"), settings.integer("d_model")
    if norm_in is None and factor and d:
        # One release left the norms out; other tools keep √d over the norm in their table of releases.
        norm_in = norm_out = math.sqrt(d) / float(factor)
    return _assemble(file, settings, weights, hints, (norm_in, norm_out), published_threshold=None)


def _assemble(
    file: Path,
    settings: Settings,
    weights: Weights,
    hints: Hints,
    norms: tuple[float | None, float | None],
    published_threshold: float | None,
) -> Dictionary:
    tensors = _tensors(weights)
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    kind = settings.text("act_fn", "relu").lower()
    if kind not in ("relu", "jumprelu", "topk") or settings.flag("use_glu_encoder"):
        raise InputError(f"'{settings.path}' has the activation '{kind}' or a gated encoder, which is not read.")
    weighted = settings.flag("sparsity_include_decoder_norm", True)
    scales = _scales(settings, norms, W_enc.shape[0], W_dec.shape[1])
    hooks = [settings.text(f"hook_point_{end}") for end in ("in", "out")]
    transcoder = hooks[0] != hooks[1] or W_dec.shape[1] != W_enc.shape[0]
    token_wise = settings.text("norm_activation", "none") == "token-wise"
    if token_wise and transcoder:
        raise InputError(f"'{settings.path}' scales outputs by a norm that is unknown when it is used; it is refused.")
    cfg: dict[str, Any] = {
        "architecture": kind,
        "d_out": W_dec.shape[1] if transcoder else None,
        "apply_b_dec_to_input": settings.flag("apply_decoder_bias_to_pre_encoder"),
        "input_op": "constant_norm" if token_wise else "none",
    }
    threshold = (
        _trained_threshold(weights, W_enc.shape[1]) if kind == "jumprelu" and published_threshold is None else None
    )
    if kind == "topk":
        cfg |= {"k": settings.integer("top_k"), "norm_weighted": weighted}
    elif kind == "jumprelu":
        # Scores are compared: in terms of z, a latent with a short direction has a high threshold.
        norm = W_dec.norm(dim=1).clamp_min(1e-30) if weighted else torch.ones(W_dec.shape[0], dtype=W_dec.dtype)
        tensors["threshold"] = torch.zeros_like(norm) if threshold is None else (threshold / norm).clamp_max(1e30)
    found = {
        "site": site_of(hooks[0]),
        "site_out": site_of(hooks[1]) if transcoder else None,
        "normalization": {"convention": "sqrt_d", "scale": scales[0]},
        "claimed": {"l0": float(k)} if (k := settings.integer("top_k")) and kind != "relu" else None,
        "original_config": settings.values,
    }
    dictionary = build(file, cfg, about(settings.path, found, hints), **tensors)
    if not token_wise:
        dictionary = fold_normalization(dictionary, scales[0], output_scale=scales[1])
    if kind == "topk":
        return without_norm_weighting(dictionary)
    dictionary = fold_decoder_norm(dictionary)
    if published_threshold is not None and kind == "jumprelu":
        dictionary = dictionary.replace(threshold=filled(dictionary.b_enc, published_threshold))
    return dictionary


def why_not_first(dictionary: Dictionary) -> str | None:
    """Autoencoders and transcoders whose thresholds, for directions of norm 1, are one number."""
    cfg = dictionary.cfg
    if cfg.sources is not None or cfg.skip:
        return "the format knows one site per dictionary and no W_skip"
    if cfg.architecture == "groupmax":
        return "Llama Scope has no groupmax"
    if cfg.input_op == "layer_norm" or (cfg.input_op != "none" and cfg.d_out is not None):
        return f"it applies '{cfg.input_op}' to every token, which the format has no setting for"
    if cfg.architecture == "jumprelu" and common_threshold(_unit_rows(dictionary)) is None:
        return "the format has one threshold for all latents, and here they differ"
    return None


def save_first(dictionary: Dictionary, folder: Path) -> None:
    """Write ``hyperparams.json`` and ``checkpoints/final.safetensors``, in raw units: the average norm is √d."""
    from safetensors.torch import save_file

    topk = dictionary.cfg.architecture == "topk"
    d = without_norm_weighting(dictionary) if topk else _unit_rows(dictionary)
    t, cfg, known = tensors_of(d), d.cfg, d.cfg.metadata
    site = str(known.get("site") or "")
    weights = {_LINEAR[name]: t[name].T.contiguous() if t[name].dim() == 2 else t[name] for name in _LINEAR}
    (folder / "checkpoints").mkdir()
    save_file(weights, folder / "checkpoints" / "final.safetensors")
    settings = {
        "act_fn": cfg.architecture,
        "jump_relu_threshold": common_threshold(d),
        "top_k": cfg.k,
        "d_model": cfg.d_in,
        "d_sae": cfg.d_sae,
        "expansion_factor": max(cfg.d_sae // cfg.d_in, 1),
        "norm_activation": "token-wise" if cfg.input_op == "constant_norm" else "dataset-wise",
        "dataset_average_activation_norm": {"in": math.sqrt(cfg.d_in), "out": math.sqrt(cfg.output_width)},
        "apply_decoder_bias_to_pre_encoder": cfg.apply_b_dec_to_input,
        "use_decoder_bias": True,
        "sparsity_include_decoder_norm": False,
        "hook_point_in": hook_of(site),
        "hook_point_out": hook_of(site) if cfg.d_out is None else hook_of(site_out(d)) or "out",
    }
    write_folder(dictionary, folder, {"hyperparams.json": settings})


def _unit_rows(dictionary: Dictionary) -> Dictionary:
    """The same function with decoder rows of norm 1; rows that have it but for rounding are left as they are."""
    norms = dictionary.W_dec.norm(dim=1)
    return dictionary if bool(((norms - 1).abs() < 1e-6).all()) else fold_decoder_norm(dictionary)


def _tensors(weights: Weights) -> dict[str, Tensor]:
    if "W_E" in weights:
        return {name: weights.get(theirs, 2 if name.startswith("W") else 1) for name, theirs in _NAMED.items()}
    linear = {
        name: weights.get(theirs, 2 if name.startswith("W") else 1)
        for name, theirs in _LINEAR.items()
        if name != "b_dec"
    }
    linear["W_enc"], linear["W_dec"] = linear["W_enc"].T, linear["W_dec"].T
    b_dec = weights.maybe("decoder.bias", 1)
    return {**linear, "b_dec": torch.zeros(linear["W_dec"].shape[1]) if b_dec is None else b_dec}


def _trained_threshold(weights: Weights, n: int) -> Tensor:
    for name in ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold"):
        if name in weights:
            return weights.shaped(name, weights.get(name, 1), n).exp()
    raise InputError(f"'{weights.path}' has no threshold, neither among its settings nor among its weights.")


def _scales(settings: Settings, norms: tuple[float | None, float | None], d_in: int, d_out: int) -> tuple[float, float]:
    """What input and output were multiplied by in training: √d over their average norms."""
    kind = settings.text("norm_activation", "none")
    if kind in ("none", "inference", "token-wise"):
        return 1.0, 1.0
    if kind != "dataset-wise":
        raise InputError(f"'{settings.path}' has norm_activation '{kind}', which depends on the batch; it is refused.")
    if norms[0] is None or norms[1] is None or min(norms[0], norms[1]) <= 0:
        raise InputError(f"'{settings.path}' is normalised dataset-wise but does not say by which positive norms.")
    return math.sqrt(d_in) / norms[0], math.sqrt(d_out) / norms[1]


def _is_first(path: Path) -> bool:
    folder = path if path.is_dir() else path.parent.parent
    return weights_file(path, "checkpoints/final.safetensors", "final.safetensors") is not None and (
        reading.inside(folder, "hyperparams.json") is not None
    )


def _is_later(path: Path) -> bool:
    file = weights_file(path, "sae_weights.safetensors", "*.safetensors")
    if file is None or beside(path, "config.json") is None:
        return False
    names = set(reading.peek(file))
    return "W_E" in names or {"encoder.weight", "decoder.weight"} <= names


FORMAT = Format(
    name="llama_scope",
    title="Llama Scope",
    needs=("hyperparams.json", "checkpoints/final.safetensors"),
    also=("saeworks.json",),
    recognise=_is_first,
    load=load_first,
    save=save_first,
    can_express=why_not_first,
)
FORMAT_LATER = Format(
    name="llama_scope_2",
    title="Llama Scope (later layout)",
    needs=("config.json", "sae_weights.safetensors"),
    also=(),
    recognise=_is_later,
    load=load_later,
    can_express=lambda _: "the later layout of Llama Scope is only read here; llama_scope is written",
)
