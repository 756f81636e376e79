"""SAEBench's sparse probing, faults included, for numbers that may stand beside its published files.

What differs from the corrected mode: texts are drawn class by class, repeats and all; every probe and every k sees
other random negatives; the negatives come from the probed classes alone; a label with two classes is two mirrored
problems; features are not standardised and C is 1; the probe on all features is trained by AdamW and the epoch that is
best on the *test* texts is the one that counts; a token whose activation sums to exactly 0 is taken for padding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from saeworks.evals.compat.core_compat import special_free
from saeworks.evals.probes import logistic
from saeworks.evals.probes.label_scores import LabelScores
from saeworks.evals.probes.problems import MAX_NUMERIC_VALUES, Label, Problem
from saeworks.evals.probes.text_probes import Scores, joined
from saeworks.evals.shared.batches import DictionaryLike, DocumentBatch
from saeworks.evals.shared.pooling import PooledTexts, TextPool
from saeworks.evals.shared.pooling_pass import TokenMask
from saeworks.evals.shared.similar_texts import similar_groups
from saeworks.evals.shared.splits import class_of
from saeworks.runtime import generator
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.evals.sparse_probing import Config, LabelledSet
    from saeworks.models.language_model import LanguageModel

EPOCHS, PATIENCE, BATCH, LEARNING_RATE = 100, 10, 250, 1e-2
Fit = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # training texts, their labels, test texts, theirs → log-odds


@dataclass(frozen=True)
class ClassRows:
    """The texts of one label for one seed: class → rows that train and rows that test."""

    seed: int
    train: dict[str, list[int]]
    test: dict[str, list[int]]

    def placed(self, places: Mapping[int, int]) -> ClassRows:
        """The same with new row numbers; rows without one are left out."""
        train, test = (
            {name: [places[row] for row in rows if row in places] for name, rows in part.items()}
            for part in (self.train, self.test)
        )
        return ClassRows(self.seed, train, test)

    def all(self) -> set[int]:
        """All rows of either part."""
        return {row for part in (self.train, self.test) for rows in part.values() for row in rows}

    def of(self, classes: Sequence[str]) -> ClassRows:
        """Some of the classes."""
        return ClassRows(self.seed, {c: self.train[c] for c in classes}, {c: self.test[c] for c in classes})


@dataclass(frozen=True)
class Column:
    """One label of a set, text by text. ``second`` is the label within which classes are balanced (None: plain)."""

    classes: Sequence[Label]
    second: Sequence[Label] | None = None


def sample_class(groups: Sequence[Sequence[int]], count: int, seed: int) -> list[int]:
    """As many rows of every group, ``count`` in all or as many as the smallest group allows.

    The draw is that of pandas' ``DataFrame.sample(n, random_state=seed)``, group by group.
    """
    each = min([count // len(groups), *map(len, groups)])
    return [group[i] for group in groups for i in np.random.RandomState(seed).permutation(len(group))[:each].tolist()]


def draw_class_rows(
    train: Column, test: Column | None, texts: tuple[int, int], seed: int, max_classes: int, min_texts: int
) -> tuple[ClassRows, dict[str, str]]:
    """The rows of the probed classes, and the reasons for what was left out.

    Args:
        train, test: labels of the two parts; rows of ``test`` are numbered after those of ``train``. Without a test
            part, both are drawn from ``train``.
        texts: training and test texts of one two-class problem; a class has half of them, its negatives the other.
        max_classes: the most frequent classes are probed, and only they serve as negatives.
        min_texts: training texts that a class must have (half of it in test).
    """
    present = [v for v in train.classes if v is not None]
    counts = Counter(str(v) for v in present)
    numeric = bool(present) and not any(isinstance(v, (str, bool)) for v in present)
    empty = ClassRows(seed, {}, {})
    if numeric and len(counts) > MAX_NUMERIC_VALUES:
        return empty, {"": f"{len(counts)} different numbers are a quantity, not classes"}
    out, reasons = empty, dict[str, str]()
    for name in sorted(counts, key=lambda c: (-counts[c], c))[:max_classes]:
        if test is None:
            both = _sampled(train, name, sum(texts) // 2, seed, 0)
            cut = round(len(both) * texts[0] / sum(texts))
            parts = (both[:cut], both[cut:])
        else:
            parts = (
                _sampled(train, name, texts[0] // 2, seed, 0),
                _sampled(test, name, texts[1] // 2, seed, len(train.classes)),
            )
        if len(parts[0]) < min_texts or len(parts[1]) < max(1, min_texts // 2):
            reasons[f"={name}"] = f"too few texts ({len(parts[0])} in training, {len(parts[1])} in test)"
            continue
        out.train[name], out.test[name] = parts
    if len(out.train) < 2:
        return empty, reasons or {"": "fewer than two classes"}
    return out, reasons


def _sampled(column: Column, name: str, count: int, seed: int, first: int) -> list[int]:
    groups: dict[str, list[int]] = {}
    for row, value in enumerate(column.classes):
        second = "" if column.second is None else column.second[row]
        if value is not None and str(value) == name and second is not None:
            groups.setdefault(str(second), []).append(first + row)
    if column.second is not None and len(groups) < 2:
        return []  # a class that occurs with one value of the second label cannot be balanced
    rows = sample_class(list(groups.values()), count, seed) if groups else []
    if column.second is None:
        return rows
    # Group by group the rows would split into a training part of one value and a test part of the other.
    return [rows[i] for i in np.random.RandomState(seed).permutation(len(rows)).tolist()]


def draw(rows: Mapping[str, Sequence[int]], name: str, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows and labels [text] of one two-class problem: all of class ``name``, and as many others, drawn afresh."""
    positives = torch.tensor(list(rows[name]), dtype=torch.int64)
    others = [torch.tensor(list(rows[other]), dtype=torch.int64) for other in rows if other != name]
    each = math.ceil(len(positives) / len(others))
    negatives = torch.cat([other[torch.randperm(len(other), generator=random)[:each]] for other in others])
    negatives = negatives[torch.randperm(len(negatives), generator=random)[: len(positives)]]
    labels = torch.cat([torch.ones(len(positives)), torch.zeros(len(negatives))])
    order = torch.randperm(len(labels), generator=random)
    return torch.cat([positives, negatives])[order], labels[order]


