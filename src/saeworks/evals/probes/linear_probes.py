"""Linear probes on pooled activations, many at once, trained as SCR and TPP ask: briefly, and in small batches.

How strongly a probe leans on a spurious cue depends on how it is trained, so the recipe is SAEBench's: AdamW in batches
of 16 for 20 epochs, binary cross-entropy plus an L1 penalty. Mode ``compat`` starts from random weights, sees raw
activations, and returns the epoch with the best accuracy on the *test* texts. Mode ``corrected`` never looks at them:
it returns the last epoch, starts from zero, and sees activations centred and divided by one number (the root of their
mean variance over the training texts), so that a site's units do not decide how far twenty epochs get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from saeworks.evals.shared.settings import Counts, Seeds
from saeworks.runtime import generator

Mode = Literal["compat", "corrected"]


class ProbeSettings(BaseModel):
    """What SCR, SHIFT and TPP have in common; names and defaults are SAEBench's, but for the sizes of the sets.

    ``train_set_size`` and ``test_set_size``: texts of a balanced set with two labels of two values (SAEBench: 4000 and
    1000); each of the four combinations has a quarter of them. ``n_values``: how many latents are ablated.
    ``early_stopping_patience``: epochs without a better accuracy after which ``compat`` stops. ``min_texts``: of every
    combination, in training, below which a pair of classes is left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "corrected"
    seeds: Seeds = (0, 1, 2)
    site: str | None = None
    context_length: int = Field(default=128, gt=1)
    batch_size: int = Field(default=64, gt=0)
    resamples: int = Field(default=500, gt=0)
    train_set_size: int = Field(default=240, ge=4)
    test_set_size: int = Field(default=320, ge=4)
    min_texts: int = Field(default=10, ge=2)
    n_values: Counts = (2, 5, 10, 20, 50, 100, 500)
    probe_train_batch_size: int = Field(default=16, gt=0)
    probe_epochs: int = Field(default=20, gt=0)
    early_stopping_patience: int = Field(default=20, gt=0)
    probe_lr: float = Field(default=1e-3, gt=0)
    probe_l1_penalty: float = Field(default=1e-3, ge=0)


@dataclass(frozen=True)
class Rows:
    """Texts of a two-class question: ``rows`` [row] int64 in the pooled texts, ``labels`` [row] 1 or 0."""

    rows: Tensor
    labels: Tensor

    @staticmethod
    def of(positive: Tensor, negative: Tensor) -> Rows:
        """Row numbers of either class."""
        labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
        return Rows(torch.cat([positive, negative]), labels)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Task:
    """One probe to train: its texts, the texts that ``compat`` chooses the epoch by, and what seeds it."""

    train: Rows
    test: Rows
    seed: int
    name: str


@dataclass(frozen=True)
class Probes:
    """``weights`` [probe, d] and ``bias`` [probe], in the units of the activations."""

    weights: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """[probe, text] log-odds of label 1 for x [text, d]."""
        return self.weights @ x.T + self.bias[:, None]


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the sign of ``logits`` [..., row] fits ``labels`` [row], else 0; log-odds of exactly 0 say label 0."""
    return ((logits > 0) == (labels > 0.5)).float()


def train_probes(x: Tensor, tasks: Sequence[Task], settings: ProbeSettings) -> Probes:
    """Train one probe per task on ``x`` [text, d] float32; equally large tasks share every step.

    Every probe is what it would be if it were trained alone: losses are summed over probes and AdamW works entry by
    entry.
    """
    weights, bias = torch.zeros(len(tasks), x.shape[1]), torch.zeros(len(tasks))
    sizes = [(len(task.train), len(task.test)) for task in tasks]
    for size in dict.fromkeys(sizes):
        members = [i for i, other in enumerate(sizes) if other == size]
        weights[members], bias[members] = _train_together(x, [tasks[i] for i in members], settings)
    return Probes(weights, bias)


@torch.no_grad()
def _train_together(x: Tensor, tasks: Sequence[Task], settings: ProbeSettings) -> tuple[Tensor, Tensor]:
    rows = torch.stack([task.train.rows for task in tasks])
    labels = torch.stack([task.train.labels for task in tasks])
    randoms = [generator(task.seed, "probe", task.name) for task in tasks]
    compat = settings.mode == "compat"
    probes, width = len(tasks), x.shape[1]
    mean, scale = (torch.zeros(probes, width), torch.ones(probes)) if compat else _one_scale(x, rows)
    weights, bias = _start(width, randoms) if compat else (torch.zeros(probes, width), torch.zeros(probes))
    optimiser = torch.optim.AdamW([weights, bias], lr=settings.probe_lr)
    best = _Best(x, tasks, settings.early_stopping_patience) if compat else None
    count, size = rows.shape[1], settings.probe_train_batch_size
    for _ in range(settings.probe_epochs):
        order = torch.stack([torch.randperm(count, generator=random) for random in randoms])
        for start in range(0, count, size):
            chosen = order[:, start : start + size]
            seen = x[rows.gather(1, chosen)]
            if not compat:
                seen = (seen - mean[:, None]) / scale[:, None, None]
            logits = (seen @ weights[:, :, None]).squeeze(-1) + bias[:, None]
            error = (logits.sigmoid() - labels.gather(1, chosen)) / chosen.shape[1]
            weights.grad = (error[:, None] @ seen).squeeze(1) + settings.probe_l1_penalty * weights.sign()
            bias.grad = error.sum(1)
            optimiser.step()
        if best is not None and best.finished(weights, bias):
            break
    if best is not None:
        return best.weights, best.bias
    raw = weights / scale[:, None]
    return raw, bias - (raw * mean).sum(1)


def _one_scale(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of each probe's training texts ``rows`` [probe, row]: the mean [probe, d], and one standard deviation [probe]."""
    means = torch.stack([x[r].mean(0) for r in rows])
    variances = torch.stack([x[r].var(0, unbiased=False).mean() for r in rows])
    return means, torch.where(variances > 1e-16, variances, 1.0).sqrt()


def _start(width: int, randoms: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Weights and biases as torch's linear layer draws them, each probe from its own seed."""
    bound = width**-0.5
    drawn = torch.stack([(torch.rand(width + 1, generator=random) * 2 - 1) * bound for random in randoms])
    return drawn[:, :-1].contiguous(), drawn[:, -1].contiguous()


class _Best:
    """The best epoch of every probe by accuracy on its test texts; the first of equals."""

    def __init__(self, x: Tensor, tasks: Sequence[Task], patience: int) -> None:
        self.test = x[torch.stack([task.test.rows for task in tasks])]
        self.labels = torch.stack([task.test.labels for task in tasks])
        self.patience = patience
        self.accuracy = torch.full((len(tasks),), -1.0)
        self.waited = torch.zeros(len(tasks), dtype=torch.int64)
        self.weights, self.bias = torch.zeros(len(tasks), x.shape[1]), torch.zeros(len(tasks))

    def finished(self, weights: Tensor, bias: Tensor) -> bool:
        """Take an epoch into account; True when no probe waits for a better one any more."""
        logits = (self.test @ weights[:, :, None]).squeeze(-1) + bias[:, None]
        accuracy = correct(logits, self.labels).mean(1)
        better = (accuracy > self.accuracy) & (self.waited < self.patience)
        self.accuracy = torch.where(better, accuracy, self.accuracy)
        self.weights = torch.where(better[:, None], weights, self.weights)
        self.bias = torch.where(better, bias, self.bias)
        self.waited = torch.where(better, 0, self.waited + 1)
        return bool((self.waited >= self.patience).all())
