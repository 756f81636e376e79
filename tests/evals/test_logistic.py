"""Batched logistic regression against scikit-learn and against its own optimality condition."""

import pytest
import torch

from saeworks.evals.probes import logistic


def data(problems, rows, features, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(problems, rows, features, generator=g, dtype=torch.float64)
    w = torch.randn(problems, features, generator=g, dtype=torch.float64)
    z = (x @ w[:, :, None]).squeeze(-1) + torch.randn(problems, rows, generator=g, dtype=torch.float64) + 0.5
    return x, (z > 0).double()


@pytest.mark.parametrize("features", [1, 5, 80])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_agrees_with_scikit_learn(features, c):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = data(3, 60, features)
    fit = logistic.fit(x, y, torch.full((3, 60), c))
    for i in range(3):
        reference = linear_model.LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x[i].numpy(), y[i].numpy())
        assert fit.weights[i].numpy() == pytest.approx(reference.coef_[0], abs=2e-4)
        assert float(fit.bias[i]) == pytest.approx(float(reference.intercept_[0]), abs=2e-3)


@pytest.mark.parametrize("features", [3, 50])
def test_padding_rows_change_nothing(features):
    x, y = data(2, 40, features)
    strength = torch.full((2, 40), 0.3)
    alone = logistic.fit(x, y, strength)
    noise = torch.randn(2, 9, features, dtype=torch.float64)
    padded = logistic.fit(
        torch.cat([x, noise], 1),
        torch.cat([y, torch.ones(2, 9, dtype=torch.float64)], 1),
        torch.cat([strength, torch.zeros(2, 9)], 1),
    )
    assert torch.allclose(alone.weights, padded.weights, atol=1e-4)
    assert torch.allclose(alone.bias, padded.bias, atol=1e-4)


def test_separable_data_stay_finite():
    x = torch.tensor([[[-2.0], [-1.0], [1.0], [2.0]]]) * 1e3
    fit = logistic.fit(x, torch.tensor([[0.0, 0, 1, 1]]), torch.full((1, 4), 1.0))
    assert bool(torch.isfinite(fit.weights).all())
    assert ((fit.scores(x) > 0).double() == torch.tensor([[0.0, 0, 1, 1]])).all()


def test_auc_counts_ties_half():
    y = torch.tensor([1.0, 0, 1, 0])
    assert logistic.auc(torch.tensor([3.0, 1, 2, 0]), y) == 1.0
    assert logistic.auc(torch.tensor([0.0, 0, 0, 0]), y) == 0.5
    assert logistic.auc(torch.tensor([1.0, 1, 3, 2]), y) == pytest.approx((0.5 + 0 + 1 + 1) / 4)
