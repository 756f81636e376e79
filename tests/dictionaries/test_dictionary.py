"""The dictionary class: formulas, exact rewrites, files, damaged files, and the health check."""

import json

import pytest
import torch

import saeworks
from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.dictionaries.folding import fold_decoder_norm, fold_normalization, fold_pre_bias, unfold_pre_bias
from saeworks.errors import InputError


def make(architecture="jumprelu", d=5, n=9, pre_bias=True, unit=False, dtype=torch.float64, seed=0, **metadata):
    g = torch.Generator().manual_seed(seed)
    W_enc, W_dec = torch.randn(d, n, generator=g, dtype=dtype), torch.randn(n, d, generator=g, dtype=dtype)
    if unit:
        W_dec /= W_dec.norm(dim=1, keepdim=True)
    cfg = DictionaryConfig(
        architecture=architecture,
        d_in=d,
        d_sae=n,
        k=3 if architecture == "topk" else None,
        apply_b_dec_to_input=pre_bias,
        metadata=metadata,
    )
    threshold = torch.randn(n, generator=g, dtype=dtype) if architecture == "jumprelu" else None
    b_enc, b_dec = torch.randn(n, generator=g, dtype=dtype), torch.randn(d, generator=g, dtype=dtype)
    return Dictionary(cfg, W_enc, W_dec, b_enc, b_dec, threshold)


def inputs(d=5, tokens=40, dtype=torch.float64):
    x = torch.randn(tokens, d, generator=torch.Generator().manual_seed(9), dtype=dtype)
    return torch.cat([0.1 * x, x, 10 * x])


def by_hand(s, x):
    z = (x - s.b_dec * s.cfg.apply_b_dec_to_input) @ s.W_enc + s.b_enc
    if s.cfg.architecture == "relu":
        return z.relu()
    if s.cfg.architecture == "jumprelu":
        return z.relu() * (z > s.threshold)
    kept = torch.zeros_like(z)
    return kept.scatter(1, *reversed(z.relu().topk(s.cfg.k, dim=1)))


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "topk"])
def test_encode_and_decode_are_the_written_formula(architecture, pre_bias):
    s, x = make(architecture, pre_bias=pre_bias), inputs()
    f = by_hand(s, x)
    assert torch.allclose(s.encode(x), f, atol=1e-12)
    assert torch.allclose(s.forward(x), f @ s.W_dec + s.b_dec, atol=1e-12)
    assert torch.allclose(s.decode(s.encode_sparse(x)), s.decode(f), atol=1e-12)
    assert torch.equal(s(x.view(4, 30, 5)), s(x).view(4, 30, 5))


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("units", ["raw", "normalised"])
def test_normalisation_folds_exactly(architecture, pre_bias, units):
    s, x, scale = make(architecture, pre_bias=pre_bias), inputs(), 0.37
    folded = fold_normalization(s, scale, units)
    assert torch.allclose(folded(x), s(scale * x) / scale, atol=1e-10)
    expected = s.encode(scale * x) / (scale if units == "raw" else 1.0)
    assert torch.allclose(folded.encode(x), expected, atol=1e-10)


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("architecture", ["relu", "jumprelu"])
def test_decoder_norms_fold_exactly(architecture, pre_bias):
    s, x = make(architecture, pre_bias=pre_bias), inputs()
    folded = fold_decoder_norm(s)
    assert torch.allclose(folded(x), s(x), atol=1e-10)
    assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(9, dtype=torch.float64))
    assert torch.allclose(folded.encode(x), s.encode(x) * s.W_dec.norm(dim=1), atol=1e-10)


def test_decoder_norm_fold_is_refused_where_it_would_change_the_selection():
    with pytest.raises(InputError, match="ranking"):
        fold_decoder_norm(make("topk"))
    unit = make("topk", unit=True)
    assert torch.allclose(fold_decoder_norm(unit)(inputs()), unit(inputs()), atol=1e-10)


def test_raw_units_equal_normalised_units_with_decoder_norms_folded():
    s = make("jumprelu", unit=True)
    a = fold_decoder_norm(fold_normalization(s, 0.2, "normalised"))
    b = fold_normalization(s, 0.2, "raw")
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        assert torch.allclose(getattr(a, name), getattr(b, name), atol=1e-12), name


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "topk"])
def test_pre_bias_folds_and_unfolds(architecture):
    s, x = make(architecture), inputs()
    folded = fold_pre_bias(s)
    assert not folded.cfg.apply_b_dec_to_input
    assert torch.allclose(folded(x), s(x), atol=1e-10)
    assert torch.allclose(unfold_pre_bias(folded).b_enc, s.b_enc, atol=1e-12)


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "topk"])
def test_files_give_back_the_same_bits(tmp_path, architecture):
    s = make(architecture, dtype=torch.float32, site="layers.1.resid_post", group_sizes=[3, 6])
    s.save(tmp_path / "d")
    again = saeworks.load(tmp_path / "d")
    assert again.cfg == s.cfg
    assert again.fingerprint() == s.fingerprint()
    x = inputs(dtype=torch.float32)
    assert torch.equal(again(x), s(x))
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["cfg.json", "weights.safetensors"]


