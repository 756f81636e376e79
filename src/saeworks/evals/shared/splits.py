"""Which texts of a labelled set train a probe and which test it.

A set that comes with a test part is used as it is. Any other set is split anew for every seed, so that the spread over
seeds is that of other training and other test texts; nearly equal texts stay together
(:mod:`saeworks.evals.shared.similar_texts`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from saeworks.evals.probes.problems import Label, group_split
from saeworks.evals.shared.pooling import without_repeats
from saeworks.evals.shared.similar_texts import similar_groups
from saeworks.files import sha256_json
from saeworks.world.documents import Document


class Labelled(Protocol):
    """Texts for training, and for testing where they come apart (None: not split yet)."""

    @property
    def train(self) -> Sequence[Document]: ...
    @property
    def test(self) -> Sequence[Document] | None: ...


@dataclass(frozen=True)
class Texts:
    """The texts used of one set.

    ``test`` is empty where the set is not ``divided``; ``test_share`` says how large it is to become then. ``dropped``
    counts the repeats that were left out.
    """

    train: list[Document]
    test: list[Document]
    divided: bool
    test_share: float
    dropped: int

    @property
    def documents(self) -> list[Document]:
        """All of them, training texts first."""
        return self.train + self.test


@dataclass(frozen=True)
class Split:
    """Rows of the two parts, for the probes of ``seeds``. ``groups`` has the group of every text, of either part."""

    seeds: tuple[int, ...]
    train: list[int]
    test: list[int]
    groups: list[int]


def class_of(document: Document, label: str) -> Label:
    """The document's class; an empty cell or NaN is no class but a missing label."""
    value = document.labels.get(label)
    missing = not value.strip() if isinstance(value, str) else isinstance(value, float) and math.isnan(value)
    return None if missing else value


def prepare(labelled: Labelled, train_texts: int, test_texts: int) -> Texts:
    """The first texts of a set, without repeats.

    Of a divided set, test texts that are also training texts are dropped. Of any other, a text that came before with
    the same labels: files are often balanced by repeating the rows of the rarer class.
    """
    share = test_texts / max(train_texts + test_texts, 1)
    if labelled.test is not None:
        train, test, dropped = without_repeats(labelled.train[:train_texts], labelled.test[:test_texts])
        return Texts(train, test, True, share, dropped)
    distinct: dict[tuple[str, str], Document] = {}
    for document in labelled.train:
        distinct.setdefault((document.text, sha256_json(dict(document.labels))), document)
    kept = list(distinct.values())[: train_texts + test_texts]
    return Texts(kept, [], False, share, len(labelled.train) - len(distinct))


def draw_splits(texts: Texts, seeds: Sequence[int], similarity: float | None) -> list[Split]:
    """One split for all seeds where the set is divided, else one per seed.

    Raises :class:`saeworks.evals.probes.problems.NothingToProbe` when fewer than two different texts are to be split.
    """
    words = [d.text for d in texts.documents]
    if texts.divided:
        # The division is somebody's choice; similar texts on both sides are part of it, so only equal ones are grouped.
        groups, _ = similar_groups(words, None)
        rows = list(range(len(words)))
        return [Split(tuple(seeds), rows[: len(texts.train)], rows[len(texts.train) :], groups)]
    groups, _ = similar_groups(words, similarity)
    return [Split((seed,), *group_split(groups, texts.test_share, seed), groups) for seed in seeds]
