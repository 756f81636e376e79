"""Gemma Scope, first and second release: hand-built files against the published formula, round trips, refusals."""

import json

import numpy as np
import pytest
import torch
from format_cases import D, N, assert_same, dictionary, difference, tokens
from safetensors.torch import load_file, save_file

import saeworks
from saeworks.dictionaries.formats.registry import write
from saeworks.errors import InputError


def arrays(out=D, skip=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, N), "W_dec": (N, out), "b_enc": (N,), "b_dec": (out,), "threshold": (N,)}
    made = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    made["threshold"] = made["threshold"].abs()
    return {**made, **({"affine_skip_connection": torch.randn(D, out, generator=g)} if skip else {})}


def by_hand(t, x):
    z = x @ t["W_enc"] + t["b_enc"]
    f = (z > t["threshold"]) * z.relu()
    out = f @ t["W_dec"] + t["b_dec"]
    return f, out + x @ t["affine_skip_connection"] if "affine_skip_connection" in t else out


def first(path, t):
    path.mkdir(parents=True)
    np.savez(path / "params.npz", **{name: value.numpy() for name, value in t.items()})
    return path


def second(path, t, config=None):
    path.mkdir(parents=True)
    save_file({name.lower(): value for name, value in t.items()}, path / "params.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def test_the_first_release_does_what_it_says(tmp_path):
    t, x = arrays(), tokens()
    path = first(tmp_path / "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", t)
    found = saeworks.load(path)
    f, out = by_hand(t, x)
    assert difference(f, found.encode(x)) < 1e-5
    assert difference(out, found(x)) < 1e-5
    about = found.cfg.metadata
    assert (about["format"], about["model_name"]) == ("gemma_scope", "google/gemma-2-2b")
    assert (about["site"], about["claimed"]) == ("layers.20.resid_post", {"l0": 71.0})
    assert torch.equal(saeworks.load(path / "params.npz").W_dec, found.W_dec)


@pytest.mark.parametrize(
    ("where", "site", "model"),
    [
        ("gemma-scope-9b-it-mlp/layer_9/width_16k/average_l0_5", "layers.9.mlp_out", "google/gemma-2-9b-it"),
        ("gemma-scope-27b-pt-att/layer_3/width_16k/average_l0_5", "layers.3.attn_z", "google/gemma-2-27b"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "model.embed_tokens", "google/gemma-2-2b"),
    ],
)
def test_site_and_model_are_in_the_path(tmp_path, where, site, model):
    about = saeworks.load(first(tmp_path / where, arrays())).cfg.metadata
    assert (about["site"], about["model_name"]) == (site, model)


def test_transcoders_of_the_first_release_are_named_so_or_have_two_widths(tmp_path):
    path = first(tmp_path / "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_54", arrays())
    found = saeworks.load(path)
    assert found.cfg.d_out == D
    assert found.cfg.metadata["site_out"] == "layers.3.mlp_out"
    assert saeworks.load(first(tmp_path / "a", arrays())).cfg.d_out is None
    assert saeworks.load(tmp_path / "a", hints={"transcoder": True}).cfg.d_out == D
    t, x = arrays(out=4), tokens()
    assert difference(by_hand(t, x)[1], saeworks.load(first(tmp_path / "b", t))(x)) < 1e-5


CONFIG = {"architecture": "jump_relu", "width": N, "l0": 42, "model_name": "gemma-v3-1b-pt", "affine_connection": False}
RESIDUAL = {**CONFIG, "type": "sae", "hf_hook_point_in": "model.layers.7.output"}
BEFORE, AFTER = (f"model.layers.7.{p}_feedforward_layernorm.output" for p in ("pre", "post"))
TRANSCODER = {**CONFIG, "type": "transcoder", "hf_hook_point_in": BEFORE, "hf_hook_point_out": AFTER}


@pytest.mark.parametrize(
    ("config", "t", "expected"),
    [
        (RESIDUAL, arrays(), ("layers.7.resid_post", None, None)),
        ({**RESIDUAL, "hf_hook_point_out": "model.layers.7.output"}, arrays(), ("layers.7.resid_post", None, None)),
        (TRANSCODER, arrays(), ("layers.7.pre_feedforward_layernorm", "layers.7.mlp_out", D)),
        (TRANSCODER, arrays(skip=True), ("layers.7.pre_feedforward_layernorm", "layers.7.mlp_out", D)),
        (None, arrays(out=4, skip=True), (None, None, 4)),
    ],
)
def test_the_second_release_does_what_it_says(tmp_path, config, t, expected):
    found, x = saeworks.load(second(tmp_path / "layer_7_width_16k_l0_small", t, config)), tokens()
    f, out = by_hand(t, x)
    assert difference(f, found.encode(x)) < 1e-5
    assert difference(out, found(x)) < 1e-5
    about = found.cfg.metadata
    assert (about.get("site"), about.get("site_out"), found.cfg.d_out) == expected
    assert about["format"] == "gemma_scope_2"
    if config:
        assert (about["model_name"], about["claimed"]) == ("google/gemma-3-1b-pt", {"l0": 42.0})


def test_a_cross_layer_transcoder_is_no_single_dictionary(tmp_path):
    t = {**arrays(), "W_dec": torch.zeros(3, N, 3, D)}
    with pytest.raises(InputError, match="3 layers at once"):
        saeworks.load(second(tmp_path / "clt", t))


FIRST = [
    {"architecture": "relu"},
    {"architecture": "relu", "pre_bias": False},
    {"architecture": "jumprelu"},
    {"architecture": "jumprelu", "pre_bias": False},
]
SECOND = [
    *FIRST,
    {"architecture": "jumprelu", "d_out": 4},
    {"architecture": "jumprelu", "d_out": D},
    {"architecture": "relu", "d_out": 4, "skip": True},
    {"architecture": "jumprelu", "skip": True},
]


@pytest.mark.parametrize(
    ("name", "kind"), [("gemma_scope", k) for k in FIRST] + [("gemma_scope_2", k) for k in SECOND], ids=str
)
def test_a_dictionary_comes_back_as_it_went(tmp_path, name, kind):
    d = dictionary(**kind)
    write(d, tmp_path / "out", name)
    again = saeworks.load(tmp_path / "out")
    assert_same(d, again)
    assert again.cfg.metadata["site"] == "layers.3.resid_post"
    if name == "gemma_scope":
        with np.load(tmp_path / "out" / "params.npz", allow_pickle=False) as file:
            t = {key: torch.from_numpy(file[key]) for key in file.files}
        assert set(t) == set(arrays())
    else:
        lower = load_file(tmp_path / "out" / "params.safetensors")
        t = {key: lower[key.lower()] for key in arrays(skip=d.cfg.skip)}
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["hf_hook_point_in"] == "model.layers.3.output"
        assert config["affine_connection"] == d.cfg.skip
    assert difference(by_hand(t, tokens())[1], d(tokens())) < 1e-5
    assert bool((t["threshold"] >= 0).all())


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("gemma_scope", {"architecture": "topk"}, "selects by thresholds"),
        ("gemma_scope", {"architecture": "relu", "d_out": D}, "transcoder"),
        ("gemma_scope", {"architecture": "relu", "input_op": "layer_norm"}, "layer_norm"),
        ("gemma_scope_2", {"architecture": "groupmax"}, "selects by thresholds"),
        ("gemma_scope_2", {"architecture": "relu", "sources": ("a", "b")}, "crosscoder"),
        ("gemma_scope_2", {"architecture": "relu", "input_op": "constant_norm"}, "constant_norm"),
    ],
)
def test_what_the_format_cannot_say_is_refused(tmp_path, name, kind, words):
    with pytest.raises(InputError, match=words):
        write(dictionary(**kind), tmp_path / "out", name)


def test_what_a_file_lacks_or_contradicts_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"is of torch\.int64"):
        saeworks.load(first(tmp_path / "a", {**arrays(), "b_enc": torch.zeros(N, dtype=torch.int64)}))
    with pytest.raises(InputError, match="threshold has the shape"):
        saeworks.load(first(tmp_path / "b", {**arrays(), "threshold": torch.zeros(N - 1)}))
    with pytest.raises(InputError, match="not finite"):
        saeworks.load(first(tmp_path / "c", {**arrays(), "b_dec": torch.full((D,), torch.nan)}))
    with pytest.raises(InputError, match="jump_relu only"):
        saeworks.load(second(tmp_path / "d", arrays(), {**RESIDUAL, "architecture": "topk"}))
    t = arrays()
    t.pop("threshold")
    with pytest.raises(InputError, match="holds no dictionary of a known format"):
        saeworks.load(first(tmp_path / "e", t))
