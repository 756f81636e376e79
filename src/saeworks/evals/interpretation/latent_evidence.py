"""What a judge is shown of a latent to rate what it has to do with some concepts, and how the ratings are read.

Evidence is the texts in which the latent is strongest, with its strongest tokens marked, and the tokens that its
direction promotes. The protocol is that of arXiv 2411.18895; the wording is ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from saeworks.evals.judges.protocol import Answer, Question, Rate, SeenText
from saeworks.evals.shared.batches import DictionaryLike, harvest, to_dictionary
from saeworks.evals.shared.token_rows import TokenRows
from saeworks.progress import progress

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

MAX_TOKENS = 500
_SYSTEM = (
    "You are shown what one unit of a language model reacts to: texts in which it is most active, its strongest tokens "
    "between << and >> with their activation behind them, and the tokens that it makes more likely to come next. "
    "Rate how much the unit has to do with each of the concepts you are given.\n"
    "0: nothing at all.\n"
    "1: a loose association.\n"
    "2: related, but something else explains the marked tokens better.\n"
    "3: most marked tokens belong to the concept.\n"
    "4: the unit stands for the concept, clearly and for nothing else.\n\n"
    "Proceed in three steps. First say in one sentence what the marked tokens have in common. Then say in one sentence "
    "what the promoted tokens have in common. Then decide, and end with a JSON object in a fenced block that gives an "
    "integer from 0 to 4 for every concept, under exactly the names you were given."
)
_DEMO = (
    'An example, for the concepts "weather" and "plants":\n'
    "Texts: 1. We had <<rain>>(5.1) all week and then <<snow>>(4.8).\n"
    "Promoted tokens: storm, fog, hail\n"
    "The marked tokens are kinds of weather. So are the promoted tokens. The unit stands for weather.\n"
    '```json\n{"weather": 4, "plants": 0}\n```'
)


@dataclass(frozen=True)
class Concept:
    """``name`` stands in the answer; for the world's own judge it is the id of the concept's spans."""

    name: str
    description: str


@dataclass(frozen=True)
class LatentEvidence:
    """Texts where one latent is strongest: (row of the sample, activation of every token of it), and tokens that its
    direction promotes."""

    texts: tuple[tuple[int, tuple[float, ...]], ...]
    promoted: tuple[str, ...]

    def joined(self, more: LatentEvidence) -> LatentEvidence:
        """With the texts of another kind behind its own."""
        return LatentEvidence(self.texts + more.texts, self.promoted)


def strongest_texts(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    rows: TokenRows,
    sites: Mapping[str, str],
    latents: Mapping[str, Sequence[int]],
    count: int,
    batch_size: int,
) -> dict[str, dict[int, LatentEvidence]]:
    """Dictionary → latent → evidence, for the ``latents`` of each, from one pass over the texts.

    A latent is as strong in a text as its largest absolute activation there; texts without any are left out.
    """
    kinds = torch.zeros(len(rows.token_ids), dtype=torch.int64)
    return strongest_texts_by_kind(dictionaries, model, rows, sites, latents, kinds, [count], batch_size)[0]


def strongest_texts_by_kind(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    rows: TokenRows,
    sites: Mapping[str, str],
    latents: Mapping[str, Sequence[int]],
    kinds: Tensor,
    counts: Sequence[int],
    batch_size: int,
) -> list[dict[str, dict[int, LatentEvidence]]]:
    """:func:`strongest_texts` among each kind of text by itself, from one pass over all.

    Args:
        kinds: [row] the kind of each row, from 0. counts: how many texts are kept of each kind.
    """
    found = [
        {name: _Strongest(len(chosen), count, rows.columns) for name, chosen in latents.items()} for count in counts
    ]
    unique = sorted({sites[name] for name in latents})
    bar = progress(len(rows.token_ids), "evidence", unit="text")
    with torch.no_grad():
        for batch, chosen, valid in rows.batches(model, batch_size):
            for site, activations in harvest(model, batch, unique).items():
                mask = valid.to(activations.device)
                for name in (name for name in latents if sites[name] == site):
                    index = torch.tensor(list(latents[name]), dtype=torch.int64)
                    x = to_dictionary(activations[mask], dictionaries[name])
                    codes = dictionaries[name].encode(x)[:, index.to(x.device)].float().cpu()
                    dense = torch.zeros(*valid.shape, len(index))
                    dense[valid] = codes
                    for kind in kinds[chosen].unique().tolist():
                        own = kinds[chosen] == kind
                        found[kind][name].add(dense[own].permute(2, 0, 1), chosen[own])
            bar.update(len(chosen))
    bar.close()
    words = {
        name: promoted_tokens(model, dictionaries[name].W_dec.detach()[list(chosen)])
        for name, chosen in latents.items()
    }
    return [
        {
            name: {
                i: LatentEvidence(texts, w)
                for i, texts, w in zip(chosen, of_kind[name].texts(rows), words[name], strict=True)
            }
            for name, chosen in latents.items()
        }
        for of_kind in found
    ]


class _Strongest:
    """The ``count`` strongest rows of some latents, with all activations of those rows."""

    def __init__(self, latents: int, count: int, columns: int) -> None:
        self.peaks = torch.zeros(latents, count)
        self.rows = torch.full((latents, count), -1, dtype=torch.int64)
        self.values = torch.zeros(latents, count, columns)

    def add(self, values: Tensor, rows: Tensor) -> None:
        """``values`` [latent, row, position] of the rows numbered ``rows``."""
        missing = self.values.shape[2] - values.shape[2]
        values = torch.nn.functional.pad(values, (0, missing))
        peaks = torch.cat([self.peaks, values.abs().amax(2)], 1)
        best = peaks.sort(dim=1, descending=True, stable=True).indices[:, : self.peaks.shape[1]]
        self.peaks = peaks.gather(1, best)
        self.rows = torch.cat([self.rows, rows.expand(len(values), -1)], 1).gather(1, best)
        everything = torch.cat([self.values, values], 1)
        self.values = everything.gather(1, best[:, :, None].expand(-1, -1, values.shape[2]))

    def texts(self, rows: TokenRows) -> list[tuple[tuple[int, tuple[float, ...]], ...]]:
        """For every latent: (row, activations between the row's ends), strongest first."""
        out = list[tuple[tuple[int, tuple[float, ...]], ...]]()
        for peaks, chosen, values in zip(self.peaks, self.rows, self.values, strict=True):
            kept = list[tuple[int, tuple[float, ...]]]()
            for peak, row, row_values in zip(peaks.tolist(), chosen.tolist(), values, strict=True):
                if peak > 0:
                    start, stop = rows.extent(row)
                    kept.append((row, tuple(row_values[start:stop].tolist())))
            out.append(tuple(kept))
        return out


def promoted_tokens(model: LanguageModel, directions: Tensor, count: int = 10) -> list[tuple[str, ...]]:
    """For each of ``directions`` [latent, d]: the tokens whose unembedding has the largest cosine with it; none where
    the model has no unembedding of this width."""
    module: Any = model.module
    head = getattr(module, "get_output_embeddings", lambda: None)()
    weight = None if head is None else cast("Tensor", head.weight).detach().float()
    if weight is None or weight.shape[1] != directions.shape[1]:
        return [()] * len(directions)
    unit = torch.nn.functional.normalize(weight, dim=1)
    cosines = torch.nn.functional.normalize(directions.float().to(unit.device), dim=1) @ unit.T
    best = cosines.topk(min(count, cosines.shape[1]), dim=1).indices.tolist()
    return [tuple(str(model.tokenizer.decode([token])) for token in tokens) for tokens in best]


def rating_question(evidence: LatentEvidence, concepts: Sequence[Concept], rows: TokenRows, marked: int) -> Question:
    """Ask for a rating of every concept; the ``marked`` strongest tokens of every text are marked."""
    lines, seen = list[str](), list[SeenText]()
    for number, (row, values) in enumerate(evidence.texts, 1):
        start, stop = rows.extent(row)
        words = rows.words(row, start, stop)
        order = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:marked]
        active = tuple(i in order and values[i] != 0 for i in range(len(values)))
        parts = [f"<<{w}>>({v:.1f})" if a else w for w, a, v in zip(words, active, values, strict=True)]
        lines.append(f"{number}. {''.join(parts)}".replace("\n", "↵"))
        seen.append(SeenText(words, rows.concepts(row, start, stop), active))
    asked = "\n".join(f'"{c.name}": {c.description}' for c in concepts)
    promoted = ", ".join(word.strip() for word in evidence.promoted) or "not known"
    user = f"The concepts:\n{asked}\n\nTexts:\n" + "\n".join(lines) + f"\n\nPromoted tokens: {promoted}"
    names = tuple(c.name for c in concepts)
    return Question(f"{_SYSTEM}\n\n{_DEMO}", user, MAX_TOKENS, Rate(names, tuple(seen)))


def read_ratings(answer: Answer, names: Sequence[str]) -> dict[str, int] | None:
    """Concept → 0 to 4, those below the largest set to 0; None where the answer is not exactly one integer for each.

    The last JSON object of the answer counts.
    """
    if answer.outcome != "answered":
        return None
    objects = re.findall(r"\{[^{}]*\}", answer.text)
    try:
        found = cast("dict[str, Any]", json.loads(objects[-1])) if objects else {}
    except ValueError:
        return None
    if set(found) != set(names) or not all(type(v) is int and 0 <= v <= 4 for v in found.values()):
        return None
    largest = max(found.values())
    return {name: value if value == largest else 0 for name, value in found.items()}
