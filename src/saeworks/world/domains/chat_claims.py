"""Facts that are asked after, claimed, corrected and confirmed: the topics, and true and false claims about them.

Which subject is drawn and which false value, is weighted so that over all claims every subject and every value is as
often part of a false claim as of a true one: only who knows the fact can tell. A false value is the true value of a
subject that does not agree with this one; agreeing is mutual, which makes the two distributions equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from saeworks.world.domains import ships as fleet
from saeworks.world.domains.facts import ATTRIBUTES, attribute_phrase
from saeworks.world.domains.spelling import letter_phrase, word_phrase
from saeworks.world.domains.taxonomy import thing_phrase
from saeworks.world.drawing import Draw, Weighted
from saeworks.world.knowledge import City, Thing, cities, leaves, lexicon, taxonomy
from saeworks.world.people import city_phrase
from saeworks.world.phrasing import Phrase, join

T = TypeVar("T")
# How often a claim is about what.
_TOPICS = Weighted((*ATTRIBUTES, "kind", "letter"), (2.0, 2.0, 2.0, 2.0, 2.5, 1.5))
# Cities that lie on two continents: nothing is claimed that a reader could defend.
_ASTRIDE = ("Istanbul",)
# Roots whose branches exclude each other, and pairs of roots that do not: a carrot is a plant and a food.
_CLEAN = ("animal", "vehicle", "instrument")
_OVERLAPPING = ({"plant", "food"}, {"animal", "food"}, {"tool", "instrument"})


@dataclass(frozen=True, slots=True)
class Fact:
    """A subject and its value.

    Attributes:
        section: Where its wordings stand, e.g. ``fact/country`` or ``ship/cargo``.
        slots: The subject's slot: ``city``, ``ship``, ``x`` or ``word``.
        value: The value as it stands in a sentence.
        city: The city that it is about, if it is.
    """

    section: str
    slots: dict[str, Phrase]
    value: Phrase
    city: City | None = None

    @property
    def answer(self) -> str:
        """What a right reply contains: the value, a letter with the space before and the stop after it."""
        return f" {self.value.text}." if self.section == "fact/letter" else self.value.text.removeprefix("the ")


@dataclass(frozen=True, slots=True)
class Claim:
    """A fact and the value that somebody claims instead of or in agreement with it."""

    fact: Fact
    claimed: Phrase


def city_fact(city: City, attribute: str) -> Fact:
    """The fact about one of the city's attributes."""
    value = attribute_phrase(city, attribute)
    if attribute == "currency":
        value = join([Phrase("the"), value])
    return Fact(f"fact/{attribute}", {"city": city_phrase(city)}, value, city)


def ship_fact(ship: fleet.Ship, attribute: str) -> Fact:
    """The fact about one of the ship's attributes."""
    return Fact(f"ship/{attribute}", {"ship": fleet.ship_phrase(ship)}, fleet.value_phrase(ship, attribute))


def kind_fact(thing: Thing, level: int) -> Fact:
    """What the thing is: its ancestor at ``level`` of the path, ``-2`` for the nearest one."""
    return Fact("fact/kind", {"x": thing_phrase(thing)}, thing_phrase(taxonomy()[thing.path[level]]))


def letter_fact(word: str) -> Fact:
    """How the word begins."""
    return Fact("fact/letter", {"x": word_phrase(word), "word": word_phrase(word)}, letter_phrase(word[0]))


@dataclass(frozen=True, slots=True)
class Contrast:
    """Subjects by number, each with those whose value may falsely be said of it.

    Attributes:
        subjects: Numbers of the subjects, weighted by how many others do not agree with each.
        others: For each subject the number of one subject for each false value, weighted by how many have that value.
    """

    subjects: Weighted[int]
    others: tuple[Weighted[int], ...]


