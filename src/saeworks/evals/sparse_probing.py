"""k-sparse probing: how much of a labelled concept can one, two or five latents tell?

Every text becomes the mean of its latents over kept tokens. For each class of a label, a balanced two-class problem
(the class against the rest) is drawn per seed; on its training texts the k latents with the largest absolute
difference of means are chosen and a logistic probe is fitted to them. This is SAEBench's protocol with its known
faults mended: rows are fixed per class and seed and shared by every k, probe and dictionary; nothing is chosen on test
texts (the regularisation strength comes from a part of the training texts); no text is in both parts, nor, where the
parts are drawn here, a text that is nearly the same; a label with two classes is one problem, not a problem and its
mirror image. Mode ``compat`` keeps the faults (:mod:`saeworks.evals.compat.sparse_probing_compat`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from saeworks.evals.compat.sparse_probing_compat import CompatProbing
from saeworks.evals.probes.label_scores import LabelScores
from saeworks.evals.probes.problems import NothingToProbe, Problem, draw_problems
from saeworks.evals.probes.text_probes import Features, Scores, joined, mean_differences, probe_all, probe_top_k
from saeworks.evals.shared.batches import (
    DictionaryLike,
    fingerprint_documents,
    fingerprint_of_model,
)
from saeworks.evals.shared.bootstrap import interval
from saeworks.evals.shared.described import result_of
from saeworks.evals.shared.pooling import PooledTexts, TextPool
from saeworks.evals.shared.settings import Counts, Seeds, Sizes
from saeworks.evals.shared.similar_texts import SIMILARITY
from saeworks.evals.shared.splits import Split, class_of, draw_splits, prepare
from saeworks.files import sha256_json
from saeworks.progress import progress
from saeworks.results.envelope import Metrics, Result
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "sparse_probing"
DEFINITION = "saeworks/sparse_probing/2"
#: The k of SAEBench's result files; those that were not asked for are null.
SAEBENCH_K = (1, 2, 5, 10, 20, 50, 100)
#: The domains of the world that are probed when none is named. A fixed choice: every domain adds seconds to the main
#: job, so one that joins the corpus must not join this list by itself. The others are named (``--data world:code``).
WORLD_DOMAINS = ("biographies", "reviews", "news", "taxonomy", "facts")
#: What SAEBench balances its counterparts of these labels by.
WORLD_BALANCE = {"profession": "gender", "category": "sentiment"}


class Config(BaseModel):
    """``train_texts`` and ``test_texts`` are the most texts used per dataset; classes are balanced within them.

    ``seeds``: every seed draws other negatives (and positives where a class is the majority), and another split
    where the set has no test part of its own. ``full_seeds``: how many of them the probe on all latents is fitted
    for, which takes longer than all others together. ``max_classes``: of a label with more classes, the most
    frequent ones are probed; all serve as negatives. ``strengths``: values of C to choose from. ``similarity``:
    overlap of words from which on two texts stay on one side of a split (see
    :mod:`saeworks.evals.shared.similar_texts`); None: equal texts only.

    In mode ``compat`` texts are counted per two-class problem: a class has half of ``train_texts``, its negatives the
    other half (as many as there are); ``full_seeds`` 0 writes -1 for the probe on all latents; ``strengths`` and
    ``similarity`` are not used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["compat", "corrected"] = "corrected"
    train_texts: int = Field(default=600, gt=0)
    test_texts: int = Field(default=300, gt=0)
    k_values: Counts = (1, 2, 5)
    seeds: Seeds = (0, 1, 2)
    full_seeds: int = Field(default=3, ge=0)
    max_classes: int = Field(default=5, ge=2)
    min_texts: int = Field(default=10, ge=2)
    strengths: Sizes = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    similarity: float | None = Field(default=SIMILARITY, gt=0, le=1)
    context_length: int = Field(default=128, gt=1)
    batch_size: int = Field(default=64, gt=0)
    site: str | None = None
    resamples: int = Field(default=500, gt=0)


@dataclass(frozen=True)
class LabelledSet:
    """Texts with labels. ``labels`` names the document labels to probe (None: every label that can be).

    ``test`` None: the texts in ``train`` have not been split, and every seed splits them anew. ``balance``: label → the
    label within which mode ``compat`` balances its classes (``spurious_label`` where the texts have one).
    """

    train: Sequence[Document]
    test: Sequence[Document] | None
    labels: tuple[str, ...] | None = None
    balance: Mapping[str, str] = field(default_factory=dict[str, str])


