"""What ``cfg.json`` says of a dictionary, and the check that tensors and configuration belong together."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from saeworks.errors import InputError

Architecture = Literal["relu", "jumprelu", "topk", "groupmax"]
InputOp = Literal["none", "layer_norm", "constant_norm"]
# What can be computed with; others, such as numbers of 8 bits, can only be stored.
NUMBER_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class DictionaryConfig(BaseModel):
    """What ``cfg.json`` holds.

    Attributes:
        architecture: the activation function at inference. BatchTopK and gated dictionaries are ``jumprelu``: the one
            uses the threshold estimated from training (arXiv 2412.06410, section 3), of the other it is an exact
            rewrite (arXiv 2404.16014).
        d_in: width of the input; of a crosscoder, the widths of all sources together.
        d_out: width of the output of a transcoder, which may equal ``d_in``; None where input and output are the same.
        d_sae: number of latents.
        k: active latents per token (``topk``), or groups, each with one active latent at most (``groupmax``).
        apply_b_dec_to_input: subtract ``b_dec`` from the input before encoding; never with ``d_out``.
        skip: whether ``x W_skip`` is added to the output.
        sources: what a crosscoder reads side by side, sites or models, in the order of the input; None otherwise.
        source_widths: width of every source; None when all are ``d_in / len(sources)``.
        input_op: operation on every token before encoding, undone after decoding: ``layer_norm`` subtracts the mean
            over the width and divides by the standard deviation, ``constant_norm`` brings the norm to ``√d_in``.
        norm_weighted: select by ``z_i · |W_dec_i|`` instead of ``z_i`` (``topk``, ``groupmax``); with sources, by the
            sum of the norms of their parts.
        metadata: where it comes from: model, site, recipe, tokens, seed, ``group_sizes`` of a matryoshka dictionary,
            the normalisation it was trained with (already folded into the weights), the values measured when saved.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = 2
    architecture: Architecture
    d_in: int = Field(ge=1)
    d_out: int | None = Field(default=None, ge=1)
    d_sae: int = Field(ge=1)
    k: int | None = Field(default=None, ge=1)
    apply_b_dec_to_input: bool = True
    skip: bool = False
    sources: tuple[str, ...] | None = None
    source_widths: tuple[int, ...] | None = None
    input_op: InputOp = "none"
    norm_weighted: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, value: Any) -> Any:
        """Version 1 knew autoencoders of one site only; what it left out is what the defaults say."""
        if isinstance(value, dict):
            given = cast("dict[str, Any]", value)
            if given.get("schema_version") == 1:
                return {**given, "schema_version": 2}
        return cast(Any, value)

    @property
    def output_width(self) -> int:
        """Width of the output."""
        return self.d_in if self.d_out is None else self.d_out

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of every source; ``(d_in,)`` without sources."""
        if self.sources is None:
            return (self.d_in,)
        return self.source_widths or (self.d_in // len(self.sources),) * len(self.sources)


def check(cfg: DictionaryConfig, W_dec: Tensor, **others: Tensor | None) -> None:
    """Refuse settings that contradict each other, and tensors of wrong shape or dtype or that are not finite.

    Raises:
        InputError: one sentence with the tensor, its shape and the one needed.
    """
    _check_settings(cfg)
    tensors = {"W_dec": W_dec, **others}
    d, n, out = cfg.d_in, cfg.d_sae, cfg.output_width
    shapes = {
        "W_enc": (d, n),
        "W_dec": (n, out),
        "b_enc": (n,),
        "b_dec": (out,),
        "threshold": (n,),
        "W_skip": (d, out),
    }
    if (cfg.architecture == "jumprelu") != (tensors["threshold"] is not None):
        need = "needs a threshold" if cfg.architecture == "jumprelu" else "takes no threshold"
        raise InputError(f"A '{cfg.architecture}' dictionary {need}; check 'architecture' in cfg.json.")
    if cfg.skip != (tensors["W_skip"] is not None):
        came = "true, but W_skip is missing" if cfg.skip else "false, but W_skip came with it"
        raise InputError(f"The configuration of the dictionary says that skip is {came}; make them agree.")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shapes[name]:
            sizes = f"d_in {d} and d_sae {n}" if cfg.d_out is None else f"d_in {d}, d_sae {n} and d_out {out}"
            raise InputError(f"{name} has the shape {list(tensor.shape)}, but {sizes} need {list(shapes[name])}.")
        if tensor.dtype not in NUMBER_TYPES or tensor.dtype != W_dec.dtype:
            raise InputError(
                f"{name} is of {tensor.dtype}{'' if name == 'W_dec' else f' and W_dec of {W_dec.dtype}'}; "
                "all weights must share one floating-point type of 16, 32 or 64 bits."
            )
        # A finite sum is proof enough, and five times as fast as looking at every value; only it can overflow.
        if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds values that are not finite (NaN or infinity); the weights are damaged.")


def _check_settings(cfg: DictionaryConfig) -> None:
    n, k = cfg.d_sae, cfg.k
    if cfg.architecture == "topk" and (k is None or k > n):
        raise InputError(f"A 'topk' dictionary with {n} latents needs 1 <= k <= {n}, but k is {k}.")
    if cfg.architecture == "groupmax" and (k is None or n % k):
        raise InputError(f"A 'groupmax' dictionary with {n} latents needs a k that divides {n}, but k is {k}.")
    if cfg.norm_weighted and cfg.architecture not in ("topk", "groupmax"):
        raise InputError(
            f"norm_weighted changes which latents win a selection, and a '{cfg.architecture}' dictionary has none; "
            "leave it false (a threshold can be divided by the norms instead)."
        )
    if cfg.d_out is not None and (cfg.apply_b_dec_to_input or cfg.sources is not None):
        what = "apply_b_dec_to_input" if cfg.apply_b_dec_to_input else "sources"
        raise InputError(f"A transcoder (d_out {cfg.d_out}) cannot have {what}: b_dec and W_dec live in its output.")
    if cfg.sources is None:
        if cfg.source_widths is not None:
            raise InputError("source_widths were given without the names of the sources; give both.")
        return
    names = cfg.sources
    if not names or len(set(names)) != len(names):
        raise InputError(f"A crosscoder needs sources with different names, but these came: {', '.join(names)}.")
    if cfg.input_op != "none":
        raise InputError(f"input_op '{cfg.input_op}' is defined for one source, but {len(names)} were given.")
    if len(cfg.widths) != len(names) or min(cfg.widths) < 1 or sum(cfg.widths) != cfg.d_in:
        raise InputError(
            f"The widths {list(cfg.widths)} of {len(names)} sources do not add up to d_in {cfg.d_in}; "
            "give one width per source."
        )
