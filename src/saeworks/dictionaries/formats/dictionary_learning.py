"""dictionary_learning: ``ae.pt`` (a state dict of torch) and ``config.json``, one class of dictionary per layout.

Linear layers of torch are stored output-major: ``encoder.weight [d_sae, d_in]`` and ``decoder.weight [d_in, d_sae]``
are both transposed here. Final files are in raw units; a *backup* made during training still needs its ``norm_factor``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.folding import (
    fold_decoder_norm,
    fold_normalization,
    fold_pre_bias,
    gated_to_jumprelu,
    unfold_pre_bias,
)
from saeworks.dictionaries.formats import reading
from saeworks.dictionaries.formats.dictionary_learning_crosscoders import Parts, crosscoder, unnormalised
from saeworks.dictionaries.formats.exact import (
    common_threshold,
    thresholds,
    why_not_autoencoder,
    without_norm_weighting,
)
from saeworks.dictionaries.formats.format import (
    Format,
    Hints,
    Settings,
    Weights,
    about,
    beside,
    build,
    check_metadata,
    filled,
    k_of,
    tensors_of,
    weights_file,
    write_folder,
)
from saeworks.dictionaries.formats.names import hook_of, layer_of, model_of, site_of
from saeworks.errors import InputError, did_you_mean

CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "CrossCoder",
    "BatchTopKCrossCoder",
)
# What a class trained under another name is called.
_SAME = {"MatryoshkaBatchTopK": "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoderNew": "JumpReluAutoEncoder"}
_PREFIXES = ("_orig_mod.", "module.")


def load(path: Path, hints: Hints) -> Dictionary:
    """Read final files, backups and checkpoints (``checkpoints/ae_N.pt``, whose ``config.json`` is one folder up)."""
    file = weights_file(path, "ae.pt", "*.pt")
    if file is None:
        raise InputError(f"'{path}' holds no ae.pt; give the folder of one trainer of dictionary_learning.")
    config = beside(path, "config.json") or reading.inside(file.parent.parent, "config.json")
    trainer = (Settings.read(config) if config else Settings(file, {})).part("trainer")
    state, norm_factor = plain_state(file, reading.read_weights(file))
    weights = Weights(file, state)
    name = _class_of(weights, trainer.text("dict_class"), config)
    cfg, tensors, extra = _READERS[name](weights, trainer)
    if norm_factor is not None:
        extra.pop("threshold_moving_average", None)
    found = {**_origin(trainer, config), **extra, "dict_class": name}
    dictionary = build(file, cfg, about(path, found, hints), **tensors)
    if name == "AutoEncoderNew":
        dictionary = fold_decoder_norm(dictionary)
    if norm_factor is not None:
        dictionary = fold_normalization(dictionary, 1.0 / norm_factor)
    return dictionary if "CrossCoder" not in name else unnormalised(dictionary, weights)


def plain_state(file: Path, value: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """The state dict without the prefixes of wrappers, and the factor that a backup still has to be multiplied by."""
    factor: float | None = None
    inner: object = value.get("ae")
    if isinstance(inner, dict):
        found: object = value.get("norm_factor")
        if isinstance(found, Tensor):
            found = Weights(file, value).scalar("norm_factor")
        factor = 1.0 if found is None else Settings(file, {"norm_factor": found}).number("norm_factor")
        if factor is None or not 0 < factor < float("inf"):
            raise InputError(f"'{file}' is a backup with the norm_factor {factor}, which must be positive.")
        value = cast("dict[str, Any]", inner)
    out: dict[str, Any] = {}
    for key, tensor in value.items():
        while key.startswith(_PREFIXES):
            key = key.partition(".")[2]
        out[key] = tensor
    return out, factor


def _class_of(weights: Weights, given: str, config: Path | None) -> str:
    """The class of dictionary: what the settings say, if the tensors agree; else what the tensors can only be."""
    given = _SAME.get(given, given)
    if given and given not in CLASSES:
        raise InputError(f"'{config}' has the dict_class '{given}', unknown here.{did_you_mean(given, CLASSES)}")
    encoder: object = weights.values.get("encoder.weight")
    if isinstance(encoder, Tensor) and encoder.dim() == 3:
        seen = {"CrossCoder", "BatchTopKCrossCoder"}
        default = "BatchTopKCrossCoder" if "k" in weights else "CrossCoder"
    elif "r_mag" in weights:
        seen, default = {"GatedAutoEncoder"}, "GatedAutoEncoder"
    elif "group_sizes" in weights or ("W_enc" in weights and "k" in weights):
        seen, default = {"MatryoshkaBatchTopKSAE"}, "MatryoshkaBatchTopKSAE"
    elif "W_enc" in weights:
        seen, default = {"JumpReluAutoEncoder"}, "JumpReluAutoEncoder"
    elif "k" in weights:
        seen, default = {"AutoEncoderTopK", "BatchTopKSAE"}, ""
    elif "decoder.bias" in weights:
        seen, default = {"AutoEncoderNew"}, "AutoEncoderNew"
    else:
        # Without pre-bias under the same class name: the tensors decide, not the name.
        seen, default = {"AutoEncoder"}, "AutoEncoder"
    if given in seen:
        return given
    if not default:
        raise InputError(
            f"'{weights.path}' may be AutoEncoderTopK or BatchTopKSAE: their tensors are the same; "
            "put the config.json of its trainer beside it."
        )
    if given and {given, default} != {"AutoEncoder", "AutoEncoderNew"}:
        raise InputError(f"'{config}' says {given}, but the tensors of '{weights.path}' are those of {default}.")
    return default


def _linear(weights: Weights, bias: str) -> dict[str, Tensor | None]:
    return {
        "W_enc": weights.get("encoder.weight", 2).T,
        "W_dec": weights.get("decoder.weight", 2).T,
        "b_dec": weights.get(bias, 1),
    }


def _relu(weights: Weights, _: Settings) -> Parts:
    tensors = {**_linear(weights, "bias"), "b_enc": weights.get("encoder.bias", 1)}
    return {"architecture": "relu", "apply_b_dec_to_input": True}, tensors, {}


def _relu_new(weights: Weights, _: Settings) -> Parts:
    tensors = {**_linear(weights, "decoder.bias"), "b_enc": weights.get("encoder.bias", 1)}
    return {"architecture": "relu", "apply_b_dec_to_input": False}, tensors, {}


def _gated(weights: Weights, _: Settings) -> Parts:
    tensors = _linear(weights, "decoder_bias")
    W_enc = tensors["W_enc"]
    assert W_enc is not None
    parts = [weights.shaped(key, weights.get(key, 1), W_enc.shape[1]) for key in ("gate_bias", "mag_bias", "r_mag")]
    tensors["W_enc"], tensors["b_enc"], tensors["threshold"] = gated_to_jumprelu(W_enc, *parts)
    return {"architecture": "jumprelu", "apply_b_dec_to_input": True}, tensors, {"gated": True}


def _jumprelu(weights: Weights, trainer: Settings) -> Parts:
    tensors: dict[str, Tensor | None] = {name: weights.get(name, 2) for name in ("W_enc", "W_dec")}
    tensors |= {name: weights.get(name, 1) for name in ("b_enc", "b_dec", "threshold")}
    return {"architecture": "jumprelu", "apply_b_dec_to_input": trainer.flag("apply_b_dec_to_input")}, tensors, {}


def _topk(weights: Weights, trainer: Settings) -> Parts:
    tensors = {**_linear(weights, "b_dec"), "b_enc": weights.get("encoder.bias", 1)}
    k, threshold = k_of(weights, trainer), weights.scalar("threshold")
    extra = {"threshold_moving_average": threshold} if threshold is not None and threshold >= 0 else {}
    return {"architecture": "topk", "k": k, "apply_b_dec_to_input": True}, tensors, extra


def _batch_topk(weights: Weights, trainer: Settings) -> Parts:
    tensors: dict[str, Tensor | None] = {**_linear(weights, "b_dec"), "b_enc": weights.get("encoder.bias", 1)}
    tensors["threshold"] = _common(weights, weights.get("encoder.bias", 1))
    extra = {"recipe": "batch_topk", "k": k_of(weights, trainer)}
    return {"architecture": "jumprelu", "apply_b_dec_to_input": True}, tensors, extra


def _matryoshka(weights: Weights, trainer: Settings) -> Parts:
    tensors: dict[str, Tensor | None] = {name: weights.get(name, 2) for name in ("W_enc", "W_dec")}
    tensors |= {name: weights.get(name, 1) for name in ("b_enc", "b_dec")}
    tensors["threshold"] = _common(weights, weights.get("b_enc", 1))
    groups: object = weights.values.get("group_sizes")
    sizes: Any = groups.tolist() if isinstance(groups, Tensor) else trainer.values.get("group_sizes")
    check_metadata(weights.path, {"group_sizes": sizes or 0}, weights.get("b_enc", 1).numel())
    extra = {"recipe": "matryoshka_batch_topk", "k": k_of(weights, trainer), "group_sizes": sizes}
    return {"architecture": "jumprelu", "apply_b_dec_to_input": True}, tensors, extra


_READERS: dict[str, Callable[[Weights, Settings], Parts]] = dict(
    zip(
        CLASSES,
        (_relu, _relu_new, _gated, _jumprelu, _topk, _batch_topk, _matryoshka, crosscoder, crosscoder),
        strict=True,
    )
)


def _common(weights: Weights, like: Tensor) -> Tensor:
    value = weights.scalar("threshold")
    if value is None or value < 0:
        came = "no threshold" if value is None else f"the threshold {value:g}, which means: never calibrated"
        raise InputError(f"'{weights.path}' has {came}; without one, BatchTopK is undefined for single tokens.")
    return filled(like, value)


def _origin(trainer: Settings, config: Path | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "model_name": model_of(trainer.text("lm_name")),
        "site": site_of(trainer.text("submodule_name")),
        "seed": trainer.values.get("seed"),
        "original_config": trainer.values or None,
    }
    measured = reading.inside(config.parent, "eval_results.json") if config else None
    if measured is not None:
        results = Settings.read(measured)
        found = {"l0": results.number("l0"), "explained_variance": results.number("frac_variance_explained")}
        out["claimed"] = {key: value for key, value in found.items() if value is not None} or None
    return out


def can_express(dictionary: Dictionary) -> str | None:
    """Autoencoders on raw activations; no groups."""
    if dictionary.cfg.architecture == "groupmax":
        return "dictionary_learning has no groupmax"
    return why_not_autoencoder(dictionary)


def save(dictionary: Dictionary, folder: Path) -> None:
    """Write ``ae.pt`` and ``config.json`` of the class that says what the dictionary does."""
    name, state = _state_of(dictionary)
    torch.save(state, folder / "ae.pt")
    known, cfg = dictionary.cfg.metadata, dictionary.cfg
    site = str(known.get("site") or "")
    trainer: dict[str, Any] = {
        "trainer_class": name,
        "dict_class": name,
        "activation_dim": cfg.d_in,
        "dict_size": cfg.d_sae,
        "lm_name": known.get("model_name"),
        "layer": layer_of(site) if site else None,
        "submodule_name": hook_of(site) if site else None,
        "seed": known.get("seed"),
        "device": "cpu",
    }
    if "k" in state:
        trainer["k"] = int(state["k"])
    if "group_sizes" in state:
        trainer["group_sizes"] = state["group_sizes"].tolist()
    buffer = {"d_submodule": cfg.d_in, "io": "out", "ctx_len": known.get("context_length")}
    write_folder(dictionary, folder, {"config.json": {"trainer": trainer, "buffer": buffer}})


def _state_of(dictionary: Dictionary) -> tuple[str, Mapping[str, Tensor]]:
    """Class and state dict; the order of the entries is that of the class."""
    cfg = dictionary.cfg
    groups, common = cfg.metadata.get("group_sizes"), common_threshold(dictionary)
    k = cfg.metadata.get("k")
    if cfg.architecture == "jumprelu" and groups and common is not None and type(k) is int and 0 < k <= cfg.d_sae:
        t = tensors_of(unfold_pre_bias(dictionary))
        scalars = {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(common)}
        sizes = torch.tensor([int(size) for size in groups])
        weights = {name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return "MatryoshkaBatchTopKSAE", {**weights, **scalars, "group_sizes": sizes}
    if cfg.architecture == "jumprelu":
        t = tensors_of(fold_pre_bias(dictionary))
        t["threshold"] = thresholds(dictionary).detach().cpu()
        return "JumpReluAutoEncoder", {name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    topk = cfg.architecture == "topk"
    t = tensors_of(unfold_pre_bias(without_norm_weighting(dictionary)) if topk else dictionary)
    linear = {
        "encoder.weight": t["W_enc"].T.contiguous(),
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T.contiguous(),
    }
    if topk:
        scalars = {"k": torch.tensor(cfg.k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
        return "AutoEncoderTopK", {"b_dec": t["b_dec"], **scalars, **linear}
    if cfg.apply_b_dec_to_input:
        return "AutoEncoder", {"bias": t["b_dec"], **linear}
    return "AutoEncoderNew", {**linear, "decoder.bias": t["b_dec"]}


def _recognise(path: Path) -> bool:
    file = weights_file(path, "ae.pt", "*.pt")
    if file is None:
        return False
    names = {name.removeprefix("_orig_mod.").removeprefix("module.") for name in reading.peek(file)}
    if "ae" in names:
        return True
    linear = {"encoder.weight", "decoder.weight"} <= names and "pre_bias" not in names
    own = {"W_enc", "W_dec", "threshold"} <= names
    if path.is_file() and path.name != "ae.pt":
        # A file alone may be of several kinds; ours is one that its settings, or names of no other kind, speak for.
        beside_it = beside(path, "config.json") or reading.inside(path.parent.parent, "config.json")
        return (linear or own) and beside_it is not None and "trainer" in Settings.read(beside_it)
    return linear or own


FORMAT = Format(
    name="dictionary_learning",
    title="dictionary_learning",
    needs=("ae.pt",),
    also=("config.json", "eval_results.json", "saeworks.json"),
    recognise=_recognise,
    load=load,
    save=save,
    can_express=can_express,
)
