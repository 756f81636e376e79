"""Harvested values against plain transformers, and against the arithmetic of the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, CAUSAL, MASKED, TEXTS, make_tokenizer  # pyright: ignore
from torch import Tensor, nn

from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel, load_language_model
from saeworks.models.tokens import TokenBatch

Tiny = Callable[..., LanguageModel]


def hidden_states(model: LanguageModel, batch: TokenBatch) -> tuple[Tensor, ...]:
    with torch.no_grad():
        out = model.module(
            input_ids=batch.token_ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True
        )
    return out.hidden_states


def seen_by(module: nn.Module, model: LanguageModel, batch: TokenBatch, end: str) -> Tensor:
    """What a module receives or returns in an untouched full pass: an independent, blunt reading."""
    seen: list[Any] = []

    def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.append(args[0] if end == "in" and args else kwargs["hidden_states"] if end == "in" else output)

    handle = module.register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model.module(input_ids=batch.token_ids, attention_mask=batch.attention_mask.long())
    handle.remove()
    return seen[0] if isinstance(seen[0], Tensor) else seen[0][0]


def count_hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_residual_stream_equals_hidden_states(tiny: Tiny, name: str) -> None:
    model = tiny(name)
    batch = model.tokenize(TEXTS, 32)
    assert bool((~batch.attention_mask).any()), "the rows must differ in length, or padding is not tested"
    sites = [f"layers.{i}.{kind}" for i in range(3) for kind in ("resid_pre", "resid_post")]
    taken = model.harvest(batch, sites)
    expected = hidden_states(model, batch)
    for i in range(3):
        assert torch.equal(taken[f"layers.{i}.resid_pre"], expected[i])
        if i < 2:
            assert torch.equal(taken[f"layers.{i}.resid_post"], expected[i + 1])
    last = taken["layers.2.resid_post"]
    if name in MASKED and name != "modernbert":
        assert torch.equal(last, expected[3])
    else:
        backbone = model.module.base_model
        norm = next(m for n, m in backbone.named_children() if n in ("norm", "ln_f", "final_layer_norm", "final_norm"))
        assert not torch.equal(last, expected[3])
        assert torch.equal(norm(last), expected[3])


@pytest.mark.parametrize("name", [*CAUSAL, "modernbert"])
def test_blocks_add_up_to_the_residual_stream(tiny: Tiny, name: str) -> None:
    """resid_post − resid_pre = attn_out + mlp_out: true only if both sites are what is really added."""
    model = tiny(name)
    batch = model.tokenize(TEXTS, 32)
    for i in range(3):
        kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        pre, attention, mlp, post = (model.harvest(batch, [f"layers.{i}.{k}" for k in kinds])).values()
        assert float(attention.abs().max()) > 1e-3
        assert float(mlp.abs().max()) > 1e-3
        torch.testing.assert_close(post, pre + attention + mlp, atol=1e-4, rtol=1e-5)


# The module that receives the stream between attention and MLP.
_MIDDLE = {
    "llama": "post_attention_layernorm",
    "gemma2": "pre_feedforward_layernorm",
    "gemma3_text": "pre_feedforward_layernorm",
    "gpt2": "ln_2",
    "qwen3": "post_attention_layernorm",
}


@pytest.mark.parametrize("name", _MIDDLE)
def test_attention_output_is_the_step_to_the_middle(tiny: Tiny, name: str) -> None:
    model = tiny(name)
    batch = model.tokenize(TEXTS, 32)
    taken = model.harvest(batch, ["layers.1.resid_pre", "layers.1.attn_out", "layers.1.mlp_out", "layers.1.resid_post"])
    layer = model.module.get_submodule(model.site("layers.1.resid_post").module)
    middle = seen_by(layer.get_submodule(_MIDDLE[name]), model, batch, "in")
    torch.testing.assert_close(taken["layers.1.attn_out"], middle - taken["layers.1.resid_pre"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(taken["layers.1.mlp_out"], taken["layers.1.resid_post"] - middle, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in MASKED if n != "modernbert"])
def test_post_norm_encoders_normalise_the_sum(tiny: Tiny, name: str) -> None:
    """LN(LN(resid_pre + attn_out) + mlp_out) = resid_post."""
    model = tiny(name)
    batch = model.tokenize(TEXTS, 32)
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    pre, attention, mlp, post = (model.harvest(batch, [f"layers.1.{k}" for k in kinds])).values()
    layer = model.module.get_submodule(model.site("layers.1.resid_post").module)
    norms = [m for m in layer.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2
    with torch.no_grad():
        torch.testing.assert_close(norms[1](norms[0](pre + attention) + mlp), post, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_projections_of_the_hidden_sites_give_the_outputs(tiny: Tiny, name: str) -> None:
    """attn_z and mlp_hidden through their projections (and the norm after it, if any) are attn_out and mlp_out."""
    model = tiny(name)
    batch = model.tokenize(TEXTS, 32)
    for inner, outer in (("attn_z", "attn_out"), ("mlp_hidden", "mlp_out")):
        taken = model.harvest(batch, [f"layers.1.{inner}", f"layers.1.{outer}"])
        before, after = taken.values()
        assert before.shape[-1] == model.site(f"layers.1.{inner}").width
        with torch.no_grad():
            projected = model.module.get_submodule(model.site(f"layers.1.{inner}").module)(before)
            if name in ("gemma2", "gemma3_text", "olmo2"):
                projected = model.module.get_submodule(model.site(f"layers.1.{outer}").module)(projected)
        torch.testing.assert_close(projected, after, atol=1e-5, rtol=1e-5)


def test_parallel_and_sequential_neox(tiny: Tiny) -> None:
    for parallel in (True, False):
        model = tiny("gpt_neox", use_parallel_residual=parallel)
        batch = model.tokenize(TEXTS, 32)
        kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        pre, attention, mlp, post = (model.harvest(batch, [f"layers.1.{k}" for k in kinds])).values()
        torch.testing.assert_close(post, pre + attention + mlp, atol=1e-5, rtol=1e-5)
        layer = model.module.get_submodule("gpt_neox.layers.1")
        read = seen_by(layer.post_attention_layernorm, model, batch, "in")
        assert torch.equal(read, pre) == parallel


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "bert"])
def test_the_pass_stops_at_the_deepest_site(tiny: Tiny, name: str) -> None:
    model = tiny(name)
    batch = model.tokenize(TEXTS, 32)
    calls: list[str] = []
    watched = {f"layer {i}": model.module.get_submodule(model.site(f"resid_post:{i}").module) for i in range(3)}
    watched["head"] = model.module.get_output_embeddings()
    untouched = [count_hooks(m) for m in watched.values()]
    handles = [m.register_forward_pre_hook(lambda *_, n=n: calls.append(n)) for n, m in watched.items()]
    before = model.logits(batch)
    assert calls == ["layer 0", "layer 1", "layer 2", "head"]
    for sites, expected in (
        (["layers.1.resid_post", "layers.0.mlp_out"], ["layer 0", "layer 1"]),
        (["layers.1.attn_out"], ["layer 0", "layer 1"]),
        (["layers.2.resid_post"], ["layer 0", "layer 1", "layer 2"]),
    ):
        calls.clear()
        model.harvest(batch, sites)
        assert calls == expected
    for handle in handles:
        handle.remove()
    assert [count_hooks(m) for m in watched.values()] == untouched
    assert torch.equal(model.logits(batch), before)


def test_hooks_are_removed_when_the_pass_fails(tiny: Tiny) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    layer = model.module.get_submodule("model.layers.1")
    untouched = count_hooks(layer)

    def fail(*_: Any) -> None:
        raise RuntimeError("broken layer")

    handle = model.module.get_submodule("model.layers.0").register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="broken layer"):
        model.harvest(batch, ["layers.1.resid_post"])
    handle.remove()
    assert count_hooks(layer) == untouched
    assert torch.isfinite(model.harvest(batch, ["layers.1.resid_post"])["layers.1.resid_post"]).all()


def test_names_are_returned_as_given_and_share_a_tensor(tiny: Tiny) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    taken = model.harvest(batch, ["blocks.1.hook_resid_post", "model.layers.1", "layers.2.resid_pre"])
    assert list(taken) == ["blocks.1.hook_resid_post", "model.layers.1", "layers.2.resid_pre"]
    assert taken["blocks.1.hook_resid_post"] is taken["model.layers.1"]
    assert torch.equal(taken["layers.2.resid_pre"], taken["model.layers.1"])


def test_activations_can_be_trained_on(tiny: Tiny) -> None:
    model = tiny("llama")
    x = model.harvest(model.tokenize(TEXTS, 32), ["layers.1.resid_post"])["layers.1.resid_post"]
    weight = torch.ones(16, 4, requires_grad=True)
    (x @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum((0, 1))[:, None].expand(16, 4))


def test_in_place_changes_do_not_reach_the_captured_values(tiny: Tiny) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    clean = model.harvest(batch, ["layers.0.resid_post"])["layers.0.resid_post"]

    def spoil(_module: Any, args: Any) -> None:
        args[0].mul_(0.0)

    handle = model.module.get_submodule("model.layers.1").register_forward_pre_hook(spoil)
    taken = model.harvest(batch, ["layers.0.resid_post", "layers.1.resid_post"])
    handle.remove()
    assert torch.equal(taken["layers.0.resid_post"], clean)


def test_padding_does_not_change_kept_positions(tiny: Tiny) -> None:
    for name in ("llama", "gpt2", "bert"):
        model = tiny(name)
        together, alone = model.tokenize(TEXTS, 32), model.tokenize([TEXTS[1]], 32)
        a = model.harvest(together, ["layers.2.resid_post"])["layers.2.resid_post"][1]
        b = model.harvest(alone, ["layers.2.resid_post"])["layers.2.resid_post"][0]
        torch.testing.assert_close(a[: b.shape[0]], b, atol=1e-5, rtol=1e-5)


def test_dtype_follows_the_model(checkpoint: Any) -> None:
    model = load_language_model(checkpoint("llama"), device="cpu", dtype="bfloat16")
    batch = model.tokenize(TEXTS, 32)
    assert model.dtype == torch.bfloat16
    assert model.harvest(batch, ["layers.0.mlp_out"])["layers.0.mlp_out"].dtype == torch.bfloat16
    assert model.logits(batch).dtype == torch.float32


def test_bad_requests_are_sentences(tiny: Tiny) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    with pytest.raises(InputError, match="got no sites"):
        model.harvest(batch, [])
    with pytest.raises(InputError, match="takes a list of sites"):
        model.harvest(batch, "layers.0.resid_post")
    with pytest.raises(InputError, match="never reached"):
        model.harvest(batch, ["model.layers"])
    with pytest.raises(InputError, match=r"holds .*int64 values"):
        model.harvest(batch, ["model.embed_tokens:in"])
    with pytest.raises(InputError, match="returns no tensor"):
        model.harvest(batch, ["model"])


def test_the_text_half_of_a_multimodal_gemma(tmp_path: Path) -> None:
    import transformers

    tokenizer = make_tokenizer("bos")
    text = {**ARCHITECTURES["gemma3_text"][0], "vocab_size": len(tokenizer)}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=len(tokenizer) - 1
    )
    torch.manual_seed(0)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_language_model(tmp_path, device="cpu")
    assert (model.n_layers, model.d_model) == (3, 16)
    assert model.site("mlp_out:1").module == "model.language_model.layers.1.post_feedforward_layernorm"
    batch = model.tokenize(TEXTS, 32)
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    pre, attention, mlp, post = (model.harvest(batch, [f"layers.1.{k}" for k in kinds])).values()
    torch.testing.assert_close(post, pre + attention + mlp, atol=1e-5, rtol=1e-5)
    assert torch.equal(post, hidden_states(model, batch)[2])
