"""The list of concepts: one tree of stable ids, each with a description and who is expected to know it.

The predicate of a concept is the generator itself: a span carries the concept exactly where a generator emits it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from saeworks.world.domains import chat, code, comparisons, craft, languages, portraits, questions, ships
from saeworks.world.domains.biographies import PROFESSIONS
from saeworks.world.domains.facts import ATTRIBUTES
from saeworks.world.domains.news import TOPICS
from saeworks.world.domains.reviews import CATEGORIES, GRADES
from saeworks.world.domains.spelling import LETTERS
from saeworks.world.knowledge import City, cities, slug, taxonomy


@dataclass(frozen=True, slots=True)
class Concept:
    """A concept of the world.

    Attributes:
        id: Path in the tree, e.g. ``taxonomy/animal/mammal/dog``.
        description: What its spans mark, in words.
        domain: The domain it belongs to; ``shared`` when several domains emit it.
        parent: Id of the concept above it, or None.
        known_to: The models that are expected to know it: ``base``, ``chat`` or ``both``.
    """

    id: str
    description: str
    domain: str
    parent: str | None
    known_to: str


def _biographies() -> dict[str, str]:
    found = {
        "biographies": "any text about an invented person's life",
        "biographies/profession": "a profession, named or described by what the person does",
        "biographies/hobby": "what somebody does in their free time",
    }
    for name in PROFESSIONS:
        found[f"biographies/profession/{name}"] = f"the profession {name}, or something that a {name} does"
    return found


def _people() -> dict[str, str]:
    found = {
        "person": "something said of a person",
        "person/name": "the name of an invented person",
        "person/age": "the age of a person in years",
        "person/gender": "a word that tells a person's gender",
    }
    for gender in ("female", "male"):
        found[f"person/gender/{gender}"] = f"a {gender} given name or pronoun"
    return found


def _reviews() -> dict[str, str]:
    found = {
        "reviews": "any text of a product review",
        "reviews/brand": "the name of an invented brand",
        "reviews/category": "a product, a part of it, or its use, which tell the category",
        "reviews/sentiment": "praise or blame",
    }
    for name in CATEGORIES:
        found[f"reviews/category/{name}"] = f"a product of the category {name}, a part of it, or its use"
    for sentiment in ("negative", "positive"):
        found[f"reviews/sentiment/{sentiment}"] = f"{sentiment} judgement of a product"
    for rating in GRADES:
        sentiment = "positive" if rating > 3 else "negative"
        found[f"reviews/sentiment/{sentiment}/{rating}_stars"] = f"a judgement as strong as {rating} of 5 stars"
    return found


def _news() -> dict[str, str]:
    found = {"news": "any text of a news brief", "news/topic": "an event, a speaker or a consequence in the news"}
    for name in TOPICS:
        found[f"news/topic/{name}"] = f"something from the news on {name}"
    return found


def _taxonomy() -> dict[str, str]:
    found = {"taxonomy": "any text about things and kinds", "property": "a property of a kind of thing"}
    for thing in taxonomy().values():
        below = f", or a kind of {thing.name}" if thing.children else ""
        found[thing.concept] = f"the word {thing.name}{below}"
        owner = "property/" + thing.concept.removeprefix("taxonomy/")
        found[owner] = f"a property that belongs to the kind {thing.name}"
    return found


def _spelling() -> dict[str, str]:
    found = {
        "spelling": "any text about how words are spelt",
        "spelling/alphabet": "a letter in its place in the alphabet",
        "spelling/first_letter": "a word, or the capital that it begins with, in a spelling text",
    }
    for letter in LETTERS:
        found[f"spelling/first_letter/{letter}"] = f"a word that begins with {letter}, or that letter as an answer"
    return found


def _facts() -> dict[str, str]:
    found = {"facts": "any text of facts about cities", "facts/city": "the name of a city"}
    found |= {f"facts/{a}": f"the {a} of a city" for a in ATTRIBUTES}
    for city in cities():
        found[f"facts/city/{slug(city.name)}"] = f"the city {city.name}"
        for attribute in ATTRIBUTES:
            value = _value(city, attribute)
            found[f"facts/{attribute}/{slug(value)}"] = f"{value} as the {attribute} of a city"
    return found


def _value(city: City, attribute: str) -> str:
    value: str = getattr(city, attribute)
    return value


@cache
def concepts() -> dict[str, Concept]:
    """Every concept by id, parents before children."""
    tables = {
        "biographies": _biographies(),
        "shared": _people(),
        "reviews": _reviews(),
        "news": _news(),
        "taxonomy": _taxonomy(),
        "spelling": _spelling(),
        "facts": _facts(),
        "code": code.describe(),
        "languages": languages.describe(),
        "ships": ships.describe(),
        "craft": craft.describe(),
        "questions": questions.describe(),
        "comparisons": comparisons.describe(),
        "portraits": portraits.describe(),
        "chat": chat.describe(),
    }
    found: dict[str, Concept] = {}
    for domain, table in tables.items():
        for key, description in table.items():
            above = key.rpartition("/")[0] or None
            known_to = "chat" if key in chat.CHAT_ONLY else "both"
            found[key] = Concept(key, description, domain, above, known_to)
    return found
