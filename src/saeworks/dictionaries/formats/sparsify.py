"""sparsify: a folder per hook point with ``cfg.json`` and ``sae.safetensors``.

``encoder.weight [d_sae, d_in]`` is transposed here, ``W_dec [d_sae, d_out]`` is not, ``W_skip [d_out, d_in]`` is.
Inputs are never scaled. The same file serves autoencoders (``b_dec`` subtracted first) and transcoders (it is not).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    beside,
    build,
    tensors_of,
    weights_file,
    write_folder,
)
from saeworks.dictionaries.formats.names import site_of
from saeworks.errors import InputError

WEIGHTS = "sae.safetensors"


def load(path: Path, hints: Hints) -> Dictionary:
    """Read one hook point. Its name, the folder's own, becomes the site."""
    file, config = weights_file(path, WEIGHTS, "*.safetensors"), beside(path, "cfg.json")
    if file is None or config is None:
        raise InputError(f"'{path}' lacks {WEIGHTS if config else 'cfg.json'}; a sparsify folder has both.")
    settings, weights = Settings.read(config), Weights.read(file)
    activation = settings.text("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise InputError(f"'{config}' has the activation '{activation}', but sparsify has topk and groupmax only.")
    if settings.flag("signed"):
        raise InputError(f"'{config}' selects latents by magnitude (signed), which no dictionary of ours does.")
    k = settings.integer("k")
    if k is None:
        raise InputError(f"'{config}' does not say how many latents (k) are kept.")
    encoder, W_dec = weights.get("encoder.weight", 2), weights.get("W_dec", 2)
    W_skip = weights.maybe("W_skip", 2)
    transcode = settings.flag("transcode")
    cfg: dict[str, Any] = {
        "architecture": activation,
        "k": k,
        "apply_b_dec_to_input": not transcode,
        "d_out": W_dec.shape[1] if transcode else None,
        "skip": W_skip is not None,
    }
    folder = file.absolute().parent.name
    found = {
        "site": None if transcode else site_of(folder) if "." in folder or "embed" in folder else None,
        "hook_name": folder,
        "original_config": settings.values,
    }
    biases = {"b_enc": weights.get("encoder.bias", 1), "b_dec": weights.get("b_dec", 1)}
    return build(
        file,
        cfg,
        about(path, found, hints),
        W_enc=encoder.T,
        W_dec=W_dec,
        **biases,
        W_skip=None if W_skip is None else W_skip.T,
    )


def can_express(dictionary: Dictionary) -> str | None:
    """topk and groupmax on raw activations of one width."""
    cfg = dictionary.cfg
    if cfg.architecture not in ("topk", "groupmax"):
        return f"sparsify has topk and groupmax only, and this is '{cfg.architecture}'"
    if cfg.sources is not None:
        return "it is a crosscoder, and sparsify knows one site per dictionary"
    if cfg.input_op != "none":
        return f"it applies '{cfg.input_op}' to every token, which sparsify has no setting for"
    if cfg.output_width != cfg.d_in:
        return f"sparsify's outputs are as wide as its inputs, and here they are {cfg.output_width} and {cfg.d_in}"
    return None


def save(dictionary: Dictionary, folder: Path) -> None:
    """Write ``cfg.json`` and ``sae.safetensors``, with the pre-bias of autoencoders."""
    from safetensors.torch import save_file

    d = without_norm_weighting(dictionary)
    transcode = d.cfg.d_out is not None
    t = tensors_of(d if transcode else unfold_pre_bias(d))
    out = {
        "encoder.weight": t["W_enc"].T.contiguous(),
        "encoder.bias": t["b_enc"],
        "W_dec": t["W_dec"],
        "b_dec": t["b_dec"],
    }
    if "W_skip" in t:
        out["W_skip"] = t["W_skip"].T.contiguous()
    save_file(out, folder / WEIGHTS)
    settings = {
        "activation": d.cfg.architecture,
        "expansion_factor": max(d.cfg.d_sae // d.cfg.d_in, 1),
        "normalize_decoder": False,
        "num_latents": d.cfg.d_sae,
        "k": d.cfg.k,
        "multi_topk": False,
        "skip_connection": d.cfg.skip,
        "transcode": transcode,
        "d_in": d.cfg.d_in,
    }
    write_folder(dictionary, folder, {"cfg.json": settings})


def _recognise(path: Path) -> bool:
    file = weights_file(path, WEIGHTS, "*.safetensors")
    if file is None or beside(path, "cfg.json") is None:
        return False
    return {"encoder.weight", "W_dec", "b_dec"} <= set(reading.peek(file))


FORMAT = Format(
    name="sparsify",
    title="sparsify",
    needs=("cfg.json", WEIGHTS),
    also=("saeworks.json",),
    recognise=_recognise,
    load=load,
    save=save,
    can_express=can_express,
)
