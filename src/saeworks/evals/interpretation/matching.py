"""Latents against concepts, token by token: which latent fires on which concept, exactly and without dense matrices.

A concept here is a set of tokens; a latent fires on a token when its activation is above 0, or above a threshold.
Both sides are lists of pairs sorted by key, so that cost follows the number of firings, not tokens × latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Events:
    """All firings of one dictionary, ordered by latent, then by falling activation.

    ``values``, ``latents``, ``tokens`` are [event]; ``starts`` [latent + 1] delimits the events of each latent.
    """

    values: Tensor
    latents: Tensor
    tokens: Tensor
    starts: Tensor
    token_count: int

    @property
    def width(self) -> int:
        """Number of latents."""
        return len(self.starts) - 1

    def counts(self) -> Tensor:
        """[latent] int64: tokens on which it fires."""
        return self.starts.diff()


def sort_events(values: Tensor, latents: Tensor, tokens: Tensor, width: int, token_count: int) -> Events:
    """Order firings; ``values`` must be positive."""
    order = values.argsort(descending=True, stable=True)
    order = order[latents[order].argsort(stable=True)]
    starts = torch.zeros(width + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(latents, minlength=width).cumsum(0)
    return Events(values[order], latents[order], tokens[order], starts, token_count)


@dataclass(frozen=True)
class Incidence:
    """Which tokens belong to which concepts: pairs ordered by token, and ``counts`` [concept] tokens of each."""

    tokens: Tensor
    concepts: Tensor
    counts: Tensor
    token_count: int

    @property
    def keys(self) -> Tensor:
        """token · concepts + concept, ascending."""
        return self.tokens * len(self.counts) + self.concepts


def incidence(tokens: Tensor, concepts: Tensor, concept_count: int, token_count: int) -> Incidence:
    """Incidence from (token, concept) pairs in any order, with repeats."""
    keys = (tokens * concept_count + concepts).unique()
    members = keys % concept_count
    return Incidence(keys // concept_count, members, torch.bincount(members, minlength=concept_count), token_count)


def joint_counts(events: Events, members: Incidence, weighted: bool = False, block: int = 1 << 19) -> Tensor:
    """[concept, latent]: tokens of the concept on which the latent fires, or the sum of its activations there."""
    concepts, width = len(members.counts), events.width
    per_token = torch.bincount(members.tokens, minlength=members.token_count)
    first = per_token.cumsum(0) - per_token
    out = torch.zeros(concepts * width, dtype=torch.float64)
    for start in range(0, len(events.values), block):
        part = slice(start, start + block)
        token = events.tokens[part]
        repeats = per_token[token]
        source = torch.repeat_interleave(torch.arange(len(token)), repeats)
        within = torch.arange(len(source)) - (repeats.cumsum(0) - repeats)[source]
        concept = members.concepts[first[token[source]] + within]
        flat = concept * width + events.latents[part][source]
        ones = torch.ones(len(flat), dtype=torch.float64)
        out.index_add_(0, flat, events.values[part][source].double() if weighted else ones)
    return out.view(concepts, width)


def f1_when_firing(joint: Tensor, fired: Tensor, concept_tokens: Tensor) -> Tensor:
    """[concept, latent] F1 of "fires above 0" for "token of the concept": 2·both / (fired + concept tokens)."""
    return 2 * joint / (fired[None, :] + concept_tokens[:, None]).clamp_min(1)


@dataclass(frozen=True)
class Match:
    """Best concept of each latent [latent]; ``concept`` is -1 and the rest NaN for a latent that never fires.

    ``f1``, ``precision`` and ``recall`` hold for firing at or above ``threshold``, the one with the best F1;
    ``f1_above_zero`` for firing at all; ``auc`` needs no threshold. ``concept_f1`` [concept] is the best F1 any latent
    reaches for it.
    """

    concept: Tensor
    f1: Tensor
    precision: Tensor
    recall: Tensor
    threshold: Tensor
    f1_above_zero: Tensor
    auc: Tensor
    concept_f1: Tensor


def match_concepts(events: Events, members: Incidence, joint: Tensor, candidates: int = 3) -> Match:
    """Best concept per latent over thresholds.

    For each latent the ``candidates`` concepts with the best F1 above 0, and as many with the best F1 weighted by
    activation (they win for latents that fire weakly everywhere and strongly on one concept), are compared at all
    thresholds.
    """
    fired, total = events.counts().double(), torch.zeros(events.width, dtype=torch.float64)
    total.index_add_(0, events.latents, events.values.double())
    above_zero = f1_when_firing(joint, fired, members.counts.double())
    share = joint_counts(events, members, weighted=True) / total.clamp_min(1e-30)
    recall = joint / members.counts.clamp_min(1)[:, None]
    weighted = 2 * share * recall / (share + recall).clamp_min(1e-30)
    count = min(candidates, len(members.counts))
    tried = torch.cat([above_zero.topk(count, dim=0).indices, weighted.topk(count, dim=0).indices])
    columns = [_at_all_thresholds(events, members, concept) for concept in tried]
    table = {key: torch.stack([c[key] for c in columns]) for key in columns[0]}
    best = table["f1"].nan_to_num(-1.0).argmax(0)[None]
    chosen = {key: values.gather(0, best).squeeze(0) for key, values in table.items()}
    concept = tried.gather(0, best).squeeze(0)
    never = fired == 0
    concept_f1 = above_zero.amax(1)
    for row, column in zip(tried, columns, strict=True):
        concept_f1.scatter_reduce_(0, row, column["f1"].nan_to_num(0.0), "amax")
    return Match(
        concept=torch.where(never, -1, concept),
        f1_above_zero=torch.where(never, torch.nan, above_zero.gather(0, concept[None]).squeeze(0)),
        concept_f1=concept_f1,
        **chosen,
    )


def _at_all_thresholds(events: Events, members: Incidence, concept: Tensor) -> dict[str, Tensor]:
    """[latent] best F1 with its precision, recall and threshold, and AUC, for one concept per latent."""
    width, n = events.width, events.token_count
    keys = members.keys
    wanted = events.tokens * len(members.counts) + concept[events.latents]
    place = torch.searchsorted(keys, wanted).clamp_max(max(len(keys) - 1, 0))
    hit = (keys[place] == wanted).double() if len(keys) else torch.zeros(len(wanted), dtype=torch.float64)
    rank = (torch.arange(len(hit)) - events.starts[events.latents] + 1).double()
    cumulative = hit.cumsum(0)
    before = torch.cat([cumulative.new_zeros(1), cumulative])[events.starts]
    true_positives = cumulative - before[events.latents]
    size = members.counts[concept].double()
    f1 = 2 * true_positives / (rank + size[events.latents])
    # A threshold cannot cut between equal activations: only the last of a run of ties is a threshold.
    last = torch.ones(len(hit), dtype=torch.bool)
    last[:-1] = (events.values[1:] != events.values[:-1]) | (events.latents[1:] != events.latents[:-1])
    f1 = torch.where(last, f1, -1.0)
    best = torch.full((width,), -1.0, dtype=torch.float64).scatter_reduce(0, events.latents, f1, "amax")
    at = torch.full((width,), len(hit), dtype=torch.int64)
    is_best = (f1 == best[events.latents]).nonzero().squeeze(1)
    at.scatter_reduce_(0, events.latents[is_best], is_best, "amin")
    never = at == len(hit)
    at = at.clamp_max(max(len(hit) - 1, 0))
    nothing = torch.full((width,), torch.nan, dtype=torch.float64)
    if not len(hit):
        return dict.fromkeys(("f1", "precision", "recall", "threshold", "auc"), nothing)
    found = {
        "f1": best,
        "precision": true_positives[at] / rank[at],
        "recall": true_positives[at] / size.clamp_min(1),
        "threshold": events.values[at].double(),
        "auc": _auc(events, hit, rank, true_positives, size, n),
    }
    return {key: torch.where(never, nothing, values) for key, values in found.items()}


def _auc(events: Events, hit: Tensor, rank: Tensor, true_positives: Tensor, size: Tensor, n: int) -> Tensor:
    """Area under the ROC curve; tokens on which the latent is silent tie at 0 and count half among themselves."""
    width = events.width

    def per_latent(values: Tensor) -> Tensor:
        return torch.zeros(width, dtype=torch.float64).index_add_(0, events.latents, values)

    fired, hits = events.counts().double(), per_latent(hit)
    negatives_firing = fired - hits
    # For each positive firing: the negatives that fire after it, that is, more weakly.
    weaker = negatives_firing[events.latents] - (rank - true_positives)
    silent_positive, silent_negative = size - hits, (n - size) - negatives_firing
    wins = per_latent(hit * weaker) + hits * silent_negative + 0.5 * silent_positive * silent_negative
    return wins / (size * (n - size)).clamp_min(1)


def hierarchy_table(
    names: list[str],
    joint: Tensor,
    fired: Tensor,
    concept_tokens: Tensor,
    root: str | None = "taxonomy",
    hole_below: float = 0.5,
) -> list[dict[str, Any]]:
    """How each parent concept with at least two children is represented.

    The parent's detector is the latent with the best F1 (firing above 0) on the parent's tokens, which include its
    descendants' tokens. A child on whose tokens the detector's recall is below ``hole_below`` is a hole; a hole is
    absorbed when another latent detects the child with an F1 of 0.5 or more. ``latents`` counts the latents that cover
    a part of the parent: precision at least 0.8 and recall at least 0.05 on it.

    Args:
        names: concept ids, tree paths; joint: [concept, latent]; fired: [latent]; concept_tokens: [concept].
        root: only parents at or below this path; None, or a root that no concept has, means all.
    """
    index = {name: i for i, name in enumerate(names)}
    if root is not None and not any(name == root or name.startswith(root + "/") for name in names):
        root = None
    f1 = f1_when_firing(joint, fired, concept_tokens)
    table: list[dict[str, Any]] = []
    for parent in names:
        if root is not None and parent != root and not parent.startswith(root + "/"):
            continue
        children = [name for name in names if name.rpartition("/")[0] == parent]
        if len(children) < 2:
            continue
        i = index[parent]
        detector = int(f1[i].argmax())
        precision, recall = joint[i] / fired.clamp_min(1), joint[i] / concept_tokens[i].clamp_min(1)
        rows = [
            _child(child, index[child], detector, joint, f1, concept_tokens, hole_below) for child in sorted(children)
        ]
        table.append(
            {
                "parent": parent,
                "tokens": int(concept_tokens[i]),
                "latent": detector,
                "f1": float(f1[i, detector]),
                "precision": float(precision[detector]),
                "recall": float(recall[detector]),
                "latents": int(((precision >= 0.8) & (recall >= 0.05)).sum()),
                "children": rows,
            }
        )
    return table


def _child(
    name: str, c: int, detector: int, joint: Tensor, f1: Tensor, concept_tokens: Tensor, hole_below: float
) -> dict[str, Any]:
    recall = float(joint[c, detector] / concept_tokens[c].clamp_min(1))
    others = f1[c].clone()
    others[detector] = -1.0
    own = int(others.argmax())
    return {
        "child": name,
        "tokens": int(concept_tokens[c]),
        "recall": recall,
        "hole": recall < hole_below,
        "own_latent": own,
        "own_f1": float(others[own]),
        "absorbed": recall < hole_below and float(others[own]) >= 0.5,
    }
