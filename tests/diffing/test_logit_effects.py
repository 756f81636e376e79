"""Logit effects against the final norm and unembedding written out, for several architectures."""

from __future__ import annotations

import pytest
import torch
from tiny_pair import crosscoder, model, pair, tokenizer  # pyright: ignore

from saeworks.diffing.logit_effects import direction_logits, logit_effects
from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel


def test_effects_are_norm_then_unembedding():
    llama = model(0)
    directions = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) * 7
    scale = llama.module.model.norm.weight
    rms = directions.square().mean(dim=1, keepdim=True).sqrt()
    expected = (directions / rms * scale) @ llama.module.lm_head.weight.T
    expected = expected - expected.mean(dim=1, keepdim=True)
    assert torch.allclose(direction_logits(llama, directions), expected, atol=1e-4)
    # How long a direction is does not matter, only where it points.
    assert torch.allclose(direction_logits(llama, directions * 10), expected, atol=1e-3)


def test_a_norm_with_a_bias_adds_nothing_of_its_own():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=21, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    gpt2 = LanguageModel(GPT2LMHeadModel(config), tokenizer(), name="gpt2", head="causal")
    gpt2.module.transformer.ln_f.bias.data.normal_()
    directions = torch.randn(3, 16)
    centred = directions - directions.mean(dim=1, keepdim=True)
    normed = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    expected = normed @ gpt2.module.lm_head.weight.T
    assert torch.allclose(direction_logits(gpt2, directions), expected - expected.mean(dim=1, keepdim=True), atol=1e-4)


def test_every_latent_has_effects_in_both_models():
    models = pair()
    dictionary = crosscoder()
    short = dictionary.W_dec.clone()
    short[3, :16] *= 0.001
    dictionary = dictionary.replace(W_dec=short)
    found = logit_effects(models, dictionary, [3, 7], count=4)
    assert [[one.weak for one in both] for both in found] == [[True, False], [False, False]]
    logits = direction_logits(models[1], dictionary.W_dec[[7], 16:])[0]
    best = logits.argsort(descending=True)[:4].tolist()
    assert [t for t, _ in found[1][1].promoted] == best
    assert [t for t, _ in found[1][1].suppressed] == logits.argsort()[:4].tolist()
    words = found[1][1].as_json(models[1].tokenizer)["promoted"]
    assert [w for w, _ in words] == [models[1].tokenizer.decode([t]) for t in best]


def test_bad_input_is_a_sentence():
    with pytest.raises(InputError, match="width is 16"):
        direction_logits(model(0), torch.zeros(2, 8))
    with pytest.raises(InputError, match="1 models came"):
        logit_effects([model(0)], crosscoder(), [0])