def top_k(x: Tensor, labels: Tensor, k: int) -> Tensor:
    """[k] features with the largest |mean of positives - mean of negatives|, in their own units."""
    difference = (x[labels == 1].mean(0) - x[labels == 0].mean(0)).abs()
    return difference.topk(min(k, x.shape[1])).indices


def fit_top_k(x: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, k: int) -> Tensor:
    """[test text] log-odds of the logistic probe with C = 1 on the k chosen features, as they are (``test_labels`` are
    not used)."""
    chosen = top_k(x, labels, k)
    probe = logistic.fit(x[None, :, chosen], labels[None], torch.ones_like(labels)[None])
    return probe.scores(test[:, chosen])[0]


def train_linear_probe(x: Tensor, y: Tensor, test: Tensor, test_y: Tensor, random: torch.Generator) -> Tensor:
    """[test text] log-odds of a linear layer after the epoch with the best accuracy on these very test texts.

    Args:
        x, test: [text, feature]; y, test_y: [text] 1 or 0; random: first weights and the order of texts.
    """
    bound = 1 / math.sqrt(x.shape[1])
    weight, bias = (((torch.rand(size, generator=random) * 2 - 1) * bound).requires_grad_() for size in (x.shape[1], 1))
    optimizer = torch.optim.AdamW([weight, bias], lr=LEARNING_RATE)
    best, kept, waited = -1.0, torch.zeros(len(test)), 0
    with torch.enable_grad():
        for _ in range(EPOCHS):
            order = torch.randperm(len(x), generator=random)
            for part in order.split(BATCH):
                optimizer.zero_grad()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(x[part] @ weight + bias, y[part])
                loss.backward()
                optimizer.step()
            scores = (test @ weight + bias).detach()
            accuracy = float(((scores > 0) == (test_y == 1)).double().mean())
            waited += 1
            if accuracy > best:
                best, kept, waited = accuracy, scores, 0
            if waited >= PATIENCE:
                break
    return kept


def probe_label(
    prefix: str,
    x: Tensor,
    drawn: Sequence[ClassRows],
    k_values: Sequence[int],
    full_seeds: int,
    randoms: Mapping[int, torch.Generator],
) -> dict[str, Scores]:
    """Kind of probe → scores, one problem per seed and class, in the order of :func:`problems_of`.

    Args:
        prefix: ``llm`` or ``sae``; x: [text, feature] pooled features of all texts.
        full_seeds: for how many seeds the probe on all features is trained.
        randoms: seed → generator. It goes on from label to label, so every probe has negatives of its own.
    """
    parts: dict[str, list[Scores]] = {}

    def measure(kind: str, rows: ClassRows, fit: Fit, random: torch.Generator) -> None:
        for name in rows.train:
            train_rows, train_y = draw(rows.train, name, random)
            test_rows, test_y = draw(rows.test, name, random)
            if "shuffled" in kind:
                train_y = train_y[torch.randperm(len(train_y), generator=random)]
            z = fit(x[train_rows], train_y, x[test_rows], test_y)
            hit = ((z > 0) == (test_y == 1)).float()
            correct = torch.full((1, len(x)), torch.nan)
            correct[0, test_rows] = hit
            area = torch.tensor([logistic.auc(z, test_y)])
            parts.setdefault(kind, []).append(Scores(hit.mean()[None], area, correct))

    for number, rows in enumerate(drawn):
        random = randoms[rows.seed]
        if number < full_seeds:
            measure(f"{prefix}_test", rows, partial(train_linear_probe, random=random), random)
        for k in k_values:
            measure(f"{prefix}_top_{k}_test", rows, partial(fit_top_k, k=k), random)
    if prefix == "sae":
        k = max(k_values)
        for rows in drawn:
            # With a generator of its own, so that the control changes no published number.
            measure(f"sae_top_{k}_shuffled_labels_test", rows, partial(fit_top_k, k=k), generator(rows.seed, "control"))
    return {kind: joined(scores) for kind, scores in parts.items()}


