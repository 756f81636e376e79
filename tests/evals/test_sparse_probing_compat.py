"""SAEBench's sparse probing: every fault shown beside the corrected mode, on data small enough to follow by hand."""

import pytest
import torch

from saeworks.evals import sparse_probing
from saeworks.evals.compat import sparse_probing_compat as compat
from saeworks.evals.probes.linear_probes import ProbeSettings, Rows, Task, train_probes
from saeworks.evals.probes.problems import Problem, draw_problems
from saeworks.evals.probes.text_probes import Features, mean_differences, probe_all, probe_top_k
from saeworks.evals.shared.batches import document_batches
from saeworks.evals.shared.pooling import TextPool
from saeworks.evals.sparse_probing import Config, LabelledSet
from saeworks.world.documents import Document

SMALL = Config(mode="compat", seeds=(0, 1), train_texts=120, test_texts=60, batch_size=16, resamples=50)
OTHERS = ["the", "red", "house", "sees", "big", "and", "tree", "blue"]
SITE = "layers.0.resid_post"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def planted(count, seed, word="dog"):
    """Every other text has the word; the labels are yes and no."""
    g = seeded(seed)
    out = []
    for i in range(count):
        words = [OTHERS[j] for j in torch.randint(len(OTHERS), (8,), generator=g).tolist()]
        words[3] = word if i % 2 == 0 else words[3]
        out.append(
            Document(text=" ".join(words), labels={"has": "yes" if i % 2 == 0 else "no", "side": "lr"[i // 2 % 2]})
        )
    return out


def problem(x, y, test_y):
    rows, test_rows = torch.arange(len(y)), torch.arange(len(test_y))
    inner = torch.arange(len(y)) % 5 != 0
    return Problem("c", 0, rows, y, test_rows, test_y, inner)


def test_classes_are_sampled_as_pandas_does():
    import pandas as pd

    frame = pd.DataFrame({"row": range(40), "side": [i % 2 for i in range(40)]})
    expected = [list(frame[frame.side == s].sample(6, random_state=42)["row"]) for s in (0, 1)]
    groups = [list(frame[frame.side == s]["row"]) for s in (0, 1)]
    assert compat.sample_class(groups, 12, 42) == expected[0] + expected[1]
    assert len(compat.sample_class([[1, 2], list(range(3, 20))], 12, 42)) == 4, "as many as the smallest group allows"


def test_two_classes_are_two_mirrored_problems_only_in_compat():
    labels, tests = ["yes", "no"] * 30, ["yes", "no"] * 20
    rows, reasons = compat.draw_class_rows(compat.Column(labels), compat.Column(tests), (40, 20), 0, 5, 10)
    assert not reasons
    assert list(rows.train) == ["no", "yes"]
    assert [p.name for p in compat.problems_of([rows])] == ["no", "yes"]
    assert [p.name for p in draw_problems(labels, tests, (0,), 5, 10)[0]] == ["yes"]
    assert {len(v) for v in rows.train.values()} == {20}
    assert {len(v) for v in rows.test.values()} == {10}
    assert min(row for v in rows.test.values() for row in v) >= len(labels)


def test_only_probed_classes_are_negatives_in_compat():
    labels = ["a"] * 40 + ["b"] * 30 + ["c"] * 20
    rows, _ = compat.draw_class_rows(compat.Column(labels), compat.Column(labels), (80, 80), 0, 2, 5)
    drawn = compat.draw(rows.train, "a", seeded())[0]
    assert {labels[i] for i in drawn.tolist()} == {"a", "b"}
    ours = draw_problems(labels, labels, (0,), 2, 5)[0][0]
    assert {labels[i] for i in ours.train_rows.tolist()} == {"a", "b", "c"}


def test_negatives_are_drawn_anew_for_every_probe_only_in_compat():
    rows = {"a": list(range(10)), "b": list(range(10, 60)), "c": list(range(60, 110))}
    random = seeded()
    first, again = compat.draw(rows, "a", random), compat.draw(rows, "a", random)
    negatives = [set(r[y == 0].tolist()) for r, y in (first, again)]
    assert negatives[0] != negatives[1]
    for r, y in (first, again):
        assert sorted(r[y == 1].tolist()) == rows["a"]
        drawn = r[y == 0].tolist()
        assert len(drawn) == 10
        assert sum(i < 60 for i in drawn) == 5, "ceil(10 / 2) from each class, cut to 10"
    labels = ["a"] * 10 + ["b"] * 50 + ["c"] * 50
    ours = [draw_problems(labels, labels, (0,), 5, 5)[0][0].train_rows for _ in range(2)]
    assert torch.equal(*ours)


def test_a_class_that_occurs_on_one_side_of_the_second_label_is_skipped():
    classes = ["a", "b"] * 20 + ["c"] * 20
    second = ["l", "l", "r", "r"] * 10 + ["l"] * 20
    column = compat.Column(classes, second)
    rows, reasons = compat.draw_class_rows(column, column, (24, 12), 0, 5, 4)
    assert list(rows.train) == ["a", "b"]
    assert "too few" in reasons["=c"]
    for name in "ab":
        sides = [second[i] for i in rows.train[name]]
        assert (sides.count("l"), sides.count("r")) == (6, 6)


def test_without_a_test_part_both_are_cut_from_one_sample():
    column = compat.Column(["a", "b"] * 30)
    rows, _ = compat.draw_class_rows(column, None, (40, 20), 1, 5, 4)
    for name in "ab":
        assert (len(rows.train[name]), len(rows.test[name])) == (20, 10)
        assert not set(rows.train[name]) & set(rows.test[name])


def test_features_keep_their_units_only_in_compat():
    """A latent a thousand times weaker cannot be weighted up with C = 1; standardised, its unit does not matter."""
    y = torch.tensor([1.0, 0.0] * 30)
    strong = torch.where(y == 1, 1.0, -1.0)[:, None]
    probabilities = []
    for scale in (1.0, 1e-3):
        z = compat.fit_top_k(strong * scale, y, strong * scale, y, 1)
        probabilities.append(float(z[0].sigmoid()))
    assert probabilities[0] > 0.9
    assert probabilities[1] == pytest.approx(0.5, abs=1e-3)
    weak = torch.cat([strong * 1e-3, torch.randn(60, 1, generator=seeded())], dim=1)
    assert compat.top_k(weak, y, 1).tolist() == [1], "selection is in the latents' own units, in both modes"
    features, p = Features(strong * 1e-3, strong * 1e-3), problem(strong, y, y)
    scores = probe_top_k(features, [p], mean_differences(features.train, [p]), 1, (1.0,))
    assert float(scores.accuracy[0]) == 1.0


def test_the_logistic_probe_is_that_of_scikit_learn_with_its_defaults():
    from sklearn.linear_model import LogisticRegression

    x = torch.randn(80, 12, generator=seeded()) * torch.linspace(0.1, 2, 12)
    y = (x[:, 11] + 0.5 * x[:, 3] + 0.3 * torch.randn(80, generator=seeded(1)) > 0).float()
    test = torch.randn(30, 12, generator=seeded(2))
    chosen = compat.top_k(x, y, 3)
    reference = LogisticRegression(max_iter=1000, tol=1e-8).fit(x[:, chosen].numpy(), y.numpy())
    expected = torch.tensor(reference.decision_function(test[:, chosen].numpy()))
    assert torch.allclose(compat.fit_top_k(x, y, test, y, 3), expected.double(), atol=5e-3)
    means = (x[y == 1].mean(0) - x[y == 0].mean(0)).abs()
    assert chosen.tolist() == means.argsort(descending=True)[:3].tolist()


def test_the_epoch_is_chosen_on_test_texts_only_in_compat():
    """Labels without signal: whatever exceeds one half on average was found by looking at the test labels."""
    gained, ours = [], []
    for seed in range(8):
        g = seeded(seed)
        x, test = torch.randn(60, 40, generator=g), torch.randn(40, 40, generator=g)
        y, test_y = torch.tensor([1.0, 0] * 30), torch.tensor([1.0, 0] * 20)
        z = compat.train_linear_probe(x, y, test, test_y, g)
        gained.append(float(((z > 0) == (test_y == 1)).float().mean()))
        ours.append(float(probe_all(Features(x, test), [problem(x, y, test_y)], (0.01, 1.0)).accuracy[0]))
    assert sum(gained) / 8 > 0.57
    assert sum(ours) / 8 == pytest.approx(0.5, abs=0.06)


def test_more_epochs_never_lower_the_accuracy_on_the_test_texts(monkeypatch):
    g = seeded(5)
    x, test = torch.randn(60, 40, generator=g), torch.randn(40, 40, generator=g)
    y, test_y = torch.tensor([1.0, 0] * 30), torch.tensor([1.0, 0] * 20)
    reached = []
    for epochs in (1, 2, 4, 8, 16, 32):
        monkeypatch.setattr(compat, "EPOCHS", epochs)
        z = compat.train_linear_probe(x, y, test, test_y, seeded(6))
        reached.append(float(((z > 0) == (test_y == 1)).float().mean()))
    assert reached == sorted(reached)
    assert reached[-1] > reached[0]


def test_the_linear_probe_learns_and_repeats_itself():
    g = seeded(3)
    x = torch.randn(300, 10, generator=g) * torch.tensor([5.0] + [1.0] * 9)
    y = (x[:, 0] > 0).float()
    runs = [compat.train_linear_probe(x[:200], y[:200], x[200:], y[200:], seeded(4)) for _ in range(2)]
    assert torch.equal(*runs)
    assert float(((runs[0] > 0) == (y[200:] == 1)).float().mean()) > 0.93


@pytest.mark.parametrize("seed", range(5))
def test_every_probe_tells_saebenchs_separable_fixture(seed):
    """64-dimensional Gaussians at 5 and -5, 368 positives and 1024 negatives; none of the probes learns less."""
    g = seeded(seed)
    y = torch.cat([torch.ones(368), torch.zeros(1024)])[torch.randperm(1392, generator=g)]
    x = torch.randn(1392, 64, generator=g) + (10 * y - 5)[:, None]
    train, test = torch.arange(1000), torch.arange(1000, 1392)
    task = Task(Rows(train, y[train]), Rows(test, y[test]), seed, "fixture")
    found = {
        "AdamW": compat.train_linear_probe(x[train], y[train], x[test], y[test], g),
        "top_1": compat.fit_top_k(x[train], y[train], x[test], y[test], 1),
        **{m: train_probes(x, [task], ProbeSettings(mode=m)).logits(x[test])[0] for m in ("compat", "corrected")},
    }
    for name, z in found.items():
        assert float(((z > 0) == (y[test] == 1)).float().mean()) > 0.99, name


def test_a_token_that_sums_to_zero_is_taken_for_padding_only_in_compat(model, make_dictionary, monkeypatch):
    documents = [Document(text="the dog runs"), Document(text="a cat")]
    harvest = model.harvest

    def cancelled(batch, sites):
        out = {k: v.clone() for k, v in harvest(batch, sites).items()}
        out[SITE][0, 2] = torch.tensor([1.0, -1.0] * 8)
        return out

    monkeypatch.setattr(model, "harvest", cancelled)
    dictionary = make_dictionary()
    batch = next(document_batches(model, documents, 8, 4))
    row = batch.index[0]
    x = cancelled(batch.tokens, [SITE])[SITE][0][batch.tokens.keep[0]]
    ours = TextPool().pool({"d": dictionary}, model, documents, 8, 4)
    theirs = TextPool().pool({"d": dictionary}, model, documents, 8, 4, mask=compat.COUNTED)
    assert torch.allclose(ours.activations[SITE][row], x.mean(0), atol=1e-5)
    assert torch.allclose(
        theirs.activations[SITE][row], x[[0, 2]].mean(0) if len(x) == 3 else x[[0]].mean(0), atol=1e-5
    )
    assert torch.allclose(
        theirs.latents["d"][row], dictionary.encode(x[[0, 2]] if len(x) == 3 else x[[0]]).mean(0), atol=1e-5
    )
    assert int(ours.tokens.sum() - theirs.tokens.sum()) == 1
    assert torch.equal(ours.activations[SITE][1 - row], theirs.activations[SITE][1 - row])


def test_repeated_texts_stay_in_both_parts_only_in_compat(model, make_dictionary):
    texts = planted(60, 0)
    sets = {"toy": LabelledSet(texts, texts[:40], ("has",))}
    result = sparse_probing.run({"d": make_dictionary()}, model, sets, SMALL)["d"]
    assert result.n == 40
    assert not any("skipped" in row for row in result.eval_result_details)
    with pytest.raises(sparse_probing.NothingToProbe, match="too few"):
        sparse_probing.run({"d": make_dictionary()}, model, sets, SMALL.model_copy(update={"mode": "corrected"}))


def test_a_run_finds_what_is_planted_and_writes_saebenchs_fields(model, make_dictionary):
    sets = {"toy": LabelledSet(planted(300, 0), planted(120, 1), ("has",))}
    site = "layers.0.resid_pre"
    names = {"a": make_dictionary(width=24, k=6, seed=3, site=site), "b": make_dictionary(width=24, seed=4, site=site)}
    results = sparse_probing.run(names, model, sets, SMALL)
    a = results["a"]
    assert a.metric("llm", "llm_top_5_test_accuracy") > 0.8
    assert a.metric("sae", "sae_top_5_test_accuracy") > 0.8
    assert 0.5 <= a.metric("sae", "sae_test_accuracy") <= 1
    assert a.metric("sae", "sae_top_50_test_accuracy") is None
    assert a.metric("control", "sae_top_5_shuffled_labels_test_accuracy") == pytest.approx(0.5, abs=0.2)
    assert set(a.eval_result_unstructured["toy_has_results"]["sae_top_1_test_accuracy"]) == {"yes", "no"}
    assert a.eval_result_metrics["llm"] == results["b"].eval_result_metrics["llm"], "measured once for all"
    low, high = a.ci95["sae.sae_top_5_test_accuracy"]
    assert low <= a.metric("sae", "sae_top_5_test_accuracy") <= high
    alone = sparse_probing.run({"b": names["b"]}, model, sets, SMALL)["b"]
    assert alone.eval_result_metrics == results["b"].eval_result_metrics, "seeded once per dictionary"
    none = SMALL.model_copy(update={"full_seeds": 0})
    skipped = sparse_probing.run({"a": names["a"]}, model, sets, none)["a"]
    assert skipped.metric("sae", "sae_test_accuracy") == -1.0
    assert skipped.metric("llm", "llm_test_accuracy") == a.metric("llm", "llm_test_accuracy")


def test_classes_are_balanced_within_a_second_label(model, make_dictionary):
    train, test = planted(160, 0), planted(80, 1)
    plain = LabelledSet(train, test, ("has",))
    balanced = LabelledSet(train, test, ("has",), {"has": "side"})
    config = SMALL.model_copy(update={"train_texts": 40})
    hashes = [sparse_probing.data_hashes({"toy": s}, config)["data:toy"] for s in (plain, balanced)]
    assert hashes[0] != hashes[1]
    result = sparse_probing.run({"d": make_dictionary()}, model, {"toy": balanced}, config)["d"]
    assert result.eval_result_details[0]["train_texts"] == 40


def test_texts_without_tokens_and_quantities_are_left_out_with_a_reason(model, make_dictionary):
    texts = planted(120, 0) + [Document(text="<pad> <pad>", labels={"has": "yes"})] * 3
    texts = [Document(text=d.text, labels={**d.labels, "length": i / 7}) for i, d in enumerate(texts)]
    result = sparse_probing.run(
        {"d": make_dictionary()}, model, {"t": LabelledSet(texts, None, ("has", "length"))}, SMALL
    )
    skipped = next(row["skipped"] for row in result["d"].eval_result_details if "skipped" in row)
    assert any("without a token" in key for key in skipped)
    assert "quantity" in skipped["t/length"]
