"""SAEBench's arithmetic for core: its golden values, and every fault beside what the number should be."""

import math

import pytest
import torch

from saeworks.errors import InputError
from saeworks.evals import controls, core
from saeworks.evals.compat.core_compat import (
    CompatSums,
    compat_table,
    core_compat,
    kl_of_softmaxes,
    latent_records,
    packed_batches,
)
from saeworks.evals.shared import metrics
from saeworks.evals.shared.batches import DocumentBatch
from saeworks.models.tokens import TokenBatch
from saeworks.world.documents import Document

X = torch.tensor([[1.0, 0], [0, 2], [2, 2]])
X_HAT = torch.tensor([[1.0, 0], [0, 1], [1, 2]])
F = torch.tensor([[1.0, 0, 0], [0, -2, 0], [3, 1, 0]])
SITE = "layers.0.resid_post"
COMPAT = core.Config(
    mode="compat", tokens=128, behaviour_tokens=64, batch_size=4, context_length=16, resamples=50, mean_batches=2
)
RQ, CE, KL = "reconstruction_quality", "model_performance_preservation", "model_behavior_preservation"


@pytest.fixture
def source(make_source, make_sentences):
    return make_source(make_sentences(60))


def in_batches(*slices):
    sums = CompatSums()
    for part in slices:
        x, x_hat, f = X[part], X_HAT[part], F[part]
        sums.count_codes(f)
        sums.update(x, x_hat, (f != 0).sum(-1), f.sum(-1))
    return sums


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("explained_variance", 2.846154),
        ("explained_variance_legacy", 0.538462),
        ("mse", 0.222222),
        ("cossim", 0.982894),
        ("l2_norm_in", 1.942809),
        ("l2_norm_out", 1.412023),
        ("l2_ratio", 0.763523),
        ("relative_reconstruction_bias", 0.777778),
        ("l0", 1.333333),
        ("l1", 1.0),
    ],
)
def test_golden_values_of_one_batch(name, value):
    assert core_compat(X, X_HAT, F)[name] == pytest.approx(value, abs=1e-6)


def test_explained_variance_squares_the_mean_square_where_the_mean_is_meant():
    # x is 0 or 2 in one dimension, x_hat misses by 1: variance 1, so nothing is explained. Mean square 2, squared 4.
    x, x_hat = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert metrics.explained_variance(x, x_hat) == 0.0
    assert core_compat(x, x_hat, x)["explained_variance"] == pytest.approx(1 - 1 / (2 - 4))


def test_mse_shrinks_with_the_batch_and_explained_variance_averages_batches():
    whole, halves = in_batches(slice(0, 3)).result(), in_batches(slice(0, 1), slice(1, 3)).result()
    rss = [0.0, 1.0, 1.0]
    assert whole["mse"] == pytest.approx(sum(rss) / 3 / 3)
    assert halves["mse"] == pytest.approx((rss[0] / 1 + rss[1] / 2 + rss[2] / 2) / 3)
    assert metrics.mse(X, X_HAT) == pytest.approx(sum(rss) / 3)
    # Means of batches of unequal size: residual (0 + 1) / 2, squares (1 + 6) / 2, per dimension (0.5 + 3) / 2.
    assert halves["explained_variance"] == pytest.approx(1 - 0.5 / (3.5 - 1.75**2))
    # Bias: 1 / 1 of the first batch and (1 + 5) / (2 + 6) of the second, not 7 / 9 of all.
    assert halves["relative_reconstruction_bias"] == pytest.approx((1 + 6 / 8) / 2)
    assert metrics.relative_reconstruction_bias(X, X_HAT) == pytest.approx(7 / 9)


def test_signs_are_lost_in_l1_and_density_only_in_compat():
    assert core_compat(X, X_HAT, F)["l1"] == pytest.approx(1.0)
    assert metrics.l1(F) == pytest.approx(7 / 3)
    assert in_batches(slice(0, 2), slice(2, 3)).densities().tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert metrics.densities(F).tolist() == pytest.approx([2 / 3, 2 / 3, 0])


def test_a_reconstruction_of_norm_zero_spoils_the_cosine_and_is_written_as_minus_one():
    x_hat = torch.tensor([[0.0, 0], [0, 2], [2, 2]])
    assert math.isnan(core_compat(X, x_hat, F)["cossim"])
    assert metrics.cosine_similarity(X, x_hat) == pytest.approx(2 / 3)
    record = {"explained_variance": 0.5, "explained_variance_legacy": 0.1, "mse": 1.0, "cossim": 2 / 3}
    shares = {"frac_alive": 0.25}
    table = {
        RQ: record,
        "shrinkage": {"relative_reconstruction_bias": 1.0},
        "sparsity": {"l1": 2.0},
        "misc_metrics": {"frac_alive": 0.5},
        CE: {"ce_loss_score": None},
    }
    out = compat_table(table, core_compat(X, x_hat, F), shares)
    assert out[RQ]["cossim"] == -1.0
    assert out["corrected"]["cossim"] == pytest.approx(2 / 3)
    assert out[CE]["ce_loss_score"] is None
    assert (out["misc_metrics"]["frac_alive"], out["corrected"]["frac_alive"]) == (0.25, 0.5)


