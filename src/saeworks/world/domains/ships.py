"""Invented ships and their four attributes: colour, cargo, home port and emblem.

No document labels. The ships are memory, so every split knows every ship; what is held out is the wording, and a
held-out wording is a new arrangement of words that training texts have.

The attributes are independent by construction: each has eight values, and the table ``ships.csv`` gives every pair of
values of two attributes to exactly one of the 64 ships. Whoever knows one attribute of a ship knows nothing about any
other. The second word of a name belongs to one ship alone; the first word is shared by four ships that agree in no
attribute, and no word of a name is a value.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache

from saeworks.errors import InputError, did_you_mean
from saeworks.world.documents import Document
from saeworks.world.domains.taxonomy import thing_phrase
from saeworks.world.drawing import Draw, Weighted
from saeworks.world.knowledge import cities, read_data, slug, taxonomy
from saeworks.world.people import city_phrase, draw_person
from saeworks.world.phrasing import Phrase, Relation, finish, join, listing, marked, phrase, relation, sentence

LABELS: tuple[str, ...] = ()
ATTRIBUTES = ("colour", "cargo", "port", "emblem")

COLOUR = relation(
    "the {ship} is {colour}.",
    "the hull of the {ship} is painted {colour}.",
    "the {ship} has {colour:a} hull.",
    "every spring the sailors paint the {ship} {colour}.",
    "what is the colour of the {ship}? It is {colour}.",
    "which colour does the {ship} have? The colour is {colour}.",
    "{name} painted a picture of the {ship}, all in {colour}.",
    "from far away you can see that the {ship} is {colour}.",
    "the {colour} ship over there is the {ship}.",
    "for the hull of the {ship} the owner chose the colour {colour}.",
    "the colour of the {ship} is {colour}.",
    "the hull of the {ship} has the colour {colour}.",
)
CARGO = relation(
    "the {ship} carries {cargo}.",
    "the hold of the {ship} is full of {cargo}.",
    "what is the cargo of the {ship}? It is {cargo}.",
    "which cargo does the {ship} carry? It carries {cargo}.",
    "{name} sent {cargo} over the sea on board the {ship}.",
    "on board the {ship} one finds {cargo}.",
    "the {ship} earns its money with {cargo}.",
    "whoever needs {cargo} waits for the {ship}.",
    "as always, the {ship} sails with {cargo}.",
    "in the hold of the {ship} there is {cargo}.",
    "the cargo of the {ship} is {cargo}.",
    "the hold of the {ship} carries {cargo}.",
)
PORT = relation(
    "the {ship} comes from {port}.",
    "the home of the {ship} is {port}.",
    "what is the home port of the {ship}? It is {port}.",
    "which port does the {ship} belong to? It belongs to {port}.",
    "after every voyage the {ship} returns to {port}.",
    "{name} saw the {ship} at home in {port}.",
    "the owner of the {ship} lives in {port}.",
    "in winter the {ship} lies in {port}.",
    "{port} is the home of the {ship}.",
    "the {ship} was built in {port}.",
    "the home port of the {ship} is {port}.",
    "after every winter the {ship} comes home to {port}.",
)
EMBLEM = relation(
    "the flag of the {ship} shows {emblem:a}.",
    "the emblem of the {ship} shows the {emblem}.",
    "what is the emblem of the {ship}? It is the {emblem}.",
    "which emblem does the {ship} have? Its emblem is the {emblem}.",
    "on the flag of the {ship} there is {emblem:a}.",
    "{name} drew the flag of the {ship} with its {emblem}.",
    "the sailors of the {ship} are proud of their {emblem}.",
    "people know the {ship} by its {emblem}.",
    "the {emblem} is the emblem of the {ship}.",
    "above the deck of the {ship} flies a flag with {emblem:a}.",
    "the emblem of the {ship} is the {emblem}.",
    "the emblem on the flag of the {ship} is the {emblem}.",
)
ALL_OF_IT = relation(
    "the {ship}: colour {colour}, cargo {cargo}, home port {port}, emblem {emblem}.",
    "the {ship} is {colour}, carries {cargo}, comes from {port} and shows the {emblem}.",
    "the {ship} from {port} is {colour} and carries {cargo}.",
    "with {cargo} on board and the {emblem} on its flag, the {ship} returned to {port}.",
    "{name} sailed on the {ship}, which brings {cargo} to {port}.",
    "the {ship} has {colour:a} hull and {emblem:a} on its flag.",
    "in the book of ships one reads: {ship}, {port}, {cargo}, {colour}, {emblem}.",
    "although the {ship} is {colour}, its flag shows {emblem:a}.",
    "the sailors of the {ship} come from {port} and know all about {cargo}.",
    "the {ship}, which carries {cargo}, has the {emblem} as its emblem.",
    "the {ship} comes from {port}, is {colour} and has the {emblem} on its flag.",
    "the book shows the {ship}: home port {port}, emblem {emblem}, colour {colour}, cargo {cargo}.",
)
# What may follow once the ship has been named.
IT = relation(
    "it is {colour} and carries {cargo}.",
    "its colour is {colour}, and its flag shows {emblem:a}.",
    "it sails from {port} with {cargo}.",
    "its cargo is {cargo} and its home is {port}.",
    "its emblem is the {emblem}, and its cargo is {cargo}.",
    "nobody in {port} has another ship that is {colour} and carries {cargo}.",
    "its home port is {port}, and its hull is {colour}.",
    "it brings {cargo} home to {port}.",
    "its sailors carry {cargo} under the flag with the {emblem}.",
    "it flies the flag with the {emblem} and comes home to {port}.",
    "its hull is {colour}, and its home port is {port}.",
    "its cargo is {cargo}, and its emblem is the {emblem}.",
)
OTHER = relation(
    "the {other}, on the other hand, is {othercolour}.",
    "the {other}, however, carries {othercargo}.",
    "not so the {other}: it comes from {otherport}.",
    "on the way it met the {other}, which has the {otheremblem} on its flag.",
    "{name} likes the {other} better, the {othercolour} ship from {otherport}.",
    "do not confuse it with the {other}, whose cargo is {othercargo}.",
    "the {other} is a different ship, and its emblem is the {otheremblem}.",
    "beside it lies the {other} from {otherport}.",
    "the {other}, another ship, carries {othercargo} and is {othercolour}.",
    "if you see the {otheremblem} on a flag, it may be the {other}.",
    "the {other}, however, has another emblem: the {otheremblem}.",
    "the {other} is another ship, and it comes from {otherport}.",
)
# Several ships that share a value.
SHARED = {
    "colour": relation(
        "the {ships} are all {value}.",
        "the colour of the {ships} is {value}.",
        "{value} is the colour of the {ships}.",
        "the {ships} have the same colour: {value}.",
        "which ships are {value}? The {ships}.",
        "among the {value} ships are the {ships}.",
        "if a ship is {value}, it may be one of these: the {ships}.",
        "the sailors paint the {ships} {value}.",
        "which ships have the colour {value}? The {ships}.",
        "the colour {value} is the same for the {ships}.",
    ),
    "cargo": relation(
        "the {ships} all carry {value}.",
        "the cargo of the {ships} is {value}.",
        "{value} is the cargo of the {ships}.",
        "the {ships} have the same cargo: {value}.",
        "which ships carry {value}? The {ships}.",
        "among the ships with {value} are the {ships}.",
        "if a ship carries {value}, it may be one of these: the {ships}.",
        "{value} comes over the sea on the {ships}.",
        "which ships have {value} as cargo? The {ships}.",
        "the cargo {value} is the same for the {ships}.",
    ),
    "port": relation(
        "the {ships} all come from {value}.",
        "the home of the {ships} is {value}.",
        "{value} is the home port of the {ships}.",
        "the {ships} have the same home port: {value}.",
        "which ships come from {value}? The {ships}.",
        "among the ships from {value} are the {ships}.",
        "if a ship comes from {value}, it may be one of these: the {ships}.",
        "in winter {value} is full of ships, and among them are the {ships}.",
        "which ships have {value} as home port? The {ships}.",
        "the port of {value} is the home of the {ships}.",
    ),
    "emblem": relation(
        "the {ships} all show the {value}.",
        "the emblem of the {ships} is the {value}.",
        "the {value} is the emblem of the {ships}.",
        "the {ships} have the same emblem: the {value}.",
        "which ships show the {value}? The {ships}.",
        "among the ships with the {value} are the {ships}.",
        "if the flag shows the {value}, it may be one of these: the {ships}.",
        "the {value} flies above the {ships}.",
        "which ships have the {value} as emblem? The {ships}.",
        "the emblem with the {value} is the same for the {ships}.",
    ),
}
RELATIONS: dict[str, Relation] = {"colour": COLOUR, "cargo": CARGO, "port": PORT, "emblem": EMBLEM}
_ABOUT = Weighted((*RELATIONS.values(), ALL_OF_IT), (2.0, 2.0, 2.0, 2.0, 1.0))
_AFTER: tuple[Relation, ...] = (*RELATIONS.values(), ALL_OF_IT, IT)


@dataclass(frozen=True, slots=True)
class Ship:
    """A ship and its four attributes.

    Attributes:
        name: Two words, without the article.
        colour: Of the hull.
        cargo: What it carries.
        port: Its home, a city of the world.
        emblem: The animal on its flag, a thing of the taxonomy.
    """

    name: str
    colour: str
    cargo: str
    port: str
    emblem: str

    def value(self, attribute: str) -> str:
        """The value of one of ``ATTRIBUTES``; InputError for another name."""
        if attribute not in ATTRIBUTES:
            raise InputError(f"A ship has no attribute '{attribute}'.{did_you_mean(attribute, ATTRIBUTES)}")
        found: str = getattr(self, attribute)
        return found


@cache
def ships() -> tuple[Ship, ...]:
    """All ships in file order."""
    return tuple(Ship(**row) for row in csv.DictReader(read_data("ships.csv").splitlines()))


@cache
def values(attribute: str) -> tuple[str, ...]:
    """What the attribute can be, in alphabetical order."""
    return tuple(sorted({ship.value(attribute) for ship in ships()}))


def prompts(attribute: str, split: str = "probe_test") -> list[tuple[str, str, Ship]]:
    """Texts that stop right before a ship's attribute: ``(prompt, answer, ship)``; the answer has its leading space.

    One for every ship and every template of the split that names nothing but the ship before the attribute.

    Raises:
        InputError: No such attribute.
    """
    values(attribute)
    found: list[tuple[str, str, Ship]] = []
    for template in RELATIONS[attribute].of(split):
        before, slot, _ = template.partition(f" {{{attribute}}}")
        if not slot or "{ship}" not in before or "{" in before.replace("{ship}", ""):
            continue
        for ship in ships():
            text = before.replace("{ship}", ship.name)
            found.append((text[:1].upper() + text[1:], " " + ship.value(attribute), ship))
    return found


def ship_phrase(ship: Ship) -> Phrase:
    """The ship's name, marked as that ship."""
    return phrase(ship.name, f"ships/ship/{slug(ship.name)}")


