"""Transcoders, crosscoders, groups, operations on tokens, weighted selection: formulas, exact rewrites, refusals."""

import json

import pytest
import torch

import saeworks
from saeworks.dictionaries.config import DictionaryConfig
from saeworks.dictionaries.dictionary import TENSORS, Dictionary
from saeworks.dictionaries.folding import (
    fold_decoder_norm,
    fold_normalization,
    fold_pre_bias,
    gated_to_jumprelu,
    unfold_pre_bias,
)
from saeworks.dictionaries.kernels.selection import select_groupmax
from saeworks.errors import InputError

D, N, K = 6, 12, 3


def make(architecture="jumprelu", seed=0, d_in=D, dtype=torch.float64, **settings):
    """Random weights, decoder rows of different norms."""
    draw = torch.Generator().manual_seed(seed)
    settings = {"apply_b_dec_to_input": "d_out" not in settings, **settings}
    k = K if architecture in ("topk", "groupmax") else None
    cfg = DictionaryConfig(architecture=architecture, d_in=d_in, d_sae=N, k=k, **settings)
    shapes = {
        "W_enc": (d_in, N),
        "W_dec": (N, cfg.output_width),
        "b_enc": (N,),
        "b_dec": (cfg.output_width,),
        "threshold": (N,) if architecture == "jumprelu" else None,
        "W_skip": (d_in, cfg.output_width) if cfg.skip else None,
    }
    drawn = {n: None if s is None else torch.randn(*s, generator=draw, dtype=dtype) for n, s in shapes.items()}
    drawn["W_dec"] *= torch.rand(N, 1, generator=draw, dtype=dtype) * 3 + 0.2
    return Dictionary(cfg, **drawn)


def rows(d=D, tokens=30, dtype=torch.float64):
    x = torch.randn(tokens, d, generator=torch.Generator().manual_seed(9), dtype=dtype)
    return torch.cat([0.1 * x, x, 10 * x])


CROSS = {"d_in": 2 * D, "sources": ("base", "chat")}
UNEVEN = {"d_in": D + 2, "sources": ("a", "b"), "source_widths": (D, 2)}
ALL = {
    "groupmax": {"architecture": "groupmax"},
    "transcoder": {"d_out": 4},
    "square transcoder": {"d_out": D, "architecture": "relu"},
    "skip transcoder": {"d_out": 4, "skip": True, "architecture": "topk"},
    "crosscoder": CROSS,
    "uneven crosscoder": {**UNEVEN, "architecture": "topk", "norm_weighted": True},
    "layer norm": {"input_op": "layer_norm", "architecture": "topk"},
    "constant norm": {"input_op": "constant_norm"},
    "weighted topk": {"architecture": "topk", "norm_weighted": True},
    "weighted groups": {"architecture": "groupmax", "norm_weighted": True},
}


