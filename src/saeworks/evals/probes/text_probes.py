"""Probes on pooled texts: on a few chosen features, and on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from saeworks.evals.probes import logistic
from saeworks.evals.probes.problems import Problem


@dataclass(frozen=True)
class Scores:
    """One kind of probe on the problems of one label: accuracy and AUC [problem], correct [problem, test text].

    ``correct`` is 1 or 0, and NaN where the text is not in the problem's test rows.
    """

    accuracy: Tensor
    auc: Tensor
    correct: Tensor

    def placed(self, rows: Sequence[int], texts: int) -> Scores:
        """The same with ``correct`` [problem, text] over all ``texts``; those at ``rows`` are the test texts."""
        correct = torch.full((len(self.correct), texts), torch.nan)
        correct[:, torch.tensor(rows, dtype=torch.int64)] = self.correct
        return Scores(self.accuracy, self.auc, correct)


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of several splits as one, problem after problem."""
    return Scores(
        torch.cat([p.accuracy for p in parts]), torch.cat([p.auc for p in parts]), torch.cat([p.correct for p in parts])
    )


@dataclass(frozen=True)
class Features:
    """Pooled features of the training and the test texts, [text, feature]. Probes see them standardised by the mean
    and standard deviation of all training texts; features that never vary stay 0."""

    train: Tensor
    test: Tensor

    @cached_property
    def mean(self) -> Tensor:
        """[feature]."""
        return self.train.mean(0)

    @cached_property
    def scale(self) -> Tensor:
        """[feature], 1 where a feature is constant."""
        deviation = self.train.std(0, unbiased=False)
        return torch.where(deviation > 1e-8, deviation, 1.0)

    @cached_property
    def products(self) -> tuple[Tensor, Tensor]:
        """Inner products of standardised texts, float64: [train, train] and [test, train]. Made once for all labels."""
        train, test = (self.train - self.mean) / self.scale, (self.test - self.mean) / self.scale
        return (train @ train.T).double(), (test @ train.T).double()


def mean_differences(train: Tensor, problems: Sequence[Problem]) -> Tensor:
    """[problem, feature]: |mean of positives - mean of negatives| on the problem's training rows."""
    signs = torch.zeros(len(problems), len(train))
    for i, p in enumerate(problems):
        positives = float(p.train_labels.sum())
        negatives = len(p.train_labels) - positives
        signs[i, p.train_rows] = torch.where(p.train_labels == 1, 1 / positives, -1 / negatives).float()
    return (signs @ train).abs()


def probe_top_k(
    features: Features, problems: Sequence[Problem], differences: Tensor, k: int, strengths: Sequence[float]
) -> Scores:
    """One probe per problem on the k features with the largest difference of means.

    Ties go to the lower index, so that the choice does not depend on the sorting routine.
    """
    chosen = differences.sort(dim=1, descending=True, stable=True).indices[:, :k]
    rows = max(len(p.train_rows) for p in problems)
    pairs = list(zip(problems, chosen, strict=True))
    train = [(features.train[p.train_rows][:, c] - features.mean[c]) / features.scale[c] for p, c in pairs]
    x = torch.stack([_padded(t.double(), rows) for t in train])
    y, inner, used = _labels(problems, rows)
    # All candidates of C at once, as further problems of one batch.
    count = len(strengths)
    grid = torch.tensor(strengths, dtype=torch.float64).repeat_interleave(len(problems))
    tried = logistic.fit(x.repeat(count, 1, 1), y.repeat(count, 1), inner.repeat(count, 1) * grid[:, None])
    z = tried.scores(x.repeat(count, 1, 1)).view(count, len(problems), rows)
    best = _best_strength(z, y, used - inner, strengths)
    fit = logistic.fit(x, y, used * best[:, None])
    scores = [
        ((features.test[p.test_rows][:, c] - features.mean[c]) / features.scale[c]).double() @ fit.weights[i]
        + fit.bias[i]
        for i, (p, c) in enumerate(pairs)
    ]
    return _score(scores, problems, len(features.test))


def probe_all(features: Features, problems: Sequence[Problem], strengths: Sequence[float]) -> Scores:
    """One probe per problem on all features.

    Where features outnumber the texts the probe is solved in the span of the texts, so that the cost does not grow with
    the features; otherwise in the features, so that it grows with the texts in proportion only.
    """
    solve = _all_by_feature if features.train.shape[1] < len(features.train) // 2 else _all_by_text
    return _score([solve(features, p, strengths) for p in problems], problems, len(features.test))


def _all_by_feature(features: Features, p: Problem, strengths: Sequence[float]) -> Tensor:
    """[test row] log-odds."""
    x = ((features.train[p.train_rows] - features.mean) / features.scale).double()[None]
    y, inner, used = _labels([p], len(p.train_rows))
    fitted = inner[0].bool()
    part, part_y = x[:, fitted], y[:, fitted]
    z = [logistic.fit(part, part_y, torch.full_like(part_y, c)).scores(x) for c in strengths]
    best = _best_strength(torch.stack(z), y, used - inner, strengths)
    test = ((features.test[p.test_rows] - features.mean) / features.scale)[None]
    return logistic.fit(x, y, used * best[:, None]).scores(test)[0]


def _all_by_text(features: Features, p: Problem, strengths: Sequence[float]) -> Tensor:
    """[test row] log-odds."""
    train, test = features.products
    y, inner, used = _labels([p], len(p.train_rows))
    kernel = train[p.train_rows][:, p.train_rows][None]
    fitted = inner[0].bool()
    part = kernel[:, fitted][:, :, fitted]
    a, z = None, list[Tensor]()
    for c in strengths:
        a = logistic.fit_kernel(part, y[:, fitted], torch.full_like(y[:, fitted], c), a)
        z.append((kernel[:, :, fitted] + logistic.BIAS_VARIANCE) @ a[:, :, None])
    best = _best_strength(torch.stack(z).squeeze(-1), y, used - inner, strengths)
    a = logistic.fit_kernel(kernel, y, used * best[:, None])
    return (test[p.test_rows][:, p.train_rows] + logistic.BIAS_VARIANCE) @ a[0]


def _labels(problems: Sequence[Problem], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """[problem, row] float64: labels, the rows that C candidates are fitted on, and all rows; 0 at padding."""
    y = torch.stack([_padded(p.train_labels.double(), rows) for p in problems])
    inner = torch.stack([_padded(p.inner.double(), rows) for p in problems])
    used = torch.stack([_padded(torch.ones(len(p.train_rows), dtype=torch.float64), rows) for p in problems])
    return y, inner, used


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


def _best_strength(z: Tensor, y: Tensor, held_out: Tensor, strengths: Sequence[float]) -> Tensor:
    """[problem]: the C whose log-odds z [C, problem, row] have the smallest log loss on the held-out rows."""
    losses = (held_out * (torch.nn.functional.softplus(z) - y * z)).sum(-1)
    return torch.tensor(strengths, dtype=torch.float64)[losses.argmin(0)]


def _score(scores: Sequence[Tensor], problems: Sequence[Problem], texts: int) -> Scores:
    accuracy, area = torch.zeros(len(problems)), torch.zeros(len(problems))
    correct = torch.full((len(problems), texts), torch.nan)
    for i, (z, p) in enumerate(zip(scores, problems, strict=True)):
        hit = ((z > 0) == (p.test_labels == 1)).float()
        accuracy[i], area[i] = hit.mean(), logistic.auc(z, p.test_labels)
        correct[i, p.test_rows] = hit
    return Scores(accuracy, area, correct)
