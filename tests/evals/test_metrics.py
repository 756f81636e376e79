"""Closed forms and golden values of the metrics."""

import math

import pytest
import torch

from saeworks.evals.shared import metrics

X = torch.tensor([[1.0, 0], [0, 2], [2, 2]])
X_HAT = torch.tensor([[1.0, 0], [0, 1], [1, 2]])
F = torch.tensor([[1.0, 0, 0], [0, -2, 0], [3, 1, 0]])


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (metrics.explained_variance, 0.571429),
        (metrics.explained_variance_legacy, 0.538462),
        (metrics.mse, 2 / 3),
        (metrics.mse_per_dimension, 0.333333),
        (metrics.cosine_similarity, 0.982894),
        (metrics.l2_ratio, 0.763523),
        (metrics.relative_reconstruction_bias, 0.777778),
        (metrics.normalised_mse, 2 / 13),
    ],
)
def test_golden_values_of_fidelity(function, value):
    assert function(X, X_HAT) == pytest.approx(value, abs=1e-6)


def test_golden_values_of_norms_and_sparsity():
    accumulator = metrics.ReconstructionAccumulator()
    accumulator.update(X, X_HAT, F)
    result = accumulator.result()
    assert result["l2_norm_in"] == pytest.approx(1.942809, abs=1e-6)
    assert result["l2_norm_out"] == pytest.approx(1.412023, abs=1e-6)
    assert result["l0"] == metrics.l0(F) == pytest.approx(4 / 3)
    assert result["l1"] == metrics.l1(F) == pytest.approx(7 / 3)
    assert metrics.densities(F).tolist() == pytest.approx([2 / 3, 2 / 3, 0])
    assert accumulator.densities().tolist() == pytest.approx([2 / 3, 2 / 3, 0])
    assert metrics.dead_fraction(metrics.densities(F)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predicting_the_mean_explains_exactly_nothing(offset, dtype):
    x = torch.randn(500, 7, generator=torch.Generator().manual_seed(1)) + offset
    mean = x.double().mean(0).to(dtype).expand_as(x)
    accumulator = metrics.ReconstructionAccumulator()
    for part in (slice(0, 3), slice(3, 200), slice(200, 500)):
        accumulator.update(x[part], mean[part])
    if dtype == torch.float64 or offset == 0:
        assert accumulator.explained_variance() == 0.0
    else:  # the mean itself is rounded to float32 here
        assert accumulator.explained_variance() == pytest.approx(0.0, abs=1e-8)


def test_identity_is_exactly_one():
    x = torch.randn(50, 4)
    accumulator = metrics.ReconstructionAccumulator()
    accumulator.update(x, x)
    result = accumulator.result()
    assert result["explained_variance"] == result["explained_variance_legacy"] == 1.0
    assert result["relative_reconstruction_bias"] == 1.0
    assert result["l2_ratio"] == pytest.approx(1.0)
    assert result["mse"] == 0.0


def test_batching_changes_nothing():
    x, x_hat = torch.randn(100, 5) * 3 + 2, torch.randn(100, 5)
    f = torch.relu(torch.randn(100, 8))
    whole, parts = metrics.ReconstructionAccumulator(), metrics.ReconstructionAccumulator()
    whole.update(x, x_hat, f)
    for i in range(0, 100, 7):
        parts.update(x[i : i + 7], x_hat[i : i + 7], f[i : i + 7])
    expected, got = whole.result(), parts.result()
    for key in set(expected) - {"explained_variance_legacy"}:
        assert got[key] == pytest.approx(expected[key], rel=1e-12), key
    assert torch.allclose(parts.mean(), x.double().mean(0))


def test_per_dimension_variance_weights_to_the_whole():
    x, x_hat = torch.randn(200, 6) * torch.arange(1, 7), torch.randn(200, 6)
    per_dimension = metrics.explained_variance_per_dimension(x, x_hat)
    weights = x.double().var(0) / x.double().var(0).sum()
    assert float((per_dimension * weights).sum()) == pytest.approx(metrics.explained_variance(x, x_hat))


def test_constant_data_have_no_explained_variance():
    x = torch.ones(4, 3)
    assert math.isnan(metrics.explained_variance(x, x * 0))


def test_zero_vectors_do_not_break_cosine():
    assert metrics.cosine_similarity(torch.zeros(2, 3), torch.ones(2, 3)) == 0.0


def test_density_histogram_counts_every_latent_once():
    density = torch.tensor([0.0, 1e-9, 1e-3, 0.5, 1.0])
    edges, counts, dead = metrics.density_histogram(density, low=-6, bins=6)
    assert edges == pytest.approx([-6, -5, -4, -3, -2, -1, 0])
    assert dead == 1
    assert sum(counts) == 4
    assert counts[0] == 1
    assert counts[-1] == 2


def test_density_shares():
    shares = metrics.density_shares(torch.tensor([0.0, 0.005, 0.05, 0.5]))
    assert shares["frac_alive"] == 0.75
    assert shares["freq_over_1_percent"] == 0.5
    assert shares["freq_over_10_percent"] == 0.25
    assert shares["normalized_freq_over_10_percent"] == pytest.approx(0.5 / 0.555)


def test_max_cosine_blocks_agree_with_the_full_matrix():
    vectors = torch.randn(30, 5)
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    full = unit @ unit.T
    full.fill_diagonal_(-2)
    assert torch.allclose(metrics.max_cosine(vectors, block=7), full.amax(1), atol=1e-6)


def test_score_is_one_for_nothing_lost_and_zero_for_the_ablation():
    assert metrics.score(2.0, 2.0, 5.0) == 1.0
    assert metrics.score(2.0, 5.0, 5.0) == 0.0
    assert math.isnan(metrics.score(2.0, 2.0, 2.0))