def world_sets(domains: Iterable[str] = WORLD_DOMAINS, config: Config | None = None) -> dict[str, LabelledSet]:
    """The labelled splits of the embedded world, one set per domain that has labels."""
    from saeworks.world import corpus

    config = config or Config()
    out: dict[str, LabelledSet] = {}
    for domain in domains:
        labels = tuple(corpus.label_names(domain))
        if labels:
            train = list(corpus.documents(domain, "probe_train", count=config.train_texts))
            test = list(corpus.documents(domain, "probe_test", count=config.test_texts))
            out[domain] = LabelledSet(train, test, labels, {k: v for k, v in WORLD_BALANCE.items() if k in labels})
    return out


def data_hashes(datasets: Mapping[str, LabelledSet], config: Config) -> dict[str, str]:
    """``data:NAME`` → hash of the texts and labels that :func:`run` uses of each set, part by part."""
    out: dict[str, str] = {}
    for dataset, labelled in datasets.items():
        if config.mode == "compat":
            parts = [fingerprint_documents(part) for part in (labelled.train, labelled.test or ())]
            settings = [*parts, list(labelled.labels or ()), dict(labelled.balance), labelled.test is None]
            out[f"data:{dataset}"] = sha256_json(settings)
            continue
        texts = prepare(labelled, config.train_texts, config.test_texts)
        parts = [fingerprint_documents(part) for part in (texts.train, texts.test)]
        out[f"data:{dataset}"] = sha256_json([*parts, list(labelled.labels or ())])
    return out


def run(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    datasets: Mapping[str, LabelledSet],
    config: Config,
    pool: TextPool | None = None,
) -> dict[str, Result]:
    """Probe every dictionary on every label of ``datasets`` (name → labelled texts); returns name → result.

    ``pool`` has texts that were pooled before, and takes those that are pooled now.

    Raises :class:`NothingToProbe` when no label can be probed.
    """
    tables: dict[str, list[LabelScores]] = {name: [] for name in dictionaries}
    skipped: dict[str, str] = {}
    hashes = {"model": fingerprint_of_model(model), **data_hashes(datasets, config)}
    tested = 0
    pool = pool or TextPool()
    compat = CompatProbing(dictionaries, model, config, skipped, tables, pool)
    for dataset, labelled in datasets.items():
        if config.mode == "compat":
            tested += compat.probe(dataset, labelled)
            continue
        texts = prepare(labelled, config.train_texts, config.test_texts)
        if texts.dropped:
            skipped[f"{dataset}: {texts.dropped} texts"] = "the same text is there before, or in the training part"
        names = labelled.labels or tuple(sorted({name for d in texts.documents for name in d.labels}))
        skipped.update(_unlabelled(dataset, texts.documents, names))
        splits = draw_splits(texts, config.seeds, config.similarity)
        drawn = _draw(dataset, texts.documents, splits, names, config, skipped)
        if not any(drawn):
            continue
        pooled = pool.pool(
            dictionaries,
            model,
            texts.documents,
            config.context_length,
            config.batch_size,
            config.site,
            f"pooling {dataset}",
        )
        if unread := int((pooled.tokens == 0).sum()):
            # Only special tokens: such a text has no mean, so it is treated as not labelled.
            skipped[f"{dataset}: {unread} texts without a token"] = "there is nothing to average"
            counts = zip(texts.documents, pooled.tokens.tolist(), strict=True)
            read = [d if n else replace(d, labels={}) for d, n in counts]
            drawn = _draw(dataset, read, splits, names, config, skipped)
        if not any(drawn):
            continue
        tested += len({row for split in splits for row in split.test})
        _probe_dataset(dataset, splits, drawn, pooled, config, tables)
    if not any(tables.values()):
        reasons = "; ".join(f"{what}: {why}" for what, why in skipped.items()) or "the documents carry no labels"
        raise NothingToProbe(
            f"No label can be probed ({reasons}); give labelled texts, for instance with --label-column."
        )
    return {
        name: _result(name, dictionaries[name], rows, skipped, tested, config, hashes) for name, rows in tables.items()
    }


def _unlabelled(dataset: str, documents: Sequence[Document], names: Sequence[str]) -> dict[str, str]:
    """For every label that some of the documents do not have: how many, and why they are skipped."""
    missing = {name: sum(class_of(d, name) is None for d in documents) for name in names}
    return {f"{dataset}/{name}: {count} texts": "no such label" for name, count in missing.items() if count}


