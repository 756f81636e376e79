"""What RAVEL reads of a model once per type of entity, for all dictionaries, attributes and seeds.

Two things do not depend on a dictionary: the activations at the entities of all prompts (what is exchanged), and those
of all base prompts up to the layer of a site (what the upper layers continue from).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.evals.entities.ravel_masks import Items, greedy_matches
from saeworks.evals.entities.ravel_prompts import Pair, Prompt, best_entities, completion_matches
from saeworks.models.tokens import TokenBatch
from saeworks.models.upper_layers import UpperLayers

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

Mode = Literal["compat", "corrected"]
#: Which of the entity's tokens are exchanged.
EntityTokens = Literal["all", "last"]


@dataclass(frozen=True)
class Reading:
    """How prompts are read: see the fields of the eval's ``Config`` of the same names."""

    mode: Mode
    entity_tokens: EntityTokens
    context_length: int
    batch_size: int
    n_generated_tokens: int

    def limit(self, model: LanguageModel) -> int:
        """Tokens in a row."""
        return min(self.context_length, model.max_context or self.context_length)


@dataclass(frozen=True)
class Asked:
    """The prompts that the model answers rightly.

    Attributes:
        answers: what is asked for, or in compat what the model wrote.
        first: [prompt] the first token of that.
        entity: [prompt, place] positions of the entity's tokens, the last one first; -1 where it has fewer.
        from_end: [prompt] how far the entity's last token is from the end of the prompt.
        at_entity: site → activations there [prompt, place, width], zero where there is no token.
    """

    prompts: list[Prompt]
    answers: list[str]
    first: Tensor
    entity: Tensor
    from_end: Tensor
    at_entity: Mapping[str, Tensor]


def ask(
    model: LanguageModel, prompts: Sequence[Prompt], sites: Sequence[str], most: int, reading: Reading
) -> tuple[Asked, float]:
    """Which prompts the model answers, of the ``most`` entities that it knows best, and the activations at their
    entities; with the share of right answers among all."""
    right, answers = list[bool](), [p.answer for p in prompts]
    for start in range(0, len(prompts), reading.batch_size):
        part = prompts[start : start + reading.batch_size]
        if reading.mode == "compat":
            written = model.generate([p.text for p in part], reading.n_generated_tokens)
            # Some tokenizers drop the space with which a continuation begins.
            answers[start : start + len(part)] = [text if text[:1].isspace() else " " + text for text in written]
            right += [completion_matches(p.value, text) for p, text in zip(part, written, strict=True)]
        else:
            batch, places = tokenize_answered(model, [(p.text, p.answer) for p in part], reading)
            logits = model.logits(batch)
            for prompt, of_row, mask in zip(part, logits, batch.attention_mask.to(logits.device), strict=True):
                if bool(of_row[mask].isnan().any()):
                    raise InputError(
                        f"What model '{model.name}' predicts for the prompt '{prompt.text}' is not a number (NaN), "
                        "so it has no answer; run the model in float32."
                    )
            right += greedy_matches(logits, batch, places).tolist()
    kept = best_entities(prompts, right, most)
    chosen, wanted = [prompts[i] for i in kept], [answers[i] for i in kept]
    return read_entities(model, chosen, wanted, sites, reading), sum(right) / max(len(right), 1)


def read_entities(
    model: LanguageModel, prompts: list[Prompt], answers: list[str], sites: Sequence[str], reading: Reading
) -> Asked:
    """The activations at the entities of some prompts, from one pass for all sites."""
    first, places, from_end = list[Tensor](), list[Tensor](), list[Tensor]()
    at_entity: dict[str, list[Tensor]] = {site: [] for site in sites}
    for start in range(0, len(prompts), reading.batch_size):
        part = prompts[start : start + reading.batch_size]
        texts = [(p.text, a) for p, a in zip(part, answers[start:], strict=False)]
        batch, asked_at = tokenize_answered(model, texts, reading)
        first.append(batch.token_ids[torch.arange(len(part)), torch.tensor([at[0] for at in asked_at])].cpu())
        batch = model.tokenize([p.text for p in part], reading.limit(model))
        found = entity_positions(model, batch, part, reading)
        places.append(found)
        from_end.append(batch.attention_mask.sum(-1).cpu() - found[:, 0])
        rows = torch.arange(len(part))[:, None]
        for site, x in model.harvest(batch, list(sites)).items():
            taken = x.cpu()[rows, found.clamp_min(0)].float()
            at_entity[site].append(taken * (found >= 0)[..., None])
    empty = torch.zeros(0, dtype=torch.int64)
    return Asked(
        prompts,
        answers,
        torch.cat(first) if first else empty,
        _joined(places, -1) if places else empty[:, None],
        torch.cat(from_end) if from_end else empty,
        {site: _joined(parts, 0) for site, parts in at_entity.items() if parts},
    )


def _joined(parts: Sequence[Tensor], fill: int) -> Tensor:
    """[row, place, ...] of all parts, filled up to the most places of any."""
    most = max(part.shape[1] for part in parts)
    wide = [part.new_full((len(part), most, *part.shape[2:]), fill) for part in parts]
    for room, part in zip(wide, parts, strict=True):
        room[:, : part.shape[1]] = part
    return torch.cat(wide)