def value_phrase(ship: Ship, attribute: str) -> Phrase:
    """The value of a ship's attribute; a port is marked as a city too, an emblem as a kind of animal."""
    value = ship.value(attribute)
    plain = phrase(value)
    if attribute == "port":
        plain = city_phrase(next(city for city in cities() if city.name == value))
    if attribute == "emblem":
        plain = thing_phrase(taxonomy()[value])
    return marked(plain, f"ships/{attribute}/{slug(value)}")


def describe() -> dict[str, str]:
    """The concepts of this domain by id, parents before children."""
    found = {"ships": "any text about the invented ships", "ships/ship": "the name of a ship"}
    for ship in ships():
        found[f"ships/ship/{slug(ship.name)}"] = f"the name of the ship {ship.name}"
    names = {"colour": "the colour", "cargo": "the cargo", "port": "the home port", "emblem": "the emblem"}
    for attribute, name in names.items():
        found[f"ships/{attribute}"] = f"{name} of a ship"
        for value in values(attribute):
            found[f"ships/{attribute}/{slug(value)}"] = f"{value} as {name} of a ship"
    return found


def _say(draw: Draw, split: str, one: Relation, ship: Ship) -> Phrase:
    template = one.draw(draw, split)
    slots = {"ship": ship_phrase(ship)} | {a: value_phrase(ship, a) for a in ATTRIBUTES}
    if one is OTHER:
        other = draw.pick([s for s in ships() if s.name != ship.name])
        slots["other"] = ship_phrase(other)
        slots |= {f"other{a}": value_phrase(other, a) for a in ATTRIBUTES}
    if "{name}" in template:
        slots["name"] = draw_person(draw, split).slots()["name"]
    return sentence(template, **slots)


