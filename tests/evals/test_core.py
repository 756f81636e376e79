"""The core eval against closed forms on a tiny model."""

import pytest
import torch

from saeworks.errors import InputError
from saeworks.evals import controls, core

SITE = "layers.0.resid_post"
SMALL = core.Config(tokens=300, batch_size=8, context_length=16, resamples=100)
CE, KL, RQ = "model_performance_preservation", "model_behavior_preservation", "reconstruction_quality"


class ZeroDecode(controls.LinearControl):
    def decode(self, f):
        return super().decode(f) * 0


@pytest.fixture
def source(make_source, make_sentences):
    return make_source(make_sentences(60))


def test_identity_loses_nothing(model, source):
    result = core.run({"i": controls.identity(16, SITE)}, model, source, SMALL)["i"]
    assert result.metric(CE, "ce_loss_score") == pytest.approx(1.0, abs=1e-5)
    assert result.metric(KL, "kl_div_score") == pytest.approx(1.0, abs=1e-5)
    assert result.metric(RQ, "explained_variance") == pytest.approx(1.0, abs=1e-9)
    assert result.metric("shrinkage", "relative_reconstruction_bias") == pytest.approx(1.0, abs=1e-6)
    assert result.n >= 300
    low, high = result.ci95[f"{CE}.ce_loss_without_sae"]
    assert low <= result.metric(CE, "ce_loss_without_sae") <= high


def test_zero_decode_is_the_ablation_when_nothing_is_masked(model, source):
    zero = ZeroDecode(controls.identity(16, SITE).cfg, torch.eye(16), torch.eye(16), torch.zeros(16))
    config = SMALL.model_copy(update={"exclude_special_tokens": False})
    result = core.run({"z": zero}, model, source, config)["z"]
    assert result.metric(CE, "ce_loss_score") == pytest.approx(0.0, abs=1e-5)
    assert result.metric(KL, "kl_div_score") == pytest.approx(0.0, abs=1e-5)


def test_loss_and_divergence_agree_with_a_written_out_pass(model, make_source, make_sentences, make_dictionary):
    documents, dictionary = make_sentences(6), make_dictionary(k=3)
    result = core.run({"d": dictionary}, model, make_source(documents), SMALL)["d"]
    ce, kl, rss, scatter = [], [], 0.0, []
    for document in documents:
        batch = model.tokenize([document.text], 16)
        clean = model.logits(batch)[0].log_softmax(-1)
        layer = model.module.model.layers[0]

        def replace(_module, _inputs, output, dictionary=dictionary):
            hidden = output[0] if isinstance(output, tuple) else output
            new = torch.cat([hidden[:, :1], dictionary(hidden[:, 1:])], dim=1)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = layer.register_forward_hook(replace)
        spliced = model.logits(batch)[0].log_softmax(-1)
        handle.remove()
        ids = batch.token_ids[0]
        ce += [-float(spliced[t, ids[t + 1]]) for t in range(1, len(ids) - 1)]
        kl += [float((clean[t].exp() * (clean[t] - spliced[t])).sum()) for t in range(1, len(ids))]
        x = model.harvest(batch, [SITE])[SITE][0, 1:]
        rss += float((x - dictionary(x)).square().sum())
        scatter.append(x)
    x = torch.cat(scatter)
    assert result.metric(CE, "ce_loss_with_sae") == pytest.approx(sum(ce) / len(ce), rel=1e-5)
    assert result.metric(KL, "kl_div_with_sae") == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    expected = 1 - rss / float((x - x.mean(0)).square().sum())
    assert result.metric(RQ, "explained_variance") == pytest.approx(expected, rel=1e-5)
    assert result.metric("sparsity", "l0") == 3.0


def test_permuting_latents_changes_nothing_and_sharing_a_pass_neither(model, source, make_dictionary):
    dictionary = make_dictionary()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(2))
    permuted = dictionary.replace(W_enc=dictionary.W_enc[:, order], W_dec=dictionary.W_dec[order])
    both = core.run({"a": dictionary, "b": permuted}, model, source, SMALL)
    alone = core.run({"a": dictionary}, model, source, SMALL)
    for category, record in both["a"].eval_result_metrics.items():
        for key, value in record.items():
            assert both["b"].metric(category, key) == pytest.approx(value, rel=1e-4, abs=1e-6), key
            assert alone["a"].metric(category, key) == value, key
    density = both["a"].arrays()["feature_density"]
    assert both["b"].arrays()["feature_density"] == pytest.approx(density[order.numpy()])


def test_scale_between_latents_and_rows_changes_nothing_but_what_is_in_units_of_latents(model, source, make_dictionary):
    dictionary = make_dictionary(k=32)  # all latents: with fewer, scale would decide which are kept
    scale = 0.2 + 5 * torch.rand(32, generator=torch.Generator().manual_seed(0))
    scaled = dictionary.replace(W_enc=dictionary.W_enc / scale, W_dec=dictionary.W_dec * scale[:, None])
    both = core.run({"a": dictionary, "b": scaled}, model, source, SMALL)
    for category, record in both["a"].eval_result_metrics.items():
        for key, value in record.items():
            if key != "l1":
                assert both["b"].metric(category, key) == pytest.approx(value, rel=1e-4, abs=1e-6), key
    assert both["b"].metric("sparsity", "l1") != pytest.approx(both["a"].metric("sparsity", "l1"), rel=0.05)


