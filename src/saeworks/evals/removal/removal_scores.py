"""From judged texts to the scores of SCR and SHIFT: how far a biased probe comes back when latents are removed.

Direction 1 removes the cue and asks for the class, direction 2 removes the class and asks for the cue:

    score_n = (A_n - A_biased) / (A_clean - A_biased)

with A the accuracy on balanced test texts of the biased probe without n latents, of the biased probe, and of the probe
trained on balanced texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saeworks.evals.probes.linear_probes import Mode, ProbeSettings
from saeworks.evals.shared.bootstrap import document_weights, interval
from saeworks.results.envelope import Metrics

#: SAEBench calls a score 0 where bias costs less accuracy than this.
COMPAT_GAP = 1e-3
#: Set apart from the numbers of the data sets, which seed the draws of texts.
SEED_DRAWS = 1 << 20


@dataclass(frozen=True)
class Judged:
    """One question of one case: which test texts are judged rightly (1) or not (0).

    ``rows`` [row] int64 in the pooled texts; ``clean``, ``biased`` [row]; ``ablated`` [n, row], NaN for an n that could
    not be measured.
    """

    rows: Tensor
    clean: Tensor
    biased: Tensor
    ablated: Tensor


@dataclass(frozen=True)
class Removal:
    """Both directions of one case, and the latents removed in each, first ones first."""

    pair: tuple[str, str]
    seed: int
    directions: tuple[Judged, Judged]
    removed: tuple[list[int], list[int]]


@dataclass(frozen=True)
class SetRemovals:
    """All removals of one data set; ``groups`` [text] int64 says which texts are drawn together."""

    dataset: str
    removals: list[Removal]
    groups: Tensor

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """In order of their first appearance."""
        return list(dict.fromkeys(r.pair for r in self.removals))


@dataclass(frozen=True)
class Accuracies:
    """Of pairs, seeds and directions, under several draws of the test texts.

    ``clean``, ``biased``: [pair, seed, direction, draw]; ``ablated``: [pair, seed, direction, n, draw].
    """

    clean: Tensor
    biased: Tensor
    ablated: Tensor

    @staticmethod
    def joined(parts: Sequence[Accuracies]) -> Accuracies:
        """Pairs of several data sets one after another."""
        return Accuracies(*(torch.cat([getattr(p, f) for p in parts]) for f in ("clean", "biased", "ablated")))


@dataclass(frozen=True)
class Scores:
    """``directions`` [pair, direction, n, draw] and ``metric`` [pair, n, draw], NaN where there is no score; ``pooled``
    [n, draw]: Σ (A_n − A_biased) / Σ (A_clean − A_biased) over all pairs in the direction of their metric."""

    directions: Tensor
    metric: Tensor
    pooled: Tensor


def accuracies(removals: SetRemovals, weights: Tensor) -> Accuracies:
    """Accuracies with every text counted as ``weights`` [draw, text] says."""
    clean, biased, ablated = list[Tensor](), list[Tensor](), list[Tensor]()
    for removal in removals.removals:
        for judged in removal.directions:
            w = weights[:, judged.rows]
            total = w.sum(1)
            clean.append(w @ judged.clean.double() / total)
            biased.append(w @ judged.biased.double() / total)
            ablated.append((judged.ablated.double() @ w.T) / total)
    pairs = len(removals.pairs)
    shape = (pairs, len(removals.removals) // pairs, 2)
    return Accuracies(*(torch.stack(x).unflatten(0, shape) for x in (clean, biased, ablated)))


def direction_scores(clean: Tensor, biased: Tensor, ablated: Tensor, gap: float, without_gap: float) -> Tensor:
    """[..., n, draw]: (ablated − biased) / (clean − biased), and ``without_gap`` where clean − biased is below ``gap``.

    Args:
        clean, biased: [..., draw]. ablated: [..., n, draw].
    """
    room = (clean - biased)[..., None, :]
    scores = (ablated - biased[..., None, :]) / torch.where(room < gap, 1.0, room)
    # An n that was not measured stays NaN, room or not.
    return torch.where((room < gap) & ~ablated.isnan(), without_gap, scores)


def scores(found: Accuracies, mode: Mode, min_gap: float, seed_weights: Tensor) -> Scores:
    """Scores of every pair.

    ``metric`` is that of the direction in which the biased probe is less accurate. ``compat``: one score per seed, then
    the mean over seeds; 0 without room (below 0.001); no metric where both directions are equally accurate.
    ``corrected``: accuracies are averaged over seeds first; a direction with less room than ``min_gap`` has no score;
    where both are equally accurate the metric is their mean.

    Args:
        seed_weights: [seed, draw], how often each seed counts.
    """
    share = (seed_weights / seed_weights.sum(0))[None, :, None]
    if mode == "compat":
        each = direction_scores(found.clean, found.biased, found.ablated, COMPAT_GAP, 0.0)
        lower = _lower(found.biased)
        metric = (each * lower[..., None, :]).sum(2)
        metric = torch.where((lower.sum(2) == 1)[..., None, :], metric, torch.nan)
        room, gained = _pooled(found.clean, found.biased, found.ablated, lower, lower.sum(2) == 1)
        weight = share[:, :, 0, None].expand_as(metric)
        return Scores(
            (each * share[..., None, :]).sum(1),
            _mean(metric, weight, 1),
            (gained * share[:, :, 0, None]).sum((0, 1)) / (room * share[:, :, 0]).sum((0, 1)),
        )
    clean, biased = (found.clean * share).sum(1), (found.biased * share).sum(1)
    ablated = (found.ablated * share[..., None, :]).sum(1)
    each = direction_scores(clean, biased, ablated, min_gap, torch.nan)
    lower = _lower(biased)
    # The mean of both where they are equal; a direction without a score makes it NaN only where it is asked for.
    weight = (lower / lower.sum(1, keepdim=True))[..., None, :]
    metric = torch.where(weight > 0, each * weight, 0.0).sum(1)
    room, gained = _pooled(clean, biased, ablated, weight[..., 0, :], torch.ones_like(clean[:, 0], dtype=torch.bool))
    return Scores(each, metric, gained.sum(0) / room.sum(0))


def _lower(biased: Tensor) -> Tensor:
    """1 for the direction [..., direction, draw] in which the biased probe is least accurate, for both if they tie."""
    return (biased <= biased.amin(-2, keepdim=True)).double()


def _pooled(clean: Tensor, biased: Tensor, ablated: Tensor, weight: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Room [..., draw] and gain [..., n, draw] in the weighted directions."""
    room = ((clean - biased) * weight).sum(-2) * used
    gained = ((ablated - biased[..., None, :]) * weight[..., None, :]).sum(-3) * used[..., None, :]
    return room, gained


