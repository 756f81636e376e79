"""Sparse encode and decode with gradients: cost grows with the nonzeros, not with the width.

The only dense product of a training step is the encoder's. Its backward pass touches only the selected entries:
the gradient of ``W_enc`` is a weighted bag of input rows over the *transposed* incidence (nonzeros sorted by
latent), and so is the gradient of ``W_dec``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from saeworks.dictionaries.codes import Codes, bags_of, offsets_of


def bag(weight: Tensor, indices: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """``out[b] = sum over i in bag b of values[i] * weight[indices[i]]``; offsets ``[bags + 1]``, out ``[bags, d]``."""
    if weight.device.type == "mps":  # torch has had embedding_bag on Apple GPUs since 2.10 only
        return bag_by_gathering(weight, indices, offsets, values)
    return F.embedding_bag(indices, weight, offsets, mode="sum", per_sample_weights=values, include_last_offset=True)


def bag_by_gathering(weight: Tensor, indices: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """:func:`bag` by plain gathers, with ``[nonzero, d]`` floats in between."""
    out = weight.new_zeros(offsets.numel() - 1, weight.shape[1])
    return out.index_add_(0, bags_of(offsets, indices.numel()), values[:, None] * weight[indices])


def transposed(codes: Codes) -> tuple[Tensor, Tensor]:
    """The nonzeros grouped by latent: their order ``[nonzero]`` and offsets ``[width + 1]``."""
    order = codes.indices.argsort(stable=True)
    counts = torch.bincount(codes.indices, minlength=codes.width)
    return order, offsets_of(counts)


class _EncodeSelected(torch.autograd.Function):
    """Pass the values of selected pre-activations through and give them their exact gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, encoder: Tensor, b_enc: Tensor, b_dec: Tensor, values: Tensor, codes: Codes, pre_bias: bool
    ) -> Tensor:
        ctx.save_for_backward(x, encoder, b_dec)
        ctx.codes, ctx.pre_bias = codes, pre_bias
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, encoder, b_dec = ctx.saved_tensors
        codes: Codes = ctx.codes
        order, offsets = transposed(codes)
        grad = grads[0][order]
        centred = x - b_dec if ctx.pre_bias else x
        grad_encoder = bag(centred, codes.rows()[order], offsets, grad)
        grad_b_enc = b_dec.new_zeros(codes.width).index_add_(0, codes.indices[order], grad)
        # d z / d b_dec = -W_enc: a matrix-vector product instead of the dense product autograd would run.
        grad_b_dec = -(grad_b_enc @ encoder) if ctx.pre_bias else None
        return None, grad_encoder, grad_b_enc, grad_b_dec, None, None, None


def encode_selected(x: Tensor, encoder: Tensor, b_enc: Tensor, b_dec: Tensor, codes: Codes, pre_bias: bool) -> Codes:
    """Attach gradients to codes selected from ``z = (x - pre_bias * b_dec) @ encoder.T + b_enc``.

    Args:
        x: ``[token, d_in]`` inputs (they receive no gradient).
        encoder: ``[width, d_in]`` encoder weights, latent-major.
        b_enc: ``[width]``; b_dec: ``[d_in]``.
        codes: the selected entries of ``z``; their values are passed through unchanged.
        pre_bias: whether ``b_dec`` was subtracted from the input.
    """
    values: Tensor = _EncodeSelected.apply(x, encoder, b_enc, b_dec, codes.values, codes, pre_bias)  # type: ignore[assignment]
    return codes.with_values(values)


class _Decode(torch.autograd.Function):
    """Weighted bags of decoder rows; both gradients are computed on the nonzeros."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, codes: Codes, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(values, decoder, offsets)
        ctx.codes = codes
        return bag(decoder, codes.indices, offsets, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, decoder, offsets = ctx.saved_tensors
        codes: Codes = ctx.codes
        grad = grads[0].contiguous()
        bags = bags_of(offsets, codes.indices.numel())
        grad_values = row_dots(grad, bags, decoder, codes.indices, offsets)
        order, latent_offsets = transposed(codes)
        grad_decoder = bag(grad, bags[order], latent_offsets, values[order])
        return grad_values, grad_decoder, None, None


def row_dots(left: Tensor, left_rows: Tensor, right: Tensor, right_rows: Tensor, offsets: Tensor) -> Tensor:
    """``out[i] = left[left_rows[i]] . right[right_rows[i]]`` where ``left_rows`` are the bags given by ``offsets``.

    This is the backward pass of ``embedding_bag`` for its per-sample weights, an operator that torch keeps private:
    it is used where this build has it, and three times as slow a gather elsewhere.
    """
    fused = getattr(torch.ops.aten, "_embedding_bag_per_sample_weights_backward", None)
    if fused is not None and left.device.type in ("cpu", "cuda"):
        return fused(left, right, right_rows, offsets, left_rows, 0)
    return row_dots_in_blocks(left, left_rows, right, right_rows)


def row_dots_in_blocks(left: Tensor, left_rows: Tensor, right: Tensor, right_rows: Tensor, block: int = 1024) -> Tensor:
    """:func:`row_dots` by plain gathers, in blocks that stay in cache."""
    out = left.new_empty(left_rows.numel())
    for start in range(0, out.numel(), block):
        part = slice(start, start + block)
        torch.sum(left[left_rows[part]] * right[right_rows[part]], dim=1, out=out[part])
    return out


def decode_codes(codes: Codes, decoder: Tensor, offsets: Tensor | None = None) -> Tensor:
    """``codes @ decoder`` for ``decoder [width, d_out]`` (no bias), differentiable in values and decoder.

    ``offsets`` may group the nonzeros into other consecutive bags than tokens (for example one bag per token and
    matryoshka group); the result has one row per bag.
    """
    bags = codes.offsets if offsets is None else offsets
    result: Tensor = _Decode.apply(codes.values, decoder, codes, bags)  # type: ignore[assignment]
    return result


def group_offsets(codes: Codes, group_sizes: tuple[int, ...]) -> Tensor:
    """``[token * groups + 1]`` offsets of one bag per token and group of consecutive latents.

    Within a token the indices ascend, so the nonzeros of a group are already neighbours.
    """
    edges = torch.tensor([0, *group_sizes[:-1]], device=codes.indices.device).cumsum(0)
    keys = codes.rows() * codes.width + codes.indices
    starts = torch.arange(codes.tokens, device=keys.device)[:, None] * codes.width + edges
    offsets = torch.searchsorted(keys, starts.flatten().contiguous())
    return torch.cat([offsets, offsets.new_tensor([codes.indices.numel()])])
