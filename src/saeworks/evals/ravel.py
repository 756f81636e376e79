"""The RAVEL eval: can one attribute of an entity be exchanged by exchanging latents, and the others left alone?

For an attribute (the cargo of a ship), a mask over the latents is trained so that taking the masked latents at the
entity's last token from another prompt changes the answer to the other entity's value (cause), while questions about
the other attributes are answered as before (isolation). Scores are shares of held-out pairs; their mean is the
disentanglement score of SAEBench (arXiv 2503.09532; RAVEL: arXiv 2402.17700).

Only the model's layers above the site are run for every pair; what lies below is computed once for all dictionaries.
``compat`` follows SAEBench: pairs of one entity on both sides of the split, the entity's position counted from the end
of the prompt, the layer's output whatever the dictionary reads, incomplete batches dropped, and a cause pair whose
answers begin with the same token counted as isolation.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from saeworks.errors import InputError
from saeworks.evals.entities.ravel_masks import Items, answered, exchanged, greedy_matches, train_mask
from saeworks.evals.entities.ravel_prompts import (
    EntitySet,
    Pair,
    Prompt,
    best_entities,
    completion_matches,
    draw_pairs,
    make_prompts,
    split_entities,
    world_entities,
)
from saeworks.evals.entities.ravel_results import Asked, AttributeScores, make_result
from saeworks.evals.shared.batches import DictionaryLike, fingerprint_of_model, sites_of
from saeworks.files import sha256_json
from saeworks.models.interventions import Splice
from saeworks.models.tokens import TokenBatch
from saeworks.models.upper_layers import UpperLayers
from saeworks.progress import progress
from saeworks.results.envelope import Result
from saeworks.runtime import derive_seed, generator

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "ravel"
DEFINITION = "saeworks/ravel/1"
Data = Mapping[str, EntitySet]


class Config(BaseModel):
    """Names are SAEBench's where it has the field. ``entities``: which of the embedded world's. ``llm_batch_size`` is
    that of training a mask; ``batch_size`` that of everything else. ``num_pairs_per_attribute`` (5000 in SAEBench):
    cause pairs, and as many isolation pairs. ``n_generated_tokens`` is used in compat alone: corrected compares the
    whole answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["compat", "corrected"] = "corrected"
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    site: str | None = None
    context_length: int = Field(default=128, gt=1)
    batch_size: int = Field(default=64, gt=0)
    resamples: int = Field(default=500, gt=0)
    entities: tuple[Literal["ship", "city"], ...] = ("ship", "city")
    top_n_entities: int = Field(default=500, gt=1)
    num_pairs_per_attribute: int = Field(default=200, gt=1)
    train_test_split: float = Field(default=0.7, gt=0, lt=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    num_epochs: int = Field(default=2, gt=0)
    llm_batch_size: int = Field(default=8, gt=0)
    n_generated_tokens: int = Field(default=6, gt=0)


def default_data(model: LanguageModel, config: Config) -> Data:
    """Ships and cities of the embedded world. ``InputError`` for a model that does not predict the next token."""
    if not model.is_causal:
        raise InputError(f"Model '{model.name}' does not predict the next token, which RAVEL needs; leave it out.")
    return world_entities(config.entities)


def data_hashes(data: Data, config: Config) -> dict[str, str]:
    """``data:TYPE`` → hash of templates and values of one type of entity."""
    return {
        f"data:{name}": sha256_json(
            [{a: list(t) for a, t in s.templates.items()}, {e: dict(v) for e, v in s.entities.items()}]
        )
        for name, s in data.items()
    }


@dataclass(frozen=True)
class _Asked:
    """The prompts that the model answers rightly.

    Attributes:
        answers: what is asked for, or in compat what the model wrote.
        first: [prompt] the first token of that.
        entity: [prompt] position of the entity.
        from_end: [prompt] how far that is from the end of the prompt.
        at_entity: site → activations there [prompt, width].
    """

    prompts: list[Prompt]
    answers: list[str]
    first: Tensor
    entity: Tensor
    from_end: Tensor
    at_entity: dict[str, Tensor]


def run(
    dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, data: Data, config: Config
) -> dict[str, Result]:
    """Measure every dictionary on the same pairs; returns name → result.

    Raises:
        InputError: a model that does not predict the next token, a site that does not fit, or a type of entity of
            which the model knows too little for pairs.
    """
    sites = read_sites(dictionaries, model, config)
    uppers = {site: UpperLayers(model, site) for site in sorted(set(sites.values()))}
    scores: dict[str, list[AttributeScores]] = {name: [] for name in dictionaries}
    accuracy: dict[str, float] = {}
    skipped: list[str] = []
    for kind, entities in data.items():
        asked, accuracy[kind] = _ask(model, make_prompts(entities), list(uppers), config)
        attributes = [a for a in entities.templates if len({p.value for p in asked.prompts if p.attribute == a}) > 1]
        if len(attributes) < 2:
            raise InputError(
                f"Of '{kind}', model '{model.name}' knows {len(attributes)} attributes in more than one value, and two "
                "are needed; use a model that knows these entities, or other ones."
            )
        bar = progress(len(config.seeds) * len(attributes) * len(dictionaries), f"ravel {kind}", unit="mask")
        for seed in config.seeds:
            for attribute in attributes:
                train, test = draw_parts(asked.prompts, attribute, seed, config)
                if not train or not test:
                    skipped.append(f"{kind}/{attribute}, seed {seed}: no two held-out entities differ in it")
                    continue
                tasks = {
                    site: _Task(
                        upper, asked, _items(upper, asked, train, config), _items(upper, asked, test, config), test
                    )
                    for site, upper in uppers.items()
                }
                for name, dictionary in dictionaries.items():
                    right, latents = _measure(dictionary, tasks[sites[name]], seed, config)
                    names = [asked.prompts[pair.base].entity for pair in test]
                    cause = tasks[sites[name]].test.cause
                    scores[name].append(AttributeScores(kind, attribute, seed, right, cause, latents, names))
                    bar.update()
        bar.close()
    hashes = {"model": fingerprint_of_model(model), **data_hashes(data, config)}
    asked_of = Asked(accuracy, skipped)
    return {
        name: make_result(name, dictionaries[name], scores[name], asked_of, EVAL_TYPE, DEFINITION, config, hashes)
        for name in dictionaries
    }


def read_sites(dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, config: Config) -> dict[str, str]:
    """Dictionary → site: its own; in compat the output of that site's layer, whatever the dictionary reads."""
    sites = sites_of(dictionaries, model, config.site)
    if config.mode == "corrected":
        return sites
    moved = {name: f"layers.{max(model.site(site).layer, 0)}.resid_post" for name, site in sites.items()}
    for name, site in moved.items():
        sites_of({name: dictionaries[name]}, model, site)
    return moved


def draw_parts(prompts: Sequence[Prompt], attribute: str, seed: int, config: Config) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train the mask on, and pairs to judge it by. In corrected no entity is in both."""
    draw = random.Random(derive_seed(seed, "pairs", attribute))
    share, count = config.train_test_split, config.num_pairs_per_attribute
    if config.mode == "compat":
        drawn = draw_pairs(prompts, range(len(prompts)), attribute, count, draw)
        cut = int(len(drawn) * share)
        size = config.llm_batch_size
        test = drawn[cut:]
        return drawn[:cut], test[: len(test) // size * size]
    sides = split_entities(prompts, share, seed)
    counts = (round(count * share), count - round(count * share))
    train, test = (
        draw_pairs(prompts, [i for i, p in enumerate(prompts) if p.entity in side], attribute, n, draw)
        for side, n in zip(sides, counts, strict=True)
    )
    return train, test


@dataclass(frozen=True)
class _Task:
    """One attribute and seed at one site: pairs to train on and to judge by (``pairs``)."""

    upper: UpperLayers
    asked: _Asked
    train: Items
    test: Items
    pairs: list[Pair]


def _measure(dictionary: DictionaryLike, task: _Task, seed: int, config: Config) -> tuple[Tensor, int]:
    """[3, item] bool: right answers with the masked latents exchanged, with all, with none; and how many are masked."""
    compat = config.mode == "compat"
    mask = train_mask(
        dictionary,
        task.upper,
        task.train,
        config.num_epochs,
        config.llm_batch_size,
        config.learning_rate,
        generator(seed, "batches"),
        compat,
    )
    gate = (mask > 0).float()
    rows: list[Tensor] = []
    for g in (gate, torch.ones_like(gate), torch.zeros_like(gate)):
        if compat:
            rows.append(_written(dictionary, task, g, config))
        else:
            rows.append(answered(task.upper, task.test, lambda part, g=g: _new(dictionary, part, g), config.batch_size))
    return torch.stack(rows), int(gate.sum())


def _new(dictionary: DictionaryLike, items: Items, gate: Tensor) -> Tensor:
    return exchanged(dictionary, items.base.to(gate.device), items.source.to(gate.device), gate)


def _written(dictionary: DictionaryLike, task: _Task, gate: Tensor, config: Config) -> Tensor:
    """[item] bool: SAEBench's check of texts generated while the prompt pass is patched."""
    asked, model = task.asked, task.upper.model
    found: list[bool] = []
    for rows in torch.arange(len(task.test)).split(config.batch_size):
        pairs = [task.pairs[i] for i in rows.tolist()]
        with torch.no_grad():
            new = _new(dictionary, task.test.part(rows), gate).to(model.device)
        back = asked.from_end[torch.tensor([pair.base for pair in pairs])].to(model.device)

        def patch(x: Tensor, new: Tensor = new, back: Tensor = back) -> Tensor:
            if x.shape[1] == 1:  # a new token, after the prompt
                return x
            changed = x.clone()
            changed[torch.arange(len(x), device=x.device), x.shape[1] - back] = new.to(x.dtype)
            return changed

        texts = model.generate(
            [asked.prompts[pair.base].text for pair in pairs],
            config.n_generated_tokens,
            [Splice(task.upper.site.name, patch, where="all")],
        )
        labels = [asked.prompts[pair.source if pair.cause else pair.base].value for pair in pairs]
        found += [completion_matches(label, text) for label, text in zip(labels, texts, strict=True)]
    return torch.tensor(found, dtype=torch.bool)


def _ask(model: LanguageModel, prompts: list[Prompt], sites: Sequence[str], config: Config) -> tuple[_Asked, float]:
    """Which prompts the model answers, and the activations at their entities; with the share of right answers."""
    right: list[bool] = []
    answers = [p.answer for p in prompts]
    if config.mode == "compat":
        for start in range(0, len(prompts), config.batch_size):
            part = prompts[start : start + config.batch_size]
            written = model.generate([p.text for p in part], config.n_generated_tokens)
            # Some tokenizers drop the space with which a continuation begins.
            answers[start : start + len(part)] = [text if text[:1].isspace() else " " + text for text in written]
            right += [completion_matches(p.value, text) for p, text in zip(part, written, strict=True)]
    else:
        for start in range(0, len(prompts), config.batch_size):
            part = prompts[start : start + config.batch_size]
            batch, places = tokenize_answered(model, [(p.text, p.answer) for p in part], config.context_length)
            right += greedy_matches(model.logits(batch), batch, places).tolist()
    kept = best_entities(prompts, right, config.top_n_entities)
    chosen = [prompts[i] for i in kept]
    first: list[Tensor] = []
    entity: list[Tensor] = []
    from_end: list[Tensor] = []
    at_entity: dict[str, list[Tensor]] = {site: [] for site in sites}
    for start in range(0, len(chosen), config.batch_size):
        part = chosen[start : start + config.batch_size]
        texts = [(p.text, answers[i]) for p, i in zip(part, kept[start:], strict=False)]
        batch, asked_at = tokenize_answered(model, texts, config.context_length)
        first.append(batch.token_ids[torch.arange(len(part)), torch.tensor([places[0] for places in asked_at])])
        batch = model.tokenize([p.text for p in part], _limit(model, config.context_length))
        places = entity_positions(model, batch, part, config.mode)
        entity.append(places)
        from_end.append(batch.attention_mask.sum(-1).cpu() - places)
        for site, x in model.harvest(batch, sites).items():
            at_entity[site].append(x.float()[torch.arange(len(part)), places.to(x.device)].cpu())
    columns = [torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64) for parts in (first, entity, from_end)]
    at_sites = {site: torch.cat(parts) for site, parts in at_entity.items() if parts}
    asked = _Asked(chosen, [answers[i] for i in kept], columns[0], columns[1], columns[2], at_sites)
    return asked, sum(right) / max(len(right), 1)


