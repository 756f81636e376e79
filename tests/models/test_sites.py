"""Names of sites: canonical, aliases, module paths, mistakes, and architectures without a table row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import TEXTS  # pyright: ignore

from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel
from saeworks.models.sites import Site, parse_site

Tiny = Callable[..., LanguageModel]


@pytest.mark.parametrize(
    ("alias", "canonical"),
    [
        ("blocks.1.hook_resid_post", "layers.1.resid_post"),
        ("blocks.1.hook_resid_pre", "layers.1.resid_pre"),
        ("blocks.1.hook_mlp_out", "layers.1.mlp_out"),
        ("blocks.1.hook_attn_out", "layers.1.attn_out"),
        ("blocks.1.attn.hook_z", "layers.1.attn_z"),
        ("blocks.1.mlp.hook_post", "layers.1.mlp_hidden"),
        ("blocks.1.hook_out", "layers.1.resid_post"),
        ("blocks.1.hook_in", "layers.1.resid_pre"),
        ("blocks.1.mlp.hook_out", "layers.1.mlp_out"),
        ("blocks.1.attn.hook_out", "layers.1.attn_out"),
        ("layers_output[1]", "layers.1.resid_post"),
        ("layers_input[1]", "layers.1.resid_pre"),
        ("resid_post:1", "layers.1.resid_post"),
        ("mlp_hidden:1", "layers.1.mlp_hidden"),
        ("model.layers.1", "layers.1.resid_post"),
        ("model.layers.1:in", "layers.1.resid_pre"),
        ("model.layers.1.mlp", "layers.1.mlp_out"),
        ("model.layers.1.mlp:out", "layers.1.mlp_out"),
        ("layers.1.mlp", "layers.1.mlp_out"),
        ("model.layers.1.mlp.down_proj:in", "layers.1.mlp_hidden"),
        (" layers.1.resid_post ", "layers.1.resid_post"),
    ],
)
def test_aliases_mean_one_site(tiny: Tiny, alias: str, canonical: str) -> None:
    model = tiny("llama")
    assert model.site(alias) == model.site(canonical)
    assert model.site(alias).name == canonical


def test_sites_are_described(tiny: Tiny) -> None:
    model = tiny("llama")
    assert model.site("resid_pre:2") == Site("layers.2.resid_pre", "model.layers.2", "in", 2, 16)
    assert model.site("mlp_hidden:0") == Site("layers.0.mlp_hidden", "model.layers.0.mlp.down_proj", "in", 0, 24)
    assert model.site("model.embed_tokens") == Site("model.embed_tokens", "model.embed_tokens", "out", -1, 16)
    assert model.site("model.layers.1.mlp.gate_proj").width == 24
    assert model.sites()[:7] == [
        *(f"layers.0.{k}" for k in ("resid_pre", "attn_z", "attn_out", "mlp_hidden", "mlp_out", "resid_post")),
        "layers.1.resid_pre",
    ]
    assert len(model.sites()) == 18
    assert all(model.site(name).name == name for name in model.sites())


def test_gemma_sites_are_the_norms_after_the_blocks(tiny: Tiny) -> None:
    for name in ("gemma2", "gemma3_text"):
        model = tiny(name)
        assert model.site("mlp_out:1").module == "model.layers.1.post_feedforward_layernorm"
        assert model.site("attn_out:1").module == "model.layers.1.post_attention_layernorm"
        # The block itself stays reachable by its path, under its own name.
        assert model.site("model.layers.1.mlp").name == "model.layers.1.mlp"


def test_heads_side_by_side(tiny: Tiny) -> None:
    """attn_z is as wide as heads × head size, which need not be the width of the stream."""
    model = tiny("qwen3", head_dim=4)
    assert model.site("attn_z:0").width == 8
    assert model.d_model == 16


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layers.1.resid_pots", ["Unknown site 'layers.1.resid_pots'", "Did you mean 'layers.1.resid_post'"]),
        ("blocks.2.hook_resid_pos", ["Did you mean 'blocks.2.hook_resid_post'"]),
        ("model.layers.1.mpl", ["Did you mean 'model.layers.1.mlp'"]),
        ("layers.3.resid_post", ["asks for layer 3", "has 3 layers (0 to 2)"]),
        ("layers.-1.resid_post", ["asks for layer -1", "has 3 layers"]),
        ("blocks.17.hook_mlp_out", ["asks for layer 17", "has 3 layers"]),
        ("lm_head", ["language-model head"]),
        ("model.layers.1:middle", ["Unknown site"]),
        ("", ["Unknown site ''", "resid_post"]),
    ],
)
def test_mistakes_are_sentences(tiny: Tiny, name: str, words: list[str]) -> None:
    with pytest.raises(InputError) as e:
        tiny("llama").site(name)
    for word in words:
        assert word in str(e.value)


def test_an_architecture_without_a_row_has_its_stream_and_module_paths(tiny: Tiny) -> None:
    model = tiny("stablelm")
    assert model.n_layers == 3
    assert model.sites() == [f"layers.{i}.{kind}" for i in range(3) for kind in ("resid_pre", "resid_post")]
    batch = model.tokenize(TEXTS, 32)
    taken = model.harvest(batch, ["layers.1.resid_post", "model.layers.1.mlp", "layers.2.resid_pre"])
    with torch.no_grad():
        expected = model.module(
            input_ids=batch.token_ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True
        ).hidden_states
    assert torch.equal(taken["layers.1.resid_post"], expected[2])
    assert torch.equal(taken["layers.2.resid_pre"], expected[2])
    with pytest.raises(InputError, match=r"'stablelm' has no entry for its mlp_out.*model\.layers\.1\.mlp"):
        model.site("layers.1.mlp_out")


def test_a_longer_list_inside_a_layer_is_not_taken_for_the_layers() -> None:
    from torch import nn

    from saeworks.models.sites import SiteMap

    def layer() -> nn.Module:
        return nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(9))})

    tree = nn.ModuleDict({"body": nn.ModuleDict({"stack": nn.ModuleList(layer() for _ in range(4))})})
    found = SiteMap(tree, tree, "unheard_of")
    assert (found.layers, found.n_layers) == ("body.stack", 4)
    with pytest.raises(InputError, match="no list of layers"):
        _map_of_nothing()


def _map_of_nothing() -> None:
    from torch import nn

    from saeworks.models.sites import SiteMap

    alone = nn.Linear(2, 2)
    SiteMap(alone, alone, "unheard_of")


def test_parse_site_leaves_the_rest_alone() -> None:
    assert parse_site("layers.12.mlp_out") == ("mlp_out", 12)
    assert parse_site("model.layers.12.mlp") is None
    assert parse_site("xlayers.1.mlp_out") is None
    assert parse_site("blocks.1.hook_resid_postx") is None
