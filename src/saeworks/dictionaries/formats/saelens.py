"""SAELens: ``cfg.json`` and ``sae_weights.safetensors``, of version 6 and of the versions before it.

Version 6 keeps where a dictionary comes from below ``metadata``; before it, everything lay flat. The encoder is
``W_enc [d_in, d_sae]``, the decoder ``W_dec [d_sae, d_out]`` as here; only ``W_skip [d_out, d_in]`` is transposed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.folding import fold_normalization, fold_pre_bias, gated_to_jumprelu
from saeworks.dictionaries.formats import reading
from saeworks.dictionaries.formats.exact import without_norm_weighting
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
from saeworks.dictionaries.formats.names import hook_of, model_of, site_of
from saeworks.errors import InputError, did_you_mean

WEIGHTS = "sae_weights.safetensors"
_INPUT_OPS = {
    "none": "none",
    "expected_average_only_in": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
# Names that training checkpoints carry; what they are at inference follows from their tensors.
_TRAINED = ("batchtopk", "matryoshka_batchtopk", "jumprelu_training")
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk", *_TRANSCODERS, *_TRAINED)


def load(path: Path, hints: Hints) -> Dictionary:
    """Read either version. The hint ``norm_scaling_factor`` is folded in: latents keep their normalised units."""
    file = weights_file(path, WEIGHTS, "*.safetensors")
    settings_file = beside(path, "cfg.json")
    if file is None or settings_file is None:
        raise InputError(f"'{path}' lacks {WEIGHTS if settings_file else 'cfg.json'}; a SAELens folder has both.")
    settings, weights = Settings.read(settings_file), Weights.read(file)
    name = settings.text("architecture", "standard")
    if name not in ARCHITECTURES:
        known = did_you_mean(name, ARCHITECTURES)
        raise InputError(f"'{settings_file}' has the architecture '{name}', unknown here.{known}")
    cfg, tensors = _inference(settings, weights, name)
    cfg["input_op"] = _input_op(settings)
    pre_bias = settings.flag("apply_b_dec_to_input", name not in _TRANSCODERS)
    cfg["apply_b_dec_to_input"] = pre_bias
    if name in _TRANSCODERS:
        W_dec = tensors["W_dec"]
        assert W_dec is not None
        cfg["d_out"] = W_dec.shape[1]
    if name in _TRANSCODERS and cfg["input_op"] != "none":
        raise InputError(f"'{settings_file}' normalises the inputs of a transcoder but not its outputs; it is refused.")
    if pre_bias and name in _TRANSCODERS:
        raise InputError(f"'{settings_file}' subtracts b_dec from the input of a transcoder, which has another width.")
    dictionary = build(file, cfg, about(path, _origin(settings, file), hints), **tensors)
    if cfg.get("norm_weighted"):
        dictionary = without_norm_weighting(dictionary)
    scale = hints.get("norm_scaling_factor")
    return fold_normalization(dictionary, float(scale), "normalised") if scale else dictionary


def _inference(settings: Settings, weights: Weights, name: str) -> tuple[dict[str, Any], dict[str, Tensor | None]]:
    """Configuration and tensors of what the files compute at inference."""
    W_enc, W_dec, b_dec = weights.get("W_enc", 2), weights.get("W_dec", 2), weights.get("b_dec", 1)
    factor = _factor(settings, weights, W_dec)
    if factor is not None:
        W_dec = W_dec * factor[:, None]
    tensors: dict[str, Tensor | None] = {"W_enc": W_enc, "W_dec": W_dec, "b_dec": b_dec}
    if name == "gated":
        gates = (weights.get("b_gate", 1), weights.get("b_mag", 1), weights.get("r_mag", 1))
        tensors["W_enc"], tensors["b_enc"], tensors["threshold"] = _gated(weights, W_enc, *gates)
        return {"architecture": "jumprelu"}, tensors
    tensors["b_enc"] = weights.get("b_enc", 1)
    if "W_skip" in weights:
        tensors["W_skip"] = weights.get("W_skip", 2).T
    cfg: dict[str, Any] = {"skip": "W_skip" in weights}
    threshold = _threshold(weights, W_enc.shape[1])
    if threshold is not None:
        return {**cfg, "architecture": "jumprelu"}, {**tensors, "threshold": threshold}
    if name in (*_TRAINED, "jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
        raise InputError(f"'{weights.path}' has no threshold, which the architecture '{name}' needs at inference.")
    k = _k(settings)
    if name == "topk" or k is not None:
        if k is None:
            raise InputError(f"'{settings.path}' does not say how many latents (k) a '{name}' dictionary keeps.")
        weighted = settings.flag("rescale_acts_by_decoder_norm")
        return {**cfg, "architecture": "topk", "k": k, "norm_weighted": weighted}, tensors
    return {**cfg, "architecture": "relu"}, tensors


def _gated(
    weights: Weights, W_enc: Tensor, b_gate: Tensor, b_mag: Tensor, r_mag: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n = W_enc.shape[1]
    for key, value in (("b_gate", b_gate), ("b_mag", b_mag), ("r_mag", r_mag)):
        weights.shaped(key, value, n)
    return gated_to_jumprelu(W_enc, b_gate, b_mag, r_mag)


def _threshold(weights: Weights, n: int) -> Tensor | None:
    if "threshold" in weights:
        return weights.get("threshold", 1)
    if "log_threshold" in weights:
        return weights.get("log_threshold", 1).exp()
    scalar = weights.scalar("topk_threshold")
    if scalar is None:
        return None
    if scalar < 0:
        raise InputError(f"'{weights.path}': the threshold is {scalar:g}: it was never calibrated; train further.")
    return filled(torch.zeros(n), scalar)


def _k(settings: Settings) -> int | None:
    """``k`` of topk: its own key in version 6, an argument of the activation function before."""
    activation = settings.text("activation_fn_str") or settings.text("activation_fn")
    if activation not in ("", "relu", "topk", "TopK"):
        raise InputError(f"'{settings.path}' has the activation function '{activation}'; only relu and topk are read.")
    if activation in ("", "relu"):
        return settings.integer("k")
    return settings.part("activation_fn_kwargs").integer("k") or settings.integer("k")


def _factor(settings: Settings, weights: Weights, W_dec: Tensor) -> Tensor | None:
    """What multiplies the latents before decoding, in files of earlier versions; it moves into the decoder's rows."""
    factor = weights.maybe("finetuning_scaling_factor", 1)
    if factor is None:
        factor = weights.maybe("scaling_factor", 1)
    if factor is None and settings.values.get("finetuning_scaling_factor") is True:
        raise InputError(f"'{weights.path}' lacks the finetuning_scaling_factor that its cfg.json announces.")
    return None if factor is None else weights.shaped("scaling factor", factor, W_dec.shape[0])