def entity_positions(
    model: LanguageModel, batch: TokenBatch, prompts: Sequence[Prompt], mode: Literal["compat", "corrected"]
) -> Tensor:
    """[prompt] position of the entity's last token.

    In compat it is counted from the end: as many tokens as the text after the entity has alone, special tokens
    included. That is the entity's last token for a tokenizer that adds one BOS token, and the token after it without.
    """
    if mode == "compat":
        after = [len(model.tokenizer(p.text[p.end :])["input_ids"]) for p in prompts]
        return (batch.attention_mask.sum(-1).cpu() - torch.tensor(after)).clamp_min(0)
    found: list[int] = []
    for p, row, places in zip(
        prompts, batch.offsets or [], tokens_of(model, batch, [(p.start, p.end) for p in prompts]), strict=True
    ):
        if not places or row[places[-1]][1] < p.end:
            raise InputError(f"The prompt '{p.text}' was cut before its entity's end; raise context_length.")
        found.append(places[-1])
    return torch.tensor(found)


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
    model: LanguageModel, texts: Sequence[tuple[str, str]], context_length: int
) -> tuple[TokenBatch, list[list[int]]]:
    """Rows of prompts with their answers, and the positions of the answers' tokens.

    Raises:
        InputError: a row that does not fit into the context.
    """
    batch = model.tokenize([prompt + answer for prompt, answer in texts], _limit(model, context_length))
    # A token that begins with the answer's leading space overlaps it from there on.
    spans = [(len(prompt), len(prompt) + len(answer)) for prompt, answer in texts]
    places = tokens_of(model, batch, spans)
    if not all(places):
        prompt = texts[[bool(p) for p in places].index(False)][0]
        raise InputError(f"The prompt '{prompt}' and its answer do not fit; raise context_length.")
    return batch, places


