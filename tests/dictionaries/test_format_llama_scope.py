"""Llama Scope, both layouts: hand-built folders against the network as it was trained, round trips, refusals."""

import json
import math

import pytest
import torch
from format_cases import D, K, N, assert_same, dictionary, difference, tokens
from safetensors.torch import load_file, save_file

import saeworks
from saeworks.dictionaries.formats.registry import write
from saeworks.errors import InputError

NORM_IN, NORM_OUT = 7.5, 4.0


def weights(out=D, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"encoder.weight": (N, D), "encoder.bias": (N,), "decoder.weight": (out, N), "decoder.bias": (out,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def settings(**changes):
    base = {"act_fn": "jumprelu", "jump_relu_threshold": 0.1875, "norm_activation": "dataset-wise", "top_k": 50}
    base |= {"dataset_average_activation_norm": {"in": NORM_IN, "out": NORM_IN}, "use_decoder_bias": True}
    base |= {"apply_decoder_bias_to_pre_encoder": False, "sparsity_include_decoder_norm": True}
    base |= {"d_model": D, "d_sae": N, "expansion_factor": 8}
    return {
        **base,
        "hook_point_in": "blocks.8.hook_resid_post",
        "hook_point_out": "blocks.8.hook_resid_post",
        **changes,
    }


def folder(path, cfg, t):
    (path / "checkpoints").mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in t.items()}, path / "checkpoints" / "final.safetensors")
    (path / "hyperparams.json").write_text(json.dumps(cfg))
    return path


def trained(t, cfg, x, threshold=None):
    """Active latents and output of the network as trained: on inputs of a common norm, competing by norms."""
    norms = cfg["dataset_average_activation_norm"]
    wise = cfg["norm_activation"] == "dataset-wise"
    s_in = math.sqrt(D) / norms["in"] if wise else 1.0
    s_out = math.sqrt(t["decoder.bias"].numel()) / norms["out"] if wise else 1.0
    x = s_in * x - (t["decoder.bias"] if cfg["apply_decoder_bias_to_pre_encoder"] else 0)
    z = x @ t["encoder.weight"].T + t["encoder.bias"]
    weighting = t["decoder.weight"].norm(dim=0) if cfg["sparsity_include_decoder_norm"] else torch.ones(N)
    scores = (z * weighting).relu()
    if cfg["act_fn"] == "topk":
        scores = torch.zeros_like(scores).scatter(1, *reversed(scores.topk(cfg["top_k"], 1)))
    elif cfg["act_fn"] == "jumprelu":
        # The published number belongs to raw inputs and directions of norm 1.
        unit = scores / weighting * t["decoder.weight"].norm(dim=0) / s_out
        on = unit > cfg["jump_relu_threshold"] if threshold is None else scores > threshold
        scores = scores * on
    f = scores / weighting
    return f > 0, (f @ t["decoder.weight"].T + t["decoder.bias"]) / s_out


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "dataset_average_activation_norm": {"in": NORM_IN, "out": NORM_OUT},
            "hook_point_out": "blocks.8.hook_mlp_out",
        },
        {"act_fn": "topk", "top_k": K},
        {"act_fn": "topk", "top_k": K, "sparsity_include_decoder_norm": False},
        {"act_fn": "relu"},
        {"norm_activation": "none"},
        {"apply_decoder_bias_to_pre_encoder": True},
    ],
    ids=str,
)
def test_a_published_folder_does_what_was_trained(tmp_path, changes):
    cfg, t, x = settings(**changes), weights(), tokens()
    found = saeworks.load(folder(tmp_path / "Llama3_1-8B-Base-L8R-8x", cfg, t))
    active, out = trained(t, cfg, x)
    assert bool((active == (found.encode(x) > 0)).all())
    assert difference(out, found(x)) < 1e-5
    about = found.cfg.metadata
    assert (about["format"], about["site"]) == ("llama_scope", "layers.8.resid_post")
    assert about.get("site_out") == ("layers.8.mlp_out" if "hook_point_out" in changes else None)


def test_token_wise_norms_stay_an_operation_on_every_token(tmp_path):
    cfg, t, x = settings(act_fn="relu", norm_activation="token-wise"), weights(), tokens()
    found = saeworks.load(folder(tmp_path / "a", cfg, t))
    length = x.norm(dim=1, keepdim=True) / math.sqrt(D)
    out = trained(t, {**cfg, "norm_activation": "none"}, x / length)[1] * length
    assert difference(out, found(x)) < 1e-5