def by_hand(s, x):
    """Latents and output of ``x [token, d_in]``."""
    mean, size = 0.0, 1.0
    if s.cfg.input_op == "layer_norm":
        mean, size = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True) + 1e-5
    elif s.cfg.input_op == "constant_norm":
        size = x.norm(dim=1, keepdim=True) / D**0.5
    given = (x - mean) / size
    z = (given - s.b_dec if s.cfg.apply_b_dec_to_input else given) @ s.W_enc + s.b_enc
    scores = z
    if s.cfg.norm_weighted:
        parts = s.W_dec.split(list(s.cfg.widths), dim=1) if s.cfg.sources else (s.W_dec,)
        scores = z * sum(part.norm(dim=1) for part in parts)
    on = torch.zeros_like(z)
    if s.cfg.architecture == "topk":
        on.scatter_(1, scores.topk(K, dim=1).indices, 1)
    elif s.cfg.architecture == "groupmax":
        for group in range(K):
            block = slice(group * N // K, (group + 1) * N // K)
            on[:, block].scatter_(1, scores[:, block].argmax(dim=1, keepdim=True), 1)
    else:
        on = (z > (s.threshold if s.threshold is not None else 0)).double()
    f = z.relu() * on
    out = f @ s.W_dec + s.b_dec
    if s.W_skip is not None:
        out = out + given @ s.W_skip
    return f, out * size + mean


@pytest.mark.parametrize("kind", ALL)
def test_latents_and_output_are_the_written_formula(kind):
    s = make(**ALL[kind])
    x = rows(s.cfg.d_in)
    f, out = by_hand(s, x)
    assert torch.allclose(s.encode(x), f, atol=1e-12)
    assert torch.allclose(s(x), out, atol=1e-11)
    assert torch.allclose(s.decode(f, x), out, atol=1e-11)
    assert torch.allclose(s.decode(s.encode_sparse(x), x), out, atol=1e-11)
    shaped = x.view(3, 30, -1)
    assert torch.equal(s(shaped), s(x).view(3, 30, -1))
    assert f.count_nonzero() > 0


@pytest.mark.parametrize("kind", ALL)
def test_files_give_back_the_same_bits(tmp_path, kind):
    s = make(**ALL[kind], dtype=torch.float32)
    s.save(tmp_path / "d")
    again = saeworks.load(tmp_path / "d")
    assert (again.cfg, again.fingerprint()) == (s.cfg, s.fingerprint())
    x = rows(s.cfg.d_in, dtype=torch.float32)
    assert torch.equal(again(x), s(x))


def test_a_file_of_version_1_means_what_it_meant(tmp_path):
    s = make("topk", dtype=torch.float32)
    s.save(tmp_path / "d")
    path = tmp_path / "d" / "cfg.json"
    cfg = json.loads(path.read_text())
    kept = ("architecture", "d_in", "d_sae", "k", "apply_b_dec_to_input", "metadata")
    path.write_text(json.dumps({"schema_version": 1, **{key: cfg[key] for key in kept}}))
    again = saeworks.load(tmp_path / "d")
    assert again.cfg == s.cfg
    assert again.cfg.schema_version == 2
    path.write_text(json.dumps({**cfg, "schema_version": 3}))
    with pytest.raises(InputError, match="schema_version"):
        saeworks.load(tmp_path / "d")


def test_of_equal_maxima_in_a_group_the_lowest_latent_wins():
    z = torch.tensor([[1.0, 2.0, 2.0, -1.0, -2.0, 0.0], [-1.0, -1.0, -1.0, 3.0, 3.0, 3.0]])
    codes = select_groupmax(z, 2)
    assert codes.dense().tolist() == [[0, 2, 0, 0, 0, 0], [0, 0, 0, 3, 0, 0]]
    assert codes.counts().tolist() == [1, 1]


def test_sources_come_stacked_or_flat_and_have_views():
    s, x = make(**CROSS), rows(2 * D)
    stacked = x.view(-1, 2, D)
    assert torch.equal(s.encode(stacked), s.encode(x))
    assert torch.equal(s(stacked), s(x).view(-1, 2, D))
    W_enc, W_dec, b_dec = s.source("chat")
    assert torch.equal(W_enc, s.W_enc[D:])
    assert torch.equal(W_dec, s.W_dec[:, D:])
    assert torch.equal(b_dec, s.b_dec[D:])
    assert torch.allclose(s.decoder_norms()[1], W_dec.norm(dim=1))
    assert W_enc.data_ptr() == s.encoder[:, D:].data_ptr(), "a view, not a copy"
    with pytest.raises(InputError, match=r"no source 'chta'\. Did you mean 'chat'"):
        s.source("chta")
    with pytest.raises(InputError, match="2 sources"):
        s.source(2)
    with pytest.raises(InputError, match="width 8"):
        make(**UNEVEN).encode(torch.zeros(3, 2, 4))


def test_what_needs_its_input_to_be_decoded_says_so():
    f = torch.zeros(2, N, dtype=torch.float64)
    with pytest.raises(InputError, match="adds x W_skip, so latents alone are not enough"):
        make(d_out=4, skip=True).decode(f)
    with pytest.raises(InputError, match="undoes 'layer_norm' token by token"):
        make(input_op="layer_norm").decode(f)
    assert make().decode(f).shape == (2, D)


def test_a_constant_token_does_not_become_nan():
    for op in ("layer_norm", "constant_norm"):
        s = make(input_op=op)
        assert bool(s(torch.zeros(2, D, dtype=torch.float64)).isfinite().all())
        assert bool(s(torch.full((2, D), 3.0, dtype=torch.float64)).isfinite().all())


@pytest.mark.parametrize("units", ["raw", "normalised"])
@pytest.mark.parametrize("kind", ["crosscoder", "uneven crosscoder", "groupmax", "weighted topk"])
def test_scales_fold_exactly(kind, units):
    s = make(**ALL[kind])
    x, scales = rows(s.cfg.d_in), [0.3, 2.5] if s.cfg.sources else 0.3
    factors = torch.tensor(scales).repeat_interleave(torch.tensor(s.cfg.widths)) if s.cfg.sources else scales
    if s.cfg.norm_weighted and s.cfg.sources:
        s = s.replace({"norm_weighted": False})  # norms in other units would choose otherwise
    folded = fold_normalization(s, scales, units)
    assert torch.allclose(folded(x), s(x * factors) / factors, atol=1e-10)
    common = (0.3 * 2.5) ** 0.5 if s.cfg.sources else 0.3
    assert torch.allclose(folded.encode(x), s.encode(x * factors) / (common if units == "raw" else 1), atol=1e-10)


@pytest.mark.parametrize("units", ["raw", "normalised"])
@pytest.mark.parametrize("kind", ["transcoder", "skip transcoder"])
def test_distinct_scales_of_input_and_target_fold_exactly(kind, units):
    s, x = make(**ALL[kind]), rows()
    folded = fold_normalization(s, 0.3, units, output_scale=1.7)
    assert torch.allclose(folded(x), s(0.3 * x) / 1.7, atol=1e-10)
    assert torch.allclose(folded.encode(x), s.encode(0.3 * x) / (0.3 if units == "raw" else 1), atol=1e-10)


@pytest.mark.parametrize("kind", ["transcoder", "crosscoder", "weighted topk", "weighted groups", "uneven crosscoder"])
def test_decoder_norms_fold_exactly(kind):
    s = make(**ALL[kind])
    folded, x = fold_decoder_norm(s), rows(s.cfg.d_in)
    assert torch.allclose(folded(x), s(x), atol=1e-10)
    assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(N, dtype=torch.float64))
    assert folded.cfg.norm_weighted == (s.cfg.norm_weighted and s.cfg.sources is not None)


