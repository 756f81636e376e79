"""From answers to patched prompts to the result file of the RAVEL eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from saeworks.evals.entities.ravel_masks import disentanglement
from saeworks.evals.entities.read_sites import READ
from saeworks.evals.probes.label_scores import SEED_DRAWS
from saeworks.evals.shared.batches import DictionaryLike
from saeworks.evals.shared.bootstrap import Resampling, document_weights, interval
from saeworks.evals.shared.described import result_of
from saeworks.results.envelope import Metrics, Result

NAMES = ("cause_score", "isolation_score", "disentanglement_score")
#: What the fields are called that say how a score is to be read.
CONTEXT = ("all_", "none_", "latents_", "full_", "no_", "mdas_")


@dataclass(frozen=True)
class SiteScores:
    """What one attribute and seed allow at a site, whatever the dictionary: [item] bool each.

    Attributes:
        full: right answers with the whole activation exchanged. nothing: with the base's own.
        aligned: along the axes of MDAS; None where they were not trained. axes: how many of them are exchanged.
    """

    full: Tensor
    nothing: Tensor
    aligned: Tensor | None = None
    axes: int = 0

    def record(self, cause: Tensor) -> dict[str, Any]:
        """These scores by name."""
        ceiling, floor = disentanglement(self.full, cause), disentanglement(self.nothing, cause)
        out: dict[str, Any] = {
            "full_patch_cause": ceiling[0],
            "full_patch_isolation": ceiling[1],
            "no_patch_cause": floor[0],
            "no_patch_isolation": floor[1],
        }
        if self.aligned is not None:
            out |= dict(zip([f"mdas_{name}" for name in NAMES], disentanglement(self.aligned, cause), strict=True))
            out["mdas_axes_exchanged"] = self.axes
        return out


@dataclass(frozen=True)
class AttributeScores:
    """One attribute of one type of entity in one seed.

    Attributes:
        right: [3, item] bool, with the masked latents exchanged, with all latents, with none.
        cause: [item] bool.
        latents: how many latents the mask exchanges.
        entities: the base's entity of every item.
        bounds: what can be reached at the site.
    """

    kind: str
    attribute: str
    seed: int
    right: Tensor
    cause: Tensor
    latents: int
    entities: list[str]
    bounds: SiteScores

    def record(self) -> dict[str, Any]:
        """One entry of ``eval_result_details``."""
        scores = dict(zip(NAMES, disentanglement(self.right[0], self.cause), strict=True))
        everything, nothing = (disentanglement(self.right[i], self.cause) for i in (1, 2))
        return {
            "entity": self.kind,
            "attribute": self.attribute,
            "seed": self.seed,
            **scores,
            "num_cause": int(self.cause.sum()),
            "num_isolation": int((~self.cause).sum()),
            "latents_exchanged": self.latents,
            "all_exchanged_cause": everything[0],
            "all_exchanged_isolation": everything[1],
            "none_exchanged_cause": nothing[0],
            "none_exchanged_isolation": nothing[1],
            **self.bounds.record(self.cause),
        }


@dataclass(frozen=True)
class Knowledge:
    """What the model knew: type of entity → share of prompts answered rightly, and why attributes were left out."""

    accuracy: dict[str, float]
    skipped: list[str] = field(default_factory=list[str])


def full_patch_cause(scores: Sequence[AttributeScores], kind: str | None = None) -> float:
    """The ceiling of cause at a site, of one type of entity or of all."""
    records = [s.record() for s in scores if kind in (None, s.kind)]
    return over_entities(records, "full_patch_cause")


def make_result(
    name: str,
    dictionary: DictionaryLike,
    scores: Sequence[AttributeScores],
    knowledge: Knowledge,
    unread: Mapping[str, Any],
    eval_type: str,
    definition: str,
    config: BaseModel,
    hashes: Mapping[str, str],
) -> Result:
    """The result of one dictionary: means over seeds, then attributes, then types of entities.

    ``unread`` goes into the details where the site is not read (:data:`saeworks.evals.entities.read_sites.READ`).
    """
    dump = config.model_dump(mode="json")
    records = [s.record() for s in scores]
    context_names = dict.fromkeys(key for r in records for key in r if key.startswith(CONTEXT))
    context: dict[str, float | int | None] = {key: over_entities(records, key) for key in context_names}
    context |= {f"{kind}_prompts_answered": share for kind, share in knowledge.accuracy.items()}
    metrics: Metrics = {
        "ravel": {key: over_entities(records, key) for key in ("disentanglement_score", *NAMES[:2])},
        "context": context,
    }
    skipped = [{"skipped": list(knowledge.skipped)}] if knowledge.skipped else []
    details = [*records, *skipped, *_notes(context, unread)]
    by_entity: dict[str, dict[str, Any]] = {}
    for r in records:
        place = by_entity.setdefault(f"{r['entity']}_results", {}).setdefault(f"{r['entity']}_{r['attribute']}", {})
        for key, old in (("cause_score", NAMES[0]), ("isolation_score", NAMES[1]), ("disentangle_score", NAMES[2])):
            place.setdefault(key, []).append(r[old])
    unstructured = {
        entity: {a: {k: _mean(v) for k, v in values.items()} for a, values in attributes.items()}
        for entity, attributes in by_entity.items()
    }
    return result_of(
        name,
        dictionary,
        dump,
        hashes,
        eval_type=eval_type,
        definition=definition,
        metrics=metrics,
        details=details,
        n=sum(len(s.cause) for s in scores),
        ci95=_intervals(scores, dump["resamples"], dump["seeds"][0]),
        unstructured=unstructured,
    )


def _notes(context: Mapping[str, float | int | None], unread: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A note where not even exchanging everything changes the answers, which bounds what a mask can do."""
    full, latents = context.get("full_patch_cause"), context.get("all_exchanged_cause")
    if full is None or latents is None or not latents < READ:
        return []
    if full < READ:
        return [dict(unread)]
    return [
        {
            "note": f"Exchanging all latents gives the other answer in {latents:.0%} of the cause pairs, the "
            f"whole activation in {full:.0%}: the dictionary does not rebuild what the model reads of the entity."
        }
    ]


