"""Gemma Scope: ``params.npz`` of the first release, ``params.safetensors`` of the second.

Both hold JumpReLU dictionaries in raw units without pre-bias; the second has lower-case names, transcoders, and skip
connections ``affine_skip_connection [d_in, d_out]`` that need no transposing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.folding import fold_pre_bias
from saeworks.dictionaries.formats import reading
from saeworks.dictionaries.formats.exact import thresholds, why_not_autoencoder
from saeworks.dictionaries.formats.format import (
    Format,
    Hints,
    Settings,
    Weights,
    about,
    beside,
    build,
    site_out,
    tensors_of,
    weights_file,
    write_folder,
)
from saeworks.dictionaries.formats.names import model_of, site_of
from saeworks.errors import InputError

_FIRST = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
# Our names below a layer, and how the settings of the second release put them. The last is no kind but a module.
_POINTS = {
    "resid_post": "output",
    "mlp_out": "post_feedforward_layernorm.output",
    "attn_z": "self_attn.o_proj.input",
    "pre_feedforward_layernorm": "pre_feedforward_layernorm.output",
}
_SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z"}


def load_first(path: Path, hints: Hints) -> Dictionary:
    """Read ``params.npz``. Layer, site, model and L0 are in the path: ``gemma-scope-2b-pt-res/layer_20/…``."""
    file = weights_file(path, "params.npz", "*.npz")
    if file is None:
        raise InputError(f"'{path}' holds no params.npz; give one folder of a Gemma Scope release.")
    weights = Weights.read(file, _FIRST)
    tensors = {name: weights.get(name, 2 if name.startswith("W") else 1) for name in _FIRST}
    cfg: dict[str, Any] = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    found, d_out = _from_path(file), tensors["W_dec"].shape[1]
    if hints.get("transcoder") or found.pop("transcoder", False) or d_out != tensors["W_enc"].shape[0]:
        cfg["d_out"] = d_out
    return build(file, cfg, about(path, found, hints), **tensors)


def _from_path(file: Path) -> dict[str, Any]:
    """What the folders of a release say: ``layer_20/width_16k/average_l0_71``, inside a repository's own name."""
    whole = file.absolute().as_posix()
    out: dict[str, Any] = {}
    layer = re.search(r"layer_(\d+)/", whole)
    release = re.search(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)", whole)
    if release:
        out["model_name"] = f"google/gemma-2-{release[1]}" + ("-it" if release[2] == "it" else "")
        if layer and release[3] in _SITES:
            out["site"] = f"layers.{layer[1]}.{_SITES[release[3]]}"
        elif layer:
            out |= {"transcoder": True, "site": f"layers.{layer[1]}.pre_feedforward_layernorm"}
            out["site_out"] = f"layers.{layer[1]}.mlp_out"
    if re.search(r"embedding/width_", whole):
        out |= {
            "site": "model.embed_tokens",
            "note": "Embeddings before their multiplication by the root of the width.",
        }
    l0 = re.search(r"average_l0_(\d+)", whole)
    if l0:
        out["claimed"] = {"l0": float(l0[1])}
    return out


def why_not_first(dictionary: Dictionary) -> str | None:
    """ReLU and JumpReLU autoencoders of raw activations."""
    if dictionary.cfg.architecture not in ("relu", "jumprelu"):
        return f"a Gemma Scope file selects by thresholds, and '{dictionary.cfg.architecture}' does not"
    return why_not_autoencoder(dictionary)


def save_first(dictionary: Dictionary, folder: Path) -> None:
    """Write ``params.npz``, the pre-bias folded into ``b_enc``."""
    import numpy as np

    arrays = {name: tensor.float().numpy() for name, tensor in _jumprelu(dictionary).items()}
    np.savez(folder / "params.npz", allow_pickle=False, **arrays)
    write_folder(dictionary, folder, {})


def _jumprelu(dictionary: Dictionary) -> dict[str, torch.Tensor]:
    t = tensors_of(fold_pre_bias(dictionary))
    return {**t, "threshold": thresholds(dictionary).detach().cpu()}


