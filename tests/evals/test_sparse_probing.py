"""Planted features are found, shuffled labels are chance, rows are balanced and parts stay apart."""

import pytest
import torch

from saeworks.errors import InputError
from saeworks.evals import sparse_probing
from saeworks.evals.probes.problems import draw_problems, group_split
from saeworks.evals.shared.pooling import TextPool, without_repeats
from saeworks.evals.sparse_probing import Config, LabelledSet
from saeworks.world import corpus
from saeworks.world.documents import Document

BLANK = ["", "  ", float("nan")]
SMALL = Config(seeds=(0, 1), strengths=(0.01, 1.0), batch_size=16, resamples=50)


def planted(count, seed):
    """Texts with "dog" are animals; everything else is drawn alike."""
    g = torch.Generator().manual_seed(seed)
    others = ["the", "red", "house", "sees", "big", "and", "tree", "blue"]
    out = []
    for i in range(count):
        words = [others[j] for j in torch.randint(len(others), (8,), generator=g).tolist()]
        label = i % 2 == 0
        if label:
            words[3] = "dog"
        out.append(Document(text=" ".join(words), labels={"has_dog": label, "noise": "xy"[i // 2 % 2]}))
    return out


def skipped_of(result):
    return next((row["skipped"] for row in result.eval_result_details if "skipped" in row), {})


def dog_dictionary(model, make_dictionary):
    """Latent 0 reads the direction of "dog" at the embedding; the others are random."""
    dictionary = make_dictionary(width=24, k=6, seed=3)
    embedding = model.module.get_input_embeddings().weight
    dog = embedding[model.tokenizer.convert_tokens_to_ids("dog")]
    others = torch.stack([embedding[model.tokenizer.convert_tokens_to_ids(w)] for w in ("the", "red", "house", "sees")])
    direction = dog - others.mean(0)
    W_enc = dictionary.W_enc.clone() * 0.1
    W_enc[:, 0] = direction / direction.norm()
    return dictionary.replace(W_enc=W_enc, metadata={"site": "layers.0.resid_pre"})


def test_one_latent_finds_the_planted_word_and_shuffled_labels_do_not(model, make_dictionary):
    dictionary = dog_dictionary(model, make_dictionary)
    sets = {"toy": LabelledSet(planted(300, 0), planted(160, 1), ("has_dog",))}
    result = sparse_probing.run({"d": dictionary}, model, sets, SMALL)["d"]
    assert result.metric("sae", "sae_top_1_test_accuracy") > 0.9
    assert result.metric("sae", "sae_top_1_test_auc") > 0.95
    assert result.metric("llm", "llm_test_accuracy") > 0.9
    assert result.metric("control", "sae_top_5_shuffled_labels_test_accuracy") == pytest.approx(0.5, abs=0.15)
    assert result.metric("sae", "sae_top_50_test_accuracy") is None
    low, high = result.ci95["sae.sae_top_1_test_accuracy"]
    assert low <= result.metric("sae", "sae_top_1_test_accuracy") <= high


def test_labels_without_signal_are_chance(model, make_dictionary):
    sets = {"toy": LabelledSet(planted(300, 0), planted(200, 1), ("noise",))}
    result = sparse_probing.run({"d": make_dictionary()}, model, sets, SMALL)["d"]
    assert result.metric("sae", "sae_top_1_test_accuracy") == pytest.approx(0.5, abs=0.12)


def test_permuting_latents_changes_no_score(model, make_dictionary):
    dictionary = make_dictionary(width=24, k=5)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    permuted = dictionary.replace(W_enc=dictionary.W_enc[:, order], W_dec=dictionary.W_dec[order])
    sets = {"toy": LabelledSet(planted(120, 0), planted(60, 1), ("has_dog",))}
    results = sparse_probing.run({"a": dictionary, "b": permuted}, model, sets, SMALL)
    for key, value in results["a"].eval_result_metrics["sae"].items():
        other = results["b"].eval_result_metrics["sae"][key]
        assert (value is None and other is None) or other == pytest.approx(value, abs=1e-6), key


def test_pooling_is_the_mean_of_codes_over_kept_tokens(model, make_dictionary):
    dictionary, documents = make_dictionary(), [*planted(5, 2), Document(text="")]
    pooled = TextPool().pool({"d": dictionary}, model, documents, 32, 2)
    batch = model.tokenize([documents[3].text], 32)
    x = model.harvest(batch, ["layers.0.resid_post"])["layers.0.resid_post"][batch.keep]
    assert torch.allclose(pooled.latents["d"][3], dictionary.encode(x).mean(0), atol=1e-5)
    assert torch.allclose(pooled.activations["layers.0.resid_post"][3], x.mean(0), atol=1e-5)
    assert int(pooled.tokens[5]) == 0


def test_problems_are_balanced_fixed_and_not_mirrored():
    train, test = ["a"] * 40 + ["b"] * 30 + ["c"] * 30, ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    problems, reasons = draw_problems(train, test, (0, 1), 5, 10)
    again, _ = draw_problems(train, test, (0, 1), 5, 10)
    assert not reasons
    assert [(p.name, p.seed) for p in problems] == [(n, s) for s in (0, 1) for n in "abc"]
    for p, q in zip(problems, again, strict=True):
        assert torch.equal(p.train_rows, q.train_rows)
        assert int(p.train_labels.sum()) * 2 == len(p.train_rows)
        positives = [train[i] for i in p.train_rows[p.train_labels == 1].tolist()]
        negatives = [train[i] for i in p.train_rows[p.train_labels == 0].tolist()]
        assert set(positives) == {p.name}
        assert p.name not in negatives
        assert len(set(p.train_rows.tolist())) == len(p.train_rows)
        assert 0 < int(p.inner.sum()) < len(p.train_rows)
        counts = [negatives.count(c) for c in set(negatives)]
        assert max(counts) - min(counts) <= 1
    two, _ = draw_problems([0, 1] * 20, [0, 1] * 10, (0,), 5, 5)
    assert [p.name for p in two] == ["1"]


def test_quantities_and_rare_classes_are_left_out_with_a_reason():
    problems, reasons = draw_problems([i / 7 for i in range(60)], [0.5] * 10, (0,), 5, 5)
    assert not problems
    assert "quantity" in reasons[""]
    _, reasons = draw_problems(["a"] * 50 + ["b"] * 50 + ["c"], ["a", "b"] * 9, (0,), 5, 5)
    assert "too few" in reasons["=c"]


def test_identical_texts_stay_in_one_part():
    texts = [f"text {i % 10}" for i in range(40)]
    train, test = group_split(texts, 0.3, 0)
    assert sorted(train + test) == list(range(40))
    assert not {texts[i] for i in train} & {texts[i] for i in test}
    with pytest.raises(InputError, match="two different texts"):
        group_split(["same"] * 5, 0.3, 0)
    kept = without_repeats([Document(text="x")], [Document(text="x"), Document(text="y")])
    assert [d.text for d in kept[1]] == ["y"]
    assert kept[2] == 1


def test_empty_labels_and_texts_without_tokens_are_not_probed(model, make_dictionary):
    def marked(rows):
        labelled = [Document(text=d.text, labels={"has_dog": str(d.labels["has_dog"])}) for d in rows]
        empty = [Document(text=f"{d.text} big", labels={"has_dog": BLANK[i % 3]}) for i, d in enumerate(rows)]
        special = [Document(text="<pad> " * i, labels={"has_dog": "no text"}) for i in range(1, 41)]
        return labelled + empty + special

    sets = {"toy": LabelledSet(marked(planted(100, 0)), marked(planted(60, 1)))}
    result = sparse_probing.run({"d": make_dictionary()}, model, sets, SMALL)["d"]
    assert set(result.eval_result_unstructured["toy_has_dog_results"]["sae_test_accuracy"]) == {"True"}
    skipped = skipped_of(result)
    assert skipped["toy/has_dog: 160 texts"] == "no such label"
    # The 40 of the test part repeat those of the training part and were dropped before.
    assert "average" in skipped["toy: 40 texts without a token"]


def test_texts_that_lack_a_label_are_counted_label_by_label(model, make_dictionary):
    def rows(count, seed):
        """Every third text has no "noise", every fourth no "has_dog"; "rare" is on two texts of each part."""
        out = []
        for i, d in enumerate(planted(count, seed)):
            labels = {name: v for name, v in d.labels.items() if i % {"noise": 3, "has_dog": 4}[name]}
            out.append(Document(text=d.text, labels=labels | ({"rare": "ab"[i]} if i < 2 else {})))
        return out

    asked = LabelledSet(rows(120, 0), rows(60, 1), ("has_dog", "noise", "rare", "absent"))
    skipped = skipped_of(sparse_probing.run({"d": make_dictionary()}, model, {"toy": asked}, SMALL)["d"])
    counts = {key: why for key, why in skipped.items() if why == "no such label"}
    assert set(counts) == {
        "toy/has_dog: 45 texts",
        "toy/noise: 60 texts",
        "toy/rare: 176 texts",
        "toy/absent: 180 texts",
    }
    whole = LabelledSet(planted(120, 0), planted(60, 1))
    result = sparse_probing.run({"d": make_dictionary()}, model, {"toy": whole}, SMALL)["d"]
    assert not any(why == "no such label" for why in skipped_of(result).values())


def test_a_domain_that_joins_the_world_is_probed_only_when_named():
    sets = sparse_probing.world_sets(config=Config(train_texts=4, test_texts=2))
    assert tuple(sets) == ("biographies", "reviews", "news", "taxonomy", "facts")
    assert all(s.labels and len(s.train) == 4 and s.test is not None and len(s.test) == 2 for s in sets.values())
    assert set(corpus.DOMAINS) > set(sets)
    (code,) = sparse_probing.world_sets(["code", "spelling"], Config(train_texts=4, test_texts=2)).items()
    assert (code[0], code[1].labels) == ("code", ("language",)), "spelling has no labels"


def test_data_without_labels_are_refused_with_a_reason(model, make_dictionary, make_sentences):
    sets = {"toy": LabelledSet(make_sentences(20), make_sentences(10, 1))}
    with pytest.raises(InputError, match="No label can be probed"):
        sparse_probing.run({"d": make_dictionary()}, model, sets, SMALL)
