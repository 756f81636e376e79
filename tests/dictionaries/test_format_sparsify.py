"""sparsify's format: hand-built files against its formulas, round trips, refusals."""

import json

import pytest
import torch
from format_cases import D, K, N, assert_same, dictionary, difference, tokens
from safetensors.torch import load_file, save_file

import saeworks
from saeworks.dictionaries.formats.registry import write
from saeworks.errors import InputError


def settings(**changes):
    base = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": N, "k": K}
    return {**base, "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D, **changes}


def folder(path, cfg, skip=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    t = {
        "encoder.weight": torch.randn(N, D, generator=g),
        "encoder.bias": torch.randn(N, generator=g),
        "W_dec": torch.randn(N, D, generator=g),
        "b_dec": torch.randn(D, generator=g),
    }
    if skip:
        t["W_skip"] = torch.randn(D, D, generator=g)
    path.mkdir(parents=True)
    save_file(t, path / "sae.safetensors")
    (path / "cfg.json").write_text(json.dumps(cfg))
    return t


def by_hand(t, cfg, x):
    z = ((x if cfg.get("transcode") else x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    if cfg.get("activation", "topk") == "topk":
        values, indices = z.topk(K, 1)
    else:
        values, indices = z.view(len(x), K, N // K).max(-1)
        indices = indices + torch.arange(K) * (N // K)
    f = torch.zeros_like(z).scatter(1, indices, values)
    out = f @ t["W_dec"] + t["b_dec"]
    return f, out + x @ t["W_skip"].T if "W_skip" in t else out


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_a_published_folder_does_what_sparsify_does(tmp_path, activation, transcode, skip):
    cfg = settings(activation=activation, transcode=transcode, skip_connection=skip)
    t = folder(tmp_path / "layers.10.mlp", cfg, skip)
    found, x = saeworks.load(tmp_path / "layers.10.mlp"), tokens()
    f, out = by_hand(t, cfg, x)
    assert difference(f, found.encode(x)) < 1e-5
    assert difference(out, found(x)) < 1e-5
    assert found.cfg.metadata["format"] == "sparsify"
    assert found.cfg.metadata["hook_name"] == "layers.10.mlp"
    assert found.cfg.metadata.get("site") == (None if transcode else "layers.10.mlp_out")
    assert (found.cfg.d_out is not None) == transcode


def test_settings_of_earlier_versions_mean_topk_without_transcoding(tmp_path):
    cfg = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": 0, "k": K, "d_in": D, "signed": False}
    t = folder(tmp_path / "layers.2", cfg)
    found, x = saeworks.load(tmp_path / "layers.2"), tokens()
    assert difference(by_hand(t, cfg, x)[1], found(x)) < 1e-5
    assert found.cfg.metadata["site"] == "layers.2.resid_post"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "relu"}, "topk and groupmax only"),
        ({"signed": True}, "by magnitude"),
        ({"k": None}, "how many latents"),
        ({"k": "many"}, "'k' is 'many', but a number is expected"),
        ({"k": N + 1}, "1 <= k <= 16"),
        ({"transcode": "no"}, "true or false"),
    ],
)
def test_settings_that_make_no_sense_are_sentences(tmp_path, change, words):
    folder(tmp_path / "layers.0", settings(**change))
    with pytest.raises(InputError, match=words):
        saeworks.load(tmp_path / "layers.0")


KINDS = [
    {"architecture": "topk"},
    {"architecture": "topk", "pre_bias": False},
    {"architecture": "groupmax"},
    {"architecture": "topk", "d_out": D},
    {"architecture": "topk", "d_out": D, "skip": True},
    {"architecture": "topk", "skip": True},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_dictionary_comes_back_as_it_went(tmp_path, kind):
    d = dictionary(**kind)
    write(d, tmp_path / "out", "sparsify")
    assert_same(d, saeworks.load(tmp_path / "out"))
    cfg, x = json.loads((tmp_path / "out" / "cfg.json").read_text()), tokens()
    assert set(cfg) == set(settings())
    assert difference(by_hand(load_file(tmp_path / "out" / "sae.safetensors"), cfg, x)[1], d(x)) < 1e-5


def test_norm_weighted_selection_moves_the_norms_into_the_encoder(tmp_path):
    d = dictionary("topk", norm_weighted=True)
    d = d.replace(W_dec=torch.where(torch.arange(N)[:, None] == 3, torch.zeros(()), d.W_dec))
    write(d, tmp_path / "out", "sparsify")
    again, x = saeworks.load(tmp_path / "out"), tokens()
    assert difference(d(x), again(x)) < 1e-5
    assert difference(d.encode(x) * d.W_dec.norm(dim=1), again.encode(x)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"architecture": "relu"}, "topk and groupmax only"),
        ({"architecture": "topk", "d_out": 3}, "as wide as its inputs"),
        ({"architecture": "topk", "input_op": "layer_norm"}, "'layer_norm' to every token"),
        ({"architecture": "topk", "sources": ("a", "b")}, "crosscoder"),
    ],
)
def test_what_the_format_cannot_say_is_refused(tmp_path, kind, words):
    with pytest.raises(InputError, match=words):
        write(dictionary(**kind), tmp_path / "out", "sparsify")
    assert list(tmp_path.iterdir()) == []