def _limit(model: LanguageModel, context_length: int) -> int:
    return min(context_length, model.max_context or context_length)


def _items(upper: UpperLayers, asked: _Asked, pairs: Sequence[Pair], config: Config) -> Items:
    model, at_entity = upper.model, asked.at_entity[upper.name]
    base, source = (torch.tensor([getattr(pair, side) for pair in pairs]) for side in ("base", "source"))
    wanted = [asked.answers[pair.source if pair.cause else pair.base] for pair in pairs]
    texts = [(asked.prompts[pair.base].text, answer) for pair, answer in zip(pairs, wanted, strict=True)]
    batch, places = tokenize_answered(model, texts, config.context_length)
    hidden: list[Tensor] = []
    for rows in torch.arange(len(pairs)).split(config.batch_size):
        part = TokenBatch(batch.token_ids[rows], batch.attention_mask[rows], batch.keep[rows])
        hidden.append(model.harvest(part, [upper.cached_site])[upper.cached_site].cpu())
    cause = torch.tensor([pair.cause for pair in pairs])
    if config.mode == "compat":
        # What kind a pair is shows in the first token alone: equal ones make a cause pair count as isolation.
        cause = cause & (asked.first[source] != asked.first[base])
    return Items(batch, torch.cat(hidden), at_entity[base], at_entity[source], asked.entity[base], places, cause)
