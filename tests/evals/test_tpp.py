"""TPP: golden values, faults of compat mode, and a planted dictionary whose latents act on one class alone."""

import pytest
import torch

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.errors import InputError
from saeworks.evals import controls, tpp
from saeworks.evals.probes.linear_probes import Probes
from saeworks.evals.probes.problems import NothingToProbe, draw_problems
from saeworks.evals.removal.ablatable_texts import AblatableTexts
from saeworks.evals.removal.class_perturbation import SeedProblems, accuracy, class_differences, perturb, tpp_scores
from saeworks.evals.sparse_probing import LabelledSet
from saeworks.world.documents import Document

SITE = "layers.0.resid_pre"
CLASSES = ["dog", "cat", "house", "tree"]
CONFIG = tpp.Config(train_set_size=120, test_set_size=80, seeds=(0, 1), n_values=(1, 2, 9), resamples=60, probe_lr=0.01)


def test_score_arithmetic():
    clean = torch.tensor([0.9, 0.8, 0.7])
    ablated = torch.tensor([[0.6, 0.79, 0.70], [0.88, 0.7, 0.71], [0.9, 0.8, 0.5]])[:, None]
    found = tpp_scores(clean, ablated)
    total, intended, unintended = (
        found[f][:, 0] for f in ("total_metric", "intended_diff_only", "unintended_diff_only")
    )
    assert float(total[0]) == pytest.approx(0.295)
    assert float(total.mean()) == pytest.approx(0.196667, abs=1e-6)
    assert float(intended.mean()) == pytest.approx(0.2)
    assert float(unintended.mean()) == pytest.approx(0.003333, abs=1e-6)


def test_a_class_is_compared_with_the_mean_of_the_other_classes():
    """Rare classes count as much as frequent ones."""
    latents = torch.tensor([[6.0], [1.0], [1.0], [1.0], [4.0]])
    out = class_differences(latents, ["a", "b", "b", "b", "c"], range(5), ["a", "b", "c"])
    torch.testing.assert_close(out, torch.tensor([[6 - 2.5], [1 - 5.0], [4 - 3.5]]))


