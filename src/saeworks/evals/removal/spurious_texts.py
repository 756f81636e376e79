"""Texts with two labels, of which one can be made to look like the other: what SCR and SHIFT train their probes on.

A class label (profession, category) and a cue label (gender, sentiment) of two values each make four combinations. On
texts of two of them alone, positive class with positive cue and negative class with negative cue, a probe cannot know
which of the two it is asked for: it is *biased*. Balanced texts show either label free of the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saeworks.errors import InputError, did_you_mean
from saeworks.evals.probes.linear_probes import ProbeSettings, Rows
from saeworks.evals.probes.problems import NothingToProbe
from saeworks.evals.shared.batches import fingerprint_documents
from saeworks.evals.shared.similar_texts import SIMILARITY
from saeworks.evals.shared.splits import Split, Texts, draw_splits, prepare
from saeworks.files import sha256_json
from saeworks.runtime import generator
from saeworks.world.documents import Document

#: The three questions of a pair: which cue, which class, and the confounded one.
Key = Literal["cue", "class", "biased"]
KEYS: tuple[Key, ...] = ("cue", "class", "biased")
#: Of every combination the world's sets hold half as many texts again as a seed trains on, so that seeds differ.
SPARE = 1.5
#: Documents of the world looked through before a rare combination is given up.
MOST_DOCUMENTS = 20_000

_PROFESSIONS = (("nurse", "painter"), ("teacher", "chef"), ("carpenter", "baker"), ("farmer", "sailor"))
#: Domain → class label, cue label, pairs of classes, values of the cue. The first class of each pair goes with the
#: first value of the cue where the world plants the correlation.
WORLD_SETS: dict[str, tuple[str, str, tuple[tuple[str, str], ...], tuple[str, str]]] = {
    "biographies": ("profession", "gender", _PROFESSIONS, ("female", "male")),
    "portraits": ("profession", "gender", _PROFESSIONS, ("female", "male")),
    "reviews": (
        "category",
        "sentiment",
        (("kitchen", "books"), ("clothing", "electronics"), ("toys", "books"), ("kitchen", "electronics")),
        ("positive", "negative"),
    ),
}


@dataclass(frozen=True)
class SpuriousSet:
    """Texts with a class and a cue.

    Attributes:
        train, test: texts whose labels hold both; ``test`` None: not split yet, every seed splits them anew.
        class_label, cue_label: names of the two document labels.
        pairs: classes (positive, negative); cue: values (positive, negative). Either may be any two values.
    """

    train: Sequence[Document]
    test: Sequence[Document] | None
    class_label: str
    cue_label: str
    pairs: tuple[tuple[str, str], ...]
    cue: tuple[str, str]

    def texts(self) -> Texts:
        """Without repeats (see :func:`saeworks.evals.shared.splits.prepare`)."""
        count = len(self.train)
        return prepare(self, 2 * count, len(self.test) if self.test is not None else count)


@dataclass(frozen=True)
class Case:
    """One pair of classes with one seed: the texts of its three questions, in ``train`` and ``test``."""

    pair: tuple[str, str]
    seed: int
    train: Mapping[Key, Rows]
    test: Mapping[Key, Rows]


def world_sets(domains: Iterable[str], config: ProbeSettings) -> dict[str, SpuriousSet]:
    """Sets of the embedded world; each has the texts that the sizes in ``config`` ask for, if the world has them.

    Training texts in which class and cue always go together come from a corpus with a planted correlation.
    """
    from saeworks.world import corpus

    out: dict[str, SpuriousSet] = {}
    for domain in domains:
        if domain not in WORLD_SETS:
            raise InputError(f"No correlation is known for the domain '{domain}'.{did_you_mean(domain, WORLD_SETS)}")
        class_label, cue_label, pairs, cue = WORLD_SETS[domain]
        quarter = round(config.train_set_size / 4 * SPARE)
        every = {(c, v) for pair in pairs for c in pair for v in cue}
        confounded = {(pair[i], cue[i]) for pair in pairs for i in (0, 1)}
        train = _collect(corpus.documents(domain, "probe_train"), class_label, cue_label, dict.fromkeys(every, quarter))
        planted = corpus.documents(domain, "probe_train", seed=1, spurious=(corpus.SPURIOUS[domain], 1.0))
        train += _collect(planted, class_label, cue_label, dict.fromkeys(confounded, quarter))
        wanted = dict.fromkeys(every, config.test_set_size // 4)
        test = _collect(corpus.documents(domain, "probe_test"), class_label, cue_label, wanted)
        out[domain] = SpuriousSet(train, test, class_label, cue_label, pairs, cue)
    return out


def _collect(
    source: Iterable[Document], class_label: str, cue_label: str, wanted: dict[tuple[str, str], int]
) -> list[Document]:
    """The first documents of every combination, as many as ``wanted`` (or as ``MOST_DOCUMENTS`` hold)."""
    left, out = dict(wanted), list[Document]()
    for number, document in enumerate(source):
        if number >= MOST_DOCUMENTS or not any(left.values()):
            break
        key = (str(document.labels.get(class_label)), str(document.labels.get(cue_label)))
        if left.get(key, 0) > 0:
            left[key] -= 1
            out.append(document)
    return out


def labelled_sets(sets: Mapping[str, Sequence[Document]], label: str, most_pairs: int = 4) -> dict[str, SpuriousSet]:
    """Sets from somebody's texts: ``label`` is the class; the cue is ``spurious_label``, or the one other label with
    two values. The most frequent classes are paired, the first with the second and so on.

    Raises ``InputError`` when there are fewer than two classes, or no cue, or several that it could be.
    """
    out: dict[str, SpuriousSet] = {}
    for name, documents in sets.items():
        cue = _cue_of(name, documents, label)
        both = [d for d in documents if label in d.labels and cue in d.labels]
        values = [v for v, _ in Counter(str(d.labels[cue]) for d in both).most_common(2)]
        classes = [v for v, _ in Counter(str(d.labels[label]) for d in both).most_common(2 * most_pairs)]
        if len(classes) < 2 or len(values) < 2:
            raise InputError(
                f"'{name}' has {len(classes)} classes of '{label}' and {len(values)} values of '{cue}' where both are "
                "given, but two of each are needed; give texts with two labels."
            )
        counts = Counter((str(d.labels[label]), str(d.labels[cue])) for d in both)
        positive, negative = sorted(values)
        pairs = list[tuple[str, str]]()
        for a, b in zip(classes[::2], classes[1::2], strict=False):
            # The confounded texts are the more frequent diagonal of the table.
            straight = min(counts[a, positive], counts[b, negative])
            pairs.append((a, b) if straight >= min(counts[b, positive], counts[a, negative]) else (b, a))
        out[name] = SpuriousSet(both, None, label, cue, tuple(pairs), (positive, negative))
    return out


def _cue_of(name: str, documents: Sequence[Document], label: str) -> str:
    values: dict[str, set[str]] = {}
    for document in documents:
        for other, value in document.labels.items():
            values.setdefault(other, set()).add(str(value))
    if label not in values:
        raise InputError(f"No text of '{name}' has the label '{label}'.{did_you_mean(label, values)}")
    if "spurious_label" in values:
        return "spurious_label"
    found = [other for other, seen in values.items() if other != label and len(seen) == 2]
    if len(found) != 1:
        what = (
            f"{len(found)} labels with two values ({', '.join(found)})" if found else "no other label with two values"
        )
        raise InputError(
            f"A spurious cue is a second label of every text, with two values; '{name}' has {what} beside '{label}'; "
            "name the cue 'spurious_label'."
        )
    return found[0]


def data_hashes(data: Mapping[str, SpuriousSet]) -> dict[str, str]:
    """``data:NAME`` → hash of the texts and of what is asked of them."""
    out: dict[str, str] = {}
    for name, one in data.items():
        parts = [fingerprint_documents(part) for part in (one.train, one.test or ())]
        asked = [one.class_label, one.cue_label, one.pairs, one.cue, one.test is None]
        out[f"data:{name}"] = sha256_json([*parts, asked])
    return out


def draw_cases(
    one: SpuriousSet, texts: Texts, readable: Tensor, config: ProbeSettings, skipped: dict[str, str]
) -> tuple[list[Case], list[Split]]:
    """The cases of a set, pair after pair and seed after seed within, and the splits they come from.

    Args:
        texts: ``one.texts()``. readable: [text] bool, those with a token to average.
        skipped: gets a reason for every pair that is left out.
    """
    documents = texts.documents
    combination = [(str(d.labels.get(one.class_label)), str(d.labels.get(one.cue_label))) for d in documents]
    splits = draw_splits(texts, config.seeds, SIMILARITY)
    out = list[Case]()
    for pair in one.pairs:
        try:
            seeded = [(split, seed) for split in splits for seed in split.seeds]
            out += [_case(one, pair, seed, split, combination, readable, config) for split, seed in seeded]
        except NothingToProbe as e:
            skipped["/".join(pair)] = str(e)
    return out, splits


def _case(
    one: SpuriousSet,
    pair: tuple[str, str],
    seed: int,
    split: Split,
    combination: Sequence[tuple[str, str]],
    readable: Tensor,
    config: ProbeSettings,
) -> Case:
    def quadrants(rows: Sequence[int]) -> dict[tuple[int, int], list[int]]:
        found: dict[tuple[int, int], list[int]] = {(c, v): [] for c in (0, 1) for v in (0, 1)}
        for row in rows:
            if combination[row][0] in pair and combination[row][1] in one.cue and bool(readable[row]):
                found[pair.index(combination[row][0]), one.cue.index(combination[row][1])].append(row)
        return found

    train, test = quadrants(split.train), quadrants(split.test)
    fewest = min(map(len, train.values()))
    quarter = min(config.train_set_size // 4, fewest, len(train[0, 0]) // 2, len(train[1, 1]) // 2)
    of_test = min(config.test_set_size // 4, min(map(len, test.values())))
    if quarter < config.min_texts or of_test < 2:
        raise NothingToProbe(
            f"of some combination of class and cue there are only {quarter} texts to train and {of_test} to test on"
        )
    if config.mode == "corrected":
        # Other texts for every seed; SAEBench takes the first ones, whatever the seed.
        train = {key: _drawn(rows, seed, f"{pair}/{key}") for key, rows in train.items()}
    return Case(pair, seed, _questions(train, quarter), _questions(test, of_test))


def _drawn(rows: list[int], seed: int, name: str) -> list[int]:
    return [rows[i] for i in torch.randperm(len(rows), generator=generator(seed, "quadrant", name)).tolist()]


def _questions(quadrants: Mapping[tuple[int, int], list[int]], quarter: int) -> dict[Key, Rows]:
    """Index 0 is the positive value of class and of cue. Balanced questions have ``quarter`` texts of each combination;
    the biased one has up to twice as many of the two in which class and cue go together."""
    some = {key: torch.tensor(rows[:quarter], dtype=torch.int64) for key, rows in quadrants.items()}
    most = {key: torch.tensor(rows[: 2 * quarter], dtype=torch.int64) for key, rows in quadrants.items()}
    both = min(len(most[0, 0]), len(most[1, 1]))
    return {
        "cue": Rows.of(torch.cat([some[0, 0], some[1, 0]]), torch.cat([some[0, 1], some[1, 1]])),
        "class": Rows.of(torch.cat([some[0, 0], some[0, 1]]), torch.cat([some[1, 0], some[1, 1]])),
        "biased": Rows.of(most[0, 0][:both], most[1, 1][:both]),
    }
