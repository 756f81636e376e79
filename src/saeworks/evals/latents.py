"""What single latents do: their strongest contexts, their best-matching known concept, and holes in hierarchies.

One pass over a sample of tokens keeps the firings of every dictionary (a few tens per token); everything else is
computed from them. Concepts come from the spans of the documents; a token of a concept is also one of its ancestors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from saeworks.evals.interpretation.matching import (
    Events,
    Incidence,
    Match,
    hierarchy_table,
    incidence,
    joint_counts,
    match_concepts,
    sort_events,
)
from saeworks.evals.shared.batches import (
    DictionaryLike,
    DocumentBatch,
    chunks,
    document_batches,
    encode_codes,
    fingerprint_of_model,
    harvest,
    kept_activations,
    sites_of,
)
from saeworks.evals.shared.bootstrap import document_weights, interval
from saeworks.evals.shared.described import result_of
from saeworks.progress import progress
from saeworks.results.envelope import Metrics, Result
from saeworks.runtime import generator

if TYPE_CHECKING:
    from saeworks.activations.texts import TextSource
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "latents"
DEFINITION = "saeworks/latents/1"


class Config(BaseModel):
    """``tokens`` kept tokens are read. ``show`` latents are written out with ``examples`` contexts of at most
    ``window`` tokens each: those that match a concept best, and ``random_share`` of them drawn at random from all that
    fire, so that a reader also sees what an ordinary latent looks like. Concepts with fewer than
    ``min_concept_tokens`` tokens in the sample are left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(default=32_768, gt=0)
    batch_size: int = Field(default=64, gt=0)
    context_length: int = Field(default=128, gt=1)
    seed: int = 0
    site: str | None = None
    show: int = Field(default=20, ge=0)
    random_share: float = Field(default=0.3, ge=0, le=1)
    examples: int = Field(default=8, gt=0)
    window: int = Field(default=24, gt=0)
    min_concept_tokens: int = Field(default=20, gt=0)
    hierarchy_root: str | None = "taxonomy"


def run(
    dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, source: TextSource, config: Config
) -> dict[str, Result]:
    """Describe the latents of every dictionary on the same tokens; returns name → result.

    Raises ``InputError`` for widths that do not fit, activations that are not finite, and data without tokens.
    """
    sites = sites_of(dictionaries, model, config.site)
    sample = _Sample()
    firings = {name: _Firings() for name in dictionaries}
    unique_sites = sorted(set(sites.values()))
    bar = progress(config.tokens, "latents", unit="tok")
    with torch.no_grad():
        for batch in document_batches(
            model, source.documents(), config.context_length, config.batch_size, config.tokens
        ):
            activations = harvest(model, batch, unique_sites)
            for name, dictionary in dictionaries.items():
                firings[name].add(dictionary, activations[sites[name]], batch, sample.token_count)
            sample.add(batch, model)
            bar.update(int(batch.tokens.keep.sum()))
    bar.close()
    concepts = sample.concepts(config.min_concept_tokens)
    hashes = {"model": fingerprint_of_model(model), "data": source.fingerprint()}
    return {
        name: _describe(name, dictionary, firings[name], sample, concepts, sites[name], config, hashes)
        for name, dictionary in dictionaries.items()
    }


@dataclass(frozen=True)
class Concepts:
    """Concepts of the sample and their tokens."""

    names: list[str]
    members: Incidence


class _Sample:
    """The kept tokens that were read, numbered through, as text with their spans."""

    def __init__(self) -> None:
        self.token_count = 0
        self.document_of: list[int] = []
        self.first_token: list[int] = []
        self.words: list[str] = []
        self._pairs: list[tuple[int, str]] = []

    def add(self, batch: DocumentBatch, model: LanguageModel) -> None:
        """Take over the texts and spans of a batch."""
        keep = batch.tokens.keep.cpu()
        for row, document in enumerate(batch.documents):
            positions = keep[row].nonzero().squeeze(1).tolist()
            number = len(self.first_token)
            self.first_token.append(self.token_count)
            offsets = None if batch.tokens.offsets is None else batch.tokens.offsets[row]
            end = 0
            for position in positions:
                if offsets is None:
                    token = int(batch.tokens.token_ids[row, position])
                    self.words.append(str(model.tokenizer.decode([token])))
                else:
                    start, stop = offsets[position]
                    # Text between two tokens (spaces of some tokenizers) belongs to the later one; a character that
                    # several tokens share belongs to the first of them.
                    self.words.append(document.text[end or start : stop])
                    end = max(end, stop)
                    self._mark(document.spans, start, stop)
                self.document_of.append(number)
                self.token_count += 1

    def _mark(self, spans: Any, start: int, stop: int) -> None:
        for span in spans:
            if span.start < stop and start < span.end:
                path = span.concept
                while path:
                    self._pairs.append((self.token_count, path))
                    path = path.rpartition("/")[0]

    def concepts(self, min_tokens: int) -> Concepts | None:
        """Concepts with enough tokens; None when the documents carry no spans (or no offsets could be had)."""
        tokens_of: dict[str, set[int]] = {}
        for token, concept in self._pairs:
            tokens_of.setdefault(concept, set()).add(token)
        names = sorted(name for name, tokens in tokens_of.items() if len(tokens) >= min_tokens)
        if not names:
            return None
        tokens = torch.tensor([t for name in names for t in tokens_of[name]])
        index = torch.repeat_interleave(torch.arange(len(names)), torch.tensor([len(tokens_of[n]) for n in names]))
        return Concepts(names, incidence(tokens, index, len(names), self.token_count))


