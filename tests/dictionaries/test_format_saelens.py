"""SAELens: folders of version 6 and of those before it against their formulas, round trips, refusals."""

import json

import pytest
import torch
from format_cases import OUT, D, K, N, assert_same, dictionary, difference, tokens
from safetensors.torch import load_file, save_file

import saeworks
from saeworks.dictionaries.folding import fold_decoder_norm
from saeworks.dictionaries.formats.registry import write
from saeworks.errors import InputError


def tensors(*more, seed=0, out=D):
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, out), "b_dec": (out,), "threshold": (N,), "W_skip": (out, D)}
    shapes |= {"b_gate": (N,), "b_mag": (N,), "r_mag": (N,), "log_threshold": (N,)}
    made = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    if "b_gate" in more:
        return {name: made[name] for name in ("W_enc", "W_dec", "b_dec", *more)}
    return {name: made[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", *more)}


def settings(architecture, **changes):
    about = {"sae_lens_version": "6.18.0", "model_name": "gpt2-small", "hook_name": "blocks.5.hook_resid_pre"}
    base = {"architecture": architecture, "d_in": D, "d_sae": N, "dtype": "float32", "device": "cpu"}
    base |= {"apply_b_dec_to_input": "transcoder" not in architecture, "normalize_activations": "none"}
    return {**base, "reshape_activations": "none", "metadata": {**about, "context_size": 128}, **changes}


def folder(path, cfg, t):
    path.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in t.items()}, path / "sae_weights.safetensors")
    (path / "cfg.json").write_text(json.dumps(cfg))
    return path


def by_hand(cfg, t, x):
    """Latents and output, as the documentation of the architecture says."""
    norms = t["W_dec"].norm(dim=1)
    u = (x - t["b_dec"] if cfg["apply_b_dec_to_input"] else x) @ t["W_enc"]
    name = cfg["architecture"]
    if name == "gated":
        f = (u + t["b_gate"] > 0) * (t["r_mag"].exp() * u + t["b_mag"]).relu()
    elif "jumprelu" in name:
        z = u + t["b_enc"]
        f = z.relu() * (z > t["threshold"])
    elif name == "topk":
        z = u + t["b_enc"]
        z = z * norms if cfg.get("rescale_acts_by_decoder_norm") else z
        f = torch.zeros_like(z).scatter(1, *reversed(z.topk(cfg["k"], 1))).relu()
    else:
        f = (u + t["b_enc"]).relu()
    out = f / norms if cfg.get("rescale_acts_by_decoder_norm") else f
    out = out @ t["W_dec"] + t["b_dec"]
    return f, out + x @ t["W_skip"].T if "W_skip" in t else out


VERSION_6 = [
    (settings("standard"), tensors()),
    (settings("standard", apply_b_dec_to_input=False), tensors()),
    (settings("jumprelu"), tensors("threshold")),
    (settings("gated"), tensors("b_gate", "b_mag", "r_mag")),
    (settings("topk", k=K, rescale_acts_by_decoder_norm=False), tensors()),
    (settings("topk", k=K, rescale_acts_by_decoder_norm=True), tensors()),
    (settings("transcoder", d_out=4), tensors(out=4)),
    (settings("skip_transcoder", d_out=4), tensors("W_skip", out=4)),
    (settings("jumprelu_transcoder", d_out=4), tensors("threshold", out=4)),
    (settings("jumprelu_skip_transcoder", d_out=OUT), tensors("threshold", "W_skip")),
]


@pytest.mark.parametrize(
    ("cfg", "t"), VERSION_6, ids=[f"{c['architecture']}-{i}" for i, (c, _) in enumerate(VERSION_6)]
)
def test_a_folder_of_version_6_does_what_saelens_does(tmp_path, cfg, t):
    found, x = saeworks.load(folder(tmp_path / "sae", cfg, t)), tokens()
    f, out = by_hand(cfg, t, x)
    assert difference(f, found.encode(x)) < 1e-5
    assert difference(out, found(x)) < 1e-5
    about = found.cfg.metadata
    assert (about["format"], about["model_name"]) == ("saelens", "openai-community/gpt2")
    assert (about["site"], about["context_length"]) == ("layers.5.resid_pre", 128)


