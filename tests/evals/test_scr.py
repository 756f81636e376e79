"""SCR: golden values, faults of compat mode, the closed form against a loop, and planted cues that come out."""

import copy
from dataclasses import replace

import pytest
import torch

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.errors import InputError
from saeworks.evals import controls, scr
from saeworks.evals.probes.linear_probes import ProbeSettings, Rows, Task, correct, train_probes
from saeworks.evals.probes.problems import NothingToProbe
from saeworks.evals.removal import spurious_texts
from saeworks.evals.removal.ablatable_texts import in_units_of_activations, latents_at_zero, with_masked_positions
from saeworks.evals.removal.probe_attribution import effects, logits_without, mean_differences, select_latents
from saeworks.evals.removal.removal_scores import Accuracies, scores
from saeworks.evals.removal.spurious_texts import SpuriousSet, draw_cases
from saeworks.world.documents import Document

D = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
W = torch.tensor([2.0, -1.0])
SITE = "layers.0.resid_pre"


def hand_encode(x):
    return torch.stack([x[..., 0], x[..., 1], x[..., 0] + x[..., 1] - 1], -1).relu()


def hand_texts():
    """Activations [text, position, 2] with zeros at masked positions, and which positions are kept."""
    x = torch.tensor([[[1, 0], [3, 1]], [[2, 0], [0, 0]], [[0, 1], [0, 2]], [[1, 1], [0, 0]]]).float()
    return x, torch.tensor([[True, True], [True, False], [True, True], [True, False]])


def pooled(values, keep):
    return (values * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)


def found(clean, biased, ablated, seeds=1):
    """Accuracies of one pair: the same numbers for every seed, one n, one draw."""
    one = torch.tensor([clean, biased, ablated], dtype=torch.float64)
    clean, biased, ablated = (v.expand(1, seeds, 2)[..., None].clone() for v in one)
    return Accuracies(clean, biased, ablated[..., None, :])


def ones(seeds=1):
    return torch.ones(seeds, 1, dtype=torch.float64)


def test_attribution_and_ablation_of_the_hand_example():
    x, keep = hand_texts()
    latents = pooled(hand_encode(x), keep)
    delta = mean_differences(latents, [Rows.of(torch.tensor([0, 1]), torch.tensor([2, 3]))])[0]
    torch.testing.assert_close(delta, torch.tensor([1.5, -1.0, 0.5]))
    torch.testing.assert_close(effects(delta, W, D).abs(), torch.tensor([3.0, 1.0, 0.2]))
    torch.testing.assert_close(effects(delta.clamp_min(0), W, D), torch.tensor([3.0, 0.0, 0.2]))
    after = pooled(x, keep)[:2] - latents[:2, 2:] * D[2]
    torch.testing.assert_close(after, torch.tensor([[1.1, -0.7], [1.4, -0.8]]))
    logits = logits_without((pooled(x, keep) @ W)[None], latents, (D @ W)[None], torch.tensor([2]), [1])
    torch.testing.assert_close(logits[0, 0, :2], after @ W)


def test_selection_with_and_without_the_fault():
    assert select_latents(torch.tensor([0.5, -2, 0, 0.1]), 2, "compat").tolist() == [0, 3]
    assert select_latents(torch.tensor([0.5, -2, 0, -0.1]), 2, "compat").tolist() == [0, 2]
    assert select_latents(torch.tensor([0.5, -2, 0, -0.1]), 2, "corrected").tolist() == [0]
    assert select_latents(torch.zeros(4), 2, "compat").tolist() == []


def test_score_arithmetic():
    one = found((0.93, 0.95), (0.62, 0.88), (0.80, 0.90))
    for mode in ("compat", "corrected"):
        out = scores(one, mode, 0.05, ones())
        torch.testing.assert_close(out.directions[0, :, 0, 0].float(), torch.tensor([0.580645, 0.285714]))
        assert float(out.metric) == pytest.approx(0.580645, abs=1e-6)
        assert float(out.pooled) == pytest.approx(0.580645, abs=1e-6)


def test_a_tie_has_no_metric_in_compat_and_the_mean_otherwise():
    tied = found((0.93, 0.95), (0.62, 0.62), (0.80, 0.90))
    assert scores(tied, "compat", 0.05, ones()).metric.isnan().all()
    expected = (0.18 / 0.31 + 0.28 / 0.33) / 2
    assert float(scores(tied, "corrected", 0.05, ones()).metric) == pytest.approx(expected)


