"""Do two dictionaries compute the same? Asked after every conversion, on tokens that make their latents active."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.runtime import generator

# Closer to its threshold than this (relative to the largest pre-activation) a latent may go either way by rounding.
UNDECIDED = 1e-5
# What float32 leaves of an exact rewrite.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Parity:
    """How far two dictionaries are apart.

    Attributes:
        reconstruction: the largest difference of outputs, relative to the largest output.
        active: share of latents active in one of them and not in the other.
        tokens: tokens compared; those with a latent too close to its threshold are left out, unless all have one.
    """

    reconstruction: float
    active: float
    tokens: int

    @property
    def same(self) -> bool:
        """Whether the difference is no more than rounding."""
        return self.reconstruction <= TOLERANCE and self.active == 0


@torch.no_grad()
def compare(a: Dictionary, b: Dictionary, count: int = 64, seed: int = 0) -> Parity:
    """Compare two dictionaries of the same widths; ``a`` is the one whose thresholds decide which tokens count."""
    x = probing_tokens(a, count, seed)
    decided = _decided(a, x)
    x = x[decided] if bool(decided.any()) else x
    out, other = a(x), b(x)
    active = (a.encode(x) > 0) != (b.encode(x) > 0)
    largest = float(out.abs().max().clamp_min(torch.finfo(out.dtype).tiny))
    return Parity(float((out - other).abs().max()) / largest, float(active.float().mean()), len(x))


def probing_tokens(dictionary: Dictionary, count: int, seed: int = 0) -> Tensor:
    """``[token, d_in]``: random directions of a tenth, once and ten times unit scale, and one latent's own each.

    A token of the last kind makes its latent active whatever the threshold and the bias, so that a comparison does not
    pass because nothing happened.
    """
    d = dictionary
    rng = generator(seed, "parity")
    base = torch.randn(count, d.cfg.d_in, generator=rng).to(d.b_enc)
    chosen = torch.randperm(d.cfg.d_sae, generator=rng)[:count].to(d.device)
    reading = d.encoder[chosen]
    height = d.b_enc[chosen].abs() + 1.0
    if d.threshold is not None:
        height = height + d.threshold[chosen].clamp(0, 1e6)
    own = reading * (height / reading.square().sum(dim=1).clamp_min(1e-12))[:, None]
    if d.cfg.apply_b_dec_to_input:
        own = own + d.b_dec
    return torch.cat([0.1 * base, base, 10 * base, own])


def _decided(dictionary: Dictionary, x: Tensor) -> Tensor:
    """``[token]``: whether no latent is so close to being active, or to losing its place, that rounding decides."""
    z, cfg = dictionary.pre_activations(x), dictionary.cfg
    room = UNDECIDED * z.abs().amax(dim=1).clamp_min(1e-30)
    if cfg.architecture in ("relu", "jumprelu"):
        # Below zero the ReLU decides, whatever the threshold.
        limit = torch.zeros_like(dictionary.b_enc) if dictionary.threshold is None else dictionary.threshold
        return (z - limit.clamp_min(0)).abs().amin(dim=1) > room
    assert cfg.k is not None
    scores = z * dictionary.decoder_norms().sum(dim=0) if cfg.norm_weighted else z
    clear = z.abs().amin(dim=1) > room
    if cfg.k == cfg.d_sae:
        return clear
    room = UNDECIDED * scores.abs().amax(dim=1).clamp_min(1e-30)
    if cfg.architecture == "groupmax":
        first, second = scores.view(len(x), cfg.k, -1).topk(2, dim=2).values.unbind(dim=2)
        return clear & ((first - second).amin(dim=1) > room)
    last, next_ = scores.topk(cfg.k + 1, dim=1).values[:, -2:].unbind(dim=1)
    return clear & ((last <= 0) | (last - next_ > room))
