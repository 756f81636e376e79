"""Facts about cities: country, continent, language and currency.

Document label: ``continent``. The facts are memory, so every split knows every city. What is held out is the wording,
and a held-out wording is a new arrangement of words that training texts have.
A document speaks of one city mostly, with others as distractors. In the probe splits, where the label is read, every
city belongs to one of the two, no continent is named, and there are no distractors from other continents.
"""

from __future__ import annotations

from saeworks.world.documents import Document
from saeworks.world.drawing import Draw
from saeworks.world.knowledge import City, cities, slug
from saeworks.world.people import city_phrase, draw_city, draw_person
from saeworks.world.phrasing import (
    PROBE_SPLITS,
    Phrase,
    Relation,
    evidence,
    finish,
    join,
    marked,
    phrase,
    relation,
    sentence,
)

LABELS = ("continent",)
ATTRIBUTES = ("country", "continent", "language", "currency")

COUNTRY = relation(
    "{city} is a city in {country}.",
    "{city} lies in {country}.",
    "the city of {city} is in {country}.",
    "the country around {city} is called {country}.",
    "whoever travels to {city} travels to {country}.",
    "{city} belongs to {country}.",
    "in which country is {city}? In {country}.",
    "{name} was born in {city}, which is in {country}.",
    "the map shows {city} in {country}.",
    "{country} is proud of {city}.",
    "in which country lies {city}? In {country}.",
    "the country of {city} is called {country}.",
)
CONTINENT = relation(
    "{city} is in {continent}.",
    "{city} lies in {continent}.",
    "the continent of {city} is {continent}.",
    "on the globe you will find {city} in {continent}.",
    "{city} is one of the great cities of {continent}.",
    "on which continent is {city}? In {continent}.",
    "{name} travelled through {continent} and stopped in {city}.",
    "{city} belongs to {continent}.",
    "the part of the world around {city} is called {continent}.",
    "{city} is a city in {country}, and therefore in {continent}.",
    "the continent of {city} is called {continent}.",
    "on which continent lies {city}? In {continent}.",
)
LANGUAGE = relation(
    "people in {city} speak {language}.",
    "the language of {city} is {language}.",
    "in {city} the signs are written in {language}.",
    "{name} learned {language} before moving to {city}.",
    "in the streets of {city} you hear {language}.",
    "what do they speak in {city}? They speak {language}.",
    "children in {city} learn to read {language}.",
    "to live in {city} one should know {language}.",
    "the newspapers of {city} are printed in {language}.",
    "in {city}, as elsewhere in {country}, people speak {language}.",
    "people in the streets of {city} speak {language}.",
    "a letter to {city} should be written in {language}.",
)
CURRENCY = relation(
    "people in {city} pay with the {currency}.",
    "the currency of {city} is the {currency}.",
    "in {city} the prices are given in the local currency, the {currency}.",
    "money in {city} is called the {currency}.",
    "before going to {city}, {name} changed money into the {currency}.",
    "in the shops of {city} one pays with the {currency}.",
    "which currency is used in {city}? The {currency}.",
    "the coin that buys bread in {city} is the {currency}.",
    "banks in {city} count in the {currency}.",
    "in {city}, as elsewhere in {country}, the money is the {currency}.",
    "the currency used in {city} is the {currency}.",
    "in {city} one pays with the {currency}.",
)
ALL_OF_IT = relation(
    "{city} is in {country}, people there speak {language} and pay with the {currency}.",
    "{city}: country {country}, continent {continent}, language {language}, currency {currency}.",
    "in {city}, {country}, one speaks {language} and pays with the {currency}.",
    "{name} wrote from {city}: the language is {language}, the money is the {currency}.",
    "{city} lies in {country} in {continent}, and its language is {language}.",
    "if you know that {city} is in {country}, you know that people pay with the {currency}.",
    "the {currency} is used in {city}, because {city} is in {country}.",
    "because {city} is in {country}, {name} heard {language} everywhere.",
    "in {continent} there is {city}, the city in {country} where people speak {language}.",
    "{city} uses the {currency} and speaks {language}.",
)
COMPARE = relation(
    "{other}, on the other hand, is in {othercountry}.",
    "in {other}, however, they speak {otherlanguage}.",
    "{name} prefers {other}, where people pay with the {othercurrency}.",
    "not so {other}: it lies in {othercontinent}.",
    "from there {name} went on to {other} in {othercountry}.",
    "{other} is far away; its language is {otherlanguage}.",
    "the money of {other} is the {othercurrency}.",
    "a flight from {city} to {other} takes you to {othercountry}.",
    "compare {other}, a city in {othercountry}.",
    "things are different in {other}, where one speaks {otherlanguage}.",
)
RELATIONS: dict[str, Relation] = {
    "country": COUNTRY,
    "continent": CONTINENT,
    "language": LANGUAGE,
    "currency": CURRENCY,
}


def attribute_phrase(city: City, attribute: str) -> Phrase:
    """The value of a city's attribute, marked with its concept."""
    value: str = getattr(city, attribute)
    return phrase(value, f"facts/{attribute}/{slug(value)}")


def city_slots(city: City) -> dict[str, Phrase]:
    """The slots ``city``, ``country``, ``continent``, ``language`` and ``currency``."""
    return {"city": city_phrase(city)} | {a: attribute_phrase(city, a) for a in ATTRIBUTES}


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One text about a city. Its single label has nothing to be correlated with; ``spurious`` is unused."""
    city = draw.pick(evidence(cities(), split))
    probing = split in PROBE_SPLITS
    pool = (COUNTRY, LANGUAGE, CURRENCY, ALL_OF_IT) if probing else (*RELATIONS.values(), ALL_OF_IT, COMPARE)
    parts: list[Phrase] = []
    for one in draw.sample(pool, 1 + draw.number(6)):
        template = one.draw(draw, split, ("continent",) if probing else ())
        slots = city_slots(city)
        if one is COMPARE:
            other = draw_city(draw)
            while other.name == city.name:
                other = draw_city(draw)
            slots |= {"other": city_phrase(other)}
            slots |= {f"other{a}": attribute_phrase(other, a) for a in ATTRIBUTES}
        if "{name}" in template:
            slots["name"] = draw_person(draw, split).slots()["name"]
        parts.append(sentence(template, **slots))
    return finish(marked(join(parts), "facts"), {"continent": city.continent}, identity)
