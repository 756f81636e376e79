"""What some published dictionaries do to every token before encoding and undo after decoding.

These operations depend on the token, so no rewrite of the weights can absorb them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saeworks.dictionaries.config import InputOp

# Added to the standard deviation, as in the released code of OpenAI and in SAELens.
EPSILON = 1e-5


def apply_input_op(x: Tensor, op: InputOp) -> tuple[Tensor, Tensor, Tensor]:
    """The operated tokens and what undoes it: ``x = y · scale + mean``.

    ``layer_norm``: the mean over the width is subtracted and the result divided by the unbiased standard deviation
    plus 1e-5 (arXiv 2406.04093, released code). ``constant_norm``: ``x · √d / |x|`` (Anthropic, February 2024).

    Args:
        x: ``[token, d]``. op: the operation; ``none`` returns ``x`` itself.

    Returns:
        ``y [token, d]``, ``mean [token, 1]``, ``scale [token, 1]``.
    """
    zero, one = x.new_zeros(x.shape[0], 1), x.new_ones(x.shape[0], 1)
    if op == "none":
        return x, zero, one
    if op == "layer_norm":
        mean = x.mean(dim=1, keepdim=True)
        centred = x - mean
        # The unbiased variance of a single coordinate is undefined; it is zero like that of any constant row.
        scale = (centred.square().sum(dim=1, keepdim=True) / max(x.shape[1] - 1, 1)).sqrt() + EPSILON
        return centred / scale, mean, scale
    scale = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
    scale = scale.clamp_min(torch.finfo(x.dtype).tiny)
    return x / scale, zero, scale
