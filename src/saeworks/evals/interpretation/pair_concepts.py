"""Which concepts of labelled transcripts and texts the latents of a crosscoder over two models stand for.

The template's tokens carry concepts too, and most of what a chat model decides it decides there, so they count as
tokens like any other (the other evals leave special tokens out).

A latent can stand for a concept in two ways. Over tokens: it fires where the concept is. Over exchanges, a request with
its reply: it fires somewhere in those exchanges that have the concept, on the one token where the answer is decided,
say, and in no others. The second is how latents of what an assistant does are found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.evals.interpretation.matching import (
    Events,
    Incidence,
    incidence,
    joint_counts,
    match_concepts,
    sort_events,
)

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.models.language_model import LanguageModel
    from saeworks.world.documents import Document

# A concept on fewer tokens than this is not matched.
LEAST = 20
BATCH_ROWS = 32


@dataclass(frozen=True)
class PairConcepts:
    """Firings of latents, and the places of concepts.

    Attributes:
        unit: what the places are: ``token`` or ``exchange``.
        names: of the concepts. events, members: see :mod:`saeworks.evals.interpretation.matching`.
    """

    unit: str

    names: list[str]
    events: Events
    members: Incidence

    def best(self, among: Sequence[str] | None = None) -> list[dict[str, Any] | None]:
        """For every latent its best concept with ``f1``, ``precision``, ``recall`` and ``threshold``; None if silent.

        Args:
            among: only these concepts; None for all.
        """
        members, names = self._members(among), self._names(among)
        if not names:
            return [None] * self.events.width
        joint = joint_counts(self.events, members)
        found = match_concepts(self.events, members, joint)
        rows: list[dict[str, Any] | None] = []
        for latent, concept in enumerate(found.concept.tolist()):
            if concept < 0:
                rows.append(None)
                continue
            rows.append(
                {
                    "concept": names[concept],
                    "unit": self.unit,
                    "f1": float(found.f1[latent]),
                    "precision": float(found.precision[latent]),
                    "recall": float(found.recall[latent]),
                    "threshold": float(found.threshold[latent]),
                    "auc": float(found.auc[latent]),
                    "firings": int(self.events.counts()[latent]),
                }
            )
        return rows

    def _names(self, among: Sequence[str] | None) -> list[str]:
        return self.names if among is None else [name for name in self.names if name in set(among)]

    def _members(self, among: Sequence[str] | None) -> Incidence:
        if among is None:
            return self.members
        chosen = torch.tensor([self.names.index(name) for name in self._names(among)], dtype=torch.int64)
        place = torch.full((len(self.names),), -1)
        place[chosen] = torch.arange(len(chosen))
        kept = place[self.members.concepts] >= 0
        return incidence(
            self.members.tokens[kept], place[self.members.concepts[kept]], len(chosen), self.members.token_count
        )


@torch.no_grad()
def pair_concepts(
    models: Sequence[LanguageModel],
    dictionary: Dictionary,
    sites: Sequence[str],
    documents: Iterable[Document],
    context_length: int = 128,
    least: int = LEAST,
) -> tuple[PairConcepts, PairConcepts | None]:
    """Run both models over documents with spans and note which latent fires where, over tokens and over exchanges.

    Args:
        models: in the order of the dictionary's sources; all read the tokens of the last one.
        sites: one per model. documents: the token that begins a sequence is left out, all others count.
        least: concepts in fewer places are left out (of exchanges, a quarter of it).

    Returns:
        Over tokens, and over exchanges where the documents have any.

    Raises:
        InputError: no document carries a span.
    """
    marks: list[tuple[int, str]] = []
    exchange_of: list[int] = []
    exchange_marks: list[tuple[int, str]] = []
    exchanges = 0
    values: list[Tensor] = []
    latents: list[Tensor] = []
    tokens: list[Tensor] = []
    rows = sorted((_row(models[-1], d, context_length) for d in documents), key=lambda row: len(row.ids))
    rows = [row for row in rows if len(row.ids) > row.front]
    for part in (rows[i : i + BATCH_ROWS] for i in range(0, len(rows), BATCH_ROWS)):
        batch = models[-1].batch_from_ids([row.ids for row in part])
        inside = batch.attention_mask.clone()
        for r, row in enumerate(part):
            inside[r, : row.front] = False
            for concepts, exchange in zip(row.marks[row.front :], row.exchange[row.front :], strict=True):
                marks += [(len(exchange_of), concept) for concept in concepts]
                exchange_of.append(-1 if exchange < 0 else exchanges + exchange)
            exchange_marks += [(exchanges + i, c) for i, found in enumerate(row.exchanges) for c in found]
            exchanges += len(row.exchanges)
        x = [m.harvest(batch, [s])[s].float()[inside.to(m.device)].cpu() for m, s in zip(models, sites, strict=True)]
        codes = dictionary.encode_sparse(torch.cat(x, dim=1).to(dictionary.device))
        values.append(codes.values.float().cpu())
        latents.append(codes.indices.cpu())
        tokens.append(codes.rows().cpu() + len(exchange_of) - len(x[0]))
    if not marks:
        raise InputError("None of the documents has a concept; give documents with spans.")
    fired, which, where = torch.cat(values), torch.cat(latents), torch.cat(tokens)
    by_token = _matched("token", marks, fired, which, where, dictionary.cfg.d_sae, len(exchange_of), least)
    if not exchanges:
        return by_token, None
    place = torch.tensor(exchange_of)[where]
    fired, which, place = _strongest(fired, which, place, dictionary.cfg.d_sae)
    least = max(least // 4, 2)
    return by_token, _matched("exchange", exchange_marks, fired, which, place, dictionary.cfg.d_sae, exchanges, least)


def _matched(
    unit: str,
    marks: Sequence[tuple[int, str]],
    values: Tensor,
    latents: Tensor,
    places: Tensor,
    width: int,
    count: int,
    least: int,
) -> PairConcepts:
    of: dict[str, set[int]] = {}
    for place, concept in marks:
        of.setdefault(concept, set()).add(place)
    names = sorted(name for name, found in of.items() if len(found) >= least)
    flat = torch.tensor([t for name in names for t in of[name]], dtype=torch.int64)
    index = torch.repeat_interleave(torch.arange(len(names)), torch.tensor([len(of[name]) for name in names]).long())
    events = sort_events(values, latents, places, width, count)
    return PairConcepts(unit, names, events, incidence(flat, index, len(names), count))


def _strongest(values: Tensor, latents: Tensor, places: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest value of every latent at every place; what lies at no place (−1) is dropped."""
    kept = places >= 0
    values, latents, places = values[kept], latents[kept], places[kept]
    keys, inverse = (places * width + latents).unique(return_inverse=True)
    most = torch.zeros(len(keys)).scatter_reduce_(0, inverse, values, "amax")
    return most, keys % width, keys // width