def _input_op(settings: Settings) -> str:
    given: object = settings.values.get("normalize_activations")
    if given is None or isinstance(given, bool):
        return "none"
    if not isinstance(given, str) or given not in _INPUT_OPS:
        known = ", ".join(_INPUT_OPS)
        raise InputError(f"'{settings.path}' has normalize_activations {given!r}, unknown here; known: {known}.")
    return _INPUT_OPS[given]


def _origin(settings: Settings, file: Path) -> dict[str, Any]:
    """Where the dictionary comes from, in our words, and the realised L0 when firing rates lie beside it."""
    said = settings.part("metadata") if "metadata" in settings else settings
    hook = said.text("hook_name") or said.text("hook_point")
    out: dict[str, Any] = {
        "model_name": model_of(said.text("model_name")),
        "site": site_of(hook),
        "site_out": site_of(said.text("hook_name_out")),
        "hook_name": hook or None,
        "context_length": said.integer("context_size"),
        "neuronpedia_id": said.values.get("neuronpedia_id"),
        "normalize_activations": settings.values.get("normalize_activations"),
        "original_config": settings.values,
    }
    rates = beside(file, "sparsity.safetensors")
    if rates is not None:
        found = Weights.read(rates).maybe("sparsity", 1)
        if found is not None:
            out["claimed"] = {"l0": float((10.0 ** found.double()).sum())}
    return out


