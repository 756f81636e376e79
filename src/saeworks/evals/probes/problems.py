"""Balanced two-class problems from labels: which texts each probe sees, fixed before any number is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.runtime import generator

Item = TypeVar("Item")
Label = str | int | float | bool | None
#: A numeric label with more values than this is a quantity, not a class.
MAX_NUMERIC_VALUES = 20
INNER_SHARE = 0.8


class NothingToProbe(InputError):
    """No label of the data can be probed; the sentence says why."""


@dataclass(frozen=True)
class Problem:
    """Class ``name`` against the rest, for one seed. Rows index the training and the test texts.

    Attributes:
        train_rows, test_rows: [row] int64; train_labels, test_labels: [row] 1 or 0, as many of each.
        inner: [row] bool, the part of the training rows on which the regularisation candidates are fitted; the
            others judge them. Rows of one group are on the same side.
    """

    name: str
    seed: int
    train_rows: Tensor
    train_labels: Tensor
    test_rows: Tensor
    test_labels: Tensor
    inner: Tensor

    def shuffled(self) -> Problem:
        """The same problem with training labels permuted: whatever scores above chance on it is an artefact."""
        order = torch.randperm(len(self.train_labels), generator=generator(self.seed, self.name, "shuffle"))
        return replace(self, train_labels=self.train_labels[order])


def draw_problems(
    train: Sequence[Label],
    test: Sequence[Label],
    seeds: Sequence[int],
    max_classes: int,
    min_texts: int,
    groups: Sequence[Hashable] | None = None,
) -> tuple[list[Problem], dict[str, str]]:
    """One problem per class and seed, ordered by seed, and the reasons for what was left out.

    Args:
        train, test: the label of each text (None: not labelled, left out).
        max_classes: classes probed; the most frequent in training come first, ties by name.
        min_texts: positives a class must have in training (half of it in test).
        groups: the group of each training text; None: every text is a group.
    """
    present = [v for v in train if v is not None]
    counts = Counter(str(v) for v in present)
    numeric = bool(present) and not any(isinstance(v, (str, bool)) for v in present)
    if numeric and len(counts) > MAX_NUMERIC_VALUES:
        return [], {"": f"{len(counts)} different numbers are a quantity, not classes"}
    if len(counts) < 2:
        return [], {"": "fewer than two classes"}
    ordered = sorted(counts, key=lambda c: (-counts[c], c))
    # Two classes make one problem: the other would be its mirror image. Class 1 is the last by name (1, True, yes).
    probed = [max(counts, key=lambda c: (_number(c), c))] if len(counts) == 2 else ordered[:max_classes]
    in_test = Counter(str(v) for v in test if v is not None)
    reasons: dict[str, str] = {}
    usable: list[str] = []
    for name in probed:
        rest_train, rest_test = len(present) - counts[name], sum(in_test.values()) - in_test[name]
        if min(counts[name], rest_train) < min_texts or min(in_test[name], rest_test) < max(1, min_texts // 2):
            reasons[f"={name}"] = f"too few texts ({counts[name]} in training, {in_test[name]} in test)"
        else:
            usable.append(name)
    groups = groups if groups is not None else range(len(train))
    return [_draw(name, seed, train, test, groups) for seed in seeds for name in usable], reasons


def _number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return 0.0


def _draw(name: str, seed: int, train: Sequence[Label], test: Sequence[Label], groups: Sequence[Hashable]) -> Problem:
    train_rows, train_labels = _balanced(name, train, seed, "train")
    test_rows, test_labels = _balanced(name, test, seed, "test")
    inner = _inner(train_labels, [groups[row] for row in train_rows.tolist()], generator(seed, name, "inner"))
    return Problem(name, seed, train_rows, train_labels, test_rows, test_labels, inner)


def _inner(labels: Tensor, groups: Sequence[Hashable], random: torch.Generator) -> Tensor:
    """Keep about a fifth of the rows of either class out, by whole groups; row by row where groups are too large."""
    inner = torch.ones(len(labels), dtype=torch.bool)
    for row_groups in (groups, range(len(labels))):
        members: dict[Hashable, list[int]] = {}
        for row, group in enumerate(row_groups):
            members.setdefault(group, []).append(row)
        inner = torch.ones(len(labels), dtype=torch.bool)
        allowed = [max(1, round((1 - INNER_SHARE) * int((labels == value).sum()))) for value in (0, 1)]
        for rows in _shuffled(list(members.values()), random):
            positives = int(labels[rows].sum())
            if len(rows) - positives <= allowed[0] and positives <= allowed[1]:
                inner[rows] = False
                allowed = [allowed[0] - (len(rows) - positives), allowed[1] - positives]
        if all(bool((~inner & (labels == value)).any()) for value in (0, 1)):
            break
    return inner


def _balanced(name: str, labels: Sequence[Label], seed: int, part: str) -> tuple[Tensor, Tensor]:
    """All texts of the class and as many of the others, spread evenly over the other classes."""
    by_class: dict[str, list[int]] = {}
    for row, value in enumerate(labels):
        if value is not None:
            by_class.setdefault(str(value), []).append(row)
    random = generator(seed, name, part)
    positives = _shuffled(by_class.pop(name), random)
    queues = [_shuffled(by_class[other], random) for other in sorted(by_class)]
    negatives: list[int] = []
    wanted = min(len(positives), sum(map(len, queues)))
    for depth in range(max(map(len, queues), default=0)):
        layer = [queue[depth] for queue in queues if depth < len(queue)]
        # The last layer is cut at random, not by class name.
        negatives += _shuffled(layer, random)[: wanted - len(negatives)]
        if len(negatives) >= wanted:
            break
    positives = positives[:wanted]
    rows = torch.tensor(positives + negatives, dtype=torch.int64)
    return rows, torch.cat([torch.ones(wanted), torch.zeros(wanted)])


def _shuffled(rows: list[Item], random: torch.Generator) -> list[Item]:
    return [rows[i] for i in torch.randperm(len(rows), generator=random).tolist()]


def group_split(groups: Sequence[Hashable], test_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split row numbers so that rows of one group fall into the same part; returns (train, test), each in order.

    Groups come in random order and go to the test part while they fit into it; ``groups`` may be the texts themselves.
    Raises :class:`NothingToProbe` when there are fewer than two groups.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    if len(members) < 2:
        raise NothingToProbe(
            f"A split into training and test needs at least two different texts, but the data hold {len(members)}; "
            "give more labelled texts."
        )
    wanted = max(1, round(test_share * len(groups)))
    test: list[int] = []
    for rows in _shuffled(list(members.values()), generator(seed, "split")):
        if len(test) + len(rows) <= wanted:
            test += rows
    if not test:
        test = min(members.values(), key=len)
    held_out = set(test)
    return [row for row in range(len(groups)) if row not in held_out], sorted(test)
