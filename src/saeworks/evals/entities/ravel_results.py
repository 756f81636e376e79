"""From answers to patched prompts to the result file of the RAVEL eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from saeworks.evals.entities.ravel_masks import disentanglement
from saeworks.evals.probes.label_scores import SEED_DRAWS
from saeworks.evals.shared.batches import DictionaryLike
from saeworks.evals.shared.bootstrap import Resampling, document_weights, interval
from saeworks.evals.shared.described import result_of
from saeworks.results.envelope import Metrics, Result

NAMES = ("cause_score", "isolation_score", "disentanglement_score")


@dataclass(frozen=True)
class AttributeScores:
    """One attribute of one type of entity in one seed.

    Attributes:
        right: [3, item] bool, with the masked latents exchanged, with all latents, with none.
        cause: [item] bool.
        latents: how many latents the mask exchanges.
        entities: the base's entity of every item.
    """

    kind: str
    attribute: str
    seed: int
    right: Tensor
    cause: Tensor
    latents: int
    entities: list[str]

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
        }


@dataclass(frozen=True)
class Asked:
    """What the model knew: type of entity → share of prompts answered rightly, and why attributes were left out."""

    accuracy: Mapping[str, float]
    skipped: Sequence[str] = ()


def make_result(
    name: str,
    dictionary: DictionaryLike,
    scores: Sequence[AttributeScores],
    asked: Asked,
    eval_type: str,
    definition: str,
    config: BaseModel,
    hashes: Mapping[str, str],
) -> Result:
    """The result of one dictionary: means over seeds, then attributes, then types of entities."""
    dump = config.model_dump(mode="json")
    records = [s.record() for s in scores]
    context_names = [key for key in records[0] if key.startswith(("all_", "none_", "latents_"))] if records else []
    context: dict[str, float | int | None] = {key: over_entities(records, key) for key in context_names}
    context |= {f"{kind}_prompts_answered": share for kind, share in asked.accuracy.items()}
    metrics: Metrics = {
        "ravel": {key: over_entities(records, key) for key in ("disentanglement_score", *NAMES[:2])},
        "context": context,
    }
    details = [*records, *([{"skipped": list(asked.skipped)}] if asked.skipped else []), *_warning(context)]
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


def _warning(context: Mapping[str, float | int | None]) -> list[dict[str, Any]]:
    """A note where not even exchanging everything changes the answers: the model no longer reads the site there."""
    ceiling = context.get("all_exchanged_cause")
    if ceiling is None or not ceiling < 0.5:
        return []
    return [
        {
            "note": f"exchanging all latents gives the other answer in {ceiling:.0%} of the cause pairs, which bounds "
            "what a mask can do: the model reads the entity before this site, or the dictionary does not rebuild it; "
            "measure at an earlier layer"
        }
    ]


def over_entities(records: Sequence[Mapping[str, Any]], key: str) -> float:
    """The mean over types of entities of the mean over attributes of the mean over seeds."""
    table: dict[str, dict[str, list[float]]] = {}
    for r in records:
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