def problems_of(drawn: Sequence[ClassRows]) -> list[Problem]:
    """The problems, each with one draw of its negatives; the probes draw their own."""
    out: list[Problem] = []
    for rows in drawn:
        random = torch.Generator().manual_seed(rows.seed)
        for name in rows.train:
            train, test = draw(rows.train, name, random), draw(rows.test, name, random)
            out.append(Problem(name, rows.seed, *train, *test, torch.ones(len(train[0]), dtype=torch.bool)))
    return out


def _counted(model: LanguageModel, batch: DocumentBatch, activations: Tensor) -> Tensor:
    mask = special_free(batch.tokens, model.tokenizer).keep.to(activations.device)
    return mask & (activations.sum(-1) != 0)


#: The tokens that SAEBench averages: neither padding, EOS nor BOS, and the sum over d is not 0.
COUNTED = TokenMask("saebench", _counted)


class CompatProbing:
    """Probes set after set. The random numbers go on from one to the next: they are seeded once per dictionary."""

    def __init__(
        self,
        dictionaries: Mapping[str, DictionaryLike],
        model: LanguageModel,
        config: Config,
        skipped: dict[str, str],
        tables: dict[str, list[LabelScores]],
        pool: TextPool,
    ) -> None:
        self.dictionaries, self.model, self.config = dictionaries, model, config
        self.skipped, self.tables, self.pool = skipped, tables, pool
        self._randoms: dict[str, dict[int, torch.Generator]] = {}

    def probe(self, dataset: str, labelled: LabelledSet) -> int:
        """Add the scores of every label of a set to the tables; returns how many texts were tested on."""
        documents = [*labelled.train, *(labelled.test or ())]
        names = labelled.labels or tuple(sorted({name for d in documents for name in d.labels}))
        drawn = {label: rows for label in names if (rows := self._draw(dataset, labelled, label))}
        used = sorted({row for of_label in drawn.values() for rows in of_label for row in rows.all()})
        if not used:
            return 0
        pooled = self.pool.pool(
            self.dictionaries,
            self.model,
            [documents[row] for row in used],
            self.config.context_length,
            self.config.batch_size,
            self.config.site,
            f"pooling {dataset}",
            COUNTED,
        )
        places = {row: i for i, row in enumerate(used) if pooled.tokens[i]}
        if unread := len(used) - len(places):
            # Their mean is 0 / 0, on which no probe can be trained.
            self.skipped[f"{dataset}: {unread} texts without a token"] = "there is nothing to average"
        groups, _ = similar_groups([documents[row].text for row in used], None)
        tested: set[int] = set()
        for label, of_label in drawn.items():
            rows = [r.placed(places) for r in of_label]
            self._probe_label(dataset, label, rows, pooled, torch.tensor(groups))
            tested |= {row for r in rows for part in r.test.values() for row in part}
        return len(tested)

    def _draw(self, dataset: str, labelled: LabelledSet, label: str) -> list[ClassRows]:
        """One draw per seed, of the classes that every seed has; empty where fewer than two are left."""
        second = labelled.balance.get(label, "spurious_label")
        balanced = any(class_of(d, second) is not None for d in labelled.train)

        def column(documents: Sequence[Document]) -> Column:
            classes = [class_of(d, label) for d in documents]
            return Column(classes, [class_of(d, second) for d in documents] if balanced else None)

        train, test = column(labelled.train), None if labelled.test is None else column(labelled.test)
        texts = (self.config.train_texts, self.config.test_texts)
        out: list[ClassRows] = []
        for seed in self.config.seeds:
            rows, reasons = draw_class_rows(train, test, texts, seed, self.config.max_classes, self.config.min_texts)
            self.skipped.update({f"{dataset}/{label}{what}": why for what, why in reasons.items()})
            out.append(rows)
        common = [name for name in out[0].train if all(name in rows.train for rows in out)]
        return [rows.of(common) for rows in out] if len(common) > 1 else []

    def _probe_label(
        self, dataset: str, label: str, drawn: list[ClassRows], pooled: PooledTexts, groups: Tensor
    ) -> None:
        def probed(prefix: str, owner: str, x: Tensor) -> dict[str, Scores]:
            randoms = self._randoms.setdefault(
                f"{prefix}@{owner}", {seed: torch.Generator().manual_seed(seed) for seed in self.config.seeds}
            )
            full = len(drawn) if prefix == "llm" else self.config.full_seeds
            return probe_label(prefix, x, drawn, self.config.k_values, full, randoms)

        dense = {site: probed("llm", site, x) for site, x in pooled.activations.items()}
        problems = problems_of(drawn)
        for name, x in pooled.latents.items():
            scores = dense[pooled.sites[name]] | probed("sae", name, x)
            self.tables[name].append(LabelScores(dataset, label, problems, scores, groups))