def load_second(path: Path, hints: Hints) -> Dictionary:
    """Read ``params.safetensors`` and, where it is there, ``config.json``."""
    file = weights_file(path, "params.safetensors", "*.safetensors")
    if file is None:
        raise InputError(f"'{path}' holds no params.safetensors; give one folder of a Gemma Scope 2 release.")
    config = beside(path, "config.json")
    settings = Settings.read(config) if config else Settings(file, {})
    shape = reading.peek(file).get("w_dec")
    if shape is not None and len(shape) > 2:
        raise InputError(
            f"'{file}' holds the weights of {shape[0]} layers at once (w_dec {list(shape)}): a cross-layer transcoder "
            "is no single dictionary."
        )
    weights = Weights.read(file)
    tensors = {name: weights.get(name.lower(), 2 if name.startswith("W") else 1) for name in _FIRST}
    W_skip = weights.maybe("affine_skip_connection", 2)
    cfg: dict[str, Any] = {
        "architecture": "jumprelu",
        "apply_b_dec_to_input": settings.flag("apply_b_dec_to_input"),
        "skip": W_skip is not None,
    }
    site, target = (settings.text(f"hf_hook_point_{end}") for end in ("in", "out"))
    named = "transcoder" in settings.text("type") or file.absolute().parent.parent.name.startswith("transcoder")
    if W_skip is not None or named or (target and site != target) or hints.get("transcoder"):
        cfg["d_out"] = tensors["W_dec"].shape[1]
    architecture = settings.text("architecture", "jump_relu")
    if architecture.replace("_", "") != "jumprelu":
        raise InputError(f"'{settings.path}' has the architecture '{architecture}'; Gemma Scope 2 has jump_relu only.")
    l0 = settings.number("l0")
    found: dict[str, Any] = {
        "model_name": _model(settings.text("model_name")),
        "site": _module(site),
        "site_out": _module(target) if target != site else None,
        "claimed": {"l0": l0} if l0 else None,
        "original_config": settings.values or None,
    }
    return build(file, cfg, about(path, found, hints), **tensors, W_skip=W_skip)


def _model(name: str) -> str | None:
    """Hub name of a model as the settings spell it: without its owner, and some with ``v3``."""
    name = re.sub(r"^gemma-v(\d)", r"gemma-\1", name)
    return model_of(name)


def _module(point: str) -> str | None:
    """Our site of a hook point written as a module path: ``model.layers.13.output`` is a layer's residual stream."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", point)
    if match is None or match[2] not in _POINTS.values():
        return site_of(point)
    kind = next(ours for ours, theirs in _POINTS.items() if theirs == match[2])
    return f"layers.{match[1]}.{kind}"


def _point(site: str) -> str | None:
    """The inverse of :func:`_module`."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", site)
    return f"model.layers.{match[1]}.{_POINTS[match[2]]}" if match and match[2] in _POINTS else site or None


def why_not_second(dictionary: Dictionary) -> str | None:
    """ReLU and JumpReLU autoencoders and transcoders, with or without skip connection."""
    cfg = dictionary.cfg
    if cfg.architecture not in ("relu", "jumprelu"):
        return f"a Gemma Scope file selects by thresholds, and '{cfg.architecture}' does not"
    if cfg.sources is not None:
        return "it is a crosscoder, and the format knows one site per file"
    if cfg.input_op != "none":
        return f"it applies '{cfg.input_op}' to every token, which the format has no setting for"
    return None


def save_second(dictionary: Dictionary, folder: Path) -> None:
    """Write ``params.safetensors`` and ``config.json``."""
    from safetensors.torch import save_file

    tensors = _jumprelu(dictionary)
    skip = tensors.pop("W_skip", None)
    out = {name.lower(): tensor for name, tensor in tensors.items()}
    if skip is not None:
        out["affine_skip_connection"] = skip
    save_file(out, folder / "params.safetensors")
    known, cfg = dictionary.cfg.metadata, dictionary.cfg
    site = str(known.get("site") or "")
    transcoder = cfg.d_out is not None or cfg.skip
    settings = {
        "architecture": "jump_relu",
        "type": "transcoder" if transcoder else "sae",
        "width": cfg.d_sae,
        "model_name": known.get("model_name"),
        "hf_hook_point_in": _point(site),
        "hf_hook_point_out": _point(site_out(dictionary)) if transcoder else _point(site),
        "affine_connection": skip is not None,
        "l0": (known.get("recorded") or known.get("claimed") or {}).get("l0"),
    }
    write_folder(dictionary, folder, {"config.json": settings})


def _is_first(path: Path) -> bool:
    file = weights_file(path, "params.npz", "*.npz")
    return file is not None and set(_FIRST) <= set(reading.peek(file))


def _is_second(path: Path) -> bool:
    file = weights_file(path, "params.safetensors", "*.safetensors")
    return file is not None and {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"} <= set(reading.peek(file))


FORMAT = Format(
    name="gemma_scope",
    title="Gemma Scope",
    needs=("params.npz",),
    also=("saeworks.json",),
    recognise=_is_first,
    load=load_first,
    save=save_first,
    can_express=why_not_first,
)
FORMAT_2 = Format(
    name="gemma_scope_2",
    title="Gemma Scope 2",
    needs=("params.safetensors",),
    also=("config.json", "saeworks.json"),
    recognise=_is_second,
    load=load_second,
    save=save_second,
    can_express=why_not_second,
)
