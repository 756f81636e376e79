"""The sparse operations as Triton kernels: weighted bags of rows, dot products of rows, rows of unit norm.

Same functions as in :mod:`saeworks.dictionaries.kernels.sparse` and :mod:`saeworks.dictionaries.kernels.rows`, for
float32 on a GPU; sums are taken in float32. Every program owns what it writes, so there are no atomics and equal inputs
give equal bits. A bag's rows are gathered in tiles, which keeps several loads in flight where one latent is active for
many tokens. With ``TRITON_INTERPRET=1`` they run on the CPU, where the tests compare them.

Import this module only where Triton is installed; :mod:`saeworks.dictionaries.kernels.choice` decides that.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportIndexIssue=false, reportUntypedFunctionDecorator=false, reportMissingTypeArgument=false
# A launch takes plain integers for the parameters that Triton declares `constexpr`.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of a tile: at most so many, else the next power of two of the width.
COLUMNS = 256
# Rows gathered at a time.
ROWS = 16


def bag(weight: Tensor, indices: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """``out[b] = sum over i in bag b of values[i] * weight[indices[i]]``.

    Args:
        weight: ``[rows, d]`` float32. indices, values: ``[nonzero]`` int64 and float32. offsets: ``[bags + 1]`` int64.

    Returns:
        ``[bags, d]`` float32; an empty bag is zero.
    """
    bags, d = offsets.numel() - 1, weight.shape[1]
    out = weight.new_empty(bags, d)
    if out.numel() > 0:
        columns = min(COLUMNS, triton.next_power_of_2(d))
        grid = (bags, triton.cdiv(d, columns))
        _bag[grid](weight.contiguous(), indices, offsets, values.contiguous(), out, d, ROWS, columns)
    return out


@triton.jit
def _bag(weight, indices, offsets, values, out, d, rows: tl.constexpr, columns: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = at < d
    start = tl.load(offsets + number)
    end = tl.load(offsets + number + 1)
    total = tl.zeros([columns], dtype=tl.float32)
    for first in range(start, end, rows):
        place = first + tl.arange(0, rows)
        real = place < end
        row = tl.load(indices + place, mask=real, other=0)
        value = tl.load(values + place, mask=real, other=0.0)
        tile = tl.load(weight + row[:, None] * d + at[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        total += tl.sum(tile * value[:, None], axis=0)
    tl.store(out + number * d + at, total, mask=inside)


def row_dots(left: Tensor, left_rows: Tensor, right: Tensor, right_rows: Tensor) -> Tensor:
    """``out[i] = left[left_rows[i]] . right[right_rows[i]]`` for ``left [n, d]``, ``right [m, d]``, float32."""
    count, d = left_rows.numel(), left.shape[1]
    out = left.new_empty(count)
    if count > 0:
        columns = min(COLUMNS, triton.next_power_of_2(d))
        grid = (triton.cdiv(count, ROWS),)
        _row_dots[grid](left.contiguous(), left_rows, right.contiguous(), right_rows, out, count, d, ROWS, columns)
    return out


@triton.jit
def _row_dots(left, left_rows, right, right_rows, out, count, d, rows: tl.constexpr, columns: tl.constexpr):
    place = tl.program_id(0) * rows + tl.arange(0, rows)
    real = place < count
    one = tl.load(left_rows + place, mask=real, other=0)
    two = tl.load(right_rows + place, mask=real, other=0)
    total = tl.zeros([rows], dtype=tl.float32)
    for first in range(0, d, columns):
        at = first + tl.arange(0, columns)
        known = real[:, None] & (at < d)[None, :]
        a = tl.load(left + one[:, None] * d + at[None, :], mask=known, other=0.0)
        b = tl.load(right + two[:, None] * d + at[None, :], mask=known, other=0.0)
        total += tl.sum(a * b, axis=1)
    tl.store(out + place, total, mask=real)


def remove_parallel_(grad: Tensor, rows: Tensor) -> None:
    """Take out of every row of ``grad [n, d]`` its part along the same row of ``rows``, whose norm is 1; in place.

    Both are contiguous; gradient and row are read once.
    """
    _remove_parallel[(grad.shape[0],)](grad, rows, grad.shape[1], triton.next_power_of_2(grad.shape[1]))


@triton.jit
def _remove_parallel(grad, rows, d, columns: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * d
    at = tl.arange(0, columns)
    inside = at < d
    g = tl.load(grad + start + at, mask=inside, other=0.0)
    w = tl.load(rows + start + at, mask=inside, other=0.0)
    tl.store(grad + start + at, g - tl.sum(g * w, axis=0) * w, mask=inside)


def normalise_(rows: Tensor, least: float = 1e-8) -> None:
    """Bring every row of ``rows [n, d]`` to norm 1, in place; norms below ``least`` count as that."""
    _normalise[(rows.shape[0],)](rows, rows.shape[1], least, triton.next_power_of_2(rows.shape[1]))


@triton.jit
def _normalise(rows, d, least, columns: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * d
    at = tl.arange(0, columns)
    inside = at < d
    w = tl.load(rows + start + at, mask=inside, other=0.0)
    norm = tl.sqrt(tl.sum(w * w, axis=0))
    norm = tl.where(norm < least, least, norm)
    tl.store(rows + start + at, w / norm, mask=inside)


def agree(device: torch.device) -> bool:
    """Whether the kernels give torch's numbers on this device, for a small case with empty and long bags."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 70, generator=generator).to(device)
    counts = torch.tensor([0, 3, 50, 1, 0], device=device)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    indices = torch.randint(40, (54,), generator=generator).to(device)
    values = torch.rand(54, generator=generator).to(device)
    bags = torch.repeat_interleave(torch.arange(5, device=device), counts)
    gathered = values[:, None] * weight[indices]
    expected = weight.new_zeros(5, 70).index_add_(0, bags, gathered)
    left = torch.randn(5, 70, generator=generator).to(device)
    unit = torch.nn.functional.normalize(weight, dim=1)
    grad = torch.randn(40, 70, generator=generator).to(device)
    projected, normed = grad.clone(), weight.clone()
    remove_parallel_(projected, unit)
    normalise_(normed)
    pairs = (
        (bag(weight, indices, offsets, values), expected),
        (row_dots(left, bags, weight, indices), (left[bags] * weight[indices]).sum(1)),
        (projected, grad - (grad * unit).sum(1, keepdim=True) * unit),
        (normed, unit),
    )
    return all(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5) for ours, theirs in pairs)