def over_entities(records: Sequence[Mapping[str, Any]], key: str) -> float:
    """The mean over types of entities of the mean over attributes of the mean over the seeds that have the key."""
    table: dict[str, dict[str, list[float]]] = {}
    for r in (r for r in records if key in r):
        table.setdefault(r["entity"], {}).setdefault(r["attribute"], []).append(float(r[key]))
    return _mean([_mean([_mean(values) for values in attributes.values()]) for attributes in table.values()])


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if v == v]
    return sum(finite) / len(finite) if finite else float("nan")


def _intervals(scores: Sequence[AttributeScores], resamples: int, seed: int) -> dict[str, tuple[float, float] | None]:
    """Entities and seeds are drawn anew, the same ones for every dictionary; attributes stay."""
    if not scores:
        return {f"ravel.{name}": None for name in NAMES}
    units = {key: i for i, key in enumerate(dict.fromkeys((s.kind, e) for s in scores for e in s.entities))}
    table = torch.zeros(4, len(units), len(scores), dtype=torch.float64)
    for column, s in enumerate(scores):
        rows = torch.tensor([units[s.kind, e] for e in s.entities])
        right, cause = s.right[0].double(), s.cause.double()
        for part, values in enumerate((right * cause, cause, right * (1 - cause), 1 - cause)):
            table[part, :, column].index_add_(0, rows, values)
    drawn = [torch.stack([w @ part for part in table]) for w in Resampling(len(units), resamples, seed).weights()]
    sums = torch.cat(drawn, dim=1)
    seeds = list(dict.fromkeys(s.seed for s in scores))
    of_seed = document_weights(len(seeds), resamples, seed + SEED_DRAWS)[:, [seeds.index(s.seed) for s in scores]]
    kinds = list(dict.fromkeys(s.kind for s in scores))
    found: list[Tensor] = []
    for i in (0, 2):
        # Every type of entity counts once, and within it every attribute and drawn seed; no item, no vote.
        per_kind: list[Tensor] = []
        for kind in kinds:
            own = torch.tensor([s.kind == kind for s in scores])
            weight = (of_seed * (sums[i + 1] > 0))[:, own]
            ratio = (sums[i] / sums[i + 1].clamp_min(1e-30))[:, own]
            per_kind.append((weight * ratio).sum(1) / weight.sum(1))
        found.append(torch.stack(per_kind).mean(0))
    found.append((found[0] + found[1]) / 2)
    return {f"ravel.{name}": interval(values) for name, values in zip(NAMES, found, strict=True)}