@dataclass(frozen=True, slots=True)
class _Row:
    """A document as tokens: ids, the concepts and the exchange (−1 for none) of each, the concepts of every exchange,
    and how many ids in front are no part of the text."""

    ids: list[int]
    marks: list[set[str]]
    exchange: list[int]
    exchanges: list[set[str]]
    front: int


def _row(model: LanguageModel, document: Document, length: int) -> _Row:
    tokenizer = model.tokenizer
    encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = list(encoded["input_ids"])
    extents = _exchanges(document)
    marks: list[set[str]] = []
    exchange: list[int] = []
    for start, stop in encoded["offset_mapping"]:
        found: set[str] = set()
        for span in document.spans:
            if span.start < stop and start < span.end:
                found |= _family(span.concept)
        marks.append(found)
        exchange.append(next((i for i, (a, b) in enumerate(extents) if a < stop and start < b), -1))
    bos: int | None = tokenizer.bos_token_id
    front = 0 if bos is None or ids[:1] == [bos] else 1
    ids = [bos or 0] * front + ids
    marks = [set[str]() for _ in range(front)] + marks
    return _Row(ids[:length], marks[:length], ([-1] * front + exchange)[:length], list(extents.values()), front)


def _exchanges(document: Document) -> dict[tuple[int, int], set[str]]:
    """First and last character of every exchange of a transcript of the world, in order → its concepts."""
    found: dict[tuple[int, int], set[str]] = {}
    for span in sorted(document.spans, key=lambda s: s.start):
        inside = span.concept.startswith("chat/") and not span.concept.startswith(("chat/template", "chat/request"))
        if inside:
            found.setdefault((span.start, span.end), set()).update(_family(span.concept) - {"chat"})
    return found


def _family(concept: str) -> set[str]:
    """A concept and those above it."""
    parts = concept.split("/")
    return {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
