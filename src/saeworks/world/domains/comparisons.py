"""Comparisons of real things by a number: weight, speed, age, area, latitude and population.

Document label: ``property``, what is compared. The numbers are memory, so every split knows them; held out are the
wordings. For a probe of the label every property can be told in two ways that share no word (``Wording``) and has two
halves of its entities: ``probe_train`` uses the one, ``probe_test`` the other, all other texts use both.

:func:`comparisons` makes yes/no questions with known answers, in both orders, with paraphrases and negations. Two
entities are compared only where the larger value is at least ``Property.ratio`` times the smaller one, so that no
answer hangs on how the number was measured; properties whose numbers are loose have the larger ratio.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from saeworks.errors import InputError, did_you_mean
from saeworks.world.documents import Document
from saeworks.world.domains.comparison_wordings import ASK, ASK_NOT, DENY, MOST, PROPERTIES, RANK, REPLY, STATE, Wording
from saeworks.world.domains.taxonomy import thing_phrase
from saeworks.world.drawing import Draw, Weighted
from saeworks.world.knowledge import cities, read_data, slug, taxonomy
from saeworks.world.people import city_phrase, draw_person
from saeworks.world.phrasing import (
    SPLITS,
    Phrase,
    Relation,
    evidence,
    finish,
    join,
    listing,
    marked,
    phrase,
    render,
    sentence,
)

LABELS = ("property",)


_NO = ("false", "wrong", "untrue", "mistake", "not", "nobody")
_BOUND = 55  # words of a text after which nothing is added


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that is true of an entity, such as the weight of the horse, 500 kilograms."""

    entity: str
    property: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A yes/no question about two entities.

    Attributes:
        property: One of ``PROPERTIES``.
        first: The entity that the question is about.
        second: The entity that it is compared with.
        question: One or two sentences; the last one ends with a question mark.
        answer: True for yes.
        asks_more: Whether the question says that ``first`` has more (is heavier, older …) rather than less.
        negated: Whether it asks if that is false.
        wording: Which of the property's two wordings it uses.
        frame: The template around it, from ``ASK`` or ``ASK_NOT``.
    """

    property: str
    first: str
    second: str
    question: str
    answer: bool
    asks_more: bool
    negated: bool
    wording: int
    frame: str

    def swapped(self) -> Comparison:
        """The same question with the two entities exchanged; its answer is the opposite."""
        pair = (quantity(self.property, self.second), quantity(self.property, self.first))
        return _comparison(pair, self.asks_more, self.wording, self.frame)

    def paraphrases(self, split: str) -> list[Comparison]:
        """Every question of the split that means the same and names the two in the same order."""
        pair = (quantity(self.property, self.first), quantity(self.property, self.second))
        frames = dict.fromkeys((ASK_NOT if self.negated else ASK).of(split))
        return [_comparison(pair, self.asks_more, wording, frame) for wording in (0, 1) for frame in frames]


@cache
def quantities() -> tuple[Quantity, ...]:
    """All numbers in file order."""
    rows = csv.DictReader(read_data("quantities.csv").splitlines())
    return tuple(Quantity(row["entity"], row["property"], float(row["value"]), row["unit"]) for row in rows)


@cache
def _ranked(name: str) -> tuple[Quantity, ...]:
    """The quantities of a property from the smallest up."""
    return tuple(sorted((q for q in quantities() if q.property == name), key=lambda q: q.value))


def quantity(property: str, entity: str) -> Quantity:
    """The number of an entity.

    Raises:
        InputError: No such property, or no number of this entity.
    """
    if property not in PROPERTIES:
        raise InputError(f"Nothing is compared by '{property}'.{did_you_mean(property, list(PROPERTIES))}")
    table = {q.entity: q for q in _ranked(property)}
    if entity not in table:
        raise InputError(f"The {property} of '{entity}' is not known.{did_you_mean(entity, list(table))}")
    return table[entity]


@cache
def _pairs(name: str, split: str) -> tuple[tuple[Quantity, Quantity], ...]:
    """Pairs (larger, smaller) that lie clearly apart, of the entities that show the label in the split."""
    some = evidence(_ranked(name), split)
    ratio = PROPERTIES[name].ratio
    return tuple((high, low) for high in some for low in some if high.value >= ratio * low.value)


def amount(one: Quantity) -> str:
    """The value as one would say it: ``20 grams``, ``4 tonnes``, ``1.3 million square kilometres``."""
    value, unit = one.value, one.unit
    if value < 1:
        value, unit = value * 1000, {"kilograms": "grams", "kilometres an hour": "metres an hour"}[unit]
    elif value >= 1000 and unit.startswith("thousand "):
        value, unit = value / 1000, unit.replace("thousand", "million")
    elif value >= 1000 and unit == "kilograms":
        value, unit = value / 1000, "tonnes"
    return f"{value:g} {unit}"


def entity_phrase(entity: str) -> Phrase:
    """The entity's name, with an article where it has one; marked as entity, and as the city or thing that it is."""
    plain = phrase(entity)
    if entity in taxonomy():
        plain = thing_phrase(taxonomy()[entity])
    elif city := next((city for city in cities() if city.name == entity), None):
        plain = city_phrase(city)
    named = marked(plain, f"comparisons/entity/{slug(entity)}")
    return named if entity[0].isupper() else join([Phrase("the"), named])


