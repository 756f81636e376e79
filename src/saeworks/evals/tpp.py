"""TPP: do latents act on one class alone?

A probe is trained for every class of a label against the others. The latents that tell a class apart for its own probe,
max(δ_i, 0) (w·d_i), are removed from the activations of the test texts. With A_i the accuracy of probe i before and
A_i^(j) after the latents of class j are gone,

    intended_j = A_j − A_j^(j)        unintended_j = mean over i ≠ j of A_i − A_i^(j)

and the score is the mean over classes of intended − unintended: 0 for latents that hurt every probe alike.

Source: arXiv 2411.18895 (where the signs are reversed) and SAEBench (arXiv 2503.09532).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from saeworks.errors import InputError, did_you_mean
from saeworks.evals.probes.linear_probes import Probes, ProbeSettings, Rows, Task, train_probes
from saeworks.evals.probes.problems import NothingToProbe, Problem, draw_problems
from saeworks.evals.removal.ablatable_texts import pool_ablatable
from saeworks.evals.removal.class_perturbation import (
    FIELDS,
    Perturbations,
    SeedProblems,
    accuracy,
    mean_scores,
    perturb,
    tpp_scores,
)
from saeworks.evals.shared.batches import (
    DictionaryLike,
    fingerprint_documents,
    fingerprint_of_model,
)
from saeworks.evals.shared.bootstrap import document_weights, interval
from saeworks.evals.shared.described import result_of
from saeworks.evals.shared.pooling import TextPool
from saeworks.evals.shared.settings import Names
from saeworks.evals.shared.similar_texts import SIMILARITY
from saeworks.evals.shared.splits import Split, Texts, class_of, draw_splits, prepare
from saeworks.evals.sparse_probing import LabelledSet
from saeworks.files import sha256_json
from saeworks.results.envelope import Metrics, Result
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "tpp"
DEFINITION = "saeworks/tpp/1"
Data = Mapping[str, LabelledSet]
#: Domain of the world → the label whose classes are probed, and the one that is balanced within every class.
WORLD_LABELS: dict[str, tuple[str, str | None]] = {
    "biographies": ("profession", "gender"),
    "reviews": ("category", "sentiment"),
    "portraits": ("profession", "gender"),
    "news": ("topic", None),
    "code": ("language", None),
    "languages": ("language", None),
    "facts": ("continent", None),
    "taxonomy": ("root", None),
}
#: Set apart from the numbers of the data sets, which seed the draws of texts.
SEED_DRAWS = 1 << 20
MOST_DOCUMENTS = 20_000


class Config(ProbeSettings):
    """``max_classes``: the most frequent classes of a label are probed, and only they are each other's negatives.
    ``domains``: those of the embedded world, where no other data are given."""

    max_classes: int = Field(default=5, ge=3)
    domains: Names = ("biographies", "reviews")


def default_data(model: LanguageModel, config: Config) -> Data:
    """Professions of biographies and categories of reviews, each gender and sentiment as often in every class."""
    from saeworks.world import corpus

    out: dict[str, LabelledSet] = {}
    for domain in config.domains:
        if domain not in WORLD_LABELS:
            raise InputError(f"No classes are known for the domain '{domain}'.{did_you_mean(domain, WORLD_LABELS)}")
        label, balanced = WORLD_LABELS[domain]
        first = corpus.documents(domain, "probe_train", count=1000)
        counted = Counter(str(d.labels[label]) for d in first if label in d.labels)
        classes = [name for name, _ in counted.most_common(config.max_classes)]
        train = _balanced(corpus.documents(domain, "probe_train"), label, balanced, classes, config.train_set_size // 2)
        test = _balanced(corpus.documents(domain, "probe_test"), label, balanced, classes, config.test_set_size // 2)
        out[domain] = LabelledSet(train, test, (label,))
    return out


def _balanced(source: Any, label: str, balanced: str | None, classes: Sequence[str], count: int) -> list[Document]:
    """The first ``count`` documents of every class, half of them with either value of the second label."""
    taken: Counter[tuple[str, str]] = Counter()
    out, each, groups = list[Document](), count if balanced is None else count // 2, 1 if balanced is None else 2
    for number, document in enumerate(source):
        if number >= MOST_DOCUMENTS or len(out) == len(classes) * groups * each:
            break
        name = str(document.labels.get(label))
        group = (name, "" if balanced is None else str(document.labels[balanced]))
        if name in classes and taken[group] < each:
            taken[group] += 1
            out.append(document)
    return out


def data_hashes(data: Data, config: Config) -> dict[str, str]:
    """``data:NAME`` → content hash."""
    out: dict[str, str] = {}
    for name, one in data.items():
        parts = [fingerprint_documents(part) for part in (one.train, one.test or ())]
        out[f"data:{name}"] = sha256_json([*parts, list(one.labels or ()), one.test is None])
    return out


def from_documents(sets: Mapping[str, Sequence[Document]], label: str, model: LanguageModel, config: Config) -> Data:
    """Somebody's labelled texts; every seed splits them anew."""
    return {name: LabelledSet(list(documents), None, (label,)) for name, documents in sets.items()}


