"""Probes of letters: schedules, weights, the L1 minimum, and how many latents a letter is split into."""

import pytest
import torch

from saeworks.dictionaries.codes import Codes
from saeworks.evals.letters.absorption_results import aggregate
from saeworks.evals.letters.letter_probes import (
    Schedule,
    columns_of,
    f1_score,
    fit_latents,
    fit_letters,
    k_sparse_f1,
    order_latents,
    positive_weight,
    rows_of,
    split_count,
)
from saeworks.evals.probes.l1_probes import fit_l1

LETTERS = torch.arange(120) % 4


def letter_codes(noise=3, seed=0):
    """Latent c fires on words with letter c (four letters), and some others at random."""
    g = torch.Generator().manual_seed(seed)
    dense = torch.zeros(120, 4 + noise)
    dense[torch.arange(120), LETTERS] = 1 + torch.rand(120, generator=g)
    dense[:, 4:] = (torch.rand(120, noise, generator=g) < 0.3) * torch.rand(120, noise, generator=g)
    return Codes.from_dense(dense)


def test_the_rate_falls_to_the_last_one():
    schedule = Schedule(epochs=7, first_rate=0.1, last_rate=1e-4)
    assert schedule.rate(0) == 0.1
    assert schedule.rate(7) == pytest.approx(1e-4)


@pytest.mark.parametrize(("positives", "negatives", "weight"), [(5, 5, 1), (5, 15, 3), (20, 5, 0.25), (0, 4, 1)])
def test_positives_weigh_as_much_as_negatives(positives, negatives, weight):
    targets = torch.tensor([1.0] * positives + [0.0] * negatives)[:, None]
    assert float(positive_weight(targets)[0]) == pytest.approx(weight)


def test_every_letter_has_a_weight_of_its_own():
    targets = torch.tensor([[1.0, 1.0]] * 3 + [[0.0, 1.0]] * 2 + [[0.0, 0.0]])
    torch.testing.assert_close(positive_weight(targets), torch.tensor([1.0, 0.2]))


def test_probes_on_activations_find_planted_letters_and_repeat_with_the_seed():
    g = torch.Generator().manual_seed(1)
    directions = torch.randn(4, 32, generator=g)
    x = 2 * directions[LETTERS] + torch.randn(120, 32, generator=g)
    probe = fit_letters(x, LETTERS, 0)
    truth = torch.nn.functional.one_hot(LETTERS, 26).T.bool()
    assert f1_score(probe.logits(x).T > 0, truth)[:4].min() > 0.95
    assert torch.equal(probe.weights, fit_letters(x, LETTERS, 0).weights)
    assert not torch.equal(probe.weights, fit_letters(x, LETTERS, 1).weights)


def test_the_l1_probe_is_at_the_minimum():
    g = torch.Generator().manual_seed(2)
    dense = torch.randn(80, 10, generator=g) * (torch.rand(80, 10, generator=g) < 0.5)
    codes = Codes.from_mask(dense, dense != 0)
    y = (dense @ torch.randn(10, 3, generator=g) + torch.randn(80, 3, generator=g) > 0).float()
    weight, l1 = torch.tensor([1.0, 2.0, 5.0]), 0.02
    w, b = fit_l1(codes, y, weight, l1)
    scale = dense.abs().sum() / (dense != 0).sum()
    each = torch.where(y > 0, weight, 1.0) / len(y)
    residual = each * ((dense @ w.T + b).sigmoid() - y)
    gradient = residual.T @ dense / scale
    assert residual.sum(0).abs().max() < 1e-3
    zero = w == 0
    assert 0 < int(zero.sum()) < zero.numel()
    assert gradient[zero].abs().max() <= l1 + 1e-3
    assert torch.allclose(gradient[~zero], -l1 * w[~zero].sign(), atol=1e-3)
    # Activations of another scale: the same latents, weights to match.
    again, _ = fit_l1(codes.with_values(codes.values * 100), y, weight, l1)
    assert torch.allclose(again * 100, w, atol=1e-4)


@pytest.mark.parametrize("schedule", [None, Schedule(batch_size=16, weight_decay=1e-6)])
def test_both_latent_probes_put_the_letter_first(schedule):
    codes = letter_codes()
    order = order_latents(fit_latents(codes, LETTERS, 0.01, schedule), 3)
    assert order[:4, 0].tolist() == [0, 1, 2, 3]


def test_the_minimum_does_not_depend_on_the_order_of_latents_nor_dead_ones():
    codes = letter_codes(noise=12)
    permutation = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    wider = torch.zeros(120, 20)
    wider[:, permutation] = codes.dense()
    first = fit_latents(codes, LETTERS, 0.01).weights
    second = fit_latents(Codes.from_dense(wider), LETTERS, 0.01).weights
    assert torch.allclose(first, second[:, permutation], atol=1e-4)
    assert second[:, 16:].abs().max() == 0