def _draw(
    dataset: str,
    documents: list[Document],
    splits: Sequence[Split],
    names: Sequence[str],
    config: Config,
    skipped: dict[str, str],
) -> list[dict[str, list[Problem]]]:
    """For every split: label → problems, rows counted within the parts of the split."""
    out: list[dict[str, list[Problem]]] = []
    for split in splits:
        drawn: dict[str, list[Problem]] = {}
        for label in names:
            classes = [class_of(d, label) for d in documents]
            problems, reasons = draw_problems(
                [classes[row] for row in split.train],
                [classes[row] for row in split.test],
                split.seeds,
                config.max_classes,
                config.min_texts,
                [split.groups[row] for row in split.train],
            )
            skipped.update({f"{dataset}/{label}{what}": why for what, why in reasons.items()})
            if problems:
                drawn[label] = problems
        out.append(drawn)
    return out


def _probe_dataset(
    dataset: str,
    splits: Sequence[Split],
    drawn: Sequence[dict[str, list[Problem]]],
    pooled: PooledTexts,
    config: Config,
    tables: dict[str, list[LabelScores]],
) -> None:
    labels = list(dict.fromkeys(label for problems in drawn for label in problems))
    problems = {label: [p for by_label in drawn for p in by_label.get(label, [])] for label in labels}
    bar = progress(len(splits) * (len(pooled.activations) + len(pooled.latents)), f"probing {dataset}", unit="split")
    groups = torch.tensor(splits[0].groups)

    def measured(prefix: str, x: Tensor) -> dict[str, dict[str, Scores]]:
        """Label → kind → scores over all splits."""
        parts: dict[str, dict[str, list[Scores]]] = {label: {} for label in labels}
        for split, by_label in zip(splits, drawn, strict=True):
            features = Features(x[split.train], x[split.test])
            for label, of_split in by_label.items():
                for kind, scores in _all_probes(prefix, features, of_split, config).items():
                    parts[label].setdefault(kind, []).append(scores.placed(split.test, len(x)))
            bar.update()
        return {label: {kind: joined(s) for kind, s in kinds.items()} for label, kinds in parts.items()}

    dense = {site: measured("llm", x) for site, x in pooled.activations.items()}
    for name, x in pooled.latents.items():
        for label, scores in measured("sae", x).items():
            both = dense[pooled.sites[name]][label] | scores
            tables[name].append(LabelScores(dataset, label, problems[label], both, groups))
    bar.close()


def _all_probes(prefix: str, features: Features, problems: list[Problem], config: Config) -> dict[str, Scores]:
    seeds = config.seeds[: config.full_seeds] if prefix == "sae" else config.seeds
    first = [p for p in problems if p.seed in seeds]
    out = {f"{prefix}_test": probe_all(features, first, config.strengths)} if first else {}
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


def _result(
    name: str,
    dictionary: DictionaryLike,
    rows: list[LabelScores],
    skipped: dict[str, str],
    tested: int,
    config: Config,
    hashes: dict[str, str],
) -> Result:
    per_row = [row.metrics() for row in rows]
    means = {key: sum(r[key] for r in per_row) / len(per_row) for key in per_row[0]}
    metrics: Metrics = {"llm": {}, "sae": {}, "control": {}}
    for side in ("llm", "sae"):
        metrics[side] = {f"{side}_top_{k}_test_accuracy": None for k in SAEBENCH_K}
    if config.mode == "compat" and not config.full_seeds:
        metrics["sae"]["sae_test_accuracy"] = -1.0
    for key, value in means.items():
        metrics["control" if "shuffled" in key else key[:3]][key] = value
    # One draw of texts per data set: labels of one set are about the same texts.
    numbers = {dataset: i for i, dataset in enumerate(dict.fromkeys(row.dataset for row in rows))}
    resampled = [row.resampled(config.resamples, numbers[row.dataset]) for row in rows]
    details: list[dict[str, Any]] = [
        {
            "dataset_name": f"{row.dataset}_{row.label}_results",
            "dataset": row.dataset,
            "label": row.label,
            **row.sizes(),
            **values,
            **row.intervals(drawn, config.k_values),
        }
        for row, values, drawn in zip(rows, per_row, resampled, strict=True)
    ]
    overall = {kind: torch.stack([drawn[kind] for drawn in resampled]).mean(0) for kind in resampled[0]}
    if skipped:
        details.append({"skipped": skipped})
    per_class = {
        f"{row.dataset}_{row.label}_results": {
            f"{kind}_{field}": row.class_means(kind, field) for kind in row.scores for field in ("accuracy", "auc")
        }
        for row in rows
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
        n=tested,
        ci95={
            f"{'control' if 'shuffled' in kind else kind[:3]}.{kind}_accuracy": interval(values)
            for kind, values in overall.items()
        },
        unstructured=per_class,
    )
