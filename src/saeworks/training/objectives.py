"""What training minimises: nested reconstruction and the auxiliary term for dead latents.

All terms are means over the tokens of squared errors summed over the width, divided by the variance of the batch:
a dictionary that only predicts the mean scores 1, whatever the scale of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.kernels.sparse import decode_codes, group_offsets


def variance(x: Tensor) -> Tensor:
    """Sum over the tokens of ``|x - mean|^2`` for ``x [token, d]``; never zero."""
    return (x - x.mean(dim=0)).square().sum().clamp_min(torch.finfo(x.dtype).tiny)


def prefix_reconstructions(codes: Codes, decoder: Tensor, b_dec: Tensor, group_sizes: tuple[int, ...]) -> Tensor:
    """``[token, group, d]``: what the first group, the first two groups, … reconstruct.

    The sums over prefixes are one running sum over the groups' contributions, so the nested objective costs one
    sparse decode and ``groups * tokens * d`` additions, not one decode per prefix.
    """
    if len(group_sizes) == 1:
        return (decode_codes(codes, decoder) + b_dec)[:, None]
    parts = decode_codes(codes, decoder, group_offsets(codes, group_sizes))
    return parts.view(codes.tokens, len(group_sizes), -1).cumsum(dim=1) + b_dec


def reconstruction_errors(x: Tensor, prefixes: Tensor) -> Tensor:
    """``[group]`` normalised squared error of each prefix reconstruction (arXiv 2503.17547, equation for L)."""
    return (prefixes - x[:, None]).square().sum(dim=(0, 2)) / variance(x)


def aux_k_loss(
    x: Tensor, residual: Tensor, dead: Tensor, encoder: Tensor, b_enc: Tensor, b_dec: Tensor, decoder: Tensor, k: int
) -> Tensor:
    """Normalised squared error of explaining ``residual`` with the ``k`` most active dead latents of each token.

    The residual carries no gradient, the decoder bias takes no part, and only the dead columns are computed: live
    latents are not touched and the cost grows with the number of dead ones (arXiv 2406.04093, appendix A.2).

    Args:
        x: ``[token, d]`` inputs; residual: ``[token, d]`` ``x - x_hat`` of the whole dictionary.
        dead: ``[dead]`` indices of dead latents.
        encoder, decoder: ``[width, d]``; b_enc: ``[width]``; b_dec: ``[d]`` (zero when there is no pre-bias).
        k: latents per token that take part.
    """
    residual = residual.detach()
    z = torch.relu((x - b_dec) @ encoder[dead].T + b_enc[dead])
    if k < dead.numel():
        values, indices = z.topk(k, dim=1, sorted=False)
        z = torch.zeros_like(z).scatter(1, indices, values)
    return (residual - z @ decoder[dead]).square().sum() / variance(residual)