def test_a_weighted_latent_without_direction_is_not_selected_after_folding():
    s = make("topk", norm_weighted=True)
    W_dec = s.W_dec.clone()
    W_dec[4] = 0
    s = s.replace(W_dec=W_dec, b_enc=s.b_enc + 50 * (torch.arange(N) == 4))
    folded, x = fold_decoder_norm(s), rows()
    assert torch.allclose(folded(x), s(x), atol=1e-10)
    assert s.encode(x)[:, 4].abs().max() == folded.encode(x)[:, 4].abs().max() == 0


def test_a_gate_is_exactly_a_threshold():
    draw = torch.Generator().manual_seed(3)
    W, b_gate, b_mag, r = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((D, N), (N,), (N,), (N,)))
    x = rows()
    u = x @ W
    f = ((u + b_gate) > 0) * (torch.exp(r) * u + b_mag).relu()
    W_enc, b_enc, threshold = gated_to_jumprelu(W, b_gate, b_mag, r)
    z = x @ W_enc + b_enc
    assert torch.allclose(z * (z > threshold), f, atol=1e-12), "without a ReLU, for readers that have none"
    assert (threshold == 0).any()
    assert (threshold > 0).any()


def test_the_bias_of_a_crosscoder_folds_but_a_transcoder_has_none():
    s, x = make(**CROSS), rows(2 * D)
    assert torch.allclose(fold_pre_bias(s)(x), s(x), atol=1e-10)
    transcoder = make(d_out=D)
    assert fold_pre_bias(transcoder) is transcoder
    with pytest.raises(InputError, match="cannot subtract b_dec"):
        unfold_pre_bias(transcoder)


REFUSED = [
    ({"d_out": 4, "apply_b_dec_to_input": True}, "cannot have apply_b_dec_to_input"),
    ({**CROSS, "d_out": 12, "apply_b_dec_to_input": False}, "cannot have sources"),
    ({**CROSS, "input_op": "layer_norm"}, "defined for one source"),
    ({**CROSS, "source_widths": (5, 6)}, "do not add up to d_in 12"),
    ({**CROSS, "sources": ("a", "a")}, "different names"),
    ({"source_widths": (3, 3)}, "without the names of the sources"),
    ({"norm_weighted": True}, "a 'jumprelu' dictionary has none"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_settings_that_contradict_each_other_are_sentences(settings, words):
    with pytest.raises(InputError, match=words):
        make(**settings)


def test_tensors_that_do_not_belong_are_sentences():
    s = make()
    tensors = {name: getattr(s, name) for name in TENSORS}
    with pytest.raises(InputError, match="takes no threshold"):
        Dictionary(s.cfg.model_copy(update={"architecture": "relu"}), **tensors)
    with pytest.raises(InputError, match="skip is false, but W_skip came with it"):
        Dictionary(s.cfg, **{**tensors, "W_skip": torch.zeros(D, D, dtype=torch.float64)})
    with pytest.raises(InputError, match="skip is true, but W_skip is missing"):
        Dictionary(s.cfg.model_copy(update={"skip": True}), **tensors)
    with pytest.raises(InputError, match="a k that divides 12, but k is 5"):
        Dictionary(s.cfg.model_copy(update={"architecture": "groupmax", "k": 5}), **{**tensors, "threshold": None})
    with pytest.raises(InputError, match="acts on raw tokens"):
        fold_normalization(make(input_op="layer_norm"), 0.5)
    with pytest.raises(InputError, match="2 scales were given for 1 sources"):
        fold_normalization(s, [0.5, 0.5])
    with pytest.raises(InputError, match="must be positive"):
        fold_normalization(s, -1.0)


def test_a_transcoder_is_measured_against_its_targets():
    s = make(d_out=4)
    x = rows()
    y = s(x)
    measured = s.verify(x, y)["measured"]
    assert measured["explained_variance"] == pytest.approx(1.0)
    assert measured["l0"] == pytest.approx(float((s.encode(x) > 0).sum(dim=1).double().mean()))
    half = s.verify(x, y + (y - y.mean(dim=0)))["measured"]  # the residual is half of what is to be explained
    assert half["explained_variance"] == pytest.approx(1 - 1 / 4)
    with pytest.raises(InputError, match="give both"):
        s.verify(x)
    with pytest.raises(InputError, match="leave them out"):
        make().verify(x, x)


def test_prefixes_keep_what_they_can():
    s, x = make(**CROSS), rows(2 * D)
    assert torch.allclose(s.truncate(5).encode(x), s.encode(x)[:, :5])
    assert s.truncate(5).cfg.sources == s.cfg.sources
    with pytest.raises(InputError, match="has no prefix"):
        make("groupmax").truncate(6)
    skipping = make(d_out=4, skip=True)
    assert torch.equal(skipping.truncate(5).W_skip, skipping.W_skip)