def can_express(dictionary: Dictionary) -> str | None:
    """Everything but crosscoders, groups, and transcoders other than relu and jumprelu on raw inputs."""
    cfg = dictionary.cfg
    if cfg.sources is not None:
        return "it is a crosscoder, and SAELens knows one site per dictionary"
    if cfg.architecture == "groupmax":
        return "SAELens has no groupmax"
    if cfg.d_out is not None or cfg.skip:
        if cfg.architecture == "topk":
            return "SAELens has no transcoder with topk"
        if cfg.input_op != "none":
            return f"SAELens has no transcoder that applies '{cfg.input_op}'"
    return None


def save(dictionary: Dictionary, folder: Path) -> None:
    """Write version 6. Latents of norm-weighted topk come out multiplied by their decoder norms, as in SAELens."""
    from safetensors.torch import save_file

    d = without_norm_weighting(dictionary)
    transcoder = d.cfg.d_out is not None or d.cfg.skip
    if transcoder:
        d = fold_pre_bias(d)
    names = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}
    architecture = names[d.cfg.architecture]
    if transcoder:
        architecture = ("jumprelu_" if architecture == "jumprelu" else "") + ("skip_" if d.cfg.skip else "")
        architecture += "transcoder"
    site = str(d.cfg.metadata.get("site") or "")
    normalize = {ours: theirs for theirs, ours in _INPUT_OPS.items() if theirs != "expected_average_only_in"}
    settings: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d.cfg.d_in,
        "d_sae": d.cfg.d_sae,
        "dtype": str(d.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": d.cfg.apply_b_dec_to_input,
        "normalize_activations": normalize[d.cfg.input_op],
        "reshape_activations": "hook_z" if site.endswith(".attn_z") else "none",
        "metadata": _metadata(d, site),
    }
    if d.cfg.architecture == "topk":
        settings |= {"k": d.cfg.k, "rescale_acts_by_decoder_norm": False}
    if transcoder:
        settings["d_out"] = d.cfg.output_width
    tensors = tensors_of(d)
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T.contiguous()
    save_file(tensors, folder / WEIGHTS)
    write_folder(dictionary, folder, {"cfg.json": settings})


def _metadata(d: Dictionary, site: str) -> dict[str, Any]:
    known = d.cfg.metadata
    out: dict[str, Any] = {
        # Of the layout: without it, the settings would be taken for those of an earlier version, which lay flat.
        "sae_lens_version": "6.0.0",
        "model_name": known.get("model_name"),
        "hook_name": hook_of(site) if site else None,
        "context_size": known.get("context_length"),
        "prepend_bos": True,
        "dataset_path": None,
        "neuronpedia_id": known.get("neuronpedia_id"),
    }
    if target := site_out(d):
        out["hook_name_out"] = hook_of(target)
    if known.get("group_sizes"):
        out["group_sizes"] = list(known["group_sizes"])
    return out


def _recognise(path: Path) -> bool:
    if path.is_dir():
        file = beside(path, WEIGHTS)
        return file is not None and "W_E" not in reading.peek(file)  # a later Llama Scope layout has these file names
    if path.suffix != ".safetensors" or beside(path, "cfg.json") is None or path.name in ("weights.safetensors",):
        return False
    return {"W_enc", "W_dec", "b_dec"} <= set(reading.peek(path))


FORMAT = Format(
    name="saelens",
    title="SAELens",
    needs=("cfg.json", WEIGHTS),
    also=("sparsity.safetensors", "saeworks.json"),
    recognise=_recognise,
    load=load,
    save=save,
    can_express=can_express,
)
