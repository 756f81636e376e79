"""The RAVEL eval: can one attribute of an entity be exchanged by exchanging latents, and the others left alone?

For an attribute (the cargo of a ship), a mask over the latents is trained so that taking the masked latents at the
entity's tokens from another prompt changes the answer to the other entity's value (cause), while questions about the
other attributes are answered as before (isolation). Scores are shares of held-out pairs; their mean is the
disentanglement score of SAEBench (arXiv 2503.09532; RAVEL: arXiv 2402.17700).

Every result holds what bounds it at its site, whatever the dictionary: the ceiling (the whole activation exchanged),
the floor (nothing exchanged) and the skyline (axes aligned by training, MDAS). Where even the whole activation changes
few answers, the result says so and names the site where it would. Measured is always the site of the dictionary.

Only the model's layers above the site are run for every pair; what lies below is computed once for all dictionaries.
``compat`` follows SAEBench: pairs of one entity on both sides of the split, one token of the entity, counted from the
end of the prompt, the layer's output whatever the dictionary reads, incomplete batches dropped, and a cause pair whose
answers begin with the same token counted as isolation.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from saeworks.errors import InputError
from saeworks.evals.entities.aligned_axes import train_axes
from saeworks.evals.entities.ravel_cache import Asked, BaseRows, EntityTokens, Reading, ask
from saeworks.evals.entities.ravel_masks import Exchange, Items, MaskTraining, answered, exchanged, train_mask
from saeworks.evals.entities.ravel_prompts import (
    EntitySet,
    Pair,
    Prompt,
    completion_matches,
    draw_pairs,
    make_prompts,
    split_entities,
    world_entities,
)
from saeworks.evals.entities.ravel_results import AttributeScores, Knowledge, SiteScores, full_patch_cause, make_result
from saeworks.evals.entities.read_sites import READ, SiteLadder
from saeworks.evals.shared.batches import DictionaryLike, fingerprint_of_model, sites_of
from saeworks.evals.shared.behaviour import check_predicts
from saeworks.evals.shared.settings import Seeds
from saeworks.files import sha256_json
from saeworks.models.interventions import Splice
from saeworks.models.upper_layers import UpperLayers
from saeworks.progress import progress
from saeworks.results.envelope import Result
from saeworks.runtime import derive_seed, generator

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "ravel"
DEFINITION = "saeworks/ravel/2"
Data = Mapping[str, EntitySet]


class Config(BaseModel):
    """Names are SAEBench's where it has the field. ``entities``: which of the embedded world's. ``llm_batch_size`` is
    that of training a mask; ``batch_size`` that of everything else. ``num_pairs_per_attribute`` (5000 in SAEBench):
    cause pairs, and as many isolation pairs. ``n_generated_tokens`` is used in compat alone: corrected compares the
    whole answer.

    ``entity_tokens``: exchange ``all`` tokens of an entity's name, laid upon each other at their ends, or the ``last``
    one alone, as compat always does. ``train_mdas`` adds the skyline, once per site and attribute, whatever the number
    of dictionaries, in the first ``mdas_seeds`` seeds, for ``mdas_epochs`` epochs of batches of ``mdas_batch_size``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["compat", "corrected"] = "corrected"
    seeds: Seeds = (0, 1, 2)
    site: str | None = None
    context_length: int = Field(default=128, gt=1)
    batch_size: int = Field(default=64, gt=0)
    resamples: int = Field(default=500, gt=0)
    entities: Annotated[tuple[Literal["ship", "city"], ...], Field(min_length=1)] = ("ship", "city")
    top_n_entities: int = Field(default=500, gt=1)
    num_pairs_per_attribute: int = Field(default=200, gt=1)
    train_test_split: float = Field(default=0.7, gt=0, lt=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    num_epochs: int = Field(default=2, gt=0)
    llm_batch_size: int = Field(default=8, gt=0)
    n_generated_tokens: int = Field(default=6, gt=0)
    entity_tokens: EntityTokens = "all"
    train_mdas: bool = True
    mdas_seeds: int = Field(default=1, gt=0)
    mdas_epochs: int = Field(default=10, gt=0)
    mdas_batch_size: int = Field(default=32, gt=0)

    def reading(self) -> Reading:
        """How prompts are read."""
        tokens: EntityTokens = "last" if self.mode == "compat" else self.entity_tokens
        return Reading(self.mode, tokens, self.context_length, self.batch_size, self.n_generated_tokens)


def default_data(model: LanguageModel, config: Config) -> Data:
    """Ships and cities of the embedded world. ``InputError`` for a model that does not predict the next token."""
    check_predicts(model, EVAL_TYPE)
    return world_entities(config.entities)


def data_hashes(data: Data, config: Config) -> dict[str, str]:
    """``data:TYPE`` → hash of templates and values of one type of entity."""
    return {
        f"data:{name}": sha256_json(
            [{a: list(t) for a, t in s.templates.items()}, {e: dict(v) for e, v in s.entities.items()}]
        )
        for name, s in data.items()
    }


def run(
    dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, data: Data, config: Config
) -> dict[str, Result]:
    """Measure every dictionary on the same pairs; returns name → result.

    Raises:
        InputError: a model that does not predict the next token, a site that does not fit, or a type of entity of
            which the model knows too little for pairs.
    """
    check_predicts(model, EVAL_TYPE)
    if not data:
        raise InputError("RAVEL was given no entities to ask about; give at least one type of them.")
    sites = read_sites(dictionaries, model, config)
    uppers = {site: UpperLayers(model, site) for site in sorted(set(sites.values()))}
    scores: dict[str, list[AttributeScores]] = {name: [] for name in dictionaries}
    knowledge, ladder = Knowledge({}), SiteLadder()
    for kind, entities in data.items():
        asked, knowledge.accuracy[kind] = ask(
            model, make_prompts(entities), list(uppers), config.top_n_entities, config.reading()
        )
        parts = _all_parts(asked, kind, entities, model, config, knowledge.skipped)
        pairs = [pair for part in parts.values() for side in part for pair in side]
        rows = BaseRows(model, asked, pairs, list(uppers.values()), config.reading())
        bar = progress(len(parts) * len(dictionaries), f"ravel {kind}", unit="mask")
        for (seed, attribute), (train, test) in parts.items():
            for site, upper in uppers.items():
                task = _Task(upper, asked, rows.items(upper, train), rows.items(upper, test), test)
                bounds = _bounds(task, seed, config)
                names = [asked.prompts[pair.base].entity for pair in test]
                for name in (name for name in dictionaries if sites[name] == site):
                    right, latents = _measure(dictionaries[name], task, seed, config)
                    scores[name].append(
                        AttributeScores(kind, attribute, seed, right, task.test.cause, latents, names, bounds)
                    )
                    bar.update()
        bar.close()
        if any(full_patch_cause(scores[name], kind) < READ for name in dictionaries):
            first = [test for (seed, _), (_, test) in parts.items() if seed == config.seeds[0]]
            ladder.add(model, asked, [pair for test in first for pair in test], config.reading())
    hashes = {"model": fingerprint_of_model(model), **data_hashes(data, config)}
    return {
        name: make_result(
            name,
            dictionaries[name],
            scores[name],
            knowledge,
            ladder.record(sites[name], full_patch_cause(scores[name])),
            EVAL_TYPE,
            DEFINITION,
            config,
            hashes,
        )
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


def _all_parts(
    asked: Asked, kind: str, entities: EntitySet, model: LanguageModel, config: Config, skipped: list[str]
) -> dict[tuple[int, str], tuple[list[Pair], list[Pair]]]:
    """Seed and attribute → pairs to train on and to judge by, of all attributes that are known in two values."""
    attributes = [a for a in entities.templates if len({p.value for p in asked.prompts if p.attribute == a}) > 1]
    if len(attributes) < 2:
        raise InputError(
            f"Of '{kind}', model '{model.name}' knows {len(attributes)} attributes in more than one value, and two "
            "are needed; use a model that knows these entities, or other ones."
        )
    found: dict[tuple[int, str], tuple[list[Pair], list[Pair]]] = {}
    for seed in config.seeds:
        for attribute in attributes:
            train, test = draw_parts(asked.prompts, attribute, seed, config)
            if train and test:
                found[seed, attribute] = train, test
            else:
                skipped.append(f"{kind}/{attribute}, seed {seed}: no two held-out entities differ in it")
    return found


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
    asked: Asked
    train: Items
    test: Items
    pairs: list[Pair]


def _bounds(task: _Task, seed: int, config: Config) -> SiteScores:
    """What can be reached at the site, whatever the dictionary."""
    full, nothing = (_judged(task, lambda part, side=side: getattr(part, side), config) for side in ("source", "base"))
    if not config.train_mdas or seed not in config.seeds[: config.mdas_seeds]:
        return SiteScores(full, nothing)
    training = MaskTraining(config.mdas_epochs, config.mdas_batch_size, config.learning_rate)
    aligned = train_axes(task.upper, task.train, training, generator(seed, "batches of axes"))
    return SiteScores(full, nothing, _judged(task, aligned.exchange, config), aligned.count)


def _measure(dictionary: DictionaryLike, task: _Task, seed: int, config: Config) -> tuple[Tensor, int]:
    """[3, item] bool: right answers with the masked latents exchanged, with all, with none; and how many are masked."""
    training = MaskTraining(config.num_epochs, config.llm_batch_size, config.learning_rate, config.mode == "compat")
    mask = train_mask(dictionary, task.upper, task.train, training, generator(seed, "batches"))
    gate = (mask > 0).float()

    def taken(g: Tensor) -> Tensor:
        return _judged(task, lambda part: exchanged(dictionary, part.base.to(g), part.source.to(g), g), config)

    return torch.stack([taken(g) for g in (gate, torch.ones_like(gate), torch.zeros_like(gate))]), int(gate.sum())


def _judged(task: _Task, new: Exchange, config: Config) -> Tensor:
    """[item] bool: right answers of the held-out pairs with ``new`` at the entities."""
    if config.mode == "compat":
        return _written(task, new, config)
    return answered(task.upper, task.test, new, config.batch_size)


def _written(task: _Task, new: Exchange, config: Config) -> Tensor:
    """[item] bool: SAEBench's check of texts generated while the prompt pass is patched."""
    asked, model = task.asked, task.upper.model
    found: list[bool] = []
    for rows in torch.arange(len(task.test)).split(config.batch_size):
        pairs = [task.pairs[i] for i in rows.tolist()]
        with torch.no_grad():
            at_entity = new(task.test.part(rows))[:, 0].to(model.device)
        back = asked.from_end[torch.tensor([pair.base for pair in pairs])].to(model.device)

        def patch(x: Tensor, at_entity: Tensor = at_entity, back: Tensor = back) -> Tensor:
            if x.shape[1] == 1:  # a new token, after the prompt
                return x
            changed = x.clone()
            changed[torch.arange(len(x), device=x.device), x.shape[1] - back] = at_entity.to(x.dtype)
            return changed

        texts = model.generate(
            [asked.prompts[pair.base].text for pair in pairs],
            config.n_generated_tokens,
            [Splice(task.upper.site.name, patch, where="all")],
        )
        labels = [asked.prompts[pair.source if pair.cause else pair.base].value for pair in pairs]
        found += [completion_matches(label, text) for label, text in zip(labels, texts, strict=True)]
    return torch.tensor(found, dtype=torch.bool)