class BaseRows:
    """Base prompts with wanted answers behind them, each read once, up to the layer of every site.

    Pairs of all attributes and seeds share many rows: the same prompt with the same answer.

    Args:
        pairs: all pairs that :meth:`items` will be asked for.
    """

    def __init__(
        self, model: LanguageModel, asked: Asked, pairs: Iterable[Pair], uppers: Sequence[UpperLayers], reading: Reading
    ) -> None:
        self._asked, self._mode = asked, reading.mode
        keys = list(dict.fromkeys(self._key(pair) for pair in pairs))
        self._row = {key: i for i, key in enumerate(keys)}
        texts = [(asked.prompts[base].text, answer) for base, answer in keys]
        self._tokens, self._answer = tokenize_answered(model, texts, reading)
        sites = sorted({upper.cached_site for upper in uppers})
        found: dict[str, list[Tensor]] = {site: [] for site in sites}
        for rows in torch.arange(len(keys)).split(reading.batch_size):
            for site, x in model.harvest(_part(self._tokens, rows), sites).items():
                found[site].append(x.cpu())
        self._hidden = {site: torch.cat(parts) for site, parts in found.items()}

    def items(self, upper: UpperLayers, pairs: Sequence[Pair]) -> Items:
        """Some of the pairs, ready to be patched at one site."""
        asked = self._asked
        rows = torch.tensor([self._row[self._key(pair)] for pair in pairs])
        base, source = (torch.tensor([getattr(pair, side) for pair in pairs]) for side in ("base", "source"))
        at_entity = asked.at_entity[upper.name]
        # Names of different length are laid upon each other at their ends; what one has more of is left alone.
        entity = asked.entity[base].masked_fill(asked.entity[source] < 0, -1)
        cause = torch.tensor([pair.cause for pair in pairs])
        if self._mode == "compat":
            # What kind a pair is shows in the first token alone: equal ones make a cause pair count as isolation.
            cause = cause & (asked.first[source] != asked.first[base])
        answer = [self._answer[i] for i in rows.tolist()]
        hidden = self._hidden[upper.cached_site][rows]
        return Items(_part(self._tokens, rows), hidden, at_entity[base], at_entity[source], entity, answer, cause)

    def _key(self, pair: Pair) -> tuple[int, str]:
        return pair.base, self._asked.answers[pair.source if pair.cause else pair.base]


def subset(asked: Asked, pairs: Sequence[Pair]) -> tuple[list[Prompt], list[str], list[Pair]]:
    """The prompts and answers that some pairs need, and these pairs numbered accordingly."""
    used = sorted({i for pair in pairs for i in (pair.base, pair.source)})
    new = {old: i for i, old in enumerate(used)}
    renamed = [replace(pair, base=new[pair.base], source=new[pair.source]) for pair in pairs]
    return [asked.prompts[i] for i in used], [asked.answers[i] for i in used], renamed


def _part(batch: TokenBatch, rows: Tensor) -> TokenBatch:
    rows = rows.to(batch.token_ids.device)
    return TokenBatch(batch.token_ids[rows], batch.attention_mask[rows], batch.keep[rows], None, batch.is_causal)


def entity_positions(model: LanguageModel, batch: TokenBatch, prompts: Sequence[Prompt], reading: Reading) -> Tensor:
    """[prompt, place] positions of the entity's tokens, the last one first; -1 where it has fewer than others.

    In compat it is one position, counted from the end: as many tokens as the text after the entity has alone, special
    tokens included. That is the entity's last token for a tokenizer that adds one BOS token, and the token after it
    without.
    """
    if reading.mode == "compat":
        after = [len(model.tokenizer(p.text[p.end :])["input_ids"]) for p in prompts]
        return (batch.attention_mask.sum(-1).cpu() - torch.tensor(after)).clamp_min(0)[:, None]
    found: list[Tensor] = []
    spans = [(p.start, p.end) for p in prompts]
    for p, row, places in zip(prompts, batch.offsets or [], tokens_of(model, batch, spans), strict=True):
        if not places or row[places[-1]][1] < p.end:
            raise InputError(f"The prompt '{p.text}' was cut before its entity's end; raise context_length.")
        found.append(torch.tensor(places[::-1] if reading.entity_tokens == "all" else places[-1:]))
    return _joined([places[None] for places in found], -1)


def tokens_of(model: LanguageModel, batch: TokenBatch, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """For each row the positions of the tokens that overlap a span of characters."""
    if batch.offsets is None:
        raise InputError(
            f"The tokenizer of model '{model.name}' does not say where its tokens stand in a text, which is needed to "
            "find the entities; use a model with a fast tokenizer."
        )
    return [
        [i for i, (start, end) in enumerate(row) if end > start and start < last and end > first]
        for row, (first, last) in zip(batch.offsets, spans, strict=True)
    ]


def tokenize_answered(
    model: LanguageModel, texts: Sequence[tuple[str, str]], reading: Reading
) -> tuple[TokenBatch, list[list[int]]]:
    """Rows of prompts with their answers, and the positions of the answers' tokens.

    Raises:
        InputError: a row that does not fit into the context.
    """
    batch = model.tokenize([prompt + answer for prompt, answer in texts], reading.limit(model))
    # A token that begins with the answer's leading space overlaps it from there on.
    spans = [(len(prompt), len(prompt) + len(answer)) for prompt, answer in texts]
    places = tokens_of(model, batch, spans)
    if not all(places):
        prompt = texts[[bool(p) for p in places].index(False)][0]
        raise InputError(f"The prompt '{prompt}' and its answer do not fit; raise context_length.")
    return batch, places