def test_few_steps_of_adam_prefer_what_never_fires_against_the_letter():
    """The published schedule takes one step per epoch where words are few. A latent of one word then has the weight of
    a latent of half the letter; the minimum tells them apart."""
    dense = torch.zeros(120, 2)
    dense[LETTERS == 0, 0] = 1.0
    dense[1, 0] = 1.0  # one false alarm
    dense[0, 1] = 1.0
    codes = Codes.from_dense(dense)
    minimum = fit_latents(codes, LETTERS, 0.01)
    assert order_latents(minimum, 2)[0].tolist()[0] == 0
    adam = fit_latents(codes, LETTERS, 0.01, Schedule(50, 4096, 0.01, 1e-5, 1e-6), 0).weights[0]
    assert abs(float(adam[0] - adam[1])) < 2.0
    assert float(minimum.weights[0, 0] - minimum.weights[0, 1]) > 2.0


def test_order_is_signed_and_leaves_out_weights_of_zero():
    from saeworks.evals.letters.letter_probes import LinearProbe

    weights = torch.zeros(26, 4)
    weights[0] = torch.tensor([-5.0, 0.0, 2.0, 1.0])
    probe = LinearProbe(weights, torch.zeros(26))
    assert order_latents(probe, 4)[0].tolist() == [2, 3, -1, 0]
    assert order_latents(probe, 2)[1].tolist() == [-1, -1]
    sign = torch.ones(26, 4)
    sign[0, 0] = -1
    assert order_latents(probe, 2, sign)[0].tolist() == [0, 2]


def test_k_sparse_f1_rises_with_the_latents_a_letter_needs():
    dense = torch.zeros(120, 3)
    first, second = (LETTERS == 0) & (torch.arange(120) < 60), (LETTERS == 0) & (torch.arange(120) >= 60)
    dense[first, 0], dense[second, 1] = 1.0, 1.0
    codes = Codes.from_dense(dense)
    order = torch.full((26, 3), -1)
    order[0] = torch.tensor([0, 1, -1])
    f1 = k_sparse_f1(codes, codes, LETTERS, LETTERS, order)
    assert f1[0].tolist() == pytest.approx([2 / 3, 1, 1])
    assert split_count(f1[0].tolist()) == 2


def test_k_sparse_probes_are_those_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    metrics = pytest.importorskip("sklearn.metrics")
    g = torch.Generator().manual_seed(5)
    dense = torch.rand(120, 5, generator=g) * (torch.rand(120, 5, generator=g) < 0.5)
    dense[LETTERS == 1, 2] += 0.5
    codes = Codes.from_dense(dense)
    order = torch.full((26, 2), -1)
    order[1] = torch.tensor([2, 0])
    f1 = k_sparse_f1(codes, codes, LETTERS, LETTERS, order)
    truth = (LETTERS == 1).numpy()
    for k in (1, 2):
        x = dense[:, [2, 0][:k]].numpy()
        reference = linear_model.LogisticRegression(class_weight="balanced", max_iter=500, tol=1e-8).fit(x, truth)
        assert float(f1[1, k - 1]) == pytest.approx(metrics.f1_score(truth, reference.predict(x)))


@pytest.mark.parametrize(
    ("f1", "splits"),
    [([0.50, 0.54, 0.56, 0.60, 0.70], 2), ([0.90, 0.92, 0.97], 1), ([0.5], 1), ([0.1, 0.2, 0.3, 0.4], 4)],
)
def test_splits_are_counted_against_the_last_accepted_one(f1, splits):
    assert split_count(f1) == splits


def test_aggregation_over_letters():
    rows = [
        {"mean_absorption_fraction": 1.2 / 3, "full_absorption_rate": 1 / 3, "num_split_features": 1},
        {"mean_absorption_fraction": 0.0, "full_absorption_rate": 0.0, "num_split_features": 2},
    ]
    out = aggregate(rows)
    assert out["mean_absorption_fraction_score"] == pytest.approx(0.2)
    assert out["mean_full_absorption_score"] == pytest.approx(1 / 6)
    assert out["mean_num_split_features"] == 1.5
    assert out["std_dev_num_split_features"] == pytest.approx(0.5**0.5)
    assert aggregate(rows[:1])["mean_absorption_fraction_score"] == pytest.approx(0.4)


def test_rows_and_columns_of_codes():
    codes = letter_codes()
    rows = torch.tensor([5, 0, 5, 119])
    assert torch.equal(rows_of(codes, rows).dense(), codes.dense()[rows])
    latents = torch.tensor([3, 0, 3])
    assert torch.equal(columns_of(codes, latents), codes.dense()[:, latents])