def contrast(items: Sequence[T], value: Callable[[T], str], agree: Callable[[T, T], bool] | None = None) -> Contrast:
    """The :class:`Contrast` of the items.

    Args:
        items: The subjects.
        value: The value of a subject; equal values always agree.
        agree: Whether the value of one may be true, or be defended, of the other; must be mutual.
    """
    values = [value(item) for item in items]
    first = {v: i for i, v in reversed(list(enumerate(values)))}
    counted: dict[str, dict[int, float]] = {}
    others: list[dict[int, float]] = []
    for i, one in enumerate(items):
        if agree is None and values[i] in counted:
            others.append(counted[values[i]])
            continue
        count: dict[int, float] = {}
        for j, other in enumerate(items):
            if values[i] != values[j] and not (agree and agree(one, other)):
                count[first[values[j]]] = count.get(first[values[j]], 0.0) + 1.0
        counted[values[i]] = count
        others.append(count)
    weighted = {id(count): Weighted(list(count), list(count.values())) for count in others}
    subjects = Weighted(list(range(len(items))), [sum(count.values()) for count in others])
    return Contrast(subjects, tuple(weighted[id(count)] for count in others))


def _cities_agree(attribute: str) -> Callable[[City, City], bool]:
    def agree(one: City, other: City) -> bool:
        astride = attribute == "continent" and (one.name in _ASTRIDE or other.name in _ASTRIDE)
        return one.country == other.country or (astride and {one.continent, other.continent} == {"Asia", "Europe"})

    return agree


def _things_agree(one: Thing, other: Thing) -> bool:
    return (one.root == other.root and one.root not in _CLEAN) or {one.root, other.root} in _OVERLAPPING


@cache
def _leaf_things() -> tuple[Thing, ...]:
    return tuple(taxonomy()[name] for name in leaves())


@cache
def contrast_of(topic: str) -> Contrast:
    """The contrast of a topic: an attribute of cities, ``kind`` (by the branch below the root) or ``letter``."""
    if topic == "kind":
        return contrast(_leaf_things(), lambda thing: thing.path[1], _things_agree)
    if topic == "letter":
        return contrast(lexicon(), lambda word: word[0])

    def value(city: City) -> str:
        found: str = getattr(city, topic)
        return found

    return contrast(cities(), value, _cities_agree(topic))


def _city_claim(draw: Draw, truth: bool, attribute: str, i: int, others: Weighted[int]) -> Claim:
    fact = city_fact(cities()[i], attribute)
    return Claim(fact, fact.value if truth else city_fact(cities()[draw.weighted(others)], attribute).value)


def _kind_claim(draw: Draw, truth: bool, i: int, others: Weighted[int]) -> Claim:
    # The branch below the root or the nearest kind; a false one is of the same level in another branch.
    level = 1 + draw.number(2)
    thing = _leaf_things()[i]
    fact = kind_fact(thing, min(level, len(thing.path) - 2))
    if truth:
        return Claim(fact, fact.value)
    branch = _leaf_things()[draw.weighted(others)].path[1]
    return Claim(fact, thing_phrase(taxonomy()[draw.weighted(_kinds_of(branch, level))]))


@cache
def _kinds_of(branch: str, level: int) -> Weighted[str]:
    """Kinds at a level of a branch, by the number of leaves that are of that kind."""
    found: dict[str, float] = {}
    for thing in _leaf_things():
        if thing.path[1] == branch:
            kind = thing.path[min(level, len(thing.path) - 2)]
            found[kind] = found.get(kind, 0.0) + 1.0
    return Weighted(list(found), list(found.values()))


def draw_claim(draw: Draw, truth: bool) -> Claim:
    """A true or a false claim; the choices before the value do not depend on ``truth``."""
    topic = draw.weighted(_TOPICS)
    these = contrast_of(topic)
    i = draw.weighted(these.subjects)
    if topic == "kind":
        return _kind_claim(draw, truth, i, these.others[i])
    if topic == "letter":
        fact = letter_fact(lexicon()[i])
        return Claim(fact, fact.value if truth else letter_phrase(lexicon()[draw.weighted(these.others[i])][0]))
    return _city_claim(draw, truth, topic, i, these.others[i])


def draw_city_fact(draw: Draw, attribute: str | None = None) -> Fact:
    """A fact about any city."""
    city = draw.pick(cities())
    return city_fact(city, attribute or draw.pick(ATTRIBUTES))


def draw_ship_fact(draw: Draw) -> Fact:
    """A fact about any ship."""
    ship = draw.pick(fleet.ships())
    return ship_fact(ship, draw.pick(fleet.ATTRIBUTES))


def draw_thing(draw: Draw) -> Thing:
    """Any leaf of the taxonomy."""
    return draw.pick(_leaf_things())