def _tell(template: str, name: str, direction: int | None = None, **slots: Phrase) -> Phrase:
    """Fill a template of a wording and mark its words in brackets with the property and the direction (1 is less)."""
    concepts = [f"comparisons/property/{name}"]
    if direction is not None:
        concepts.append(f"comparisons/direction/{'less' if direction else 'more'}")
    pieces = re.split(r"[\[\]]", template)
    filled = [render(piece, **slots) if i % 2 == 0 else phrase(piece, *concepts) for i, piece in enumerate(pieces)]
    return join(filled, "")


def _claim(first: Quantity, second: Quantity, wording: Wording, direction: int, ask: bool = False) -> Phrase:
    template = (wording.asks if ask else wording.claims)[direction]
    return _tell(template, first.property, direction, x=entity_phrase(first.entity), y=entity_phrase(second.entity))


def _no() -> dict[str, Phrase]:
    return {word: phrase(word, "comparisons/negation") for word in _NO}


def _ask(first: Quantity, second: Quantity, wording: Wording, direction: int, frame: str) -> Phrase:
    claim = _claim(first, second, wording, direction)
    return sentence(frame, ask=_claim(first, second, wording, direction, ask=True), claim=claim, **_no())


def _holds(first: Quantity, second: Quantity, direction: int) -> bool:
    return (first.value > second.value) == (direction == 0)


def _comparison(pair: tuple[Quantity, Quantity], asks_more: bool, wording: int, frame: str) -> Comparison:
    first, second = pair
    name, direction = first.property, 0 if asks_more else 1
    negated = frame in ASK_NOT.templates
    text = _ask(first, second, PROPERTIES[name].wordings[wording], direction, frame).text
    answer = _holds(first, second, direction) != negated
    return Comparison(name, first.entity, second.entity, text, answer, asks_more, negated, wording, frame)


_Plan = tuple[Quantity, Quantity, bool, int, str]


def _plans(name: str, split: str, seed: int) -> list[_Plan]:
    """What can be asked of each pair, in random order, every fourth negated; one order of the pair stands for both."""
    draw = Draw(seed, "comparisons", "questions", split, name)
    groups: list[list[_Plan]] = []
    for frames in (ASK.of(split), ASK_NOT.of(split)):
        group = [
            (high, low, more, wording, frame)
            for high, low in _pairs(name, "train")
            for more in (True, False)
            for wording in (0, 1)
            for frame in dict.fromkeys(frames)
        ]
        groups.append(draw.sample(group, len(group)))
    plain, negated = groups
    mixed: list[_Plan] = []
    for i, plan in enumerate(negated):
        mixed += [*plain[3 * i : 3 * i + 3], plan]
    # Which of the two orders comes first must not tell the answer.
    mixed += plain[3 * len(negated) :]
    return [
        (low, high, more, wording, frame) if draw.chance(0.5) else (high, low, more, wording, frame)
        for high, low, more, wording, frame in mixed
    ]