@pytest.mark.parametrize(
    ("flat", "change"),
    [
        ({"hook_point": "blocks.5.hook_resid_pre", "hook_point_layer": 5}, None),
        ({"hook_name": "blocks.5.hook_resid_pre", "activation_fn_str": "relu", "normalize_activations": False}, None),
        ({"hook_name": "blocks.5.hook_resid_pre", "activation_fn": "relu", "normalize_activations": None}, "ones"),
        ({"hook_name": "blocks.5.hook_resid_pre", "finetuning_scaling_factor": True}, "factor"),
    ],
)
def test_flat_settings_of_earlier_versions_are_read(tmp_path, flat, change):
    t = tensors()
    factor = torch.rand(N) + 0.5 if change == "factor" else torch.ones(N)
    extra = {"factor": {"finetuning_scaling_factor": factor}, "ones": {"scaling_factor": factor}, None: {}}[change]
    cfg = {"d_in": D, "d_sae": N, "dtype": "torch.float32", "model_name": "gpt2-small", **flat}
    found, x = saeworks.load(folder(tmp_path / "sae", cfg, {**t, **extra})), tokens()
    out = by_hand(settings("standard"), {**t, "W_dec": t["W_dec"] * factor[:, None]}, x)[1]
    assert difference(out, found(x)) < 1e-5
    assert found.cfg.metadata["site"] == "layers.5.resid_pre"


def test_k_of_earlier_versions_is_an_argument_of_the_activation_function(tmp_path):
    t = tensors()
    cfg = {"d_in": D, "d_sae": N, "hook_name": "blocks.1.hook_mlp_out", "activation_fn_str": "topk"}
    found = saeworks.load(folder(tmp_path / "sae", {**cfg, "activation_fn_kwargs": {"k": K}}, t))
    assert (found.cfg.architecture, found.cfg.k, found.cfg.apply_b_dec_to_input) == ("topk", K, True)
    assert found.cfg.metadata["site"] == "layers.1.mlp_out"


def test_checkpoints_of_training_are_what_they_are_at_inference(tmp_path):
    t, x = tensors("log_threshold"), tokens()
    found = saeworks.load(folder(tmp_path / "a", settings("jumprelu"), t))
    expected = by_hand(settings("jumprelu"), {**t, "threshold": t["log_threshold"].exp()}, x)[1]
    assert difference(expected, found(x)) < 1e-5
    t = {**tensors(), "topk_threshold": torch.tensor(0.7, dtype=torch.float64)}
    found = saeworks.load(folder(tmp_path / "b", settings("batchtopk"), t))
    assert found.threshold is not None
    assert torch.equal(found.threshold, torch.full((N,), 0.7))


@pytest.mark.parametrize(("op", "name"), [("layer_norm", "layer_norm"), ("constant_norm_rescale", "constant_norm")])
def test_operations_on_every_token_are_kept(tmp_path, op, name):
    t, x = tensors(), tokens()
    found = saeworks.load(folder(tmp_path / "sae", settings("standard", normalize_activations=op), t))
    assert found.cfg.input_op == name
    mean = x.mean(1, keepdim=True) if name == "layer_norm" else 0.0
    scale = x.std(1, keepdim=True) + 1e-5 if name == "layer_norm" else x.norm(dim=1, keepdim=True) / D**0.5
    out = by_hand(settings("standard"), t, (x - mean) / scale)[1] * scale + mean
    assert difference(out, found(x)) < 1e-5
    write(found, tmp_path / "out", "saelens")
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["normalize_activations"] == op


def test_the_factor_of_a_release_is_folded_in_with_latents_as_they_were(tmp_path):
    t, x = tensors(), tokens()
    cfg = settings("standard", normalize_activations="expected_average_only_in")
    found = saeworks.load(folder(tmp_path / "sae", cfg, t), hints={"norm_scaling_factor": 0.37})
    f, out = by_hand(settings("standard"), t, 0.37 * x)
    assert difference(f, found.encode(x)) < 1e-5
    assert difference(out / 0.37, found(x)) < 1e-5


