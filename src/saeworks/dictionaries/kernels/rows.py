"""Rows of unit norm, kept so in blocks that stay in cache: one pass over the memory instead of three to five."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from saeworks.dictionaries.kernels.choice import kernels_for

# Floats of a block; two of them (rows and gradient) take 4 MB.
BLOCK = 2**19
# Longest row that a Triton program holds as a whole.
LONGEST = 16_384


def row_blocks(matrix: Tensor) -> Iterator[slice]:
    """Slices of the first dimension that hold about :data:`BLOCK` floats each."""
    rows = max(BLOCK // max(matrix[:1].numel(), 1), 1)
    for start in range(0, matrix.shape[0], rows):
        yield slice(start, start + rows)


def remove_parallel_(grad: Tensor, rows: Tensor) -> None:
    """Take out of every row of ``grad [n, d]`` its part along the same row of ``rows``, whose norm is 1; in place."""
    kernels = _kernels(grad, rows)
    if kernels is not None:
        kernels.remove_parallel_(grad, rows)
        return
    for part in row_blocks(rows):
        along = (grad[part] * rows[part]).sum(dim=1, keepdim=True)
        grad[part].addcmul_(along, rows[part], value=-1)


def normalise_(rows: Tensor, least: float = 1e-8) -> None:
    """Bring every row of ``rows [n, d]`` to norm 1, in place; norms below ``least`` count as that."""
    kernels = _kernels(rows)
    if kernels is not None:
        kernels.normalise_(rows, least)
        return
    for part in row_blocks(rows):
        rows[part] /= torch.linalg.vector_norm(rows[part], dim=1, keepdim=True).clamp_min(least)


def _kernels(*tensors: Tensor) -> Any | None:
    """Triton's kernels, where they take these matrices."""
    fit = all(t.dim() == 2 and t.is_contiguous() and 0 < t.shape[1] <= LONGEST and t.shape[0] > 0 for t in tensors)
    return kernels_for(*tensors) if fit else None