def comparisons(property: str | None, split: str, count: int, seed: int = 0) -> list[Comparison]:
    """Different yes/no questions with their answers.

    Question ``2i`` and question ``2i + 1`` are the same words with the two entities exchanged, so that yes and no
    occur equally often whatever is asked. One question in four is negated ("Is it false that …?").

    Args:
        property: One of ``PROPERTIES``; None takes them in turn.
        split: Questions of ``probe_test`` are in wordings that no text of another split has.
        count: How many questions.
        seed: Another seed is another selection.

    Raises:
        InputError: Unknown property or split, or more questions than there are.
    """
    if property is not None and property not in PROPERTIES:
        raise InputError(f"Nothing is compared by '{property}'.{did_you_mean(property, list(PROPERTIES))}")
    if split not in SPLITS:
        raise InputError(f"The world has no split '{split}'.{did_you_mean(split, SPLITS)}")
    names = list(PROPERTIES) if property is None else [property]
    pools = [_plans(name, split, seed) for name in names]
    # In turn as long as every property has some left, then from those that do.
    plans = [pool[i] for i in range(max(map(len, pools))) for pool in pools if i < len(pool)]
    if not 0 <= count <= 2 * len(plans):
        raise InputError(f"Split '{split}' has {2 * len(plans)} such questions, not {count}; ask for fewer.")
    found: list[Comparison] = []
    for first, second, more, wording, frame in plans[: (count + 1) // 2]:
        one = _comparison((first, second), more, wording, frame)
        found += [one, one.swapped()]
    return found[:count]


def describe() -> dict[str, str]:
    """The concepts of this domain by id, parents before children."""
    found = {
        "comparisons": "any text that compares things by a number",
        "comparisons/property": "the words that say by what two or more things are compared",
    }
    for name in PROPERTIES:
        found[f"comparisons/property/{name}"] = f"the words that say that things are compared by {name}"
    found |= {
        "comparisons/direction": "the words that say which of two things has more, or which way a ranking goes",
        "comparisons/direction/more": "words such as heavier, oldest or from light to heavy",
        "comparisons/direction/less": "words such as lighter, newest or from heavy to light",
        "comparisons/amount": "a number with its unit",
        "comparisons/negation": "a word that turns the claim beside it round, such as false or wrong",
        "comparisons/answer": "the answer to a yes/no question",
        "comparisons/answer/yes": "the answer Yes",
        "comparisons/answer/no": "the answer No",
        "comparisons/entity": "the name of something that is compared",
    }
    for one in quantities():
        found[f"comparisons/entity/{slug(one.entity)}"] = f"the name {one.entity} where it is compared"
    return found


def _fact(one: Quantity, wording: Wording) -> Phrase:
    assert wording.fact is not None
    told = phrase(amount(one), "comparisons/amount")
    return _tell(wording.fact, one.property, x=entity_phrase(one.entity), v=told)


@dataclass(frozen=True, slots=True)
class _Scene:
    """What a document is drawn from: its property, and the halves of the world that its split may use."""

    draw: Draw
    split: str
    name: str

    def wording(self) -> Wording:
        return self.draw.pick(evidence(PROPERTIES[self.name].wordings, self.split))

    def pair(self) -> tuple[Quantity, Quantity]:
        """Two entities in random order."""
        high, low = self.draw.pick(_pairs(self.name, self.split))
        return (high, low) if self.draw.chance(0.5) else (low, high)

    def fill(self, one: Relation, **slots: Phrase) -> Phrase:
        template = one.draw(self.draw, self.split)
        if "{name}" in template:
            slots["name"] = draw_person(self.draw, self.split).slots()["name"]
        return sentence(template, **slots, **_no())

    def true_claim(self) -> Phrase:
        first, second = self.pair()
        return _claim(first, second, self.wording(), 0 if _holds(first, second, 0) else 1)

    def row(self) -> list[Quantity]:
        """Three to five entities from the smallest up, each clearly above the one before."""
        ranked = list(evidence(_ranked(self.name), self.split))
        length = 3 + self.draw.number(3)
        row: list[Quantity] = []
        at = self.draw.number(max(1, len(ranked) - 2 * length + 1))
        while True:
            row.append(ranked[at])
            if len(row) == length:
                return row
            at += 1 + self.draw.number(3 if len(ranked) - at > 7 else 2)
            while at < len(ranked) and ranked[at].value < PROPERTIES[self.name].ratio * row[-1].value:
                at += 1
            if at >= len(ranked):
                return row


def _question(scene: _Scene) -> Phrase:
    first, second = scene.pair()
    wording, direction = scene.wording(), scene.draw.number(2)
    negated = scene.draw.chance(0.25)
    frame = (ASK_NOT if negated else ASK).draw(scene.draw, scene.split)
    answer = "Yes" if _holds(first, second, direction) != negated else "No"
    template = REPLY.draw(scene.draw, scene.split)
    slots = {"answer": phrase(answer, f"comparisons/answer/{answer.lower()}")}
    if "{reason}" in template:
        if wording.fact and scene.draw.chance(0.4):
            facts = [_fact(one, wording) for one in (first, second)]
            slots["reason"] = join(facts, " and ")
        else:
            truth = 0 if _holds(first, second, 0) else 1
            slots["reason"] = _claim(first, second, wording, truth)
    if "{name}" in template:
        slots["name"] = draw_person(scene.draw, scene.split).slots()["name"]
    return join([_ask(first, second, wording, direction, frame), sentence(template, **slots)])


def _statement(scene: _Scene) -> Phrase:
    return scene.fill(STATE, claim=scene.true_claim())


def _denial(scene: _Scene) -> Phrase:
    first, second = scene.pair()
    false = _claim(first, second, scene.wording(), 1 if _holds(first, second, 0) else 0)
    return scene.fill(DENY, claim=false)


def _value(scene: _Scene) -> Phrase:
    """A number where the split's wordings tell numbers, and a comparison where they do not."""
    told = [one for one in evidence(PROPERTIES[scene.name].wordings, scene.split) if one.fact]
    if not told:
        return _statement(scene)
    one = scene.draw.pick(evidence(_ranked(scene.name), scene.split))
    return scene.fill(STATE, claim=_fact(one, told[0]))


def _named(row: Sequence[Quantity]) -> Phrase:
    return listing([entity_phrase(one.entity) for one in row])


def _ranking(scene: _Scene) -> Phrase:
    row, wording, direction = scene.row(), scene.wording(), scene.draw.number(2)
    order = _tell(wording.orders[direction], scene.name, direction)
    return scene.fill(RANK, order=order, list=_named(row[::-1] if direction else row))


def _top(scene: _Scene) -> Phrase:
    row, wording, direction = scene.row(), scene.wording(), scene.draw.number(2)
    x = row[0 if direction else -1]
    top = _tell(wording.tops[direction], scene.name, direction, x=entity_phrase(x.entity))
    return scene.fill(MOST, list=_named(scene.draw.sample(row, len(row))), top=top)


_KINDS = Weighted((_question, _statement, _denial, _value, _ranking, _top), (5.0, 2.0, 0.7, 1.5, 2.5, 1.5))


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One text about one property. Its single label has nothing to be correlated with; ``spurious`` is unused."""
    scene = _Scene(draw, split, draw.pick(list(PROPERTIES)))
    parts = [draw.weighted(_KINDS)(scene)]
    while sum(len(part.text.split()) for part in parts) < _BOUND and draw.chance(0.75):
        parts.append(draw.weighted(_KINDS)(scene))
    return finish(marked(join(parts), "comparisons"), {"property": scene.name}, identity)
