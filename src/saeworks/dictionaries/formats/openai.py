"""OpenAI's sparse_autoencoder: one ``.pt`` file with a state dict, the name of the activation function among it.

``encoder.weight [d_sae, d_in]`` and ``decoder.weight [d_in, d_sae]`` are both transposed here; ``pre_bias`` is
subtracted before encoding and added after decoding. Whether every token is normalised first is written nowhere: it is
exactly where the activation is TopK.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.folding import unfold_pre_bias
from saeworks.dictionaries.formats import reading
from saeworks.dictionaries.formats.exact import without_norm_weighting
from saeworks.dictionaries.formats.format import (
    Format,
    Hints,
    Settings,
    Weights,
    about,
    build,
    tensors_of,
    weights_file,
    write_folder,
)
from saeworks.errors import InputError

WEIGHTS = "autoencoder.pt"
_SITES = {
    "resid_post_mlp": "resid_post",
    "resid_delta_mlp": "mlp_out",
    "resid_delta_attn": "attn_out",
    "mlp_post_act": "mlp_hidden",
}


def load(path: Path, hints: Hints) -> Dictionary:
    """Read one file. Layer and site are in the released paths: ``resid_post_mlp_v5_32k/autoencoders/8.pt``."""
    file = weights_file(path, WEIGHTS, "*.pt")
    if file is None:
        raise InputError(f"'{path}' holds no .pt file; give one autoencoder of the release.")
    weights = Weights(file, reading.read_weights(file))
    encoder = weights.get("encoder.weight", 2)
    # A tied decoder is the encoder under another name.
    tied = "decoder.weight" not in weights and "decoder.linear.weight" in weights
    cfg = {**_activation(weights), "apply_b_dec_to_input": True}
    tensors: dict[str, Tensor | None] = {
        "W_enc": encoder.T,
        "W_dec": weights.get("decoder.linear.weight", 2) if tied else weights.get("decoder.weight", 2).T,
        "b_enc": weights.get("latent_bias", 1),
        "b_dec": weights.get("pre_bias", 1),
    }
    return build(file, cfg, about(path, _from_path(file), hints), **tensors)


def _activation(weights: Weights) -> dict[str, Any]:
    """Activation function and what goes with it."""
    name = weights.values.get("activation", "ReLU")
    if name == "ReLU":
        return {"architecture": "relu"}
    if name != "TopK":
        raise InputError(f"'{weights.path}' has the activation {name!r}; only ReLU and TopK are read.")
    found: object = weights.values.get("activation_state_dict")
    settings = Settings(weights.path, cast("dict[str, Any]", found) if isinstance(found, dict) else {})
    k = settings.integer("k")
    if k is None:
        raise InputError(f"'{weights.path}' does not say how many latents (k) its TopK keeps.")
    after = settings.text("postact_fn", "ReLU")
    if after != "ReLU":
        raise InputError(
            f"'{weights.path}' applies {after!r} after TopK, so that latents may be negative; only ReLU is read."
        )
    return {"architecture": "topk", "k": k, "input_op": "layer_norm"}


def _from_path(file: Path) -> dict[str, Any]:
    whole = file.absolute().as_posix()
    out: dict[str, Any] = {"model_name": "openai-community/gpt2"} if "gpt2-small" in whole else {}
    found = re.search(r"(resid_\w+?|mlp_post_act)(?:_v\d+\w*)?/(?:autoencoders/)?(\d+)\.pt$", whole)
    if found and found[1] in _SITES:
        out["site"] = f"layers.{found[2]}.{_SITES[found[1]]}"
    elif found:
        out["note"] = f"Reads '{found[1]}' of layer {found[2]}: the residual stream between attention and MLP."
    return out


def can_express(dictionary: Dictionary) -> str | None:
    """``relu`` on raw tokens and ``topk`` on layer-normed ones: the file has no setting for any other pair."""
    cfg = dictionary.cfg
    if cfg.sources is not None or cfg.d_out is not None or cfg.skip:
        return "the format reconstructs its own input only, without sources or W_skip"
    if (cfg.architecture, cfg.input_op) not in (("relu", "none"), ("topk", "layer_norm")):
        return (
            "the format normalises tokens exactly where it has TopK, and knows ReLU besides; "
            f"this is '{cfg.architecture}' with the input_op '{cfg.input_op}'"
        )
    return None


def save(dictionary: Dictionary, folder: Path) -> None:
    """Write ``autoencoder.pt``, with the counters of training at their starting values."""
    d = unfold_pre_bias(without_norm_weighting(dictionary))
    t, n = tensors_of(d), d.cfg.d_sae
    state: dict[str, Any] = {
        "pre_bias": t["b_dec"],
        "latent_bias": t["b_enc"],
        "stats_last_nonzero": torch.zeros(n, dtype=torch.long),
        "latents_activation_frequency": torch.ones(n),
        "latents_mean_square": torch.zeros(n),
        "encoder.weight": t["W_enc"].T.contiguous(),
        "decoder.weight": t["W_dec"].T.contiguous(),
        "activation": "ReLU",
        "activation_state_dict": {},
    }
    if d.cfg.architecture == "topk":
        state |= {"activation": "TopK", "activation_state_dict": {"k": d.cfg.k, "postact_fn": "ReLU"}}
    torch.save(state, folder / WEIGHTS)
    write_folder(dictionary, folder, {})


def _recognise(path: Path) -> bool:
    file = weights_file(path, WEIGHTS, "*.pt")
    return file is not None and {"pre_bias", "latent_bias", "encoder.weight"} <= set(reading.peek(file))


FORMAT = Format(
    name="openai",
    title="OpenAI sparse_autoencoder",
    needs=("*.pt",),
    also=("saeworks.json",),
    recognise=_recognise,
    load=load,
    save=save,
    can_express=can_express,
)
