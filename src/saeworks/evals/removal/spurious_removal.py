"""What SCR and SHIFT share: pooled texts, their probes, and the biased probe without some latents.

The two differ in one thing, which latents are removed; that is a function given to :func:`remove`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saeworks.evals.probes.linear_probes import Probes, ProbeSettings, Rows, Task, correct, train_probes
from saeworks.evals.probes.problems import NothingToProbe
from saeworks.evals.removal.ablatable_texts import AblatableTexts, pool_ablatable
from saeworks.evals.removal.probe_attribution import logits_without
from saeworks.evals.removal.removal_scores import Judged, Removal, SetRemovals, summarise
from saeworks.evals.removal.spurious_texts import KEYS, Case, Key, SpuriousSet, draw_cases
from saeworks.evals.shared.batches import DictionaryLike
from saeworks.evals.shared.described import result_of
from saeworks.evals.shared.pooling import TextPool
from saeworks.results.envelope import Result

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

#: Direction → the question whose latents are removed, and the one that is asked.
DIRECTIONS: tuple[tuple[Key, Key], ...] = (("cue", "class"), ("class", "cue"))


@dataclass(frozen=True)
class MeasuredSet:
    """One data set as the model and the dictionaries see it.

    Attributes:
        cases: the pairs of classes with their texts. groups: [text] int64, drawn together for intervals.
        pooled: all texts. probes: site → three probes per case, in the order of ``KEYS``.
    """

    cases: list[Case]
    groups: Tensor
    pooled: AblatableTexts
    probes: Mapping[str, Probes]


@dataclass(frozen=True)
class Choosing:
    """What latents are chosen by: those of all texts [text, latent], their directions [latent, d], a case, and its
    three probes."""

    latents: Tensor
    directions: Tensor
    case: Case
    probes: Mapping[Key, Probes]

    @property
    def weights(self) -> dict[Key, Tensor]:
        """[d] of each probe."""
        return {key: probe.weights[0] for key, probe in self.probes.items()}


#: (what is seen, direction, most) → at most so many latents to remove, in the order of removal.
Choice = Callable[[Choosing, int, int], Tensor]


def measure_set(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    one: SpuriousSet,
    dataset: str,
    config: ProbeSettings,
    skipped: dict[str, str],
    pool: TextPool,
) -> MeasuredSet | None:
    """Pool the texts of a set once for all dictionaries and train its probes; None when no pair can be used."""
    texts = one.texts()
    documents = texts.documents
    readable, reasons = torch.ones(len(documents), dtype=torch.bool), dict[str, str]()
    # Before the model reads anything: is there a pair at all?
    if not documents or not draw_cases(one, texts, readable, config, reasons)[0]:
        skipped |= {f"{dataset} {pair}": why for pair, why in reasons.items()} or {dataset: "it holds no texts"}
        return None
    pooled = pool_ablatable(dictionaries, model, documents, config, f"pooling {dataset}", pool)
    reasons.clear()
    cases, splits = draw_cases(one, texts, pooled.tokens > 0, config, reasons)
    skipped |= {f"{dataset} {pair}": why for pair, why in reasons.items()}
    if not cases:
        return None
    tasks = [Task(c.train[key], c.test[key], c.seed, f"{c.pair}/{key}") for c in cases for key in KEYS]
    probes = {site: train_probes(x, tasks, config) for site, x in pooled.activations.items()}
    return MeasuredSet(cases, torch.tensor(splits[0].groups), pooled, probes)


def seen_by(measured: MeasuredSet, name: str) -> list[Choosing]:
    """What latents of dictionary ``name`` are chosen by, case after case."""
    pooled = measured.pooled
    probes = measured.probes[pooled.sites[name]]
    out = list[Choosing]()
    for i, case in enumerate(measured.cases):
        own: dict[Key, Probes] = {key: _single(probes, len(KEYS) * i + k) for k, key in enumerate(KEYS)}
        out.append(Choosing(pooled.latents[name], pooled.directions[name], case, own))
    return out


def remove(measured: MeasuredSet, name: str, config: ProbeSettings, choose: Choice) -> list[Removal]:
    """For every case: the latents that ``choose`` picks, and what the biased probe says without them."""
    x, ablatable = measured.pooled.activations[measured.pooled.sites[name]], measured.pooled.ablatable[name]
    out = list[Removal]()
    for seen in seen_by(measured, name):
        judged, removed = list[Judged](), list[list[int]]()
        for direction, (_, asked) in enumerate(DIRECTIONS):
            chosen = choose(seen, direction, max(config.n_values))
            test = seen.case.test[asked]
            readout = seen.directions[chosen] @ seen.weights["biased"]
            part = ablatable[test.rows[:, None], chosen]
            judged.append(_judged(x, test, seen.probes[asked], seen.probes["biased"], part, readout, config))
            if config.mode == "compat":
                # SAEBench stops with an error where more latents are to be removed than there are.
                judged[-1].ablated[torch.tensor(config.n_values) > len(seen.directions)] = torch.nan
            removed.append(chosen.tolist())
        out.append(Removal(seen.case.pair, seen.case.seed, (judged[0], judged[1]), (removed[0], removed[1])))
    return out


def _single(probes: Probes, number: int) -> Probes:
    return Probes(probes.weights[[number]], probes.bias[[number]])


def _judged(
    x: Tensor, test: Rows, clean: Probes, biased: Probes, latents: Tensor, readout: Tensor, config: ProbeSettings
) -> Judged:
    before = biased.logits(x[test.rows])
    order = torch.arange(latents.shape[1])
    without = logits_without(before, latents, readout[None], order, config.n_values)[:, 0]
    clean_logits = clean.logits(x[test.rows])[0]
    return Judged(
        test.rows,
        correct(clean_logits, test.labels),
        correct(before[0], test.labels),
        correct(without, test.labels),
    )


def _no_score(mode: str, min_gap: float) -> str:
    if mode == "compat":
        return "no pair of classes has a score: fewer latents than were to be removed, or ties"
    return (
        f"bias costs the probes less than {min_gap:g} of accuracy in every pair of classes and either direction, so "
        "there is nothing to win back; choose data with a stronger correlation, or a lower min_gap"
    )


def nothing_to_probe(skipped: Mapping[str, str]) -> NothingToProbe:
    """The sentence for data in which no pair of classes can be used."""
    reasons = "; ".join(f"{what}: {why}" for what, why in skipped.items()) or "the data are empty"
    return NothingToProbe(
        f"No pair of classes can be probed ({reasons}); give more texts that carry both a class and a cue."
    )


def removal_result(
    eval_type: str,
    definition: str,
    name: str,
    dictionary: DictionaryLike,
    sets: list[SetRemovals],
    config: ProbeSettings,
    min_gap: float,
    hashes: Mapping[str, str],
    skipped: Mapping[str, str],
) -> Result:
    """The result file of one dictionary."""
    metrics, intervals, details = summarise(sets, config, min_gap, eval_type)
    if skipped:
        details.append({"skipped": dict(skipped)})
    category = f"{eval_type}_metrics"
    scores = [value for key, value in metrics[category].items() if "_metric_threshold_" in key]
    if all(value is None or math.isnan(value) for value in scores):
        details.append({"not_measured": [category], "reason": _no_score(config.mode, min_gap)})
    tested = [set[int]().union(*(j.rows.tolist() for r in s.removals for j in r.directions)) for s in sets]
    return result_of(
        name,
        dictionary,
        config,
        hashes,
        eval_type=eval_type,
        definition=definition,
        metrics=metrics,
        details=details,
        n=sum(map(len, tested)),
        ci95=intervals,
    )