def test_no_room_is_zero_in_compat_and_no_score_otherwise():
    closed = found((0.6205, 0.95), (0.62, 0.88), (0.80, 0.90))
    assert float(scores(closed, "compat", 0.05, ones()).directions[0, 0, 0, 0]) == 0
    corrected = scores(closed, "corrected", 0.05, ones())
    assert corrected.directions[0, 0].isnan().all()
    assert corrected.metric.isnan().all()


def test_seeds_average_scores_in_compat_and_accuracies_otherwise():
    biased = torch.tensor([[[[0.5], [0.8]], [[0.7], [0.8]]]], dtype=torch.float64)
    clean, ablated = torch.full_like(biased, 0.9), torch.full_like(biased, 0.8)[..., None, :]
    two = Accuracies(clean, biased, ablated)
    assert float(scores(two, "compat", 0.05, ones(2)).metric) == pytest.approx((0.3 / 0.4 + 0.1 / 0.2) / 2)
    assert float(scores(two, "corrected", 0.05, ones(2)).metric) == pytest.approx(0.2 / 0.3)


@pytest.mark.parametrize("architecture", ["relu", "topk", "jumprelu", "layer_norm"])
def test_closed_form_is_the_loop_over_tokens(architecture):
    """Encode, set latents to 0, decode, add the error back, average: with and without masked positions."""
    g = torch.Generator().manual_seed(1)
    dictionary = small_dictionary(architecture, g)
    x, lengths = torch.randn(5, 7, 6, generator=g) * 2, torch.tensor([7, 4, 1, 6, 3])
    keep = torch.arange(7)[None] < lengths[:, None]
    x = x * keep[..., None]
    chosen, w, b = torch.tensor([4, 0, 9, 2]), torch.randn(2, 6, generator=g), torch.randn(2, generator=g)
    inner = in_units_of_activations({"d": dictionary})["d"]
    latents = pooled(inner.encode(x.flatten(0, 1)).unflatten(0, (5, 7)), keep)
    for compat in (False, True):
        used = with_masked_positions(latents, lengths, latents_at_zero(inner), 7) if compat else latents
        before = (pooled(x, keep) @ w.T + b).T
        got = logits_without(before, used, w @ dictionary.W_dec.T, chosen, [1, 4, 2])
        for i, n in enumerate([1, 4, 2]):
            torch.testing.assert_close(got[i], naive_logits(dictionary, x, keep, chosen[:n], w, b, compat))


def small_dictionary(architecture, g):
    extra = {"input_op": "layer_norm"} if architecture == "layer_norm" else {}
    kind = "relu" if extra else architecture
    k = {"k": 3} if kind == "topk" else {}
    cfg = DictionaryConfig(architecture=kind, d_in=6, d_sae=12, metadata={"site": SITE}, **k, **extra)
    tensors = [torch.randn(6, 12, generator=g), torch.randn(12, 6, generator=g), torch.rand(12, generator=g)]
    threshold = torch.full((12,), 0.5) if kind == "jumprelu" else None
    return Dictionary(cfg, *tensors, torch.randn(6, generator=g) * 0.3, threshold)


def naive_logits(dictionary, x, keep, chosen, w, b, every_position):
    rows = []
    for text, mask in zip(x, keep, strict=True):
        total = torch.zeros(x.shape[-1])
        for token, kept in zip(text, mask, strict=True):
            if kept or every_position:
                f = dictionary.encode(token[None])
                error = token[None] - dictionary.decode(f, token[None])
                f[:, chosen] = 0
                total += (dictionary.decode(f, token[None]) + error)[0]
        rows.append(w @ (total / mask.sum()) + b)
    return torch.stack(rows, 1)


def test_masked_positions_count_only_where_a_latent_is_active_at_zero():
    latents = torch.tensor([[1.0, 2.0]])
    out = with_masked_positions(latents, torch.tensor([4]), torch.tensor([0.0, 0.5]), 10)
    torch.testing.assert_close(out, torch.tensor([[1.0, 2.0 + 6 / 4 * 0.5]]))


def test_effects_depend_on_no_scale_and_no_order():
    g = torch.Generator().manual_seed(0)
    latents, directions, w = torch.rand(20, 8, generator=g), torch.randn(8, 3, generator=g), torch.randn(3, generator=g)
    rows = [Rows.of(torch.arange(10), torch.arange(10, 20))]
    base = effects(mean_differences(latents, rows)[0], w, directions)
    s, order = torch.rand(8, generator=g) + 0.5, torch.randperm(8, generator=g)
    scaled = effects(mean_differences(latents * s, rows)[0], w, directions / s[:, None])
    torch.testing.assert_close(scaled, base)
    moved = effects(mean_differences(latents[:, order], rows)[0], w, directions[order])
    assert (
        order[select_latents(moved.abs(), 3, "corrected")].tolist() == select_latents(base.abs(), 3, "compat").tolist()
    )