def test_explained_variance_of_single_dimensions(model, source, make_dictionary):
    dictionary = make_dictionary(k=3)
    result = core.run({"d": dictionary}, model, source, SMALL)["d"]
    batches = list(core.document_batches(model, source.documents(), 16, 8, 300))
    x = torch.cat([model.harvest(b.tokens, [SITE])[SITE][b.tokens.keep] for b in batches]).double()
    rss, tss = (x - dictionary(x.float())).square().sum(0), (x - x.mean(0)).square().sum(0)
    each = 1 - rss / tss
    assert result.metric(RQ, "explained_variance_dimension_mean") == pytest.approx(float(each.mean()), rel=1e-5)
    assert result.metric(RQ, "explained_variance_dimension_median") == pytest.approx(float(each.median()), rel=1e-5)
    weighted = float((each * tss).sum() / tss.sum())
    assert result.metric(RQ, "explained_variance") == pytest.approx(weighted, rel=1e-5)


def test_prefixes_of_a_matryoshka_dictionary(model, source, make_dictionary):
    dictionary = make_dictionary(group_sizes=[8, 8, 16])
    result = core.run({"m": dictionary}, model, source, SMALL)["m"]
    prefix = result.eval_result_metrics["prefix"]
    assert list(prefix) == [f"explained_variance_prefix_{m}" for m in (8, 16, 32)]
    assert prefix["explained_variance_prefix_32"] == result.metric(RQ, "explained_variance")
    batch = model.tokenize([d.text for d in source.documents(limit=8)], 16)
    x = model.harvest(batch, [SITE])[SITE][batch.keep]
    f = dictionary.encode(x)
    f[:, 8:] = 0
    single = core.run({"m": dictionary}, model, type(source)(list(source.documents(limit=8))), SMALL)["m"]
    expected = 1 - float((x - dictionary.decode(f)).square().sum() / (x - x.mean(0)).square().sum())
    assert single.metric("prefix", "explained_variance_prefix_8") == pytest.approx(expected, rel=1e-4)


def test_intervals_lie_around_their_values(model, source, make_dictionary):
    config = SMALL.model_copy(update={"tokens": 150, "mean_batches": 1, "batch_size": 4})
    result = core.run({"d": make_dictionary(k=6)}, model, source, config)["d"]
    assert len(result.ci95) == 11
    for key, (low, high) in result.ci95.items():
        assert low <= result.metric(*key.split(".")) <= high, key


def test_behaviour_may_be_measured_on_a_part(model, source, make_dictionary):
    whole = core.run({"d": make_dictionary()}, model, source, SMALL)["d"]
    config = SMALL.model_copy(update={"behaviour_tokens": 100})
    part = core.run({"d": make_dictionary()}, model, source, config)["d"]
    assert whole.metric("token_stats", "total_tokens_eval_reconstruction") == whole.n
    assert 50 <= part.metric("token_stats", "total_tokens_eval_reconstruction") <= 200
    assert part.metric(RQ, "explained_variance") == whole.metric(RQ, "explained_variance")
    assert part.metric(CE, "ce_loss_with_sae") == pytest.approx(whole.metric(CE, "ce_loss_with_sae"), rel=0.3)


def test_a_model_without_head_has_no_behaviour_but_all_the_rest(headless_model, source, make_dictionary):
    result = core.run({"d": make_dictionary()}, headless_model, source, SMALL)["d"]
    assert set(result.eval_result_metrics[CE].values()) == {None}
    assert result.metric(RQ, "explained_variance") is not None
    assert any("head" in str(d.get("reason")) for d in result.eval_result_details)


def test_width_mismatch_names_both_widths(model, source, make_dictionary):
    with pytest.raises(InputError, match=r"width 16.*width 24"):
        core.run({"d": make_dictionary(d=24)}, model, source, SMALL)


def test_not_finite_activations_name_document_and_token(model, source, make_dictionary, monkeypatch):
    original = model.harvest

    def poisoned(batch, sites):
        out = {k: v.clone() for k, v in original(batch, sites).items()}
        next(iter(out.values()))[1, 2, 3] = float("nan")
        return out

    monkeypatch.setattr(model, "harvest", poisoned)
    with pytest.raises(InputError, match=r"document s\d+, token 2"):
        core.run({"d": make_dictionary()}, model, source, SMALL)


def test_empty_data_are_a_sentence(model, make_source, make_dictionary):
    from saeworks.world.documents import Document

    with pytest.raises(InputError, match="no text with a token"):
        core.run({"d": make_dictionary()}, model, make_source([Document(text="")] * 3), SMALL)
