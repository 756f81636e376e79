"""Dictionaries of every kind, tokens of every size, and the comparison that all tests of formats use."""

from __future__ import annotations

import torch

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig

D, OUT, N, K = 6, 6, 16, 4


def dictionary(architecture="relu", seed=0, d_out=None, skip=False, pre_bias=None, **settings) -> Dictionary:
    """A random dictionary whose decoder rows have unequal norms: a forgotten transpose or fold changes what it does."""
    g = torch.Generator().manual_seed(seed)
    out = d_out or D
    metadata = settings.pop("metadata", {"model_name": "EleutherAI/pythia-70m", "site": "layers.3.resid_post"})
    cfg = DictionaryConfig(
        architecture=architecture,
        d_in=D,
        d_out=d_out,
        d_sae=N,
        k=K if architecture in ("topk", "groupmax") else None,
        apply_b_dec_to_input=d_out is None if pre_bias is None else pre_bias,
        skip=skip,
        metadata=metadata,
        **settings,
    )
    W_dec = torch.randn(N, out, generator=g) * torch.rand(N, 1, generator=g).add(0.3)
    return Dictionary(
        cfg,
        W_enc=torch.randn(D, N, generator=g),
        W_dec=W_dec,
        b_enc=torch.randn(N, generator=g) * 0.5,
        b_dec=torch.randn(out, generator=g) * 0.5,
        # Some negative: as published files have them, and as no format needs to keep them.
        threshold=torch.randn(N, generator=g) + 0.5 if architecture == "jumprelu" else None,
        W_skip=torch.randn(D, out, generator=g) * 0.3 if skip else None,
    )


def tokens(d=D, count=40, seed=9, dtype=torch.float32):
    """``[token, d]`` with a tenth, once and ten times the usual norm."""
    x = torch.randn(count, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.cat([0.1 * x, x, 10 * x])


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of two tensors of one shape, relative to the largest value."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / a.abs().max())


def assert_same(a: Dictionary, b: Dictionary, latents: bool = True) -> None:
    """Both reconstruct alike, and have the same latents active (``latents``: of the same values)."""
    x = tokens(a.cfg.d_in)
    assert difference(a(x), b(x)) < 1e-5
    fa, fb = a.encode(x), b.encode(x)
    assert bool(((fa > 0) == (fb > 0)).all())
    if latents:
        assert difference(fa, fb) < 1e-5