def run(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    data: Data,
    config: Config,
    pool: TextPool | None = None,
) -> dict[str, Result]:
    """Score every dictionary on every label of ``data``; returns name → result.

    ``pool`` has texts that were pooled before, and takes those that are pooled now.

    Raises :class:`saeworks.evals.probes.problems.NothingToProbe` when no label has three classes with enough texts.
    """
    pool = pool or TextPool()
    skipped: dict[str, str] = {}
    tables: dict[str, list[Perturbations]] = {name: [] for name in dictionaries}
    for dataset, labelled in data.items():
        for label in labelled.labels or ():
            found = _measure_label(dictionaries, model, dataset, label, labelled, config, skipped, pool)
            for name, one in found.items():
                tables[name].append(one)
    if not any(tables.values()):
        reasons = "; ".join(f"{what}: {why}" for what, why in skipped.items()) or "the data are empty"
        raise NothingToProbe(f"No label can be probed ({reasons}); give labelled texts of three classes or more.")
    hashes = {"model": fingerprint_of_model(model), **data_hashes(data, config)}
    return {name: _result(name, dictionaries[name], rows, skipped, config, hashes) for name, rows in tables.items()}


def _measure_label(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    dataset: str,
    label: str,
    labelled: LabelledSet,
    config: Config,
    skipped: dict[str, str],
    pool: TextPool,
) -> dict[str, Perturbations]:
    """Dictionary → what its latents do; empty where the label cannot be probed, for a reason in ``skipped``."""
    name = f"{dataset}/{label}"
    count = len(labelled.train)
    texts = prepare(labelled, 2 * count, len(labelled.test) if labelled.test is not None else count)
    texts = _of_classes(texts, label, config.max_classes)
    try:
        splits = draw_splits(texts, config.seeds, SIMILARITY)
        _problems(texts.documents, label, splits, config, name, skipped)
        pooled = pool_ablatable(dictionaries, model, texts.documents, config, f"pooling {dataset}", pool)
        pairs = zip(texts.documents, (pooled.tokens > 0).tolist(), strict=True)
        read = [d if there else replace(d, labels={}) for d, there in pairs]
        problems = _problems(read, label, splits, config, name, skipped)
    except NothingToProbe as e:
        skipped[name] = str(e)
        return {}
    classes = list(dict.fromkeys(p.name for p in problems))
    tasks = [
        Task(Rows(p.train_rows, p.train_labels), Rows(p.test_rows, p.test_labels), p.seed, p.name) for p in problems
    ]
    probes = {site: train_probes(x, tasks, config) for site, x in pooled.activations.items()}
    of_text = [str(class_of(d, label)) for d in read]
    groups = torch.tensor(splits[0].groups)
    out: dict[str, Perturbations] = {}
    for key in dictionaries:
        parts = list[tuple[Tensor, Tensor, dict[str, list[int]]]]()
        for split in splits:
            for seed in split.seeds:
                places = [i for i, p in enumerate(problems) if p.seed == seed]
                of_seed = SeedProblems(seed, [problems[i] for i in places], split.train, split.test, of_text)
                own = probes[pooled.sites[key]]
                parts.append(perturb(pooled, key, Probes(own.weights[places], own.bias[places]), of_seed, config))
        clean, ablated = torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])
        out[key] = Perturbations(dataset, classes, clean, ablated, groups, parts[0][2])
    return out


def _of_classes(texts: Texts, label: str, most: int) -> Texts:
    """The texts of the most frequent classes."""
    counted = Counter(str(c) for d in texts.documents if (c := class_of(d, label)) is not None)
    kept = sorted(counted, key=lambda c: (-counted[c], c))[:most]
    train, test = ([d for d in part if str(class_of(d, label)) in kept] for part in (texts.train, texts.test))
    return replace(texts, train=train, test=test)


