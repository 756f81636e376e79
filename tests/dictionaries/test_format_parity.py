"""The comparison that follows every conversion passes what is the same and catches every mistake of loading."""

from __future__ import annotations

import pytest
import torch
from format_cases import D, N, dictionary

from saeworks.dictionaries.folding import fold_decoder_norm, fold_pre_bias
from saeworks.dictionaries.formats.parity import compare, probing_tokens

KINDS = [
    {"architecture": "relu"},
    {"architecture": "jumprelu"},
    {"architecture": "topk"},
    {"architecture": "topk", "norm_weighted": True},
    {"architecture": "groupmax"},
    {"architecture": "jumprelu", "d_out": 4, "skip": True},
    {"architecture": "topk", "input_op": "layer_norm"},
    {"architecture": "relu", "sources": ("a", "b")},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_dictionary_is_the_same_as_itself_and_as_its_rewrites(kind) -> None:
    d = dictionary(**kind)
    again = compare(d, d)
    assert again.same
    assert again.reconstruction == 0.0
    assert again.tokens > 100
    assert compare(d, fold_pre_bias(d)).same
    if kind["architecture"] in ("relu", "jumprelu"):
        assert compare(d, fold_decoder_norm(d)).same


MISTAKES = {
    "a forgotten pre-bias": lambda d: d.replace({"apply_b_dec_to_input": False}),
    "decoder rows of another scale": lambda d: d.replace(W_dec=d.W_dec * 1.001),
    "a shifted threshold": lambda d: d.replace(threshold=d.threshold + 0.05),
    "an encoder of another latent": lambda d: d.replace(W_enc=d.W_enc.roll(1, dims=1)),
    "no output bias": lambda d: d.replace({"apply_b_dec_to_input": False}, b_dec=torch.zeros(D)),
    "one row": lambda d: d.replace(W_dec=torch.where(torch.arange(N)[:, None] == 5, -d.W_dec, d.W_dec)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_noticed(mistake: str) -> None:
    d = dictionary("jumprelu")
    assert not compare(d, MISTAKES[mistake](d)).same


def test_where_rounding_decides_every_token_all_of_them_are_compared() -> None:
    d = dictionary("topk").replace(W_enc=torch.zeros(D, N), b_enc=torch.zeros(N))
    assert compare(d, d).tokens == 3 * 64 + N
    assert not compare(d, d.replace(b_dec=d.b_dec + 1)).same


def test_the_last_tokens_make_latents_active_whatever_their_thresholds() -> None:
    d = dictionary("jumprelu").replace(threshold=torch.full((N,), 500.0))
    x = probing_tokens(d, N)
    assert not bool((d.encode(x[: 3 * N]) > 0).any())
    assert bool((d.encode(x[3 * N :]) > 0).any(dim=0).all())