def test_a_softmax_that_rounds_to_zero_makes_the_divergence_undefined_only_in_compat():
    clean, changed = torch.tensor([[0.0, 1.0, -200.0]]), torch.tensor([[0.0, 0.5, -200.0]])
    half = kl_of_softmaxes(clean.bfloat16().softmax(-1), changed.bfloat16().softmax(-1))
    assert not torch.isfinite(half).all()
    p, q = clean.log_softmax(-1), changed.log_softmax(-1)
    assert torch.isfinite((p.exp() * (p - q)).sum(-1)).all()
    mild = kl_of_softmaxes(clean[:, :2].softmax(-1), changed[:, :2].softmax(-1))
    p, q = clean[:, :2].log_softmax(-1), changed[:, :2].log_softmax(-1)
    assert torch.allclose(mild, (p.exp() * (p - q)).sum(-1), atol=1e-6)


def test_rows_are_packed_from_all_documents_with_one_bos_each(model):
    documents = [Document(text="the dog"), Document(text=""), Document(text="a cat runs"), Document(text="tree")]
    ids = {w: model.tokenizer.convert_tokens_to_ids(w) for w in ("the", "dog", "a", "cat", "runs", "tree")}
    (first, second) = packed_batches(model, documents, 4, 1, 5)
    # The stream: the dog BOS a | cat runs BOS tree, cut into three after the BOS of the row.
    assert first.tokens.token_ids.tolist() == [[1, ids["the"], ids["dog"], 1]]
    assert second.tokens.token_ids.tolist() == [[1, ids["a"], ids["cat"], ids["runs"]]]
    assert first.tokens.keep.tolist() == [[False, True, True, False]]
    (only,) = packed_batches(model, documents[:1], 16, 4, 1)
    assert only.tokens.token_ids.tolist() == [[1, ids["the"], ids["dog"]]]
    with pytest.raises(InputError, match="no text with a token"):
        packed_batches(model, [Document(text="")], 4, 1, 1)


def test_unknown_words_are_measured_only_in_compat(model):
    documents = [Document(text="the zebra runs")]
    (batch,) = packed_batches(model, documents, 4, 1, 1)
    assert batch.tokens.keep.tolist() == [[False, True, True, True]]
    assert model.tokenize(["the zebra runs"], 4).keep.tolist() == [[False, True, False, True]]


def test_a_run_equals_the_arithmetic_on_its_own_batches(model, source, make_dictionary):
    dictionary = make_dictionary(k=3)
    result = core.run({"d": dictionary}, model, source, COMPAT)["d"]
    sums, codes = CompatSums(), []
    for batch in packed_batches(model, source.documents(), 16, 4, 2):
        x = model.harvest(batch.tokens, [SITE])[SITE][batch.tokens.keep]
        f = dictionary.encode(x)
        codes.append(f)
        sums.update(x, dictionary.decode(f), (f != 0).sum(-1), f.sum(-1))
    for category in (RQ, "shrinkage", "sparsity"):
        for name, value in sums.result().items():
            if name in result.eval_result_metrics[category]:
                assert result.metric(category, name) == pytest.approx(value, rel=1e-5), name
    records = [r for r in result.eval_result_details if "index" in r]
    density = (torch.cat(codes) > 0).double().mean(0)
    assert [r["feature_density"] for r in records] == pytest.approx(density.tolist())
    silent = next(i for i, d in enumerate(density.tolist()) if d == 0)
    assert records[silent]["consistent_activation_heuristic"] == -1.0
    assert result.metric("token_stats", "total_tokens_eval_sparsity_variance") == 16 * 4 * 2
    assert result.metric("token_stats", "total_tokens_eval_reconstruction") == 16 * 4 * 1
    assert result.n < 16 * 4 * 2
    assert result.eval_config["mode"] == "compat"