def planted_pooled(count, seed, offset=0.0):
    """Coordinate 0 is the class, coordinate 1 the cue; returns x, Rows by class, and the combination of each text."""
    g = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count, 2), generator=g).float() * 2 - 1
    return torch.cat([signs, torch.zeros(count, 3)], 1) + torch.randn(count, 5, generator=g) * 0.3 + offset, signs


def test_probes_trained_together_are_those_trained_alone():
    x, signs = planted_pooled(120, 0)
    tasks = []
    for i, (train, column) in enumerate([(slice(0, 80), 0), (slice(0, 80), 1), (slice(0, 60), 0)]):
        rows = torch.arange(120)[train]
        test = Rows(torch.arange(80, 120), (signs[80:, column] > 0).float())
        tasks.append(Task(Rows(rows, (signs[rows, column] > 0).float()), test, i, f"t{i}"))
    for mode in ("compat", "corrected"):
        settings = ProbeSettings(mode=mode, probe_epochs=5)
        together = train_probes(x, tasks, settings)
        for i, task in enumerate(tasks):
            alone = train_probes(x, [task], settings)
            torch.testing.assert_close(together.weights[i], alone.weights[0])
            torch.testing.assert_close(together.bias[i], alone.bias[0])


def test_one_probe_is_what_autograd_and_adamw_make_of_it():
    x, signs = planted_pooled(50, 3)
    y = (signs[:, 0] > 0).float()
    task = Task(Rows(torch.arange(50), y), Rows(torch.arange(50), y), 0, "t")
    settings = ProbeSettings(mode="corrected", probe_epochs=1, probe_train_batch_size=50, probe_l1_penalty=0.01)
    got = train_probes(x, [task], settings)
    mean, scale = x.mean(0), x.var(0, unbiased=False).mean().sqrt()
    w, b = torch.zeros(5, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.AdamW([w, b], lr=1e-3)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(((x - mean) / scale) @ w + b, y)
    (loss + 0.01 * w.abs().sum()).backward()
    optimiser.step()
    torch.testing.assert_close(got.weights[0], w.detach() / scale)
    torch.testing.assert_close(got.bias, b.detach() - (w.detach() / scale * mean).sum())


def test_the_epoch_is_chosen_on_test_texts_in_compat_alone():
    """The test texts carry the opposite labels: the best epoch on them is the first, the last one fits the training."""
    x, signs = planted_pooled(96, 4)
    y = (signs[:, 0] > 0).float()
    task = Task(Rows(torch.arange(96), y), Rows(torch.arange(96), 1 - y), 0, "t")
    own = {m: train_probes(x, [task], ProbeSettings(mode=m, probe_lr=0.05)) for m in ("compat", "corrected")}
    fit = {m: float(correct(p.logits(x)[0], y).mean()) for m, p in own.items()}
    assert fit["corrected"] > 0.95
    assert fit["compat"] < fit["corrected"]
    opposite = Task(task.train, Rows(task.test.rows, y), 0, "t")
    again = train_probes(x, [opposite], ProbeSettings(mode="corrected", probe_lr=0.05))
    torch.testing.assert_close(again.weights, own["corrected"].weights)


def test_units_and_origin_of_a_site_change_the_probes_of_compat_alone():
    x, signs = planted_pooled(96, 5)
    y = (signs[:, 0] > 0).float()
    task = Task(Rows(torch.arange(96), y), Rows(torch.arange(96), y), 0, "t")
    apart = {}
    for mode in ("corrected", "compat"):
        settings = ProbeSettings(mode=mode)
        base, moved = train_probes(x, [task], settings), train_probes(x * 50 + 7, [task], settings)
        apart[mode] = float((moved.logits(x * 50 + 7) - base.logits(x)).abs().max())
    assert apart["corrected"] < 1e-4
    assert apart["compat"] > 1


def test_cases_are_balanced_disjoint_and_the_first_rows_in_compat():
    sets = {"toy": animals(400, 0, 200, 1)}
    for mode in ("compat", "corrected"):
        config = scr.Config(mode=mode, train_set_size=80, test_set_size=40, seeds=(0, 1))
        texts = sets["toy"].texts()
        cases, _ = draw_cases(sets["toy"], texts, torch.ones(len(texts.documents), dtype=torch.bool), config, {})
        assert [c.seed for c in cases] == [0, 1]
        labels = [(d.labels["animal"], d.labels["colour"]) for d in texts.documents]
        for case in cases:
            assert {k: len(v) for k, v in case.train.items()} == {"cue": 80, "class": 80, "biased": 80}
            both = list(zip(case.train["class"].rows.tolist(), case.train["class"].labels.tolist(), strict=True))
            assert all((labels[row][0] == "dog") == bool(label) for row, label in both)
            assert sum(labels[row][1] == "red" for row, _ in both) == 40
            confounded = case.train["biased"]
            pairs = zip(confounded.rows.tolist(), confounded.labels.tolist(), strict=True)
            biased = {(*labels[row], bool(y)) for row, y in pairs}
            assert biased == {("dog", "red", True), ("cat", "blue", False)}
            assert not {r for k in case.train.values() for r in k.rows.tolist()} & set(case.test["class"].rows.tolist())
        same = torch.equal(cases[0].train["class"].rows, cases[1].train["class"].rows)
        assert same == (mode == "compat")


def animals(train, seed, test, test_seed):
    """Texts with one animal and one colour, independent of each other; the confounded pair is red dogs, blue cats."""

    def make(count, seed):
        g = torch.Generator().manual_seed(seed)
        fill, out = ["the", "runs", "house", "sees", "big", "and", "tree", "small"], []
        for i in range(count):
            words = [fill[j] for j in torch.randint(len(fill), (9,), generator=g).tolist()]
            animal, colour = ["dog", "cat"][i % 2], ["red", "blue"][i // 2 % 2]
            words[2], words[6] = animal, colour
            out.append(Document(" ".join(words), {"animal": animal, "colour": colour}, id=str(i)))
        return out

    return SpuriousSet(make(train, seed), make(test, test_seed), "animal", "colour", (("dog", "cat"),), ("red", "blue"))


@pytest.fixture(scope="module")
def plain(model):
    """The tiny model with words at right angles to each other."""
    copied = copy.deepcopy(model)
    weight = copied.module.get_input_embeddings().weight
    square = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    with torch.no_grad():
        weight[4:] = square[: len(weight) - 4] * 3
    return copied


def word_dictionary(model, scale=1.0, order=None):
    """Latents that fire on one word each. Those of dog and cat, and of red and blue, lead to the middle of the two, so
    that a text without them is halfway between the classes."""
    words = ["dog", "cat", "red", "blue", "the", "runs", "house", "sees"]
    known = model.module.get_input_embeddings().weight.detach().float()[4:]
    ids = [model.tokenizer.convert_tokens_to_ids(w) - 4 for w in words]
    rows = known[ids].clone()
    for i, j in ((0, 1), (2, 3)):
        rows[i], rows[j] = (rows[i] - rows[j]) / 2, (rows[j] - rows[i]) / 2
    encoder, bias = torch.linalg.pinv(known)[:, ids], torch.full((len(ids),), -0.01)
    order = torch.arange(len(ids)) if order is None else order
    cfg = DictionaryConfig(architecture="relu", d_in=16, d_sae=len(ids), metadata={"site": SITE})
    parts = encoder[:, order] / scale, rows[order] * scale, bias[order] / scale
    return Dictionary(cfg, *parts, torch.zeros(16))


CONFIG = scr.Config(
    train_set_size=120, test_set_size=120, seeds=(0, 1), n_values=(1, 2, 4, 16), resamples=60, probe_lr=0.01
)


def test_ablating_the_planted_cue_restores_the_class(plain):
    data = {"toy": animals(500, 0, 240, 1)}
    order = torch.tensor([5, 2, 0, 7, 3, 1, 6, 4])
    dictionaries = {
        "truth": word_dictionary(plain),
        "scaled": word_dictionary(plain, scale=4.0),
        "moved": word_dictionary(plain, order=order),
        "identity": controls.identity(16, SITE),
    }
    results = scr.run(dictionaries, plain, data, CONFIG)
    truth = results["truth"]
    probes = truth.eval_result_metrics["probes"]
    assert probes["class_accuracy"] > 0.95 > 0.85 > probes["biased_class_accuracy"]
    assert truth.metric("scr_metrics", "scr_dir1_threshold_2") > 0.8
    assert truth.metric("scr_metrics", "scr_dir1_threshold_2") > truth.metric("scr_metrics", "scr_dir1_threshold_1")
    record = truth.eval_result_details[0]
    assert record["dataset_name"] == "toy_scr_dog_cat_results"
    assert set(record["latents_removed_dir1"][:2]) == {2, 3}
    assert set(record["latents_removed_dir2"][:2]) == {0, 1}
    for key, value in truth.eval_result_metrics["scr_metrics"].items():
        # Without any latent, rounding decides what is left of the classes.
        for other in ("scaled", "moved") if not key.endswith("_16") else ():
            same = pytest.approx(value, abs=1e-9, nan_ok=True)
            assert results[other].eval_result_metrics["scr_metrics"][key] == same, key
    low, high = truth.ci95["scr_metrics.scr_dir1_threshold_2"]
    assert low <= truth.metric("scr_metrics", "scr_dir1_threshold_2") <= high
    # Without any coordinate the pooled activation is 0, and a probe says one thing of all texts.
    ablated = results["identity"].eval_result_details[0]["class_accuracy_ablated_by_seed"]["16"]
    assert ablated == pytest.approx([0.5, 0.5])


def test_compat_leaves_out_more_latents_than_there_are(plain):
    config = CONFIG.model_copy(update={"mode": "compat", "n_values": (2, 9)})
    result = scr.run({"truth": word_dictionary(plain)}, plain, {"toy": animals(500, 0, 240, 1)}, config)["truth"]
    assert result.metric("scr_metrics", "scr_dir1_threshold_2") > 0.5
    assert torch.tensor(result.metric("scr_metrics", "scr_dir1_threshold_9")).isnan()


def test_too_few_texts_and_wrong_labels_are_refused(plain):
    with pytest.raises(NothingToProbe, match="dog/cat"):
        scr.run({"d": word_dictionary(plain)}, plain, {"toy": animals(40, 0, 20, 1)}, CONFIG)
    one = animals(40, 0, 20, 1)
    with pytest.raises(InputError, match="second label"):
        spurious_texts.labelled_sets({"x": [Document(d.text, {"a": "1"}) for d in one.train]}, "a")
    with pytest.raises(InputError, match="has the label"):
        spurious_texts.labelled_sets({"x": one.train}, "anmal")
    with pytest.raises(InputError, match="portraits"):
        spurious_texts.world_sets(("portrait",), CONFIG)


def test_somebodys_texts_are_paired_by_what_goes_together(plain):
    texts = list(animals(300, 0, 10, 1).train)
    rare = [
        d for i, d in enumerate(texts) if (d.labels["animal"] == "dog") == (d.labels["colour"] == "blue") or i % 8 < 4
    ]
    made = scr.from_documents({"mine": rare}, "animal", plain, CONFIG)["mine"]
    assert (made.class_label, made.cue_label, made.cue, made.test) == ("animal", "colour", ("blue", "red"), None)
    assert made.pairs == (("dog", "cat"),)
    config = CONFIG.model_copy(update={"train_set_size": 60, "test_set_size": 40})
    result = scr.run({"truth": word_dictionary(plain)}, plain, {"mine": made}, config)["truth"]
    assert result.n > 20


def test_the_worlds_sets_hold_every_combination_and_hashes_follow_the_data():
    config = scr.Config(train_set_size=16, test_set_size=16)
    data = spurious_texts.world_sets(("biographies", "reviews"), config)
    for one in data.values():
        seen = {(d.labels[one.class_label], d.labels[one.cue_label]) for d in one.test}
        assert seen >= {(c, v) for pair in one.pairs for c in pair for v in one.cue}
        together = [
            d
            for d in one.train
            if (d.labels[one.class_label], d.labels[one.cue_label]) == (one.pairs[0][0], one.cue[0])
        ]
        assert len(together) == 12
    hashes = scr.data_hashes(data, config)
    assert set(hashes) == {"data:biographies", "data:reviews"}
    fewer = {"reviews": replace(data["reviews"], train=data["reviews"].train[1:])}
    assert scr.data_hashes(fewer, config)["data:reviews"] != hashes["data:reviews"]


def test_a_transcoder_is_refused_with_a_reason(plain):
    own = word_dictionary(plain)
    cfg = own.cfg.model_copy(update={"d_out": 16, "apply_b_dec_to_input": False})
    transcoder = Dictionary(cfg, own.W_enc, own.W_dec, own.b_enc, own.b_dec)
    with pytest.raises(InputError, match="transcoder"):
        scr.run({"t": transcoder}, plain, {"toy": animals(500, 0, 240, 1)}, CONFIG)