def _mean(values: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Weighted mean of what is not NaN; NaN where nothing is."""
    there = weights * ~values.isnan()
    return (values.nan_to_num() * there).sum(dim) / there.sum(dim)


def summarise(
    sets: Sequence[SetRemovals], config: ProbeSettings, min_gap: float, prefix: str
) -> tuple[Metrics, dict[str, tuple[float, float] | None], list[dict[str, Any]]]:
    """Metrics, 95 % intervals and one record per pair.

    Intervals redraw seeds and groups of test texts, the same for every dictionary.
    """
    seeds = len(config.seeds)
    once = [accuracies(s, torch.ones(1, len(s.groups), dtype=torch.float64)) for s in sets]
    point_weights = torch.ones(seeds, 1, dtype=torch.float64)
    joined = Accuracies.joined(once)
    point = scores(joined, config.mode, min_gap, point_weights)
    draws = [
        accuracies(s, document_weights(int(s.groups.max()) + 1, config.resamples, number)[:, s.groups])
        for number, s in enumerate(sets)
    ]
    seed_weights = document_weights(seeds, config.resamples, SEED_DRAWS).T
    drawn = scores(Accuracies.joined(draws), config.mode, min_gap, seed_weights)
    category = f"{prefix}_metrics"
    named = _named(point, config.n_values, prefix)
    values: dict[str, float | int | None] = {key: float(value) for key, value in named.items()}
    intervals = {f"{category}.{k}": interval(v) for k, v in _named(drawn, config.n_values, prefix).items()}
    details = list[dict[str, Any]]()
    for one, found in zip(sets, once, strict=True):
        own = scores(found, config.mode, min_gap, point_weights)
        details += _records(one, found, own, config, prefix)
    return {category: values, "probes": _probe_accuracies(joined)}, intervals, details


def _named(found: Scores, n_values: Sequence[int], prefix: str) -> dict[str, Tensor]:
    """Metric name → [draw], means over the pairs that have a score."""
    out: dict[str, Tensor] = {}
    for i, n in enumerate(n_values):
        one, two = found.directions[:, 0, i].nanmean(0), found.directions[:, 1, i].nanmean(0)
        out |= {
            f"{prefix}_dir1_threshold_{n}": one,
            f"{prefix}_metric_threshold_{n}": found.metric[:, i].nanmean(0),
            f"{prefix}_dir2_threshold_{n}": two,
            f"{prefix}_pooled_threshold_{n}": found.pooled[i],
        }
    return out


def _probe_accuracies(found: Accuracies) -> dict[str, float | int | None]:
    """Means over pairs and seeds: what the scores are made of."""
    clean, biased = found.clean[..., 0].mean((0, 1)).tolist(), found.biased[..., 0].mean((0, 1)).tolist()
    return {
        "class_accuracy": clean[0],
        "cue_accuracy": clean[1],
        "biased_class_accuracy": biased[0],
        "biased_cue_accuracy": biased[1],
    }


def _records(
    one: SetRemovals, found: Accuracies, own: Scores, config: ProbeSettings, prefix: str
) -> list[dict[str, Any]]:
    out = list[dict[str, Any]]()
    for p, pair in enumerate(one.pairs):
        removals = [r for r in one.removals if r.pair == pair]
        record: dict[str, Any] = {"dataset_name": f"{one.dataset}_{prefix}_{pair[0]}_{pair[1]}_results"}
        for i, n in enumerate(config.n_values):
            for d in (0, 1):
                record[f"{prefix}_dir{d + 1}_threshold_{n}"] = float(own.directions[p, d, i, 0])
            record[f"{prefix}_metric_threshold_{n}"] = float(own.metric[p, i, 0])
        for d, what in enumerate(("class", "cue")):
            record[f"{what}_accuracy_clean_by_seed"] = found.clean[p, :, d, 0].tolist()
            record[f"{what}_accuracy_biased_by_seed"] = found.biased[p, :, d, 0].tolist()
            record[f"{what}_gap"] = float((found.clean - found.biased)[p, :, d, 0].mean())
            record[f"{what}_accuracy_ablated_by_seed"] = {
                str(n): found.ablated[p, :, d, i, 0].tolist() for i, n in enumerate(config.n_values)
            }
            record[f"latents_removed_dir{d + 1}"] = removals[0].removed[d][:20]
            record[f"n_latents_dir{d + 1}"] = [len(r.removed[d]) for r in removals]
        record["test_texts"] = len(removals[0].directions[0].rows)
        out.append(record)
    return out
