"""First letters read off activations and off latents: the probes of the absorption eval.

One linear probe per letter on the activations gives the direction of "starts with S"; an L1 probe on the latents orders
the latents of each letter; small logistic probes on the first k of them say how many latents a letter is split into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.evals.probes import logistic
from saeworks.evals.probes.l1_probes import fit_l1
from saeworks.runtime import generator

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Schedule:
    """Adam with a learning rate that falls exponentially, epoch by epoch, to ``last_rate`` after ``epochs``."""

    epochs: int = 50
    batch_size: int = 64
    first_rate: float = 1e-2
    last_rate: float = 1e-5
    weight_decay: float = 1e-4

    def rate(self, epoch: int) -> float:
        """The rate of epoch 0, 1, …; ``rate(epochs)`` is ``last_rate``."""
        return self.first_rate * (self.last_rate / self.first_rate) ** (epoch / self.epochs)


@dataclass(frozen=True)
class LinearProbe:
    """``weights`` [letter, feature] and ``bias`` [letter], float32."""

    weights: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """[word, letter] for ``x`` [word, feature]."""
        return x.float() @ self.weights.T + self.bias


def one_hot(letters: Tensor) -> Tensor:
    """[word, 26] float32 of letter numbers [word]."""
    return torch.nn.functional.one_hot(letters, len(LETTERS)).float()


def positive_weight(targets: Tensor) -> Tensor:
    """[letter]: negatives per positive of ``targets`` [word, letter]; 1 for a letter without a word."""
    positives = targets.sum(0)
    return torch.where(positives > 0, (len(targets) - positives) / positives.clamp_min(1), 1.0)


def fit_letters(x: Tensor, letters: Tensor, seed: int, schedule: Schedule = Schedule()) -> LinearProbe:
    """One-vs-rest probes of all letters, trained jointly on activations ``x`` [word, d] float32.

    Binary cross-entropy in which the positives of a letter weigh as much as its negatives; one draw of initial weights
    and order for each ``seed``.
    """
    draws = generator(seed, "letter probe")
    weights, bias = _initial(x.shape[1], draws)
    x = x.float()

    def logits(rows: Tensor) -> Tensor:
        return x[rows] @ weights.T + bias

    _train(logits, [weights, bias], one_hot(letters), schedule, draws)
    return LinearProbe(weights.detach(), bias.detach())


def fit_latents(
    codes: Codes, letters: Tensor, l1: float, schedule: Schedule | None = None, seed: int = 0
) -> LinearProbe:
    """The same on latents, with ``l1`` times the mean over letters of Σ|w| added; weights are [letter, latent].

    Args:
        codes: latents of the words, float32 values of either sign.
        letters: [word] letter numbers.
        l1: strength of the penalty.
        schedule: None solves the problem to its minimum, on latents of a common scale (see
            :mod:`saeworks.evals.probes.l1_probes`). A schedule trains by Adam from random weights of ``seed``, as in
            SAEBench.
    """
    targets = one_hot(letters)
    if schedule is None:
        return LinearProbe(*fit_l1(codes, targets, positive_weight(targets), l1))
    draws = generator(seed, "latent probe")
    weights, bias = _initial(codes.width, draws)
    # Rows of the table are latents, so that a word's logits are a weighted sum of the rows of its active latents.
    table = weights.detach().T.contiguous().requires_grad_()

    def logits(rows: Tensor) -> Tensor:
        part = rows_of(codes, rows)
        sums = torch.nn.functional.embedding_bag(
            part.indices, table, part.offsets[:-1], per_sample_weights=part.values, mode="sum"
        )
        return sums + bias

    def penalty() -> Tensor:
        return l1 * table.abs().sum(0).mean()

    _train(logits, [table, bias], targets, schedule, draws, penalty)
    return LinearProbe(table.detach().T.contiguous(), bias.detach())


def _initial(features: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    bound = features**-0.5
    weights = (torch.rand(len(LETTERS), features, generator=draws) * 2 - 1) * bound
    bias = (torch.rand(len(LETTERS), generator=draws) * 2 - 1) * bound
    return weights.requires_grad_(), bias.requires_grad_()


def _train(
    logits: Callable[[Tensor], Tensor],
    parameters: list[Tensor],
    targets: Tensor,
    schedule: Schedule,
    draws: torch.Generator,
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    weight = positive_weight(targets)
    optimizer = torch.optim.Adam(parameters, lr=schedule.first_rate, weight_decay=schedule.weight_decay)
    with torch.enable_grad():
        for epoch in range(schedule.epochs):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(epoch)
            for rows in torch.randperm(len(targets), generator=draws).split(schedule.batch_size):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits(rows), targets[rows], pos_weight=weight
                )
                if penalty is not None:
                    loss = loss + penalty()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def rows_of(codes: Codes, rows: Tensor) -> Codes:
    """The codes of some words, in the order of ``rows`` [word] int64."""
    counts = codes.counts()[rows]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    within = torch.arange(int(offsets[-1]), device=rows.device) - torch.repeat_interleave(offsets[:-1], counts)
    places = torch.repeat_interleave(codes.offsets[:-1][rows], counts) + within
    return Codes(codes.values[places], codes.indices[places], offsets, codes.width)


def columns_of(codes: Codes, latents: Tensor) -> Tensor:
    """[word, chosen latent]: the dense columns of ``latents`` [chosen] int64, which may repeat."""
    unique, back = latents.unique(return_inverse=True)
    place = torch.full((codes.width,), -1, dtype=torch.int64, device=codes.indices.device)
    place[unique] = torch.arange(len(unique), device=place.device)
    column = place[codes.indices]
    hit = column >= 0
    out = codes.values.new_zeros(codes.tokens, len(unique))
    out[codes.rows()[hit], column[hit]] = codes.values[hit]
    return out[:, back]


def f1_score(predicted: Tensor, truth: Tensor) -> Tensor:
    """F1 over the last axis of two bool tensors; 0 where there is no true positive."""
    both = (predicted & truth).sum(-1).double()
    return 2 * both / (predicted.sum(-1) + truth.sum(-1)).clamp_min(1)


def order_latents(probe: LinearProbe, count: int, sign: Tensor | None = None) -> Tensor:
    """[letter, count] the latents with the largest weight (signed, not absolute), largest first; −1 behind the last
    latent with a weight other than 0.

    Args:
        sign: [letter, latent] ±1, which turns round latents whose activations may be negative.
    """
    weights = probe.weights if sign is None else probe.weights * sign
    ordered = weights.sort(dim=1, descending=True, stable=True)
    count = min(count, weights.shape[1])
    chosen = ordered.indices[:, :count]
    return torch.where(ordered.values[:, :count] != 0, chosen, -1)


def k_sparse_f1(train: Codes, test: Codes, train_letters: Tensor, test_letters: Tensor, order: Tensor) -> Tensor:
    """[letter, k] float64: F1 on the test words of the probe on the first k = 1, 2, … latents of each letter.

    L2-penalised logistic regressions with balanced classes (C = 1); the problems of all letters are solved together. A
    letter without a word in training has F1 0.

    Args:
        order: [letter, count] from :func:`order_latents`; −1 stands for a latent that adds nothing.
    """
    letters, count = order.shape
    flat = order.clamp_min(0).flatten()
    used = (order >= 0).to(train.values.dtype).flatten()
    x = (columns_of(train, flat) * used).view(-1, letters, count).transpose(0, 1).double()
    x_test = (columns_of(test, flat) * used).view(-1, letters, count).transpose(0, 1).double()
    y = one_hot(train_letters).T.double()
    truth = one_hot(test_letters).T.bool()
    positives = y.sum(1, keepdim=True)
    rows = y.shape[1]
    strength = torch.where(y > 0, rows / (2 * positives.clamp_min(1)), rows / (2 * (rows - positives).clamp_min(1)))
    columns: list[Tensor] = []
    for k in range(1, count + 1):
        fit = logistic.fit(x[:, :, :k], y, strength)
        columns.append(f1_score(fit.scores(x_test[:, :, :k]) > 0, truth) * (positives[:, 0] > 0))
    return torch.stack(columns, dim=1)


def split_count(f1: Sequence[float], threshold: float = 0.03) -> int:
    """How many latents a letter is split into, from the F1 with k = 1, 2, … latents.

    k = 1 is always accepted, and each further k while its F1 exceeds that of the last accepted one by more than
    ``threshold``; the first that does not ends the walk.
    """
    accepted = 1
    while accepted < len(f1) and f1[accepted] > f1[accepted - 1] + threshold:
        accepted += 1
    return accepted
