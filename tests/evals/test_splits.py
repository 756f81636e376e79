"""Similar texts stay on one side of a split, and of the choice of C; seeds are different splits."""

import pytest
import torch

from saeworks.evals import sparse_probing
from saeworks.evals.probes import text_probes as probes
from saeworks.evals.probes.problems import draw_problems, group_split
from saeworks.evals.probes.text_probes import Features, joined, probe_all
from saeworks.evals.shared.splits import draw_splits, prepare
from saeworks.evals.sparse_probing import Config, LabelledSet
from saeworks.world.documents import Document

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SMALL = Config(seeds=(0, 1, 2), train_texts=160, test_texts=80, batch_size=16, resamples=200, k_values=(1, 5))


def questions(count):
    """Pairs that differ in one word and have opposite answers, and share no words with other pairs."""
    out = []
    for i in range(count):
        for word, label in (("more", "a"), ("less", "b")):
            text = " ".join([*(f"w{i}x{j}" for j in range(8)), word])
            out.append(Document(text=text, labels={"label": label}))
    return out


def test_every_seed_splits_anew_and_pairs_stay_together():
    documents = questions(40)
    texts = prepare(LabelledSet(documents, None), 60, 30)
    splits = draw_splits(texts, (0, 1, 2), 0.7)
    assert [s.seeds for s in splits] == [(0,), (1,), (2,)]
    assert len({tuple(s.test) for s in splits}) == 3
    for split in splits:
        assert sorted(split.train + split.test) == list(range(80))
        assert len(split.test) == pytest.approx(80 / 3, abs=2)
        assert not {split.groups[i] for i in split.train} & {split.groups[i] for i in split.test}
        assert {i // 2 for i in split.test}.isdisjoint(i // 2 for i in split.train)
    apart = draw_splits(texts, (0,), None)[0]
    assert {i // 2 for i in apart.test} & {i // 2 for i in apart.train}


def test_repeats_are_dropped_unless_their_labels_differ_and_a_given_division_is_kept():
    rows = [Document(text=t, labels={"label": v}) for t, v in [("x", 1), ("y", 0), ("x", 1), ("x", 0), ("z", 1)]]
    texts = prepare(LabelledSet(rows, None), 3, 2)
    assert [(d.text, d.labels["label"]) for d in texts.train] == [("x", 1), ("y", 0), ("x", 0), ("z", 1)]
    assert (texts.dropped, texts.test, texts.divided) == (1, [], False)
    given = prepare(LabelledSet(rows[:3], rows[3:]), 10, 10)
    assert [d.text for d in given.test] == ["z"]
    (split,) = draw_splits(given, (4, 5), 0.7)
    assert (split.seeds, split.train, split.test) == ((4, 5), [0, 1, 2], [3])


def test_a_large_group_is_not_forced_into_the_test_part():
    groups = [0] * 50 + list(range(1, 51))
    for seed in range(5):
        train, test = group_split(groups, 0.3, seed)
        assert set(range(50)) <= set(train)
        assert len(test) == 30


def test_groups_stay_together_where_c_is_chosen():
    groups = [i // 4 for i in range(200)]
    labels = [i % 2 for i in range(200)]
    for seed in range(4):
        (problem,), _ = draw_problems(labels, labels, (seed,), 5, 10, groups)
        sides = {}
        for row, inner in zip(problem.train_rows.tolist(), problem.inner.tolist(), strict=True):
            sides.setdefault(groups[row], set()).add(inner)
        assert all(len(side) == 1 for side in sides.values())
        for value in (0, 1):
            kept = problem.inner[problem.train_labels == value]
            assert 0.7 < float(kept.float().mean()) < 0.9
    # One group of everything cannot be held apart: then rows are.
    (problem,), _ = draw_problems(labels, labels, (0,), 5, 10, [0] * 200)
    assert 0 < int(problem.inner.sum()) < 200


def test_opposite_near_copies_are_chance_when_grouped_and_below_it_when_not():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(150, 200, generator=g).repeat_interleave(2, 0) + 0.3 * torch.randn(300, 200, generator=g)
    labels = [i % 2 for i in range(300)]

    def accuracy(groups):
        parts = []
        for seed in range(6):
            train, test = group_split(groups, 1 / 3, seed)
            problems, _ = draw_problems(
                [labels[i] for i in train], [labels[i] for i in test], (seed,), 5, 10, [groups[i] for i in train]
            )
            parts.append(probe_all(Features(x[train], x[test]), problems, (0.1,)))
        return float(joined(parts).accuracy.mean())

    assert accuracy([i // 2 for i in range(300)]) == pytest.approx(0.5, abs=0.06)
    assert accuracy(list(range(300))) < 0.4


def test_repeats_in_training_do_not_make_the_dense_probe_memorise():
    g = torch.Generator().manual_seed(1)
    kinds = [i % 2 for i in range(460)]
    x = torch.randn(460, 60, generator=g) + 0.3 * (torch.tensor(kinds)[:, None] * 2 - 1) * (torch.arange(60) < 8)
    repeated = [i // 4 for i in range(240)]
    train, labels = x[repeated], [kinds[i] for i in repeated]
    features = Features(train, x[60:])

    def confidence(groups):
        (problem,), _ = draw_problems(labels, kinds[60:], (0,), 5, 10, groups)
        return float(probes._all_by_text(features, problem, (*STRENGTHS, 100.0)).abs().mean())

    # Weak features warrant weak log-odds; a C chosen on copies of the training texts gives large ones.
    assert confidence(repeated) < 2 < 4 < confidence(None)


def test_both_ways_of_solving_the_dense_probe_agree():
    g = torch.Generator().manual_seed(2)
    labels = [i % 2 for i in range(120)]
    x = torch.randn(120, 10, generator=g) + 0.4 * torch.tensor(labels)[:, None]
    (problem,), _ = draw_problems(labels[:80], labels[80:], (0,), 5, 10)
    features = Features(x[:80], x[80:])
    for strengths in ((0.01,), (1.0,), STRENGTHS):
        by_feature = probes._all_by_feature(features, problem, strengths)
        by_text = probes._all_by_text(features, problem, strengths)
        assert torch.allclose(by_feature, by_text, atol=2e-3)


def test_labels_carry_paired_intervals_over_seeds_and_texts(model, make_dictionary):
    g = torch.Generator().manual_seed(3)
    others = ["the", "red", "house", "sees", "big", "and", "tree", "blue"]
    documents = []
    for i in range(240):
        words = [others[j] for j in torch.randint(len(others), (10,), generator=g).tolist()]
        words[3] = "dog" if i % 2 else "cat"
        documents.append(Document(text=" ".join(words), labels={"animal": words[3]}))
    sets = {"toy": LabelledSet(documents, None)}
    result = sparse_probing.run({"d": make_dictionary()}, model, sets, SMALL)["d"]
    (row,) = [r for r in result.eval_result_details if "dataset" in r]
    for kind in ("llm_test", "sae_top_1_test", "sae_top_5_test"):
        by_seed, (low, high) = row[f"{kind}_accuracy_by_seed"], row[f"{kind}_accuracy_ci95"]
        assert len(by_seed) == 3
        assert sum(by_seed) / 3 == pytest.approx(row[f"{kind}_accuracy"])
        assert low < row[f"{kind}_accuracy"] < high or low == high == 1.0
    assert row["llm_test_accuracy"] > 0.9
    # 160 of the 240 texts train; a seed leaves out those that the rarer class of its part cannot match.
    assert 130 <= row["train_texts"] <= 160
    assert 60 <= row["test_texts"] <= 80
    low, high = row["sae_top_1_minus_llm_test_accuracy_ci95"]
    assert low < row["sae_top_1_test_accuracy"] - row["llm_test_accuracy"] < high
    assert result.n > 80, "seeds test different texts"
    again = sparse_probing.run({"d": make_dictionary()}, model, sets, SMALL)["d"]
    assert again.eval_result_details == result.eval_result_details
