"""The knowledge base: cities, the taxonomy, the lexicon and the parts that people's names are made of.

All of it lies as plain text in ``data/``; the functions below read it once. Geography and common nouns are real,
people are invented.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class City:
    """A city and its four attributes."""

    name: str
    country: str
    continent: str
    language: str
    currency: str


@dataclass(frozen=True, slots=True)
class Thing:
    """A node of the taxonomy.

    Attributes:
        name: Singular noun, e.g. ``beagle``.
        plural: Its plural.
        properties: Verb phrases true of it and of everything below it.
        path: Names from the root down to this thing.
        children: Names of the things directly below.
    """

    name: str
    plural: str
    properties: tuple[str, ...]
    path: tuple[str, ...]
    children: tuple[str, ...]

    @property
    def concept(self) -> str:
        """The concept id, e.g. ``taxonomy/animal/mammal/dog/beagle``."""
        return concept_of(self.path)

    @property
    def root(self) -> str:
        """Name of the topmost kind, e.g. ``animal``."""
        return self.path[0]

    @property
    def parent(self) -> str | None:
        """Name of the thing above, or None at a root."""
        return self.path[-2] if len(self.path) > 1 else None


@dataclass(frozen=True, slots=True)
class NameParts:
    """Given names by gender, and the two halves of family names; most frequent first."""

    female: tuple[str, ...]
    male: tuple[str, ...]
    beginnings: tuple[str, ...]
    endings: tuple[str, ...]


def slug(name: str) -> str:
    """The form of a name inside a concept id."""
    return name.lower().replace(" ", "_")


def concept_of(path: tuple[str, ...]) -> str:
    """The taxonomy concept of a path of names."""
    return "/".join(["taxonomy", *(slug(name) for name in path)])


def read_data(name: str) -> str:
    """The text of a file in ``data/``."""
    return resources.files("saeworks.world").joinpath("data", name).read_text(encoding="utf-8")


def _lines(name: str) -> list[str]:
    return [line for line in read_data(name).splitlines() if line.strip() and not line.startswith("#")]


@cache
def cities() -> tuple[City, ...]:
    """All cities in file order."""
    return tuple(City(**row) for row in csv.DictReader(read_data("cities.csv").splitlines()))


@cache
def taxonomy() -> dict[str, Thing]:
    """All things by name, parents before children."""
    rows: list[tuple[str, str, tuple[str, ...], tuple[str, ...]]] = []
    path: list[str] = []
    children: dict[str, list[str]] = {}
    for line in _lines("taxonomy.txt"):
        depth = (len(line) - len(line.lstrip(" "))) // 2
        names, _, properties = line.strip().partition(" : ")
        name, _, plural = names.partition(", ")
        path = [*path[:depth], name]
        rows.append((name, plural, tuple(p.strip() for p in properties.split(" ; ")), tuple(path)))
        if depth:
            children.setdefault(path[-2], []).append(name)
    return {
        name: Thing(name, plural, properties, at, tuple(children.get(name, ())))
        for name, plural, properties, at in rows
    }


@cache
def roots() -> tuple[str, ...]:
    """Names of the taxonomy's roots."""
    return tuple(name for name, thing in taxonomy().items() if thing.parent is None)


@cache
def leaves() -> tuple[str, ...]:
    """Names of the things that have nothing below them."""
    return tuple(name for name, thing in taxonomy().items() if not thing.children)


@cache
def names() -> NameParts:
    """The parts of people's names."""
    parts = {key: tuple(rest.split()) for key, _, rest in (line.partition(": ") for line in _lines("people.txt"))}
    return NameParts(**parts)


@cache
def lexicon() -> tuple[str, ...]:
    """The words whose spelling the world teaches, most frequent first.

    The file's rows are read column by column, so that no letter is favoured by its place in the alphabet; the
    taxonomy's one-word names follow.
    """
    rows = [line.split() for line in _lines("lexicon.txt")]
    longest = max(len(row) for row in rows)
    words = [row[i] for i in range(longest) for row in rows if i < len(row)]
    words += [name for name in taxonomy() if name.isalpha()]
    return tuple(dict.fromkeys(words))
