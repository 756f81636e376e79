"""The plain way to measure a dictionary, nothing shared, nothing rearranged: the other side of ten_dictionaries.py.

As SAEBench does it, each eval harvests its texts anew into [text, position, d], encodes token by token, and ablates
latents by encoding, decoding and adding the error back, once for each number of latents. Draws of texts, the training
of a probe and the arithmetic from right and wrong answers to scores are the package's own, so that both sides compute
the same numbers; what differs is how activations and latents are come by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.evals import core, scr, sparse_probing, tpp
from saeworks.evals.probes.label_scores import LabelScores
from saeworks.evals.probes.linear_probes import Probes, Rows, Task, correct, train_probes
from saeworks.evals.probes.problems import Problem, draw_problems
from saeworks.evals.probes.text_probes import Features, Scores, mean_differences, probe_all, probe_top_k
from saeworks.evals.removal import probe_attribution
from saeworks.evals.removal.class_perturbation import FIELDS, Perturbations, class_differences, mean_scores
from saeworks.evals.removal.probe_attribution import effects, select_latents
from saeworks.evals.removal.removal_scores import Judged, Removal, SetRemovals, summarise
from saeworks.evals.removal.spurious_removal import DIRECTIONS
from saeworks.evals.removal.spurious_texts import KEYS, draw_cases
from saeworks.evals.shared.batches import document_batches
from saeworks.evals.shared.splits import Split, class_of, draw_splits, prepare
from saeworks.models.interventions import Splice, ZeroAblate
from saeworks.models.language_model import LanguageModel
from saeworks.world.documents import Document

#: Texts that are encoded together; SAEBench's ``sae_batch_size``.
CHUNK = 125
Numbers = dict[str, float]


@dataclass(frozen=True)
class Activations:
    """Activations x [text, position, d], 0 where mask [text, position] is false."""

    x: Tensor
    mask: Tensor

    def pooled(self) -> Tensor:
        """[text, d]."""
        return self._mean(self.x, slice(None))

    def latents(self, dictionary: Dictionary, rows: Tensor) -> Tensor:
        """[row, latent] means of the latents of all kept tokens."""
        parts = [self._mean(dictionary.encode(self.x[part]), part) for part in rows.split(CHUNK)]
        return torch.cat(parts)

    def without(self, dictionary: Dictionary, rows: Tensor, latents: Tensor) -> Tensor:
        """[row, d] means of the activations after some latents were set to 0, with the error kept."""
        parts = list[Tensor]()
        for part in rows.split(CHUNK):
            x = self.x[part]
            f = dictionary.encode(x)
            error = x - dictionary.decode(f)
            f[..., latents] = 0
            parts.append(self._mean(dictionary.decode(f) + error, part))
        return torch.cat(parts)

    def _mean(self, values: Tensor, rows: Any) -> Tensor:
        mask = self.mask[rows]
        return (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def harvested(model: LanguageModel, documents: Sequence[Document], site: str, config: Any) -> Activations:
    """All texts in their order, padded to the context length."""
    width = model.site(site).width
    x = torch.zeros(len(documents), config.context_length, width)
    mask = torch.zeros(len(documents), config.context_length, dtype=torch.bool)
    for start in range(0, len(documents), config.batch_size):
        batch = model.tokenize([d.text for d in documents[start : start + config.batch_size]], config.context_length)
        positions = batch.keep.shape[1]
        found = model.harvest(batch, [site])[site].float()
        x[start : start + len(batch), :positions] = found * batch.keep[..., None]
        mask[start : start + len(batch), :positions] = batch.keep
    return Activations(x, mask)


def measure_core(dictionary: Dictionary, model: LanguageModel, source: Any, config: core.Config) -> Numbers:
    """Three forward passes of every batch, then another one for the reconstruction."""
    site = dictionary.cfg.metadata["site"]
    batches = list(document_batches(model, source.documents(), config.context_length, config.batch_size, config.tokens))

    def spliced(x: Tensor) -> Tensor:
        return dictionary.decode(dictionary.encode(x))

    changes: dict[str, tuple[Any, ...]] = {"clean": (), "sae": (Splice(site, spliced),), "zero": (ZeroAblate(site),)}
    loss, apart = dict.fromkeys(changes, 0.0), dict.fromkeys(changes, 0.0)
    for batch in batches:
        tokens = batch.tokens
        ids, keep = tokens.token_ids, tokens.keep
        predicts = keep[:, :-1] & tokens.attention_mask[:, 1:]
        clean: Tensor | None = None
        for name, change in changes.items():
            logs = model.logits(tokens, change).log_softmax(-1)
            clean = logs if clean is None else clean
            picked = logs[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
            loss[name] -= float(picked[predicts].double().sum())
            apart[name] += float((clean.exp() * (clean - logs)).sum(-1)[keep].double().sum())
    found = [(model.harvest(b.tokens, [site])[site].float()[b.tokens.keep]) for b in batches]
    x = torch.cat(found)
    f = torch.cat([dictionary.encode(part) for part in x.split(CHUNK * config.context_length)])
    x_hat = dictionary.decode(f)
    rss = (x - x_hat).double().square().sum()
    return {
        "ce_loss_score": (loss["zero"] - loss["sae"]) / (loss["zero"] - loss["clean"]),
        "kl_div_score": (apart["zero"] - apart["sae"]) / apart["zero"],
        "explained_variance": float(1 - rss / (x.double() - x.double().mean(0)).square().sum()),
        "l0": float((f != 0).sum(-1).double().mean()),
    }


def measure_sparse_probing(
    dictionary: Dictionary, model: LanguageModel, data: Any, config: sparse_probing.Config
) -> Numbers:
    """Probes on the pooled activations, on k latents, and on all."""
    site, rows = dictionary.cfg.metadata["site"], list[dict[str, float]]()
    for dataset, labelled in data.items():
        texts = prepare(labelled, config.train_texts, config.test_texts)
        (split,) = draw_splits(texts, config.seeds, config.similarity)
        activations = harvested(model, texts.documents, site, config)
        both = {
            "llm": activations.pooled(),
            "sae": activations.latents(dictionary, torch.arange(len(texts.documents))),
        }
        for label in labelled.labels:
            problems = problems_of(texts.documents, label, split, config)
            scores: dict[str, Scores] = {}
            for prefix, x in both.items():
                features = Features(x[split.train], x[split.test])
                seeds = config.seeds[: config.full_seeds] if prefix == "sae" else config.seeds
                full = [p for p in problems if p.seed in seeds]
                scores[f"{prefix}_test"] = probe_all(features, full, config.strengths)
                differences = mean_differences(features.train, problems)
                for k in config.k_values:
                    scores[f"{prefix}_top_{k}_test"] = probe_top_k(features, problems, differences, k, config.strengths)
            rows.append(LabelScores(dataset, label, problems, scores, torch.tensor(split.groups)).metrics())
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if key.endswith("accuracy")}


def problems_of(documents: Sequence[Document], label: str, split: Split, config: Any) -> list[Problem]:
    """The two-class problems of a label, rows counted within the parts of the split."""
    classes = [class_of(d, label) for d in documents]
    return draw_problems(
        [classes[row] for row in split.train],
        [classes[row] for row in split.test],
        split.seeds,
        config.max_classes,
        config.min_texts,
        [split.groups[row] for row in split.train],
    )[0]


def measure_scr(dictionary: Dictionary, model: LanguageModel, data: Any, config: scr.Config) -> Numbers:
    """For every pair, direction and number of latents: encode the test texts, ablate, decode, pool, ask the probe."""
    site, sets = dictionary.cfg.metadata["site"], list[SetRemovals]()
    for dataset, one in data.items():
        texts = one.texts()
        cases, splits = draw_cases(one, texts, torch.ones(len(texts.documents), dtype=torch.bool), config, {})
        activations = harvested(model, texts.documents, site, config)
        x = activations.pooled()
        tasks = [Task(c.train[key], c.test[key], c.seed, f"{c.pair}/{key}") for c in cases for key in KEYS]
        trained = train_probes(x, tasks, config)
        removals = list[Removal]()
        for i, case in enumerate(cases):
            probes = {key: single(trained, len(KEYS) * i + k) for k, key in enumerate(KEYS)}
            judged, removed = list[Judged](), list[list[int]]()
            for cue, asked in DIRECTIONS:
                train, test = case.train[cue], case.test[asked]
                pooled = activations.latents(dictionary, train.rows)
                apart = probe_attribution.mean_differences(pooled, [Rows(torch.arange(len(train)), train.labels)])[0]
                found = effects(apart, probes[cue].weights[0], dictionary.W_dec).abs()
                chosen = select_latents(found, max(config.n_values), config.mode)
                after = [
                    probes["biased"].logits(activations.without(dictionary, test.rows, chosen[:n]))[0]
                    for n in config.n_values
                ]
                before = probes["biased"].logits(x[test.rows])[0]
                clean = probes[asked].logits(x[test.rows])[0]
                answers = (correct(z, test.labels) for z in (clean, before, torch.stack(after)))
                judged.append(Judged(test.rows, *answers))
                removed.append(chosen.tolist())
            removals.append(Removal(case.pair, case.seed, (judged[0], judged[1]), (removed[0], removed[1])))
        sets.append(SetRemovals(dataset, removals, torch.tensor(splits[0].groups)))
    table = summarise(sets, config, config.min_gap, "scr")[0]["scr_metrics"]
    return {key: float(value or 0.0) for key, value in table.items()}


def measure_tpp(dictionary: Dictionary, model: LanguageModel, data: Any, config: tpp.Config) -> Numbers:
    """For every class and number of latents: encode the test texts, ablate, decode, pool, ask the probes of all."""
    site, rows = dictionary.cfg.metadata["site"], list[Perturbations]()
    for dataset, labelled in data.items():
        (label,) = labelled.labels
        texts = prepare(labelled, len(labelled.train), len(labelled.test))
        (split,) = draw_splits(texts, config.seeds, None)
        activations = harvested(model, texts.documents, site, config)
        x, train, test = activations.pooled(), torch.tensor(split.train), torch.tensor(split.test)
        of_text = [str(class_of(d, label)) for d in texts.documents]
        clean, ablated, classes = list[Tensor](), list[Tensor](), list[str]()
        for seed in config.seeds:
            problems = problems_of(
                texts.documents, label, Split((seed,), split.train, split.test, split.groups), config
            )
            classes = [p.name for p in problems]
            tasks = [
                Task(Rows(train[p.train_rows], p.train_labels), Rows(test[p.test_rows], p.test_labels), seed, p.name)
                for p in problems
            ]
            probes = train_probes(x, tasks, config)
            pooled = activations.latents(dictionary, train)
            apart = class_differences(pooled, [of_text[r] for r in split.train], range(len(train)), classes)
            found = effects(apart.clamp_min(0), probes.weights, dictionary.W_dec)
            clean.append(judged_by(probes, x[test], problems, test, len(x)))
            for number in range(len(classes)):
                chosen = select_latents(found[number], max(config.n_values), config.mode)
                for n in config.n_values:
                    after = activations.without(dictionary, test, chosen[:n])
                    ablated.append(judged_by(probes, after, problems, test, len(x)))
        shape = (len(config.seeds), len(classes), len(config.n_values))
        groups = torch.tensor(split.groups)
        rows.append(
            Perturbations(dataset, classes, torch.stack(clean), torch.stack(ablated).unflatten(0, shape), groups, {})
        )
    seeds = torch.ones(1, len(config.seeds), dtype=torch.float64)
    points = [mean_scores(row, torch.ones(1, len(row.groups), dtype=torch.float64), seeds) for row in rows]
    return {
        f"tpp_threshold_{n}_{field}": float(torch.stack([p[field][:, :, i].mean(1) for p in points]).mean())
        for i, n in enumerate(config.n_values)
        for field in FIELDS
    }


def judged_by(probes: Probes, x: Tensor, problems: Sequence[Problem], test: Tensor, texts: int) -> Tensor:
    """[class, text]: right or wrong on the test texts of each class's problem, NaN elsewhere."""
    out, logits = torch.full((len(problems), texts), torch.nan), probes.logits(x)
    for i, p in enumerate(problems):
        out[i, test[p.test_rows]] = correct(logits[i, p.test_rows], p.test_labels)
    return out


def single(probes: Probes, number: int) -> Probes:
    """One of several probes."""
    return Probes(probes.weights[[number]], probes.bias[[number]])


MEASURE: Mapping[str, Callable[[Dictionary, LanguageModel, Any, Any], Numbers]] = {
    "core": measure_core,
    "sparse_probing": measure_sparse_probing,
    "scr": measure_scr,
    "tpp": measure_tpp,
}
