"""How the tensors of a dictionary begin: drawn from a seed, then fitted to the first activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saeworks.activations.batches import Layout
from saeworks.errors import InputError
from saeworks.runtime import generator

# Entries of a matrix of pre-activations that the first fit may compute: bounds its memory at large widths.
INITIAL_ENTRIES = 2**24
# Row norms that the search looks through, multiples of the best power of two.
SEARCHED_NORMS = tuple(2.0**exponent for exponent in range(-8, 5))


@dataclass(frozen=True)
class Initialisation:
    """Where training begins.

    Attributes:
        weights: ``tied``: random unit rows, the encoder their transpose. ``encoder``: ``W_enc ~ N(0, 1 / d)``, the
            decoder its transposed unit rows (arXiv 2503.17547, toy model). ``uniform``: ``W_dec ~ U(-1/√d, 1/√d)``,
            ``W_enc = (d / n) W_decᵀ`` (Anthropic, January 2025). ``same``: the same random unit rows for every source,
            the encoder their transpose, so that no source differs from another at first. ``zero``: unit encoder columns
            and a decoder of zeros (transcoders of sparsify).
        row_norm: norm of the decoder rows with ``tied`` and ``encoder``, in every source with ``same``; tied encoders
            get the same norm.
        divided: divide the encoder by the number of sources, whose parts add up to a pre-activation.
        scale: ``matched`` multiplies the encoder by one number so that the first reconstructions have the norm of the
            centred input (arXiv 2406.04093, appendix A.1); ``search`` gives both weights the row norm of least error
            (Llama Scope); ``none`` leaves them.
        b_dec: ``median`` (geometric), ``mean`` or ``zero``, of the first activations; of a transcoder, of its targets.
        b_enc: ``zero``; ``centred``, so that pre-activations have the mean 0 (sparsify's transcoders); ``frequent``, so
            that each latent fires on a share of 10,000 / n tokens, at most half of them (Anthropic, January 2025).
    """

    weights: Literal["tied", "encoder", "uniform", "zero", "same"] = "tied"
    row_norm: float = 1.0
    divided: bool = False
    scale: Literal["matched", "search", "none"] = "matched"
    b_dec: Literal["median", "mean", "zero"] = "median"
    b_enc: Literal["zero", "centred", "frequent"] = "zero"


def draw_weights(start: Initialisation, layout: Layout, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Encoder ``[width, d_in]`` and decoder ``[width, d_out]``, drawn on the CPU so that a seed means one thing."""
    encoder, decoder = _drawn(start, layout, width, seed)
    return encoder / len(layout.widths) if start.divided else encoder, decoder


def _drawn(start: Initialisation, layout: Layout, width: int, seed: int) -> tuple[Tensor, Tensor]:
    d_in, d_out = layout.d_in, layout.d_in if layout.d_out is None else layout.d_out
    if start.weights == "same":
        if len(set(layout.widths)) > 1:
            raise InputError(
                f"The same rows for every source were asked for, but they have the widths {list(layout.widths)}; "
                "begin with other weights, such as 'tied'."
            )
        one = torch.randn(width, layout.widths[0], generator=generator(seed, "decoder"))
        decoder = (one / one.norm(dim=1, keepdim=True) * start.row_norm).repeat(1, len(layout.widths))
        return decoder, decoder
    if start.weights == "uniform":
        decoder = (2 * torch.rand(width, d_out, generator=generator(seed, "decoder")) - 1) / d_out**0.5
        if d_in == d_out:
            return decoder * (d_in / width), decoder
        encoder = (2 * torch.rand(width, d_in, generator=generator(seed, "encoder")) - 1) / d_in**0.5
        return encoder * (d_in / width), decoder
    if start.weights == "encoder":
        encoder = torch.randn(width, d_in, generator=generator(seed, "encoder")) / d_in**0.5
        source = encoder if d_in == d_out else torch.randn(width, d_out, generator=generator(seed, "decoder"))
        return encoder, source / source.norm(dim=1, keepdim=True) * start.row_norm
    if start.weights == "zero":
        encoder = torch.randn(width, d_in, generator=generator(seed, "encoder"))
        return encoder / encoder.norm(dim=1, keepdim=True), torch.zeros(width, d_out)
    decoder = torch.randn(width, d_out, generator=generator(seed, "decoder"))
    decoder /= decoder.norm(dim=1, keepdim=True)
    if start.row_norm != 1.0:
        decoder *= start.row_norm
    if d_in == d_out:
        return decoder, decoder
    encoder = torch.randn(width, d_in, generator=generator(seed, "encoder"))
    return encoder / encoder.norm(dim=1, keepdim=True) * start.row_norm, decoder


@torch.no_grad()
def fit_biases(
    start: Initialisation, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor, pre_bias: bool, threshold: float
) -> None:
    """Set ``b_dec`` from the targets ``y [token, d_out]`` and ``b_enc`` from the inputs ``x [token, d_in]``.

    ``threshold`` is the pre-activation above which a latent counts as firing for ``frequent``.
    """
    encoder, b_enc, b_dec = parameters["encoder"], parameters["b_enc"], parameters["b_dec"]
    if start.b_dec != "zero":
        b_dec.copy_(geometric_median(y) if start.b_dec == "median" else y.mean(dim=0))
    if start.b_enc == "zero":
        return
    x = x[: max(INITIAL_ENTRIES // encoder.shape[0], 2)]
    z = (x - b_dec if pre_bias else x) @ encoder.T
    if start.b_enc == "centred":
        b_enc.copy_(-z.mean(dim=0))
        return
    fires = max(1, round(min(10_000 / encoder.shape[0], 0.5) * z.shape[0]))
    b_enc.copy_(threshold - z.topk(fires, dim=0).values[-1])


@torch.no_grad()
def fit_scale(
    start: Initialisation, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor, latents: Callable[[Tensor], Tensor]
) -> None:
    """Bring the first reconstructions to a sensible size, as :class:`Initialisation` says.

    Args:
        latents: dense latents ``[token, width]`` of given rows, with the parameters as they are.
    """
    encoder, decoder, b_dec = (parameters[name] for name in ("encoder", "decoder", "b_dec"))
    rows = max(INITIAL_ENTRIES // encoder.shape[0], 1)
    x, y = x[:rows], y[:rows]
    target = (y - b_dec).square().sum()
    if start.scale == "matched":
        reached = (latents(x) @ decoder).square().sum()
        if reached > 0 and target > 0:
            encoder.mul_((target / reached).sqrt())
    elif start.scale == "search":
        units = [(tensor, tensor.clone()) for tensor in (encoder, decoder)]
        errors: list[float] = []
        for norm in SEARCHED_NORMS:
            for tensor, unit in units:
                tensor.copy_(unit * norm)
            errors.append(float((latents(x) @ decoder + b_dec - y).square().sum()))
        best = SEARCHED_NORMS[errors.index(min(errors))]
        for tensor, unit in units:
            tensor.copy_(unit * best)


def geometric_median(x: Tensor, iterations: int = 100, tolerance: float = 1e-5) -> Tensor:
    """``[d]`` point with the least sum of distances to the rows of ``x [token, d]`` (Weiszfeld's iteration)."""
    point = x.mean(dim=0)
    for _ in range(iterations):
        weights = 1.0 / (x - point).norm(dim=1).clamp_min(1e-8)
        following = (x * (weights / weights.sum())[:, None]).sum(dim=0)
        moved = float((following - point).norm())
        point = following
        if moved < tolerance:
            break
    return point
