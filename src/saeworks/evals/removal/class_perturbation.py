"""What removing the latents of one class does to the probes of all classes: the arithmetic of TPP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.evals.probes.linear_probes import Probes, ProbeSettings, Rows, correct
from saeworks.evals.probes.problems import Problem
from saeworks.evals.removal.ablatable_texts import AblatableTexts
from saeworks.evals.removal.probe_attribution import effects, logits_without, select_latents
from saeworks.runtime import generator

#: SAEBench's numbers for every n, by the end of their names.
FIELDS = ("total_metric", "intended_diff_only", "unintended_diff_only")


@dataclass(frozen=True)
class Perturbations:
    """One label of one data set: which test texts the probes judge rightly, before and after.

    Attributes:
        classes: in the order of every axis below; seeds: likewise.
        clean: [seed, class, text]; ablated: [seed, ablated class, n, class, text]: 1 right, 0 wrong, NaN not asked.
        groups: [text] int64, drawn together for intervals.
        removed: for the first seed, class → the latents removed, first ones first.
    """

    dataset: str
    classes: list[str]
    clean: Tensor
    ablated: Tensor
    groups: Tensor
    removed: dict[str, list[int]]


@dataclass(frozen=True)
class SeedProblems:
    """The problems of one seed, one per class.

    ``train``, ``test``: rows of the two parts. ``of_text``: the class of every text.
    """

    seed: int
    problems: list[Problem]
    train: list[int]
    test: list[int]
    of_text: list[str]


def class_differences(latents: Tensor, of_text: Sequence[str], rows: Sequence[int], classes: Sequence[str]) -> Tensor:
    """[class, latent]: mean of ``latents`` [text, latent] over the training texts ``rows`` of a class, minus the mean
    over the other classes of theirs."""
    means = torch.stack([latents[[row for row in rows if of_text[row] == name]].mean(0) for name in classes])
    others = (means.sum(0) - means) / (len(classes) - 1)
    return means - others


def perturb(
    pooled: AblatableTexts, name: str, probes: Probes, one: SeedProblems, settings: ProbeSettings
) -> tuple[Tensor, Tensor, dict[str, list[int]]]:
    """What is right before [class, text] and after [ablated class, n, class, text], NaN where not asked, and the
    latents removed for each class.

    ``compat`` asks about other negatives every time, as SAEBench does; ``corrected`` about the same texts throughout.
    """
    latents, directions = pooled.latents[name], pooled.directions[name]
    classes = [p.name for p in one.problems]
    rows = torch.tensor(one.test)
    logits = probes.logits(pooled.activations[pooled.sites[name]][rows])
    differences = class_differences(latents, one.of_text, one.train, classes).clamp_min(0)
    found = effects(differences, probes.weights, directions)
    readout = probes.weights @ directions.T
    asked = _Asked(one, rows, len(latents), settings.mode == "compat")
    clean = asked.judge(logits)
    ablated, removed = list[Tensor](), dict[str, list[int]]()
    for number, of_class in enumerate(classes):
        chosen = select_latents(found[number], max(settings.n_values), settings.mode)
        part = pooled.ablatable[name][rows[:, None], chosen]
        without = logits_without(logits, part, readout[:, chosen], torch.arange(len(chosen)), settings.n_values)
        ablated.append(torch.stack([asked.judge(z) for z in without]))
        if settings.mode == "compat":
            # SAEBench stops with an error where more latents are to be removed than there are.
            ablated[-1][torch.tensor(settings.n_values) > len(directions)] = torch.nan
        removed[of_class] = chosen.tolist()
    return clean, torch.stack(ablated), removed


class _Asked:
    """Which test texts each class's probe is asked about: those of its problem, or (``fresh``) its positives with
    negatives drawn anew at every call."""

    def __init__(self, one: SeedProblems, rows: Tensor, texts: int, fresh: bool) -> None:
        self.one, self.rows, self.texts, self.fresh = one, rows, texts, fresh
        self.random = generator(one.seed, "test negatives")
        self.place = torch.full((texts,), -1)
        self.place[rows] = torch.arange(len(rows))

    def judge(self, logits: Tensor) -> Tensor:
        """[class, text] over all texts, from ``logits`` [class, test text]."""
        out = torch.full((len(self.one.problems), self.texts), torch.nan)
        for i, problem in enumerate(self.one.problems):
            rows, labels = self._fresh(problem) if self.fresh else (problem.test_rows, problem.test_labels)
            out[i, rows] = correct(logits[i, self.place[rows]], labels)
        return out

    def _fresh(self, problem: Problem) -> tuple[Tensor, Tensor]:
        positives = problem.test_rows[problem.test_labels > 0.5]
        names = [p.name for p in self.one.problems if p is not problem]
        others = [[r for r in self.rows.tolist() if self.one.of_text[r] == name] for name in names]
        each = -(-len(positives) // len(others))
        drawn = [torch.tensor(o)[torch.randperm(len(o), generator=self.random)[:each]] for o in others]
        negatives = torch.cat(drawn)
        negatives = negatives[torch.randperm(len(negatives), generator=self.random)[: len(positives)]]
        both = Rows.of(positives, negatives)
        return both.rows, both.labels


def tpp_scores(clean: Tensor, ablated: Tensor) -> dict[str, Tensor]:
    """The three numbers of SAEBench, by the end of their names: [..., class, n], one for each class's latents.

    Args:
        clean: [..., class] accuracies before. ablated: [..., ablated class, n, class] after.
    """
    classes = clean.shape[-1]
    drops = clean[..., None, None, :] - ablated
    own = torch.eye(classes, dtype=drops.dtype)[:, None]
    intended = (drops * own).sum(-1)
    unintended = (drops * (1 - own)).sum(-1) / (classes - 1)
    return {FIELDS[0]: intended - unintended, FIELDS[1]: intended, FIELDS[2]: unintended}


def accuracy(right: Tensor, weights: Tensor) -> Tensor:
    """[draw, ...]: weighted share of right ones of ``right`` [..., text], NaN where none was asked."""
    there = (~right.isnan()).double().flatten(0, -2)
    hits = right.double().nan_to_num().flatten(0, -2)
    return ((weights @ hits.T) / (weights @ there.T)).unflatten(1, right.shape[:-1])


def mean_scores(found: Perturbations, weights: Tensor, seed_weights: Tensor) -> dict[str, Tensor]:
    """Field → [draw, class, n], means over seeds. ``weights`` [draw, text], ``seed_weights`` [draw, seed]."""
    per_seed = tpp_scores(accuracy(found.clean, weights), accuracy(found.ablated, weights))
    share = (seed_weights / seed_weights.sum(1, keepdim=True))[:, :, None, None]
    return {field: (values * share).sum(1) for field, values in per_seed.items()}