def test_accuracy_counts_weights_and_leaves_out_what_was_not_asked():
    right = torch.tensor([[1.0, 0.0, torch.nan]])
    out = accuracy(right, torch.tensor([[1.0, 1.0, 5.0], [3.0, 1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(out, torch.tensor([[0.5], [0.75]], dtype=torch.float64))


def hand_problem(mode, effects_of_a):
    """Four latents along the coordinates; probe a reads them by ``effects_of_a``, whatever the others do."""
    g = torch.Generator().manual_seed(0)
    names = [c for c in "abc" for _ in range(12)]
    latents = torch.zeros(36, 4)
    latents[:12] = 1.0
    weights = torch.cat([torch.tensor([effects_of_a]), torch.randn(2, 4, generator=g)])
    pooled = AblatableTexts(
        torch.ones(36, dtype=torch.int64),
        {"d": "s"},
        {"s": latents},
        {"d": latents},
        {"d": latents},
        {"d": torch.eye(4)},
    )
    problems, _ = draw_problems(names, names, [0], 3, 2)
    rows = list(range(36))
    one = SeedProblems(0, problems, rows, rows, names)
    order = torch.tensor(["abc".index(p.name) for p in problems])
    settings = tpp.Config(mode=mode, n_values=(2, 3, 7))
    return perturb(pooled, "d", Probes(weights[order], torch.zeros(3)), one, settings)


def test_compat_removes_latents_that_speak_against_the_class():
    effects = [0.5, -2.0, 0.0, -0.1]
    assert hand_problem("compat", effects)[2]["a"][:2] == [0, 2]
    assert hand_problem("corrected", effects)[2]["a"] == [0]
    assert hand_problem("compat", [0.5, -2.0, 0.0, 0.1])[2]["a"][:2] == [0, 3]


def test_compat_has_no_number_for_more_latents_than_there_are():
    effects = [0.5, -2.0, 0.3, -0.1]
    assert hand_problem("compat", effects)[1][:, 2].isnan().all()
    after = hand_problem("corrected", effects)[1][:, 2]
    assert (~after.isnan()).any()


def test_compat_asks_about_other_negatives_every_time():
    """Nothing is removed (no effect is positive), yet the accuracies differ: other texts were asked about."""
    for mode, same in (("compat", False), ("corrected", True)):
        clean, ablated, _ = hand_problem(mode, [0.5, 0.25, 0.25, 0.5])
        asked = [~ablated[j, n].isnan() for j in range(3) for n in range(2)]
        assert all(torch.equal(mask, ~clean.isnan()) for mask in asked) == same


def things(count, seed, classes=CLASSES):
    """Texts with one word of the class each."""
    g = torch.Generator().manual_seed(seed)
    fill = ["the", "runs", "sees", "big", "and", "small", "red", "blue"]
    out = []
    for i in range(count):
        words = [fill[j] for j in torch.randint(len(fill), (6,), generator=g).tolist()]
        words[i % 6] = classes[i % len(classes)]
        out.append(Document(" ".join(words), {"thing": classes[i % len(classes)]}, id=str(i)))
    return out


def word_dictionary(model, words, shared=0.0):
    """A latent for each word; ``shared`` mixes into every direction what all class words have in common."""
    known = model.module.get_input_embeddings().weight.detach().float()[4:]
    ids = [model.tokenizer.convert_tokens_to_ids(w) - 4 for w in words]
    rows = known[ids] + shared * known[ids[:4]].mean(0)
    cfg = DictionaryConfig(architecture="relu", d_in=16, d_sae=len(ids), metadata={"site": SITE})
    return Dictionary(cfg, torch.linalg.pinv(known)[:, ids], rows, torch.full((len(ids),), -0.01), torch.zeros(16))


def test_planted_latents_act_on_their_own_class(model):
    words = [*CLASSES, "the", "runs", "red", "blue"]
    truth = word_dictionary(model, words)
    order = torch.tensor([3, 6, 1, 0, 7, 2, 5, 4])
    dictionaries = {
        "truth": truth,
        "moved": truth.replace(W_enc=truth.W_enc[:, order], W_dec=truth.W_dec[order], b_enc=truth.b_enc[order]),
        "scaled": truth.replace(W_enc=truth.W_enc * 4, W_dec=truth.W_dec / 4, b_enc=truth.b_enc * 4),
        "permuted": controls.permuted_decoder(truth, seed=1),
        "identity": controls.identity(16, SITE),
    }
    data = {"toy": LabelledSet(things(400, 0), things(200, 1), ("thing",))}
    results = tpp.run(dictionaries, model, data, CONFIG)
    truth = results["truth"]

    def get(name, n, field="total_metric"):
        return results[name].metric("tpp_metrics", f"tpp_threshold_{n}_{field}")

    assert truth.eval_result_metrics["probes"]["class_accuracy"] > 0.9
    assert get("truth", 1) > 0.3
    assert abs(get("truth", 1, "unintended_diff_only")) < 0.05
    assert get("truth", 1) > get("permuted", 1) + 0.1
    assert get("truth", 1) > get("identity", 1) + 0.1
    for n in (1, 2):
        assert get("moved", n) == pytest.approx(get("truth", n), abs=1e-9)
        assert get("scaled", n) == pytest.approx(get("truth", n), abs=1e-9)
    total = get("truth", 1, "intended_diff_only") - get("truth", 1, "unintended_diff_only")
    assert get("truth", 1) == pytest.approx(total)
    record = truth.eval_result_details[0]
    assert record["dataset_name"] == "toy_tpp_results"
    assert {c: latents[0] for c, latents in record["latents_removed"].items()} == {c: i for i, c in enumerate(CLASSES)}
    assert truth.eval_result_unstructured["toy_tpp_results"]["dog"]["tpp_threshold_1_total_metric"] > 0.3
    low, high = truth.ci95["tpp_metrics.tpp_threshold_1_total_metric"]
    assert low < get("truth", 1) < high


def test_both_modes_run_on_a_set_without_a_test_part(model):
    dictionaries = {"truth": word_dictionary(model, [*CLASSES, "the", "runs"])}
    data = tpp.from_documents({"mine": things(300, 2)}, "thing", model, CONFIG)
    for mode in ("compat", "corrected"):
        config = CONFIG.model_copy(update={"mode": mode})
        result = tpp.run(dictionaries, model, data, config)["truth"]
        assert result.metric("tpp_metrics", "tpp_threshold_1_total_metric") > 0.2
        many = result.metric("tpp_metrics", "tpp_threshold_9_total_metric")
        assert torch.tensor(many).isnan() == (mode == "compat")


def test_two_classes_and_unknown_domains_are_refused(model):
    dictionaries = {"truth": word_dictionary(model, [*CLASSES, "the"])}
    two = {"toy": LabelledSet(things(200, 0, CLASSES[:2]), things(80, 1, CLASSES[:2]), ("thing",))}
    with pytest.raises(NothingToProbe, match="needs three"):
        tpp.run(dictionaries, model, two, CONFIG)
    with pytest.raises(InputError, match="portraits"):
        tpp.default_data(model, CONFIG.model_copy(update={"domains": ("portrait",)}))


def test_the_worlds_sets_are_balanced_and_hashes_follow_the_data(model):
    config = tpp.Config(train_set_size=24, test_set_size=16)
    data = tpp.default_data(model, config)
    for name, one in data.items():
        label, second = tpp.WORLD_LABELS[name]
        counts = {}
        for document in one.train:
            key = (document.labels[label], document.labels[second])
            counts[key] = counts.get(key, 0) + 1
        assert set(counts.values()) == {6}
        assert len(counts) == 10
    hashes = tpp.data_hashes(data, config)
    other = {"reviews": LabelledSet(data["reviews"].train[1:], data["reviews"].test, ("category",))}
    assert tpp.data_hashes(other, config)["data:reviews"] != hashes["data:reviews"]