def _problems(
    documents: Sequence[Document],
    label: str,
    splits: Sequence[Split],
    config: Config,
    name: str,
    skipped: dict[str, str],
) -> list[Problem]:
    """One problem per seed and class, seed after seed, rows counted over all texts. Raises ``NothingToProbe``."""
    values = [class_of(d, label) for d in documents]
    out = list[Problem]()
    for split in splits:
        drawn, reasons = draw_problems(
            [values[row] for row in split.train],
            [values[row] for row in split.test],
            split.seeds,
            config.max_classes,
            config.min_texts,
            [split.groups[row] for row in split.train],
        )
        skipped |= {f"{name}{what}": why for what, why in reasons.items()}
        train, test = torch.tensor(split.train), torch.tensor(split.test)
        out += [replace(p, train_rows=train[p.train_rows], test_rows=test[p.test_rows]) for p in drawn]
    common = [c for c in dict.fromkeys(p.name for p in out) if sum(p.name == c for p in out) == len(config.seeds)]
    if len(common) < 3:
        raise NothingToProbe(f"it has {len(common)} classes with enough texts, and a score needs three")
    kept = (p for p in out if p.name in common)
    return sorted(kept, key=lambda p: (config.seeds.index(p.seed), common.index(p.name)))


def _result(
    name: str,
    dictionary: DictionaryLike,
    rows: list[Perturbations],
    skipped: dict[str, str],
    config: Config,
    hashes: dict[str, str],
) -> Result:
    seeds = len(config.seeds)
    ones = torch.ones(1, seeds, dtype=torch.float64)
    points = [mean_scores(row, torch.ones(1, len(row.groups), dtype=torch.float64), ones) for row in rows]
    of_seed = document_weights(seeds, config.resamples, SEED_DRAWS)
    drawn = [
        mean_scores(row, document_weights(int(row.groups.max()) + 1, config.resamples, i)[:, row.groups], of_seed)
        for i, row in enumerate(rows)
    ]
    values: dict[str, float | int | None] = {}
    intervals: dict[str, tuple[float, float] | None] = {}
    for i, n in enumerate(config.n_values):
        for field in FIELDS:
            key = f"tpp_threshold_{n}_{field}"
            values[key] = float(torch.stack([p[field][:, :, i].mean(1) for p in points]).mean())
            intervals[f"tpp_metrics.{key}"] = interval(torch.stack([d[field][:, :, i].mean(1) for d in drawn]).mean(0))
    accuracies = [accuracy(row.clean, torch.ones(1, len(row.groups), dtype=torch.float64))[0] for row in rows]
    metrics: Metrics = {
        "tpp_metrics": values,
        "probes": {"class_accuracy": float(torch.stack([a.mean() for a in accuracies]).mean())},
    }
    details = [_record(row, p, a, config) for row, p, a in zip(rows, points, accuracies, strict=True)]
    if skipped:
        details.append({"skipped": skipped})
    per_class = {
        f"{row.dataset}_tpp_results": {
            of_class: {
                f"tpp_threshold_{n}_{field}": float(p[field][0, c, i])
                for i, n in enumerate(config.n_values)
                for field in FIELDS
            }
            for c, of_class in enumerate(row.classes)
        }
        for row, p in zip(rows, points, strict=True)
    }
    return result_of(
        name,
        dictionary,
        config,
        hashes,
        eval_type=EVAL_TYPE,
        definition=DEFINITION,
        metrics=metrics,
        details=details,
        n=sum(int((~row.clean.isnan()).any(0).any(0).sum()) for row in rows),
        ci95=intervals,
        unstructured=per_class,
    )


def _record(row: Perturbations, point: dict[str, Tensor], accuracies: Tensor, config: Config) -> dict[str, Any]:
    record: dict[str, Any] = {"dataset_name": f"{row.dataset}_tpp_results"}
    for i, n in enumerate(config.n_values):
        record |= {f"tpp_threshold_{n}_{field}": float(point[field][0, :, i].mean()) for field in FIELDS}
    ones = torch.ones(1, len(row.groups), dtype=torch.float64)
    per_seed = tpp_scores(accuracy(row.clean, ones), accuracy(row.ablated, ones))[FIELDS[0]][0].mean(1)
    record["total_metric_by_seed"] = {str(n): per_seed[:, i].tolist() for i, n in enumerate(config.n_values)}
    record["class_accuracy_by_seed"] = {c: accuracies[:, i].tolist() for i, c in enumerate(row.classes)}
    record["latents_removed"] = {c: latents[:20] for c, latents in row.removed.items()}
    return record
