"""Interventions: identities bit for bit, exact sums, masks, latents, and mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, TEXTS  # pyright: ignore
from torch import Tensor

from saeworks.errors import InputError
from saeworks.models.interventions import AblateLatents, ClampLatents, Splice, Steer, ZeroAblate, apply
from saeworks.models.language_model import LanguageModel, load_language_model

Tiny = Callable[..., LanguageModel]
KINDS = ("resid_pre", "attn_z", "attn_out", "mlp_hidden", "mlp_out", "resid_post")


@dataclass
class TinyDictionary:
    """ReLU latents with a decoder that reconstructs badly, on purpose."""

    W_enc: Tensor
    W_dec: Tensor

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W_enc)

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.W_dec + 0.3


@pytest.fixture(scope="module")
def dictionary() -> TinyDictionary:
    g = torch.Generator().manual_seed(3)
    return TinyDictionary(torch.randn(16, 10, generator=g), torch.randn(10, 16, generator=g))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_identity_is_exact_and_zero_is_not_at_every_site(tiny: Tiny, name: str) -> None:
    model = tiny(name)
    batch = model.tokenize(TEXTS, 32)
    clean = model.logits(batch)
    assert clean.shape == (*batch.token_ids.shape, clean.shape[-1])
    for kind in KINDS:
        site = f"layers.1.{kind}"
        assert torch.equal(model.logits(batch, [Splice(site, lambda x: x)]), clean), site
        assert not torch.equal(model.logits(batch, [ZeroAblate(site)]), clean), site
    assert torch.equal(model.logits(batch), clean)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "bert"])
def test_steering_adds_exactly_where_the_mask_says(tiny: Tiny, name: str) -> None:
    model = tiny(name)
    batch = model.tokenize(TEXTS, 32)
    vector = torch.randn(16, generator=torch.Generator().manual_seed(1))
    # A raw hook of our own reads what arrives at layer 2.
    clean = model.harvest(batch, ["resid_pre:2"])["resid_pre:2"]
    for where, mask in (("keep", batch.keep), ("all", torch.ones_like(batch.keep))):
        seen = arriving(model, batch, "resid_pre:2", [Steer("resid_post:1", vector, 2.0, where)])  # pyright: ignore
        assert torch.equal(seen[mask], (clean + 2.0 * vector)[mask])
        assert torch.equal(seen[~mask], clean[~mask])


def arriving(model: LanguageModel, batch: Any, site: str, interventions: list[Any]) -> Tensor:
    """What a site holds during an intervened pass, seen by an intervention that only looks."""
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    model.logits(batch, [*interventions, Splice(site, look)])
    return seen[0]


def test_zero_ablation_leaves_the_rest_of_the_stream(tiny: Tiny) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    middle = model.harvest(batch, ["resid_pre:1", "attn_out:1", "resid_post:1"])
    seen = arriving(model, batch, "resid_post:1", [ZeroAblate("mlp_out:1")])
    torch.testing.assert_close(seen, middle["resid_pre:1"] + middle["attn_out:1"], atol=1e-6, rtol=1e-6)
    partly = arriving(model, batch, "resid_post:1", [ZeroAblate("mlp_out:1", where="keep")])
    assert torch.equal(partly[batch.keep], seen[batch.keep])
    assert torch.equal(partly[~batch.keep], middle["resid_post:1"][~batch.keep])


def test_splice_leaves_dropped_positions_bit_identical(tiny: Tiny) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    clean = model.harvest(batch, ["resid_post:2"])["resid_post:2"]
    # NaN outside the mask would spread if the mask were a product.
    seen = arriving(model, batch, "resid_post:2", [Splice("resid_post:2", lambda x: torch.where(x > 0, x, torch.nan))])
    assert torch.equal(seen[~batch.keep], clean[~batch.keep])
    assert bool(seen[batch.keep].isnan().any())


def test_unchanged_latents_are_bit_identical(tiny: Tiny, dictionary: TinyDictionary) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    clean = model.logits(batch)
    assert torch.equal(model.logits(batch, [AblateLatents("resid_post:1", dictionary, [])]), clean)
    dead = TinyDictionary(dictionary.W_enc.clone(), dictionary.W_dec)
    dead.W_enc[:, 4] = 0.0
    assert torch.equal(model.logits(batch, [AblateLatents("resid_post:1", dead, [4])]), clean)
    assert not torch.equal(model.logits(batch, [AblateLatents("resid_post:1", dictionary, [4])]), clean)
    # The sign of a zero survives too.
    x = torch.tensor([[[-0.0] * 16]])
    same = apply(AblateLatents("s", dictionary, []), x, torch.ones(1, 1, dtype=torch.bool))
    assert bool(torch.signbit(same).all())


def test_latents_change_along_their_directions(tiny: Tiny, dictionary: TinyDictionary) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    x = model.harvest(batch, ["resid_post:1"])["resid_post:1"]
    f = dictionary.encode(x)
    ablated = arriving(model, batch, "resid_pre:2", [AblateLatents("resid_post:1", dictionary, [2, 7])])
    expected = x - f[..., [2, 7]] @ dictionary.W_dec[[2, 7]]
    torch.testing.assert_close(ablated[batch.keep], expected[batch.keep], atol=1e-4, rtol=1e-5)
    assert torch.equal(ablated[~batch.keep], x[~batch.keep])
    clamped = arriving(model, batch, "resid_pre:2", [ClampLatents("resid_post:1", dictionary, [2, 7], [3.0, 1.0])])
    expected = expected + torch.tensor([3.0, 1.0]) @ dictionary.W_dec[[2, 7]]
    torch.testing.assert_close(clamped[batch.keep], expected[batch.keep], atol=1e-4, rtol=1e-5)


def test_interventions_act_in_order_and_together(tiny: Tiny) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    one = torch.ones(16)
    x = model.harvest(batch, ["resid_post:1"])["resid_post:1"]
    double = Splice("resid_post:1", lambda x: 2 * x, where="all")
    add = Steer("resid_post:1", one, where="all")
    assert torch.equal(arriving(model, batch, "resid_post:1", [double, add]), 2 * x + 1)
    assert torch.equal(arriving(model, batch, "resid_post:1", [add, double]), 2 * (x + 1))


def test_low_precision_is_preserved(checkpoint: Any, dictionary: TinyDictionary) -> None:
    model = load_language_model(checkpoint("llama"), device="cpu", dtype="bfloat16")
    batch = model.tokenize(TEXTS, 32)
    clean = model.logits(batch)
    seen: list[torch.dtype] = []
    hook = model.module.model.layers[2].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    assert torch.equal(model.logits(batch, [Splice("resid_post:1", lambda x: x.double().float())]), clean)
    assert torch.equal(model.logits(batch, [AblateLatents("resid_post:1", dictionary, [])]), clean)
    hook.remove()
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_hooks_are_gone_after_an_error(tiny: Tiny) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    clean = model.logits(batch)

    def fail(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.logits(batch, [Steer("resid_post:0", torch.ones(16)), Splice("resid_post:1", fail)])
    assert torch.equal(model.logits(batch), clean)


def test_mistakes_are_sentences(tiny: Tiny, dictionary: TinyDictionary) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    for make, words in (
        (lambda: Steer("resid_post:1", torch.ones(8)), r"shape \(8,\).*width 16"),
        (lambda: Splice("resid_post:1", lambda x: x[..., :3]), "must keep the shape"),
        (lambda: AblateLatents("resid_post:1", dictionary, [10]), "Latent 10 does not exist"),
        (lambda: AblateLatents("mlp_hidden:1", dictionary, [1]), "width 16, but site 'mlp_hidden:1' has width 24"),
        (lambda: ClampLatents("resid_post:1", dictionary, [1, 2], [1.0]), "1 values were given for 2 latents"),
        (lambda: ZeroAblate("resid_post:9"), "has 3 layers"),
        (lambda: ZeroAblate("resid_post:1", where="kept"), "Did you mean 'keep'"),  # pyright: ignore
        (lambda: "resid_post:1", "is no intervention"),
    ):
        with pytest.raises(InputError, match=words):
            model.logits(batch, [make()])  # pyright: ignore


def test_generation_is_greedy_and_follows_interventions(tiny: Tiny) -> None:
    model = tiny("llama", style="plain")
    prompts = ["the dog saw", "a red bird sings about the"]
    plain = model.generate(prompts, max_new_tokens=5)
    for prompt, text in zip(prompts, plain, strict=True):
        ids = model.tokenize([prompt], 32).token_ids[0].tolist()
        grown: list[int] = []
        for _ in range(5):
            grown.append(int(model.logits(model.batch_from_ids([ids + grown]))[0, -1].argmax()))
            if grown[-1] == 0:
                break
        assert text == model.tokenizer.decode(grown, skip_special_tokens=True)
    head: Tensor = model.module.get_output_embeddings().weight
    word = int(model.tokenizer.convert_tokens_to_ids("songs"))
    last = f"resid_post:{model.n_layers - 1}"
    steered = model.generate(prompts, 4, [Steer(last, head[word] - head.mean(0), 1000.0)])
    assert steered == ["songs songs songs songs"] * 2
    assert model.generate(prompts, max_new_tokens=5) == plain


def test_sampling_is_seeded_and_leaves_the_random_state(tiny: Tiny) -> None:
    model = tiny("llama", style="plain")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draws = [model.generate(["the dog"], 12, temperature=3.0, seed=seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    assert draws[0] == draws[1] != draws[2]


def test_generation_refuses_what_cannot_work(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="cannot generate"):
        tiny("bert").generate(["the dog"])
    with pytest.raises(InputError, match="64 positions"):
        tiny("llama").generate(["the dog"], max_new_tokens=64)
    with pytest.raises(InputError, match="prompt is empty"):
        tiny("qwen2", style="plain").generate([""], max_new_tokens=2)
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        tiny("llama").generate(["the dog"], max_new_tokens=0)
