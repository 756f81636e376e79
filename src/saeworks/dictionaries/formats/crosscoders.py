"""Published crosscoders of a base and a chat model: two layouts beside the training folders of dictionary_learning.

``dictionary_learning_hub``: ``model.safetensors`` with ``encoder.weight [source, d, n]`` and ``decoder.weight
[source, n, d]``, ``config.json`` with their sizes, as its classes are uploaded. ``crosscoder_pair``: ``W_enc [source,
d, n]`` and ``W_dec [n, source, d]`` in a ``.pt`` file beside ``cfg.json`` (Kissane's replication). Two sources are the
base and the chat model, in this order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.folding import fold_normalization
from saeworks.dictionaries.formats import reading
from saeworks.dictionaries.formats.dictionary_learning import plain_state
from saeworks.dictionaries.formats.dictionary_learning_crosscoders import crosscoder, unnormalised
from saeworks.dictionaries.formats.format import Format, Hints, Settings, Weights, about, beside, build, weights_file
from saeworks.dictionaries.formats.names import site_of
from saeworks.errors import InputError

HUB_WEIGHTS, PAIR_WEIGHTS = "model.safetensors", "*.pt"
PAIR = ("base", "chat")


def load_hub(path: Path, hints: Hints) -> Dictionary:
    """Read ``model.safetensors`` and ``config.json`` of a crosscoder."""
    file = weights_file(path, HUB_WEIGHTS)
    config = beside(path, "config.json")
    if file is None or config is None:
        raise InputError(f"'{path}' holds no {HUB_WEIGHTS} beside a config.json; give the folder of a crosscoder.")
    settings = Settings.read(config)
    state, _ = plain_state(file, reading.read_weights(file))
    weights = Weights(file, state)
    cfg, tensors, extra = crosscoder(weights, settings)
    cfg["sources"] = _sources(len(cfg["sources"]))
    found = {**extra, "dict_class": "BatchTopKCrossCoder" if "k" in weights else "CrossCoder"}
    found["original_config"] = settings.values
    return unnormalised(build(file, cfg, about(path, found, hints), **tensors), weights)


def load_pair(path: Path, hints: Hints) -> Dictionary:
    """Read a crosscoder with ReLU latents.

    Its inputs were scaled to the mean norm √d by one number per model, which the files do not hold: give them as the
    hint ``norm_scaling_factor``. Without it the dictionary is one for activations that are scaled already.
    """
    file, config = weights_file(path, PAIR_WEIGHTS), beside(path, "cfg.json")
    if file is None:
        raise InputError(f"'{path}' holds no .pt file; give the folder of a crosscoder.")
    settings = Settings.read(config) if config else Settings(file, {})
    weights = Weights(file, plain_state(file, reading.read_weights(file))[0])
    encoder, decoder = weights.get("W_enc", 3), weights.get("W_dec", 3)
    sources, d, n = encoder.shape
    tensors: dict[str, Tensor | None] = {
        "W_enc": encoder.reshape(sources * d, n),
        "W_dec": weights.shaped("W_dec", decoder, n, sources, d).reshape(n, sources * d),
        "b_enc": weights.shaped("b_enc", weights.get("b_enc", 1), n),
        "b_dec": weights.shaped("b_dec", weights.get("b_dec", 2), sources, d).reshape(-1),
    }
    cfg = {"architecture": "relu", "apply_b_dec_to_input": False, "sources": _sources(sources)}
    scale: object = hints.get("norm_scaling_factor")
    scales = [float(s) for s in cast("list[Any]", scale)] if isinstance(scale, list | tuple) else scale
    if scales is not None and (not isinstance(scales, list) or len(scales) != sources):
        raise InputError(f"'{path}' needs {sources} numbers as norm_scaling_factor, one per model, but {scale!r} came.")
    extra: dict[str, Any] = {
        "site": site_of(settings.text("hook_point")),
        "seed": settings.values.get("seed"),
        "original_config": settings.values or None,
        "normalization": {"convention": "sqrt_d", "scale": scales, "folded": scales is not None},
    }
    kept = {key: value for key, value in hints.items() if key != "norm_scaling_factor"}
    dictionary = build(file, cfg, about(path, extra, kept), **tensors)
    return dictionary if scales is None else fold_normalization(dictionary, scales)


def _sources(count: int) -> list[str]:
    return list(PAIR) if count == 2 else [f"source_{i}" for i in range(count)]


def _is_hub(path: Path) -> bool:
    file = weights_file(path, HUB_WEIGHTS)
    config = beside(path, "config.json")
    if file is None or config is None or not {"activation_dim", "dict_size"} <= Settings.read(config).values.keys():
        return False
    names = {name.removeprefix("_orig_mod.").removeprefix("module.") for name in reading.peek(file)}
    linear = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
    return linear <= names


def _is_pair(path: Path) -> bool:
    file = weights_file(path, PAIR_WEIGHTS)
    config = None if file is None else beside(path, "cfg.json")
    if file is None or config is None or not {"d_in", "dict_size"} <= Settings.read(config).values.keys():
        return False
    return {"W_enc", "W_dec", "b_enc", "b_dec"} == set(reading.peek(file))


FORMAT_HUB = Format(
    name="dictionary_learning_hub",
    title="crosscoders of dictionary_learning on the hub",
    needs=("config.json", HUB_WEIGHTS),
    also=("saeworks.json",),
    recognise=_is_hub,
    load=load_hub,
)
FORMAT_PAIR = Format(
    name="crosscoder_pair",
    title="crosscoders of crosscoder-model-diff-replication",
    needs=("cfg.json", PAIR_WEIGHTS),
    also=("saeworks.json",),
    recognise=_is_pair,
    load=load_pair,
)