@pytest.mark.parametrize("named", [False, True])
def test_the_later_layout_has_logarithms_of_thresholds_and_norms_among_the_weights(tmp_path, named):
    t, x = weights(), tokens()
    hooks = {"hook_point_in": "blocks.8.hook_resid_post", "hook_point_out": "blocks.8.hook_resid_post"}
    cfg = {"act_fn": "jumprelu", "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, **hooks}
    logs = torch.randn(N, generator=torch.Generator().manual_seed(3))
    stored = {**t, "log_jumprelu_threshold": logs}
    if named:
        stored = {"W_E": t["encoder.weight"].T, "b_E": t["encoder.bias"]}
        stored |= {"W_D": t["decoder.weight"].T, "b_D": t["decoder.bias"]}
        stored |= {"activation_function.log_jumprelu_threshold": logs}
        stored |= {"dataset_average_activation_norm.blocks.8.hook_resid_post": torch.tensor(NORM_IN)}
    (tmp_path / "L8R").mkdir()
    save_file({k: v.contiguous() for k, v in stored.items()}, tmp_path / "L8R" / "sae_weights.safetensors")
    (tmp_path / "L8R" / "config.json").write_text(json.dumps({**cfg, "d_model": D}))
    if not named:
        with pytest.raises(InputError, match="does not say by which positive norms"):
            saeworks.load(tmp_path / "L8R")
    found = saeworks.load(tmp_path / "L8R", hints=None if named else {"norm_scaling_factor": math.sqrt(D) / NORM_IN})
    active, out = trained(t, settings(), x, threshold=logs.exp())
    assert bool((active == (found.encode(x) > 0)).all())
    assert difference(out, found(x)) < 1e-5
    assert found.cfg.metadata["format"] == "llama_scope_2"


KINDS = [
    {"architecture": "relu"},
    {"architecture": "relu", "pre_bias": False},
    {"architecture": "relu", "input_op": "constant_norm"},
    {"architecture": "relu", "d_out": 4},
    {"architecture": "topk"},
    {"architecture": "topk", "norm_weighted": True},
    {"architecture": "topk", "d_out": D},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_dictionary_comes_back_with_the_same_function(tmp_path, kind):
    d, x = dictionary(**kind), tokens()
    write(d, tmp_path / "out", "llama_scope")
    again = saeworks.load(tmp_path / "out")
    assert_same(d, again, latents=False)
    assert again.cfg.d_out == d.cfg.d_out
    cfg = json.loads((tmp_path / "out" / "hyperparams.json").read_text())
    assert set(settings()) <= set(cfg)
    if "input_op" not in kind:
        t = load_file(tmp_path / "out" / "checkpoints" / "final.safetensors")
        assert difference(trained(t, cfg, x)[1], d(x)) < 1e-5


def test_one_threshold_for_directions_of_norm_1_can_be_written_and_others_not(tmp_path):
    d, x = dictionary("jumprelu"), tokens()
    with pytest.raises(InputError, match="one threshold for all latents"):
        write(d, tmp_path / "out", "llama_scope")
    d = d.replace(W_dec=d.W_dec / d.W_dec.norm(dim=1, keepdim=True), threshold=torch.full((N,), 0.4))
    write(d.replace(threshold=torch.full((N,), 0.4)), tmp_path / "out", "llama_scope")
    assert difference(d(x), saeworks.load(tmp_path / "out")(x)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"architecture": "groupmax"}, "no groupmax"),
        ({"architecture": "relu", "skip": True}, "W_skip"),
        ({"architecture": "relu", "input_op": "layer_norm"}, "layer_norm"),
    ],
)
def test_what_the_format_cannot_say_is_refused(tmp_path, kind, words):
    with pytest.raises(InputError, match=words):
        write(dictionary(**kind), tmp_path / "out", "llama_scope")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"act_fn": "tanh"}, "activation 'tanh'"),
        ({"use_glu_encoder": True}, "gated encoder"),
        ({"norm_activation": "batch-wise"}, "depends on the batch"),
        ({"dataset_average_activation_norm": {"in": 0.0, "out": 1.0}}, "positive norms"),
        ({"norm_activation": "token-wise", "hook_point_out": "blocks.8.hook_mlp_out"}, "unknown when it is used"),
        ({"jump_relu_threshold": None}, "has no threshold"),
        ({"act_fn": "topk", "top_k": None}, "1 <= k <= 16"),
    ],
)
def test_settings_that_make_no_sense_are_sentences(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        saeworks.load(folder(tmp_path / "a", settings(**changes), weights()))
