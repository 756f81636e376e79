"""dictionary_learning: every class of dictionary against its formula, backups, round trips, refusals."""

import json

import pytest
import torch
from format_cases import D, K, N, assert_same, dictionary, difference, tokens

import saeworks
from saeworks.dictionaries.formats.registry import write
from saeworks.errors import InputError


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(**more):
    return {"encoder.weight": draw(N, D, seed=1), "decoder.weight": draw(D, N, seed=2), **more}


def plain(**more):
    return {"W_enc": draw(D, N, seed=1), "W_dec": draw(N, D, seed=2), "b_enc": draw(N, seed=3), **more}


K_, THRESHOLD = torch.tensor(K, dtype=torch.int32), torch.tensor(0.8)
STATES = {
    "AutoEncoder": linear(**{"bias": draw(D, seed=4), "encoder.bias": draw(N, seed=3)}),
    "AutoEncoderNew": linear(**{"decoder.bias": draw(D, seed=4), "encoder.bias": draw(N, seed=3)}),
    "GatedAutoEncoder": linear(
        decoder_bias=draw(D, seed=4), r_mag=draw(N, seed=5), gate_bias=draw(N, seed=6), mag_bias=draw(N, seed=7)
    ),
    "JumpReluAutoEncoder": plain(b_dec=draw(D, seed=4), threshold=draw(N, seed=5)),
    "AutoEncoderTopK": linear(
        **{"b_dec": draw(D, seed=4), "encoder.bias": draw(N, seed=3), "k": K_, "threshold": torch.tensor(-1.0)}
    ),
    "BatchTopKSAE": linear(
        **{"b_dec": draw(D, seed=4), "encoder.bias": draw(N, seed=3), "k": K_, "threshold": THRESHOLD}
    ),
    "MatryoshkaBatchTopKSAE": plain(
        b_dec=draw(D, seed=4), k=K_, threshold=THRESHOLD, group_sizes=torch.tensor([4, 4, 8])
    ),
}


