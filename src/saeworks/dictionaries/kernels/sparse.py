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

from saeworks.dictionaries.codes import Codes, bags_of
from saeworks.dictionaries.kernels.choice import kernels_for
from saeworks.dictionaries.kernels.rows import row_blocks


def bag(weight: Tensor, indices: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """``out[b] = sum over i in bag b of values[i] * weight[indices[i]]``; offsets ``[bags + 1]``, out ``[bags, d]``."""
    kernels = kernels_for(weight, values)
    if kernels is not None:
        return kernels.bag(weight, indices, offsets, values)
    if weight.device.type == "mps":  # torch has had embedding_bag on Apple GPUs since 2.10 only
        return bag_by_gathering(weight, indices, offsets, values)
    return F.embedding_bag(indices, weight, offsets, mode="sum", per_sample_weights=values, include_last_offset=True)


def bag_by_gathering(weight: Tensor, indices: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """:func:`bag` by plain gathers, with ``[nonzero, d]`` floats in between."""
    out = weight.new_zeros(offsets.numel() - 1, weight.shape[1])
    return out.index_add_(0, bags_of(offsets, indices.numel()), values[:, None] * weight[indices])


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
        order, offsets = codes.by_latent()
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
        grad_values, grad_decoder = _decode_backward(
            ctx.codes, offsets, values, decoder, grads[0].contiguous(), *ctx.needs_input_grad[:2]
        )
        return grad_values, grad_decoder, None, None


def _decode_backward(
    codes: Codes, offsets: Tensor, values: Tensor, decoder: Tensor, grad: Tensor, for_values: bool, for_decoder: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of values and decoder, given that of the bags ``[bag, d_out]``."""
    bags = codes.rows() if offsets is codes.offsets else bags_of(offsets, codes.indices.numel())
    grad_values = row_dots(grad, bags, decoder, codes.indices, offsets) if for_values else None
    if not for_decoder:
        return grad_values, None
    order, latent_offsets = codes.by_latent()
    return grad_values, bag(grad, bags[order], latent_offsets, values[order])


class _SquaredErrors(torch.autograd.Function):
    """Decoding and squared errors of nested prefixes in one go, with one ``[token, group, d_out]`` of memory.

    The bag of every group becomes the error of its prefix by a running sum; backwards, the gradient of a group's bag is
    the running sum of the errors from the last prefix to its own.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, decoder: Tensor, base: Tensor, y: Tensor, codes: Codes, sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        offsets = codes.offsets if len(sizes) == 1 else group_offsets(codes, sizes)
        errors = bag(decoder, codes.indices, offsets, values).view(codes.tokens, len(sizes), -1)
        sums = errors.new_zeros(len(sizes))
        for rows in row_blocks(errors):
            part = errors[rows]
            for group in range(1, len(sizes)):
                part[:, group] += part[:, group - 1]
            part += ((base if base.dim() == 1 else base[rows]) - y[rows])[:, None]
            sums += part.square().sum(dim=(0, 2))
        ctx.save_for_backward(values, decoder, offsets, errors)
        ctx.codes, ctx.single = codes, base.dim() == 1
        residual = -errors[:, -1]
        ctx.mark_non_differentiable(residual)
        return sums, residual

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, decoder, offsets, errors = ctx.saved_tensors
        groups = errors.shape[1]
        factors = (2 * grads[0])[:, None]
        for rows in row_blocks(errors):  # in place: a second backward pass is refused by autograd
            part = errors[rows].mul_(factors)
            for group in range(groups - 1, 0, -1):
                part[:, group - 1] += part[:, group]
        base = None
        if ctx.needs_input_grad[2]:
            base = errors[:, 0].sum(dim=0) if ctx.single else errors[:, 0]
        grad_values, grad_decoder = _decode_backward(
            ctx.codes, offsets, values, decoder, errors.flatten(0, 1), *ctx.needs_input_grad[:2]
        )
        return grad_values, grad_decoder, base, None, None, None


def squared_errors(
    codes: Codes, decoder: Tensor, base: Tensor, y: Tensor, sizes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """``[group]`` sums of the squared errors of nested prefixes, and the residual ``[token, d_out]`` of the last.

    Prefix ``g`` reconstructs ``y`` by ``base`` and the latents of the first ``g + 1`` groups. The residual carries no
    gradient, and only one backward pass is possible.

    Args:
        codes: latents, with gradient. decoder: ``[width, d_out]``.
        base: ``[d_out]`` or ``[token, d_out]``. y: ``[token, d_out]``, which receives no gradient.
        sizes: of the consecutive groups.
    """
    found: tuple[Tensor, Tensor] = _SquaredErrors.apply(codes.values, decoder, base, y, codes, sizes)  # type: ignore[assignment]
    return found


def row_dots(left: Tensor, left_rows: Tensor, right: Tensor, right_rows: Tensor, offsets: Tensor) -> Tensor:
    """``out[i] = left[left_rows[i]] . right[right_rows[i]]`` where ``left_rows`` are the bags given by ``offsets``.

    This is the backward pass of ``embedding_bag`` for its per-sample weights, an operator that torch keeps private:
    it is used where this build has it, and three times as slow a gather elsewhere.
    """
    kernels = kernels_for(left, right)
    if kernels is not None:
        return kernels.row_dots(left, left_rows, right, right_rows)
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
