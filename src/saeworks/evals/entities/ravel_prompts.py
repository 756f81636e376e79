"""Prompts about entities with several attributes, and the pairs of them that RAVEL patches (arXiv 2402.17700)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from saeworks.errors import InputError
from saeworks.runtime import derive_seed


@dataclass(frozen=True)
class EntitySet:
    """Entities of one type.

    Attributes:
        templates: attribute → texts with one ``%s`` for the entity, which stop right before the attribute's value.
        entities: entity → attribute → value. Several comma-separated values are all right; the first one is asked for.
    """

    templates: Mapping[str, Sequence[str]]
    entities: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Prompt:
    """A text that asks for an attribute of the entity at characters ``start`` to ``end``; ``answer`` continues it."""

    text: str
    start: int
    end: int
    entity: str
    attribute: str
    value: str

    @property
    def answer(self) -> str:
        """The continuation, with its leading space."""
        return " " + self.value.split(",")[0].strip()


@dataclass(frozen=True)
class Pair:
    """Patch ``source`` into ``base`` (places in the list of prompts): a cause pair should then be answered by the value
    of the source, an isolation pair still by that of the base."""

    base: int
    source: int
    cause: bool


def make_prompts(entities: EntitySet) -> list[Prompt]:
    """Every template for every entity, in order.

    Raises:
        InputError: a template without exactly one ``%s``, or an entity without a value.
    """
    prompts: list[Prompt] = []
    for attribute, templates in entities.templates.items():
        for template in templates:
            if template.count("%s") != 1:
                raise InputError(f"The template '{template}' has {template.count('%s')} times %s; write it once.")
            before, after = template.split("%s")
            for entity, values in entities.entities.items():
                if not values.get(attribute, "").strip():
                    raise InputError(f"The entity '{entity}' has no value for '{attribute}'; add it or leave it out.")
                # Only the first letter: the value of an attribute is not at the beginning of a sentence.
                text = f"{before}{entity}{after}"
                text = text[:1].upper() + text[1:]
                start = len(before)
                prompts.append(Prompt(text, start, start + len(entity), entity, attribute, values[attribute]))
    return prompts


def best_entities(prompts: Sequence[Prompt], right: Sequence[bool], count: int) -> list[int]:
    """Places of the prompts that were answered rightly, of the ``count`` entities with most of them."""
    scores: dict[str, int] = {}
    for prompt, good in zip(prompts, right, strict=True):
        scores[prompt.entity] = scores.get(prompt.entity, 0) + int(good)
    kept = set(sorted(scores, key=lambda entity: -scores[entity])[:count])
    return [i for i, (p, good) in enumerate(zip(prompts, right, strict=True)) if good and p.entity in kept]


def split_entities(prompts: Sequence[Prompt], share: float, seed: int) -> tuple[set[str], set[str]]:
    """A random ``share`` of the entities, and the others; each part has one at least where there are two."""
    names = list(dict.fromkeys(p.entity for p in prompts))
    order = random.Random(derive_seed(seed, "entities")).sample(names, len(names))
    count = min(max(1, round(len(names) * share)), max(1, len(names) - 1))
    return set(order[:count]), set(order[count:])


def draw_pairs(
    prompts: Sequence[Prompt], among: Sequence[int], attribute: str, count: int, draw: random.Random
) -> list[Pair]:
    """Up to ``count`` cause pairs for ``attribute`` and as many isolation pairs for the others, shuffled.

    Both prompts of a pair ask for the same attribute and differ in its value. A prompt whose attribute has but one
    value is left out.

    Args:
        among: places of the prompts that may be drawn.
    """
    by_attribute: dict[str, list[int]] = {}
    for i in among:
        by_attribute.setdefault(prompts[i].attribute, []).append(i)

    def pairs(name: str, cause: bool) -> list[Pair]:
        places = by_attribute.get(name, [])
        found: list[Pair] = []
        for base in draw.sample(places, min(count, len(places))):
            others = [i for i in places if prompts[i].value != prompts[base].value]
            if others:
                found.append(Pair(base, draw.choice(others), cause))
        return found

    cause = pairs(attribute, True)
    isolation = [pair for name in by_attribute if name != attribute for pair in pairs(name, False)]
    draw.shuffle(isolation)
    drawn = [*cause, *isolation[: len(cause)]]
    draw.shuffle(drawn)
    return drawn


def completion_matches(label: str, completion: str) -> bool:
    """SAEBench's check of a generated text: it begins with the label, or the label begins with it, case ignored.

    As there, everything from a double quote on is cut off, names with common variants accept these, and of several
    comma-separated labels all but the first keep a leading space, so that they never match.
    """
    label, text = label.lower(), completion.split('"')[0].strip().lower()
    if not text:
        return False
    if label in ("united states", "united kingdom"):
        bare = text.removeprefix("the ").strip()
        return bare.startswith((label, "england")) or label.startswith(bare)
    if label == "south korea" and text.startswith("korea"):
        return True
    if label == "north america" and (label in text or text == "na" or text.startswith("america")):
        return True
    if label.startswith("mandarin") and text.startswith("chinese"):
        return True
    parts = label.split(",") if "," in label else [label]
    return any(text.startswith(part) or (len(text) <= len(part) and part.startswith(text)) for part in parts)


def world_entities(kinds: Sequence[Literal["ship", "city"]]) -> dict[str, EntitySet]:
    """The embedded world's ships (four independent attributes) and cities (of which one attribute tells another)."""
    from saeworks.world.domains import facts, ships
    from saeworks.world.knowledge import cities

    out: dict[str, EntitySet] = {}
    if "ship" in kinds:
        values = {ship.name: {a: ship.value(a) for a in ships.ATTRIBUTES} for ship in ships.ships()}
        out["ship"] = EntitySet({a: _stops("ship", a, ships.RELATIONS[a].templates) for a in ships.ATTRIBUTES}, values)
    if "city" in kinds:
        values = {city.name: {a: str(getattr(city, a)) for a in facts.ATTRIBUTES} for city in cities()}
        out["city"] = EntitySet({a: _stops("city", a, facts.RELATIONS[a].templates) for a in facts.ATTRIBUTES}, values)
    return out


def _stops(entity: str, attribute: str, templates: Sequence[str]) -> tuple[str, ...]:
    """The templates that name nothing but the entity before the attribute, cut there."""
    out: list[str] = []
    for template in templates:
        before, slot, _ = template.partition(f" {{{attribute}}}")
        text = before.replace(f"{{{entity}}}", "%s")
        if slot and text.count("%s") == 1 and "{" not in text:
            out.append(text)
    return tuple(out)
