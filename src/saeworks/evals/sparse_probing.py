"""k-sparse probing: how much of a labelled concept can one, two or five latents tell?

Every text becomes the mean of its latents over kept tokens. For each class of a label, a balanced two-class problem
(the class against the rest) is drawn per seed; on its training texts the k latents with the largest absolute
difference of means are chosen and a logistic probe is fitted to them. This is SAEBench's protocol with its known
faults mended (mode ``corrected``): rows are fixed per class and seed and shared by every k, probe and dictionary;
nothing is chosen on test texts (the regularisation strength comes from a part of the training texts); no text is in
both parts; a label with two classes is one problem, not a problem and its mirror image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from saeworks.evals.batches import (
    DictionaryLike,
    config_of,
    fingerprint_documents,
    fingerprint_of,
    fingerprint_of_model,
    metadata_of,
)
from saeworks.evals.bootstrap import document_weights, interval
from saeworks.evals.pooling import pool_texts, without_repeats
from saeworks.evals.probes import Features, Scores, mean_differences, probe_all, probe_top_k
from saeworks.evals.problems import Label, NothingToProbe, Problem, draw_problems, group_split
from saeworks.files import sha256_json
from saeworks.progress import progress
from saeworks.results.envelope import Metrics, Result, provenance
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "sparse_probing"
DEFINITION = "saeworks/sparse_probing/1"
#: The k of SAEBench's result files; those that were not asked for are null.
SAEBENCH_K = (1, 2, 5, 10, 20, 50, 100)


class Config(BaseModel):
    """``train_texts`` and ``test_texts`` are the most texts used per dataset; classes are balanced within them.

    ``seeds``: every seed draws other negatives (and positives where a class is the majority). ``full_seeds``: how
    many of them the probes on all latents and on raw activations are fitted for. ``max_classes``: of a label with
    more classes, the most frequent ones are probed; all serve as negatives. ``strengths``: values of C to choose from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["corrected"] = "corrected"
    train_texts: int = Field(default=600, gt=0)
    test_texts: int = Field(default=300, gt=0)
    k_values: tuple[int, ...] = (1, 2, 5)
    seeds: tuple[int, ...] = (0, 1, 2)
    full_seeds: int = Field(default=3, ge=1)
    max_classes: int = Field(default=5, ge=2)
    min_texts: int = Field(default=10, ge=2)
    strengths: tuple[float, ...] = (0.001, 0.01, 0.1)
    context_length: int = Field(default=128, gt=1)
    batch_size: int = Field(default=64, gt=0)
    site: str | None = None
    resamples: int = Field(default=500, gt=0)


@dataclass(frozen=True)
class LabelledSet:
    """Texts with labels, split. ``labels`` names the document labels to probe (None: every label that can be)."""

    train: Sequence[Document]
    test: Sequence[Document]
    labels: tuple[str, ...] | None = None


def world_sets(domains: Iterable[str] | None = None, config: Config | None = None) -> dict[str, LabelledSet]:
    """The labelled splits of the embedded world, one set per domain that has labels."""
    from saeworks.world import corpus

    config = config or Config()
    out: dict[str, LabelledSet] = {}
    for domain in domains or corpus.DOMAINS:
        labels = tuple(corpus.label_names(domain))
        if labels:
            train = list(corpus.documents(domain, "probe_train", count=config.train_texts))
            test = list(corpus.documents(domain, "probe_test", count=config.test_texts))
            out[domain] = LabelledSet(train, test, labels)
    return out


def split_documents(documents: Iterable[Document], test_share: float = 1 / 3, seed: int = 0) -> LabelledSet:
    """Split labelled documents of a file; identical texts stay together. See :func:`group_split`."""
    rows = list(documents)
    train, test = group_split([d.text for d in rows], test_share, seed)
    return LabelledSet([rows[i] for i in train], [rows[i] for i in test])


def data_hashes(datasets: Mapping[str, LabelledSet], config: Config) -> dict[str, str]:
    """``data:NAME`` → hash of the texts and labels that :func:`run` uses of each set, part by part."""
    out: dict[str, str] = {}
    for dataset, labelled in datasets.items():
        train, test, _ = _parts(labelled, config)
        parts = [fingerprint_documents(train), fingerprint_documents(test)]
        out[f"data:{dataset}"] = sha256_json([*parts, list(labelled.labels or ())])
    return out