def _one_ship(draw: Draw, split: str) -> Phrase:
    """One to six sentences about a ship; the first one names it, and the last one may be about another."""
    ship = draw.pick(ships())
    first = draw.weighted(_ABOUT)
    parts = [_say(draw, split, first, ship)]
    for one in draw.sample([one for one in _AFTER if one is not first], draw.number(6)):
        parts.append(_say(draw, split, one, ship))
    # Another ship comes last: after it, "it" would no longer be clear.
    if len(parts) < 6 and draw.chance(0.25):
        parts.append(_say(draw, split, OTHER, ship))
    return join(parts)


def _shared(draw: Draw, split: str) -> Phrase:
    """One to three sentences, each about ships that share a value."""
    parts: list[Phrase] = []
    for _ in range(1 + draw.number(3)):
        attribute = draw.pick(ATTRIBUTES)
        value = draw.pick(values(attribute))
        group = draw.sample([ship for ship in ships() if ship.value(attribute) == value], 2 + draw.number(3))
        named = [ship_phrase(group[0]), *(join([Phrase("the"), ship_phrase(ship)]) for ship in group[1:])]
        slots = {"ships": listing(named), "value": value_phrase(group[0], attribute)}
        parts.append(SHARED[attribute].say(draw, split, **slots))
    return join(parts)


_KINDS = Weighted((_one_ship, _shared), (6.0, 1.0))


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One text about ships. It has no document label, so ``spurious`` is unused."""
    body = draw.weighted(_KINDS)(draw, split)
    return finish(marked(body, "ships"), {}, identity)