def by_hand(name, s, x):
    """Latents and output, as the class computes them."""
    if name == "GatedAutoEncoder":
        u = (x - s["decoder_bias"]) @ s["encoder.weight"].T
        f = (u + s["gate_bias"] > 0) * (s["r_mag"].exp() * u + s["mag_bias"]).relu()
        return f, f @ s["decoder.weight"].T + s["decoder_bias"]
    if name == "AutoEncoderNew":
        f = (x @ s["encoder.weight"].T + s["encoder.bias"]).relu()
        return f * s["decoder.weight"].norm(dim=0), f @ s["decoder.weight"].T + s["decoder.bias"]
    if name in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        z = (x - s["b_dec"] * (name[0] == "M")) @ s["W_enc"] + s["b_enc"]
        f = z.relu() * (z > s["threshold"])
        return f, f @ s["W_dec"] + s["b_dec"]
    bias = s["bias"] if name == "AutoEncoder" else s["b_dec"]
    f = ((x - bias) @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    if name == "AutoEncoderTopK":
        f = torch.zeros_like(f).scatter(1, *reversed(f.topk(K, 1)))
    if name == "BatchTopKSAE":
        f = f * (f > s["threshold"])
    return f, f @ s["decoder.weight"].T + bias


def trainer(name, **more):
    about = {"trainer_class": "T", "dict_class": name, "activation_dim": D, "dict_size": N, "layer": 8, "seed": 0}
    about |= {"lm_name": "EleutherAI/pythia-160m-deduped", "submodule_name": "resid_post_layer_8"}
    return {"trainer": {**about, **more}, "buffer": {"d_submodule": D, "io": "out", "ctx_len": 1024}}


def folder(path, name, state, config=True):
    path.mkdir(parents=True)
    torch.save(state, path / "ae.pt")
    if config:
        more = {"k": K} if "k" in state else {}
        (path / "config.json").write_text(json.dumps(trainer(name, **more)))
    return path


@pytest.mark.parametrize("name", STATES)
def test_every_class_does_what_its_library_does(tmp_path, name):
    found, x = saeworks.load(folder(tmp_path / "trainer_0", name, STATES[name])), tokens()
    f, out = by_hand(name, STATES[name], x)
    assert difference(f, found.encode(x)) < 1e-5
    assert difference(out, found(x)) < 1e-5
    about = found.cfg.metadata
    assert (about["format"], about["dict_class"]) == ("dictionary_learning", name)
    assert about["model_name"] == "EleutherAI/pythia-160m-deduped"
    assert about["site"] == "layers.8.resid_post"


def test_results_of_its_evals_are_what_verify_compares_with(tmp_path):
    path = folder(tmp_path / "t", "AutoEncoder", STATES["AutoEncoder"])
    (path / "eval_results.json").write_text(json.dumps({"l0": 31.5, "frac_variance_explained": 0.9, "loss": 1.0}))
    assert saeworks.load(path).cfg.metadata["claimed"] == {"l0": 31.5, "explained_variance": 0.9}


@pytest.mark.parametrize("name", [n for n in STATES if n not in ("AutoEncoderTopK", "BatchTopKSAE")])
def test_without_settings_the_tensors_say_which_class_it_is(tmp_path, name):
    found = saeworks.load(folder(tmp_path / "t", name, STATES[name], config=False))
    assert found.cfg.metadata["dict_class"] == name


def test_tensors_of_two_classes_need_settings(tmp_path):
    with pytest.raises(InputError, match="may be AutoEncoderTopK or BatchTopKSAE"):
        saeworks.load(folder(tmp_path / "t", "", STATES["BatchTopKSAE"], config=False))


@pytest.mark.parametrize("name", ["AutoEncoder", "JumpReluAutoEncoder", "BatchTopKSAE"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_backups_are_brought_to_raw_units_and_prefixes_fall(tmp_path, name, prefix):
    factor, x = 3.7, tokens()
    state = {"ae": {prefix + key: value for key, value in STATES[name].items()}, "norm_factor": factor, "step": 7}
    found = saeworks.load(folder(tmp_path / "t", name, state))
    f, out = by_hand(name, STATES[name], x / factor)
    assert difference(out * factor, found(x)) < 1e-5
    assert difference(f * factor, found.encode(x)) < 1e-5


def test_checkpoints_find_the_settings_one_folder_up(tmp_path):
    path = folder(tmp_path / "t", "BatchTopKSAE", STATES["BatchTopKSAE"])
    (path / "checkpoints").mkdir()
    (path / "ae.pt").rename(path / "checkpoints" / "ae_500.pt")
    found = saeworks.load(path / "checkpoints" / "ae_500.pt")
    assert found.cfg.metadata["dict_class"] == "BatchTopKSAE"


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("kind", [0, 1, 2, 4])
def test_crosscoders_have_sources_and_thresholds_on_weighted_latents(tmp_path, kind, normalised):
    encoder, decoder, x = draw(2, D, N, seed=1), draw(2, N, D, seed=2), tokens(2 * D)
    s = {"encoder.weight": encoder, "encoder.bias": draw(N, seed=3)}
    s |= {"decoder.weight": decoder, "decoder.bias": draw(2, D, seed=4)}
    if kind:
        s |= {"k": K_, "threshold": THRESHOLD, "code_normalization_id": torch.tensor(kind)}
    mean, scale = torch.zeros(2, D), torch.ones(2)
    if normalised:
        mean, scale = draw(2, D, seed=5), torch.tensor([0.5, 2.0])
        s |= {"activation_mean": mean, "activation_global_scale": scale}
    found = saeworks.load(folder(tmp_path / "t", "BatchTopKCrossCoder" if kind else "CrossCoder", s))
    inside = (x.view(-1, 2, D) - mean) * scale[:, None]
    f = (torch.einsum("tsd,sdn->tn", inside, encoder) + s["encoder.bias"]).relu()
    norms = {0: None, 1: decoder.norm(dim=2).sum(0), 2: decoder.norm(dim=(0, 2)), 4: torch.ones(N)}[kind]
    if norms is not None:
        f = f * (f * norms > THRESHOLD)
    out = (torch.einsum("tn,snd->tsd", f, decoder) + s["decoder.bias"]) / scale[:, None] + mean
    assert difference(out.reshape(-1, 2 * D), found(x)) < 1e-5
    assert found.cfg.sources == ("source_0", "source_1")


SCALES = torch.tensor([0.5, 2.0])


def decoupled(**changes):
    """A crosscoder with a threshold for each source; latent 3 writes nothing to the second."""
    decoder = draw(2, N, D, seed=2)
    decoder[1, 3] = 0
    state = {"encoder.weight": draw(2, D, N, seed=1), "encoder.bias": draw(N, seed=3), "decoder.weight": decoder}
    state |= {"decoder.bias": draw(2, D, seed=4), "k": K_, "threshold": torch.tensor([2.0, 4.0])}
    return state | {"code_normalization_id": torch.tensor(5)} | changes


def decoupled_by_hand(s, x, normalise):
    """Codes ``[token, source, latent]`` and outputs, as their class computes them."""
    inside = normalise(normalise(x.view(-1, 2, D)))  # twice: the outer method and the one that it calls
    pre = (torch.einsum("tsd,sdn->tn", inside, s["encoder.weight"]) + s["encoder.bias"]).relu()
    scaled = pre[:, None] * s["decoder.weight"].norm(dim=2)
    f = pre[:, None] * (scaled > s["threshold"][:, None])
    return f, torch.einsum("tsn,snd->tsd", f, s["decoder.weight"]) + s["decoder.bias"]


@pytest.mark.parametrize("normalised", [False, True])
def test_a_decoupled_crosscoder_is_one_whose_latents_write_to_one_source_each(tmp_path, normalised):
    s, x, mean = decoupled(), tokens(2 * D), draw(2, D, seed=5)
    if normalised:
        s |= {"activation_mean": mean, "activation_global_scale": SCALES}
    mean, scale = (mean, SCALES[:, None]) if normalised else (0.0, 1.0)
    found = saeworks.load(folder(tmp_path / "t", "BatchTopKCrossCoder", s))
    f, out = decoupled_by_hand(s, x, lambda inside: (inside - mean) * scale)
    apart = ((f > 0).sum(dim=1) == 1).float().mean()
    assert apart > 0.02, "latents that are on for one source and off for the other"
    assert found.cfg.d_sae == 2 * N
    codes = found.encode(x).view(-1, 2, N)
    assert torch.equal(codes > 0, f > 0)
    factor = SCALES.log().mean().exp() if normalised else 1.0  # where units are folded, codes are divided by it
    assert difference(f / factor, codes) < 1e-5
    assert difference(((out / scale) + mean).flatten(1), found(x)) < 1e-5
    norms = found.decoder_norms().view(2, 2, N)
    assert not norms[0, 1].any()
    assert not norms[1, 0].any()
    assert found.cfg.metadata["decoupled"] == {"latents": N, "normalised": "twice" if normalised else "never"}


def test_a_plain_crosscoder_has_one_code_whatever_its_penalty_was(tmp_path):
    s = {name: value for name, value in decoupled().items() if name not in ("k", "threshold")}
    found, x = saeworks.load(folder(tmp_path / "t", "CrossCoder", s)), tokens(2 * D)
    f = (torch.einsum("tsd,sdn->tn", x.view(-1, 2, D), s["encoder.weight"]) + s["encoder.bias"]).relu()
    assert found.cfg.d_sae == N
    assert difference(f, found.encode(x)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threshold": torch.tensor([2.0, -1.0])}, "no calibrated threshold"),
        ({"threshold": torch.tensor([2.0, 1.0, 1.0])}, r"'threshold' has the shape \[3\]; \[2\] is needed"),
        ({"threshold": THRESHOLD}, "1 dimensions are needed"),
        ({"threshold": THRESHOLD, "code_normalization_id": torch.tensor(3)}, "a mixture of norms"),
        ({"threshold": THRESHOLD, "code_normalization_id": torch.tensor(6)}, "unknown here; 1 to 5"),
        ({"code_normalization_id": torch.tensor(1)}, "one number is expected"),
    ],
)
def test_thresholds_that_do_not_fit_their_crosscoder_are_refused(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        saeworks.load(folder(tmp_path / "t", "BatchTopKCrossCoder", decoupled(**changes)))


KINDS = [
    {"architecture": "relu"},
    {"architecture": "relu", "pre_bias": False},
    {"architecture": "jumprelu"},
    {"architecture": "jumprelu", "pre_bias": False},
    {"architecture": "topk"},
    {"architecture": "topk", "pre_bias": False},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_dictionary_comes_back_as_it_went(tmp_path, kind):
    d = dictionary(**kind)
    write(d, tmp_path / "out", "dictionary_learning")
    again, x = saeworks.load(tmp_path / "out"), tokens()
    assert_same(d, again, latents=kind != KINDS[1])
    name = json.loads((tmp_path / "out" / "config.json").read_text())["trainer"]["dict_class"]
    state = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)
    assert set(state) == set(STATES[name])
    assert difference(by_hand(name, state, x)[1], d(x)) < 1e-5


def test_matryoshka_groups_and_their_threshold_come_back(tmp_path):
    d = dictionary("jumprelu", metadata={"group_sizes": [4, 12], "k": K})
    d = d.replace(threshold=torch.full((N,), 0.6))
    write(d, tmp_path / "out", "dictionary_learning")
    again = saeworks.load(tmp_path / "out")
    assert_same(d, again)
    assert again.cfg.metadata["group_sizes"] == [4, 12]
    state = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)
    assert set(state) == set(STATES["MatryoshkaBatchTopKSAE"])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"architecture": "groupmax"}, "no groupmax"),
        ({"architecture": "relu", "d_out": D}, "transcoder"),
        ({"architecture": "relu", "skip": True}, "x W_skip"),
        ({"architecture": "topk", "input_op": "layer_norm"}, "layer_norm"),
        ({"architecture": "relu", "sources": ("a", "b")}, "crosscoder"),
    ],
)
def test_what_no_class_can_do_is_refused(tmp_path, kind, words):
    with pytest.raises(InputError, match=words):
        write(dictionary(**kind), tmp_path / "out", "dictionary_learning")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("AutoEncoderX", {}, "unknown here"),
        ("AutoEncoder", {"r_mag": draw(N, seed=1)}, "are those of GatedAutoEncoder"),
        ("BatchTopKSAE", {"threshold": torch.tensor(-1.0)}, "never calibrated"),
        ("BatchTopKSAE", {"threshold": torch.zeros(3)}, "one number is expected"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([4, 4])}, "do not add up"),
        ("AutoEncoder", {"encoder.weight": draw(D, N, seed=1)}, "has the shape"),
        ("AutoEncoder", {"bias": torch.full((D,), torch.inf)}, "not finite"),
        ("AutoEncoder", {"bias": torch.zeros(D, dtype=torch.int64)}, "floating-point"),
    ],
)
def test_what_a_folder_lacks_or_contradicts_is_a_sentence(tmp_path, name, change, words):
    state = {**STATES.get(name, STATES["AutoEncoder"]), **change}
    with pytest.raises(InputError, match=words):
        saeworks.load(folder(tmp_path / "t", name, state))


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_backup_with_an_impossible_factor_is_refused(tmp_path, factor):
    with pytest.raises(InputError, match="norm_factor"):
        saeworks.load(folder(tmp_path / "t", "AutoEncoder", {"ae": STATES["AutoEncoder"], "norm_factor": factor}))