def test_firing_rates_beside_the_weights_are_the_claimed_l0(tmp_path):
    path = folder(tmp_path / "sae", settings("standard"), tensors())
    save_file({"sparsity": torch.full((N,), 0.25).log10()}, path / "sparsity.safetensors")
    assert saeworks.load(path).cfg.metadata["claimed"]["l0"] == pytest.approx(0.25 * N)


KINDS = [
    {"architecture": "relu"},
    {"architecture": "relu", "pre_bias": False},
    {"architecture": "jumprelu"},
    {"architecture": "topk"},
    {"architecture": "topk", "input_op": "layer_norm"},
    {"architecture": "relu", "input_op": "constant_norm"},
    {"architecture": "relu", "d_out": 4},
    {"architecture": "relu", "d_out": 4, "skip": True},
    {"architecture": "jumprelu", "d_out": 4},
    {"architecture": "jumprelu", "d_out": 4, "skip": True},
    {"architecture": "jumprelu", "skip": True},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_dictionary_comes_back_as_it_went(tmp_path, kind):
    d = dictionary(**kind)
    write(d, tmp_path / "out", "saelens")
    again = saeworks.load(tmp_path / "out")
    assert_same(d, again)
    assert again.cfg.metadata == {**d.cfg.metadata, **again.cfg.metadata}
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert cfg["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    if "input_op" not in kind:
        t = load_file(tmp_path / "out" / "sae_weights.safetensors")
        assert difference(by_hand(cfg, t, tokens())[1], d(tokens())) < 1e-5


def test_norm_weighted_topk_is_written_with_its_norms_folded(tmp_path):
    d, x = dictionary("topk", norm_weighted=True), tokens()
    write(d, tmp_path / "out", "saelens")
    again = saeworks.load(tmp_path / "out")
    assert difference(d(x), again(x)) < 1e-5
    assert difference(fold_decoder_norm(d).encode(x), again.encode(x)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"architecture": "groupmax"}, "no groupmax"),
        ({"architecture": "relu", "sources": ("a", "b")}, "crosscoder"),
        ({"architecture": "topk", "d_out": 4}, "no transcoder with topk"),
        ({"architecture": "relu", "d_out": D, "input_op": "layer_norm"}, "'layer_norm'"),
    ],
)
def test_what_saelens_has_no_place_for_is_refused(tmp_path, kind, words):
    with pytest.raises(InputError, match=words):
        write(dictionary(**kind), tmp_path / "out", "saelens")


@pytest.mark.parametrize(
    ("cfg", "t", "words"),
    [
        (settings("jumprelux"), tensors(), "Did you mean 'jumprelu'"),
        (settings("temporal"), tensors(), "unknown here"),
        (settings("jumprelu"), tensors(), "has no threshold"),
        (settings("topk"), tensors(), "how many latents"),
        (settings("standard", normalize_activations="covariance_whitening"), tensors(), "covariance_whitening"),
        (settings("standard", activation_fn_str="tanh-relu"), tensors(), "tanh-relu"),
        (settings("transcoder", normalize_activations="layer_norm"), tensors(), "but not its outputs"),
        (settings("transcoder", apply_b_dec_to_input=True), tensors(), "subtracts b_dec"),
        (settings("batchtopk"), {**tensors(), "topk_threshold": torch.tensor(-1.0)}, "never calibrated"),
        (settings("standard"), {**tensors(), "b_enc": torch.zeros(N - 1)}, "b_enc has the shape"),
        (settings("standard"), {**tensors(), "W_enc": torch.zeros(D, N, 2)}, "2 dimensions"),
        (settings("standard"), {**tensors(), "b_dec": torch.zeros(D, dtype=torch.int32)}, "torch.int32"),
        (settings("standard"), {**tensors(), "b_dec": torch.full((D,), torch.nan)}, "not finite"),
    ],
)
def test_what_a_folder_lacks_or_contradicts_is_a_sentence(tmp_path, cfg, t, words):
    with pytest.raises(InputError, match=words):
        saeworks.load(folder(tmp_path / "sae", cfg, t))