def test_both_modes_agree_where_the_definitions_do(model, make_source, make_dictionary):
    # One row that holds one document: packing and cutting see the same tokens.
    documents = [Document(text="the dog sees a big cat and the small tree")]
    data = make_source(documents)
    one = {"tokens": 10, "behaviour_tokens": None, "batch_size": 1, "context_length": 11, "mean_batches": 1}
    dictionary = make_dictionary(k=3)
    compat, ours = (
        core.run({"d": dictionary}, model, data, core.Config(mode=mode, **one))["d"] for mode in ("compat", "corrected")
    )
    for category, name in [
        (CE, "ce_loss_score"),
        (CE, "ce_loss_with_sae"),
        (KL, "kl_div_with_sae"),
        (KL, "kl_div_score"),
        (RQ, "explained_variance_legacy"),
        ("shrinkage", "l2_ratio"),
        ("shrinkage", "relative_reconstruction_bias"),
        ("sparsity", "l0"),
        ("sparsity", "l1"),
    ]:
        assert compat.metric(category, name) == pytest.approx(ours.metric(category, name), rel=1e-4), name
    assert compat.metric("corrected", "mse") == pytest.approx(ours.metric(RQ, "mse"))
    assert compat.metric(RQ, "mse") == pytest.approx(ours.metric(RQ, "mse") / 10, rel=1e-5)
    assert compat.metric(RQ, "explained_variance") != pytest.approx(ours.metric(RQ, "explained_variance"), abs=1e-3)


def test_special_tokens_are_spliced_but_not_measured_when_they_are_not_excluded(model, source):
    zero = controls.LinearControl(
        controls.ControlConfig("zero", 16, 16, {"site": SITE}), torch.eye(16), torch.zeros(16, 16), torch.zeros(16)
    )
    config = COMPAT.model_copy(update={"exclude_special_tokens": False})
    result = core.run({"z": zero}, model, source, config)["z"]
    assert result.metric(CE, "ce_loss_score") == pytest.approx(0.0, abs=1e-5)
    excluded = core.run({"z": zero}, model, source, COMPAT)["z"]
    assert excluded.metric(CE, "ce_loss_score") != pytest.approx(0.0, abs=1e-3)
    assert result.n == excluded.n


@pytest.mark.parametrize(("mode", "expected"), [("compat", [2, 1, math.nan]), ("corrected", [2, 2, math.nan])])
def test_firing_tokens_per_prompt_counts_negative_latents_only_when_corrected(mode, expected):
    """The three golden tokens as one prompt."""

    class Fixed(controls.LinearControl):
        def encode(self, x):
            return F.clone()

    cfg = controls.ControlConfig("fixed", 2, 3, {"site": SITE})
    dictionary = Fixed(cfg, torch.ones(2, 3), torch.ones(3, 2), torch.zeros(2))
    config = COMPAT.model_copy(update={"mode": mode})
    everything = torch.ones(1, 3, dtype=torch.bool)
    batch = DocumentBatch(
        TokenBatch(torch.zeros(1, 3, dtype=torch.int64), everything, everything), [Document("x")], [0]
    )
    state = core._State(dictionary, 1, torch.zeros(2), config)
    state.update(X[None], batch, 0, config)
    density = in_batches(slice(0, 3)).densities() if mode == "compat" else metrics.densities(F)
    heuristic = core._per_latent(state, density)["consistent_activation_heuristic"]
    assert heuristic.tolist() == pytest.approx(expected, nan_ok=True)


def test_details_are_rounded_records():
    columns = ("encoder_bias", "encoder_norm", "encoder_decoder_cosine_sim", "max_decoder_cosine_sim")
    values = torch.tensor([0.123456789012, 1.0], dtype=torch.float64)
    per_latent = dict.fromkeys((*columns, "max_encoder_cosine_sim"), values)
    per_latent |= {"feature_density": torch.zeros(2), "consistent_activation_heuristic": torch.tensor([math.nan, 2.0])}
    first, second = latent_records(per_latent)
    assert first == {
        "index": 0,
        "feature_density": 0.0,
        "consistent_activation_heuristic": -1.0,
        **dict.fromkeys((*columns, "max_encoder_cosine_sim"), 0.123456789),
    }
    assert second["index"] == 1


def test_probabilities_of_zero_give_minus_one(model, source, monkeypatch):
    """Logits so far apart that a softmax holds a 0, which float32 reaches as half precision does."""
    original = type(model).logits
    monkeypatch.setattr(type(model), "logits", lambda self, *a, **k: original(self, *a, **k) * 1000)
    identity = controls.identity(16, SITE)
    ours = core.run({"i": identity}, model, source, COMPAT.model_copy(update={"mode": "corrected"}))["i"]
    assert ours.metric(KL, "kl_div_with_sae") == pytest.approx(0.0, abs=1e-3)
    theirs = core.run({"i": identity}, model, source, COMPAT)["i"]
    assert theirs.metric(KL, "kl_div_with_sae") == -1.0
    assert theirs.metric(KL, "kl_div_score") == -1.0


def test_compat_sums_without_codes_say_so():
    with pytest.raises(ValueError, match="No codes"):
        CompatSums().densities()
