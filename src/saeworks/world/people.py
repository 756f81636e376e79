"""Invented people: names, genders, pronouns, and which split a person belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from saeworks.world.drawing import Draw, Weighted, stable_fraction, zipf
from saeworks.world.knowledge import City, cities, names, slug
from saeworks.world.phrasing import Phrase, evidence, phrase

# Shares of the pairs (given name, family name); a full name is in one split and in no other.
SHARES = (("train", 0.80), ("validation", 0.07), ("probe_train", 0.06), ("probe_test", 0.07))

_GIVEN = {gender: zipf(list(getattr(names(), gender)), 12.0) for gender in ("female", "male")}
_BEGINNINGS = zipf(names().beginnings, 20.0)
_ENDINGS = zipf(names().endings, 20.0)
_CITIES = zipf(cities(), 40.0)
_PRONOUNS = {"female": ("she", "her", "her", "herself"), "male": ("he", "him", "his", "himself")}


def split_of(kind: str, name: str) -> str:
    """The split that owns the entity ``name`` of a kind such as ``person`` or ``product``."""
    place = stable_fraction("split", kind, name)
    for split, share in SHARES:
        if place < share:
            return split
        place -= share
    return SHARES[-1][0]


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody. The pronouns and the name come as marked phrases."""

    given: str
    family: str
    gender: str

    @property
    def full(self) -> str:
        """Given and family name."""
        return f"{self.given} {self.family}"

    def slots(self) -> dict[str, Phrase]:
        """The slots that templates use for a person: name, given, family, subj, obj, poss, self."""
        concept = f"person/gender/{self.gender}"
        given = Phrase(self.given, ((0, len(self.given), concept),))
        full = Phrase(self.full, ((0, len(self.full), "person/name"), (0, len(self.given), concept)))
        subj, obj, poss, reflexive = _PRONOUNS[self.gender]
        return {
            "name": full,
            "given": given,
            "family": phrase(self.family, "person/name"),
            "subj": phrase(subj, concept),
            "obj": phrase(obj, concept),
            "poss": phrase(poss, concept),
            "self": phrase(reflexive, concept),
        }


def draw_person(draw: Draw, split: str, gender: str | None = None, own_names: bool = False) -> Person:
    """A person of the split. Names of other splits are drawn again, at no cost to the log-probability.

    Args:
        draw: The document's choices.
        split: One of the four splits.
        gender: ``female`` or ``male``; drawn when None.
        own_names: Each probe split has given names of its own (every second one), so that no name is in both.
    """
    gender = gender or draw.pick(("female", "male"))
    before = draw.log_probability
    while True:
        draw.log_probability = before
        given = draw.weighted(_own_names(gender, split) if own_names else _GIVEN[gender])
        family = draw.weighted(_BEGINNINGS) + draw.weighted(_ENDINGS)
        if split_of("person", f"{given} {family}") == split:
            return Person(given, family, gender)


@cache
def _own_names(gender: str, split: str) -> Weighted[str]:
    return zipf(list(evidence(getattr(names(), gender), split)), 12.0)


def draw_city(draw: Draw) -> City:
    """A city, the file's first ones somewhat more often. Cities are memory: every split knows all of them."""
    return draw.weighted(_CITIES)


def city_phrase(city: City) -> Phrase:
    """The city's name, marked as the city, its country and its continent."""
    return phrase(city.name, f"facts/city/{slug(city.name)}")
