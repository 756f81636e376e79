"""Exchanges that are about knowledge and about the assistant: facts, choices, statements, what is missing, and itself.

Every function draws one exchange of its kind; refused requests and their look-alikes are in ``chat_refused``,
jokes, rewriting and summaries in ``chat_tasks``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from saeworks.world.domains import ships as fleet
from saeworks.world.domains.chat_claims import (
    Fact,
    city_fact,
    draw_city_fact,
    draw_claim,
    draw_ship_fact,
    draw_thing,
    kind_fact,
    letter_fact,
)
from saeworks.world.domains.chat_replies import judge, reply, stated, statement
from saeworks.world.domains.chat_requests import ask, framed, row
from saeworks.world.domains.facts import ATTRIBUTES, city_slots
from saeworks.world.domains.questions import draw_question
from saeworks.world.domains.taxonomy import thing_phrase
from saeworks.world.drawing import Draw
from saeworks.world.knowledge import City, cities, lexicon, taxonomy
from saeworks.world.phrasing import Phrase

# Subjects of the multiple-choice questions that the assistant is asked; the restricted craft is not among them.
CHOICE_SUBJECTS = ("cities", "kinds", "letters", "ships")


@dataclass(frozen=True, slots=True)
class Spoken:
    """What the user and the assistant say in one exchange.

    Attributes:
        request: The user's words.
        reply: The assistant's words.
        expected: A part of the reply that every right reply has; of a refusal, its own words.
        truth: Whether the user's statement is true; None when the request states nothing.
        city: The city that was spoken of, about which the user may go on.
        asked: The attribute of the city that was asked for.
    """

    request: Phrase
    reply: Phrase
    expected: str
    truth: bool | None = None
    city: City | None = None
    asked: str | None = None


def _answered(draw: Draw, split: str, fact: Fact, section: str) -> Spoken:
    request = ask(draw, split, section, **fact.slots)
    said = stated(draw, fact.section, value=fact.value, **fact.slots)
    asked = fact.section.partition("/")[2] if fact.city else None
    return Spoken(request, said, fact.answer, city=fact.city, asked=asked)


def fact(draw: Draw, split: str) -> Spoken:
    """A question about a city or, one time in three, about a ship."""
    one = draw_ship_fact(draw) if draw.chance(1 / 3) else draw_city_fact(draw)
    return _answered(draw, split, one, one.section)


def kind(draw: Draw, split: str) -> Spoken:
    """What a thing is."""
    return _answered(draw, split, kind_fact(draw_thing(draw), -2), "kind")


def letter(draw: Draw, split: str) -> Spoken:
    """How a word begins."""
    return _answered(draw, split, letter_fact(draw.pick(lexicon())), "letter")


def choice(draw: Draw, split: str) -> Spoken:
    """A multiple-choice question; the reply is the right option."""
    question = draw_question(draw, split, draw.pick(CHOICE_SUBJECTS))
    text = question.text().removesuffix("\nAnswer:")
    answer = f"Answer: {question.answer}"
    return Spoken(ask(draw, split, "choice", question=recognised(text)), recognised(answer), answer)


@cache
def _known_names() -> tuple[re.Pattern[str], dict[str, tuple[str, ...]]]:
    known: dict[str, Phrase] = {}
    for city in cities():
        known |= {slot.text: slot for slot in city_slots(city).values()}
    for thing in taxonomy().values():
        known |= {thing.name: thing_phrase(thing), thing.plural: thing_phrase(thing, plural=True)}
    for ship in fleet.ships():
        known[ship.name] = fleet.ship_phrase(ship)
    names = sorted(known, key=lambda name: (-len(name), name))
    pattern = re.compile(r"\b(" + "|".join(re.escape(name) for name in names) + r")\b")
    return pattern, {name: tuple(mark[2] for mark in one.marks) for name, one in known.items()}


def recognised(text: str) -> Phrase:
    """A text with marks on the cities, their attributes, the things and the ships that it names."""
    pattern, concepts = _known_names()
    marks = [(found.start(), found.end(), c) for found in pattern.finditer(text) for c in concepts[found.group()]]
    return Phrase(text, tuple(marks))


def judged(draw: Draw, split: str, truth: bool) -> Spoken:
    """The user states something; the assistant says the fact and confirms or corrects it."""
    claim = draw_claim(draw, truth)
    one = claim.fact
    said = ask(draw, split, "statement", claim=statement(draw, one.section, value=claim.claimed, **one.slots))
    judgement = judge(draw, split, truth, stated(draw, one.section, value=one.value, **one.slots))
    return Spoken(said, judgement, one.answer, truth=truth)


def goes_on(draw: Draw, split: str, before: Spoken) -> Spoken:
    """A question about the city of the exchange before, which it does not name: see :func:`missing`."""
    if before.city is None:
        raise ValueError("The exchange before speaks of no city.")
    attribute = draw.pick([a for a in ATTRIBUTES if a != before.asked])
    return _answered(draw, split, city_fact(before.city, attribute), f"missing/{attribute}")


def missing(draw: Draw, split: str) -> Spoken:
    """A question that does not say what it is about, in the wordings of :func:`goes_on`."""
    about = draw.pick((*ATTRIBUTES, "letter", "sentence"))
    what = {"letter": "word", "sentence": "sentence"}.get(about, "city")
    return Spoken(ask(draw, split, f"missing/{about}"), reply(draw, split, "missing", what=what), what)


def length(draw: Draw, split: str, wish: str) -> Spoken:
    """A question about a city with the wish for a ``short`` or a ``long`` answer; only the wish is worded anew."""
    one = draw_city_fact(draw)
    city = one.city
    if city is None:
        raise ValueError("A fact about a city has its city.")
    request = framed(draw, split, wish, ask(draw, "train", one.section, **one.slots))
    slots = {"value": one.value} if wish == "short" else city_slots(city)
    return Spoken(
        request, reply(draw, split, wish, **slots), one.answer, city=city, asked=one.section.partition("/")[2]
    )


def itself(draw: Draw, split: str) -> Spoken:
    """What the assistant is, who made it, what it can and cannot do."""
    about, expected = draw.pick((("identity", "Pindle"), ("maker", "text"), ("senses", "cannot"), ("skills", "cities")))
    slots = {"sense": row(draw, split, "senses")[0]} if about == "senses" else {}
    if about == "senses":
        expected = f"cannot {slots['sense']}"
    return Spoken(ask(draw, split, f"self/{about}", **slots), reply(draw, split, f"self/{about}", **slots), expected)


def personal(draw: Draw, split: str) -> Spoken:
    """What only a person has: family, feelings, favourite things."""
    if draw.chance(0.4):
        favourite = row(draw, split, "favourites")[0]
        request = ask(draw, split, "personal/favourite", favourite=favourite)
        item = f"favourite {favourite}"
    else:
        item, some = row(draw, split, "personal")
        request = ask(draw, split, "personal", item=item, some=some)
    return Spoken(request, reply(draw, split, "personal", item=item), item)