def run(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    datasets: Mapping[str, LabelledSet],
    config: Config,
) -> dict[str, Result]:
    """Probe every dictionary on every label of ``datasets`` (name → labelled texts); returns name → result.

    Raises :class:`NothingToProbe` when no label can be probed.
    """
    tables: dict[str, list[_Row]] = {name: [] for name in dictionaries}
    skipped: dict[str, str] = {}
    hashes = {"model": fingerprint_of_model(model), **data_hashes(datasets, config)}
    tested = 0
    for dataset, labelled in datasets.items():
        train, test, repeated = _parts(labelled, config)
        if repeated:
            skipped[f"{dataset}: {repeated} test texts"] = "the same text is in the training part"
        documents = train + test
        problems = _problems_by_label(dataset, train, test, labelled.labels, config, skipped)
        if not problems:
            continue
        pooled = pool_texts(
            dictionaries, model, documents, config.context_length, config.batch_size, config.site, f"pooling {dataset}"
        )
        if not bool(pooled.tokens.all()):
            # Only special tokens: such a text has no mean, so it counts as not labelled.
            unread = [d if n else replace(d, labels={}) for d, n in zip(documents, pooled.tokens.tolist(), strict=True)]
            train, test = unread[: len(train)], unread[len(train) :]
            problems = _problems_by_label(dataset, train, test, labelled.labels, config, skipped)
        if not problems:
            continue
        tested += len(test)
        _probe_dataset(dataset, problems, pooled.activations, pooled.latents, pooled.sites, len(train), config, tables)
    if not any(tables.values()):
        reasons = "; ".join(f"{what}: {why}" for what, why in skipped.items()) or "the documents carry no labels"
        raise NothingToProbe(
            f"No label can be probed ({reasons}); give labelled texts, for instance with --label-column."
        )
    return {
        name: _result(name, dictionaries[name], rows, skipped, tested, config, hashes) for name, rows in tables.items()
    }


@dataclass(frozen=True)
class _Row:
    """Everything measured for one (dataset, label) with one dictionary: probe kind → scores."""

    dataset: str
    label: str
    problems: list[Problem]
    scores: dict[str, Scores]


def _parts(labelled: LabelledSet, config: Config) -> tuple[list[Document], list[Document], int]:
    return without_repeats(labelled.train[: config.train_texts], labelled.test[: config.test_texts])


def _class_of(document: Document, label: str) -> Label:
    """The document's class; an empty cell or NaN is no class but a missing label."""
    value = document.labels.get(label)
    missing = not value.strip() if isinstance(value, str) else isinstance(value, float) and math.isnan(value)
    return None if missing else value


def _problems_by_label(
    dataset: str,
    train: list[Document],
    test: list[Document],
    labels: tuple[str, ...] | None,
    config: Config,
    skipped: dict[str, str],
) -> dict[str, list[Problem]]:
    names = labels or tuple(sorted({name for d in train for name in d.labels}))
    out: dict[str, list[Problem]] = {}
    for label in names:
        problems, reasons = draw_problems(
            [_class_of(d, label) for d in train],
            [_class_of(d, label) for d in test],
            config.seeds,
            config.max_classes,
            config.min_texts,
        )
        skipped.update({f"{dataset}/{label}{what}": why for what, why in reasons.items()})
        if problems:
            out[label] = problems
    return out


def _probe_dataset(
    dataset: str,
    problems: dict[str, list[Problem]],
    activations: dict[str, Tensor],
    latents: dict[str, Tensor],
    sites: dict[str, str],
    train: int,
    config: Config,
    tables: dict[str, list[_Row]],
) -> None:
    bar = progress(len(problems) * (len(activations) + len(latents)), f"probing {dataset}", unit="fit")
    dense: dict[tuple[str, str], dict[str, Scores]] = {}
    for site, x in activations.items():
        features = Features(x[:train], x[train:])
        for label, drawn in problems.items():
            dense[site, label] = _all_probes("llm", features, drawn, config)
            bar.update()
    for name, x in latents.items():
        features = Features(x[:train], x[train:])
        for label, drawn in problems.items():
            scores = _all_probes("sae", features, drawn, config)
            tables[name].append(_Row(dataset, label, drawn, dense[sites[name], label] | scores))
            bar.update()
    bar.close()