def test_a_prefix_is_a_dictionary_of_its_own():
    s, x = make("jumprelu"), inputs()
    prefix = s.truncate(4)
    assert torch.allclose(prefix.encode(x), s.encode(x)[:, :4])
    with pytest.raises(InputError, match="prefix of 10"):
        s.truncate(10)


def damage_truncate(path):
    data = (path / "weights.safetensors").read_bytes()
    (path / "weights.safetensors").write_bytes(data[: len(data) // 2])


def damage_json(path):
    (path / "cfg.json").write_text("{")


def damage_key(path):
    cfg = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps(cfg | {"sparkle": 1}))


def damage_shape(path):
    cfg = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps(cfg | {"d_sae": 10}))


def damage_names(path):
    cfg = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps(cfg | {"metadata": {"model_name": 3}}))


def damage_type(path):
    from safetensors.torch import load_file, save_file

    small = {name: t.to(torch.float8_e4m3fn) for name, t in load_file(path / "weights.safetensors").items()}
    save_file(small, path / "weights.safetensors")


def damage_missing(path):
    (path / "weights.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_truncate, "truncated or damaged"),
        (damage_json, "not valid JSON"),
        (damage_key, "sparkle"),
        (damage_shape, "has the shape"),
        (damage_names, "'model_name' in the metadata is 3, but text"),
        (damage_type, "of 16, 32 or 64 bits"),
        (damage_missing, "holds no weights.safetensors"),
    ],
)
def test_a_damaged_dictionary_is_answered_by_a_sentence(tmp_path, damage, words):
    make(dtype=torch.float32).save(tmp_path / "d")
    damage(tmp_path / "d")
    with pytest.raises(InputError, match=words):
        saeworks.load(tmp_path / "d")


def test_nan_weights_and_wrong_widths_are_refused():
    s = make()
    with pytest.raises(InputError, match="not finite"):
        s.replace(b_dec=torch.full((5,), float("nan"), dtype=torch.float64))
    with pytest.raises(InputError, match="width 7 were given to a dictionary of width 5"):
        s.encode(torch.zeros(2, 7))
    with pytest.raises(InputError, match="does not exist"):
        saeworks.load("no/such/dictionary")
    with pytest.raises(InputError, match="share one floating-point type"):
        s.replace(W_enc=s.W_enc.half())
    with pytest.raises(InputError, match="share one floating-point type"):
        s.replace(W_dec=torch.ones(9, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="at least one row"):
        s.verify(torch.zeros(0, 5))


def test_saving_replaces_the_old_dictionary_only_as_a_whole(tmp_path, monkeypatch):
    from saeworks.dictionaries.formats import native

    old, new = make(dtype=torch.float32), make(dtype=torch.float32, seed=1)
    old.save(tmp_path / "d")
    monkeypatch.setattr(native, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(RuntimeError, match="disk is full"):
        new.save(tmp_path / "d")
    monkeypatch.undo()
    assert saeworks.load(tmp_path / "d").fingerprint() == old.fingerprint()
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_verify_notices_a_dictionary_on_the_wrong_activations():
    g = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(12, 12, generator=g)).Q
    codes = (torch.rand(2000, 12, generator=g) < 0.1).float()
    x = codes @ directions
    cfg = DictionaryConfig(architecture="jumprelu", d_in=12, d_sae=12, apply_b_dec_to_input=False)
    s = Dictionary(cfg, directions.T, directions, torch.zeros(12), torch.zeros(12), torch.full((12,), 0.8))
    s = s.replace(metadata={"recorded": s.verify(x)["measured"]})
    assert s.verify(x)["ok"]
    wrong = s.verify(torch.randn(500, 12, generator=g) * 20)
    assert not wrong["ok"]
    assert any("L0" in p for p in wrong["problems"])
    assert not s.verify(torch.zeros(10, 12) + x.mean(0))["ok"]


def test_measured_explained_variance_of_the_mean_is_zero():
    from saeworks.dictionaries.verify import measure

    x = inputs()
    s = make("jumprelu").replace(b_dec=x.mean(0), threshold=torch.full((9,), 1e9, dtype=torch.float64))
    assert measure(s, x)["explained_variance"] == pytest.approx(0.0, abs=1e-12)
    assert measure(s, x)["l0"] == 0