@dataclass
class _Firings:
    """Sparse codes of one dictionary, batch after batch, on the CPU."""

    values: list[Tensor] = field(default_factory=list[Tensor])
    latents: list[Tensor] = field(default_factory=list[Tensor])
    tokens: list[Tensor] = field(default_factory=list[Tensor])

    def add(self, dictionary: DictionaryLike, activations: Tensor, batch: DocumentBatch, first: int) -> None:
        kept = kept_activations(activations, batch)
        for part in chunks(kept.rows, int(dictionary.W_dec.shape[0])):
            codes = encode_codes(dictionary, kept.x[part])
            fires = codes.values > 0
            self.values.append(codes.values[fires].float().cpu())
            self.latents.append(codes.indices[fires].cpu())
            self.tokens.append(codes.rows()[fires].cpu() + first + (part.start or 0))

    def events(self, width: int, token_count: int) -> Events:
        return sort_events(torch.cat(self.values), torch.cat(self.latents), torch.cat(self.tokens), width, token_count)


def top_contexts(
    events: Events, latent: int, document_of: Tensor, first_token: Tensor, words: list[str], examples: int, window: int
) -> list[dict[str, Any]]:
    """The strongest contexts of a latent, one per document: ``{"tokens", "activations", "peak"}``, ``peak`` the
    index of the strongest token in the window."""
    part = slice(int(events.starts[latent]), int(events.starts[latent + 1]))
    tokens, values = events.tokens[part], events.values[part]
    active = dict(zip(tokens.tolist(), values.tolist(), strict=True))
    ends = torch.cat([first_token[1:], first_token.new_tensor([len(words)])])
    out: list[dict[str, Any]] = []
    seen: set[int] = set()
    for token in tokens.tolist():
        document = int(document_of[token])
        if document in seen:
            continue
        seen.add(document)
        low, high = int(first_token[document]), int(ends[document])
        start = max(low, min(token - window * 2 // 3, high - window))
        stop = min(high, start + window)
        out.append(
            {
                "tokens": words[start:stop],
                "activations": [round(active.get(t, 0.0), 4) for t in range(start, stop)],
                "peak": token - start,
            }
        )
        if len(out) == examples:
            break
    return out


def choose_latents(events: Events, match: Match | None, config: Config) -> list[tuple[int, str]]:
    """(latent, why) of the latents to show: the best match of each concept by F1, then a random draw of the others."""
    fired = events.counts()
    alive = (fired > 0).nonzero().squeeze(1)
    drawn = min(len(alive), round(config.show * config.random_share)) if match is not None else 0
    chosen: list[tuple[int, str]] = []
    if match is None:
        mass = torch.zeros(events.width).index_add_(0, events.latents, events.values)
        strongest = mass.argsort(descending=True, stable=True).tolist()
        return [(i, "largest total activation") for i in strongest[: config.show] if fired[i] > 0]
    concepts: set[int] = set()
    for latent in match.f1.nan_to_num(-1.0).argsort(descending=True, stable=True).tolist():
        concept = int(match.concept[latent])
        if len(chosen) >= config.show - drawn or concept < 0:
            break
        # One latent per concept: twenty copies of the commonest concept would tell nothing.
        if concept not in concepts:
            concepts.add(concept)
            chosen.append((latent, "best match of a concept"))
    taken = {latent for latent, _ in chosen}
    rest = [i for i in alive.tolist() if i not in taken]
    order = torch.randperm(len(rest), generator=generator(config.seed, "shown latents")).tolist()
    return chosen + [(rest[i], "drawn at random") for i in order[: config.show - len(chosen)]]


def _describe(
    name: str,
    dictionary: DictionaryLike,
    firings: _Firings,
    sample: _Sample,
    concepts: Concepts | None,
    site: str,
    config: Config,
    hashes: dict[str, str],
) -> Result:
    events = firings.events(int(dictionary.W_dec.shape[0]), sample.token_count)
    match, table, joint = None, list[dict[str, Any]](), None
    if concepts is not None:
        joint = joint_counts(events, concepts.members)
        match = match_concepts(events, concepts.members, joint)
        counts = concepts.members.counts.double()
        table = hierarchy_table(concepts.names, joint, events.counts().double(), counts, config.hierarchy_root)
    per_latent = _per_latent(events, dictionary, match)
    document_of, first_token = torch.tensor(sample.document_of), torch.tensor(sample.first_token)
    shown: list[dict[str, Any]] = []
    for latent, why in choose_latents(events, match, config):
        contexts = top_contexts(events, latent, document_of, first_token, sample.words, config.examples, config.window)
        facts = {key: float(values[latent]) for key, values in per_latent.items() if key != "concept"}
        concept = None if match is None or concepts is None else concepts.names[int(match.concept[latent])]
        shown.append({"latent": latent, "why": why, **facts, "concept": concept, "contexts": contexts})
    details: list[dict[str, Any]] = [{"site": site, "arrays": "one entry per latent in details_file"}]
    if concepts is None:
        details.append({"not_measured": ["concepts", "hierarchy"], "reason": "The documents carry no concept spans."})
    return result_of(
        name,
        dictionary,
        config,
        hashes,
        eval_type=EVAL_TYPE,
        definition=DEFINITION,
        metrics=_metrics(events, match, table),
        details=details,
        n=sample.token_count,
        ci95=_intervals(match, config),
        unstructured={
            "shown": shown,
            "hierarchy": table,
            "concepts": [] if concepts is None else concepts.names,
        },
    ).attach({key: values.cpu().numpy() for key, values in per_latent.items()})


def _per_latent(events: Events, dictionary: DictionaryLike, match: Match | None) -> dict[str, Tensor]:
    fired = events.counts()
    strongest = torch.zeros(events.width)
    strongest[fired > 0] = events.values[events.starts[:-1][fired > 0]]
    out = {
        "density": (fired / events.token_count).float(),
        "max_activation": strongest,
        "decoder_norm": dictionary.W_dec.float().norm(dim=-1).cpu(),
    }
    if match is not None:
        out["concept"] = match.concept.to(torch.int32)
        for key in ("f1", "precision", "recall", "threshold", "f1_above_zero", "auc"):
            out[key] = getattr(match, key).float()
    return out


def _metrics(events: Events, match: Match | None, table: list[dict[str, Any]]) -> Metrics:
    alive = events.counts() > 0
    latents: dict[str, float | int | None] = {"n_latents": events.width, "frac_alive": float(alive.double().mean())}
    concepts: dict[str, float | int | None] = dict.fromkeys(
        ("n_concepts", "mean_best_latent_f1", "frac_found", "mean_latent_f1", "frac_latents_matched")
    )
    hierarchy: dict[str, float | int | None] = dict.fromkeys(
        ("n_parents", "mean_parent_f1", "mean_child_recall", "hole_rate", "absorbed_rate", "mean_latents_per_parent")
    )
    if match is not None:
        f1 = match.f1[alive]
        concepts = {
            "n_concepts": len(match.concept_f1),
            "mean_best_latent_f1": float(match.concept_f1.mean()),
            "frac_found": float((match.concept_f1 >= 0.5).double().mean()),
            "mean_latent_f1": float(f1.mean()) if len(f1) else None,
            "frac_latents_matched": float((f1 >= 0.5).double().mean()) if len(f1) else None,
        }
    if table:
        children = [child for row in table for child in row["children"]]
        hierarchy = {
            "n_parents": len(table),
            "mean_parent_f1": _mean([row["f1"] for row in table]),
            "mean_child_recall": _mean([child["recall"] for child in children]),
            "hole_rate": _mean([float(child["hole"]) for child in children]),
            "absorbed_rate": _mean([float(child["absorbed"]) for child in children]),
            "mean_latents_per_parent": _mean([float(row["latents"]) for row in table]),
        }
    return {"latents": latents, "concepts": concepts, "hierarchy": hierarchy}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _intervals(match: Match | None, config: Config) -> dict[str, tuple[float, float] | None]:
    """Interval of the mean over concepts, resampling concepts."""
    if match is None or len(match.concept_f1) < 2:
        return {}
    weights = document_weights(len(match.concept_f1), 1000, config.seed)
    return {"concepts.mean_best_latent_f1": interval(weights @ match.concept_f1 / weights.sum(1))}