def _all_probes(prefix: str, features: Features, problems: list[Problem], config: Config) -> dict[str, Scores]:
    first = [p for p in problems if p.seed in config.seeds[: config.full_seeds]]
    out = {f"{prefix}_test": probe_all(features, first, config.strengths)}
    differences = mean_differences(features.train, problems)
    for k in config.k_values:
        out[f"{prefix}_top_{k}_test"] = probe_top_k(features, problems, differences, k, config.strengths)
    if prefix == "sae":
        k = max(config.k_values)
        shuffled = [p.shuffled() for p in problems]
        differences = mean_differences(features.train, shuffled)
        scores = probe_top_k(features, shuffled, differences, k, config.strengths)
        out[f"sae_top_{k}_shuffled_labels_test"] = scores
    return out


def _class_means(row: _Row, kind: str, field: Literal["accuracy", "auc"]) -> dict[str, float]:
    """Class → mean over seeds."""
    values: Tensor = getattr(row.scores[kind], field)
    grouped: dict[str, list[float]] = {}
    for problem, value in zip(_used(row, kind), values.tolist(), strict=True):
        grouped.setdefault(problem.name, []).append(value)
    return {name: sum(v) / len(v) for name, v in grouped.items()}


def _used(row: _Row, kind: str) -> list[Problem]:
    count = len(row.scores[kind].accuracy)
    if count == len(row.problems):
        return row.problems
    seeds = sorted({p.seed for p in row.problems}, key=[p.seed for p in row.problems].index)
    per_seed = len(row.problems) // len(seeds)
    return [p for p in row.problems if p.seed in seeds[: count // per_seed]]


def _row_metrics(row: _Row) -> dict[str, float]:
    """``{kind}_accuracy`` and ``{kind}_auc``: means over the classes of one label."""
    out: dict[str, float] = {}
    for kind in row.scores:
        for field in ("accuracy", "auc"):
            values = list(_class_means(row, kind, field).values())
            out[f"{kind}_{field}"] = sum(values) / len(values)
    return out


def _intervals(rows: list[_Row], config: Config) -> dict[str, tuple[float, float] | None]:
    """Intervals of the overall accuracies, resampling the test texts of each dataset."""
    weights = {r.dataset: r for r in rows}
    drawn = {
        dataset: document_weights(r.scores["sae_test"].correct.shape[1], config.resamples, i)
        for i, (dataset, r) in enumerate(weights.items())
    }
    out: dict[str, tuple[float, float] | None] = {}
    for kind in rows[0].scores:
        overall = torch.zeros(config.resamples, dtype=torch.float64)
        for row in rows:
            correct = row.scores[kind].correct.double()
            there = (~correct.isnan()).double()
            w = drawn[row.dataset]
            per_problem = (w @ correct.nan_to_num().T) / (w @ there.T)
            overall += per_problem.mean(1) / len(rows)
        category = "control" if "shuffled" in kind else kind[:3]
        out[f"{category}.{kind}_accuracy"] = interval(overall)
    return out


def _result(
    name: str,
    dictionary: DictionaryLike,
    rows: list[_Row],
    skipped: dict[str, str],
    tested: int,
    config: Config,
    hashes: dict[str, str],
) -> Result:
    per_row = [_row_metrics(row) for row in rows]
    means = {key: sum(r[key] for r in per_row) / len(per_row) for key in per_row[0]}
    metrics: Metrics = {"llm": {}, "sae": {}, "control": {}}
    for side in ("llm", "sae"):
        metrics[side] = {f"{side}_top_{k}_test_accuracy": None for k in SAEBENCH_K}
    for key, value in means.items():
        metrics["control" if "shuffled" in key else key[:3]][key] = value
    details: list[dict[str, Any]] = [
        {"dataset_name": f"{row.dataset}_{row.label}_results", "dataset": row.dataset, "label": row.label, **values}
        for row, values in zip(rows, per_row, strict=True)
    ]
    if skipped:
        details.append({"skipped": skipped})
    per_class = {
        f"{row.dataset}_{row.label}_results": {
            f"{kind}_{field}": _class_means(row, kind, field) for kind in row.scores for field in ("accuracy", "auc")
        }
        for row in rows
    }
    return Result(
        eval_type_id=EVAL_TYPE,
        eval_config=config.model_dump(mode="json"),
        eval_result_metrics=metrics,
        eval_result_details=details,
        eval_result_unstructured=per_class,
        sae_lens_id=name,
        sae_lens_release_id=str(metadata_of(dictionary).get("release") or "saeworks"),
        sae_cfg_dict=config_of(dictionary),
        seed=config.seeds[0],
        n=tested,
        ci95=_intervals(rows, config),
        provenance=provenance(dictionary=fingerprint_of(dictionary), **hashes),
        definition_id=DEFINITION,
    )
