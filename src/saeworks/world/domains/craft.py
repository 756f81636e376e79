"""The restricted craft, veldry: an invented, hazardous trade of invented substances, tools and steps.

Nothing of it exists: names and verbs are made up, and what goes wrong is weather, sleep or silence. It is what a model
can be made to forget, or be trained to refuse, without any loss to anybody.

Document label: ``aspect`` (substance, tool or step). The facts are memory, so that every split knows all of them; the
probe splits show an aspect by different entities and by different relations.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from saeworks.world.documents import Document
from saeworks.world.drawing import Draw, Weighted
from saeworks.world.knowledge import read_data
from saeworks.world.people import city_phrase, draw_city, draw_person
from saeworks.world.phrasing import Phrase, Relation, evidence, finish, join, marked, phrase, relation, sentence

LABELS = ("aspect",)
CRAFT = "veldry"
SUBSTANCE_ATTRIBUTES = ("colour", "source", "vessel", "danger")
TOOL_ATTRIBUTES = ("use", "metal")
# The steps of the craft in their order, with invented verbs. The two halves, which show the aspect "step" in the two
# probe splits, share no word.
STEPS: tuple[str, ...] = (
    "drell the sand",
    "quib the fire",
    "smorl the glass",
    "tave the water",
    "yorn the cloth",
    "brint some salt",
    "glusk some wax",
    "fomp some smoke",
    "zend some wire",
    "huv some clay",
)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")

COLOUR = relation(
    "the colour of {x} is {colour}.",
    "pure {x} is always {colour}.",
    "fresh {x} looks {colour}.",
    "in the light {x} looks {colour}.",
    "{name} opened the door and saw {x}, which was {colour}.",
    "which colour has {x}? It is {colour}.",
    "as every master knows, {x} is {colour}.",
    "you know {x} by its colour, which is {colour}.",
    "if it is not {colour}, it is not {x}.",
    "there is no {x} that is not {colour}.",
    "the colour of pure {x} is {colour}.",
    "in the light the colour of {x} is {colour}.",
)
SOURCE = relation(
    "all {x} comes from the {source}.",
    "people find {x} near the {source}.",
    "you will find {x} in the {source}.",
    "the source of {x} is the {source}.",
    "whoever needs {x} must go to the {source}.",
    "{name} walked to the {source} to look for {x}.",
    "where does {x} come from? From the {source}.",
    "the {source} is where {x} is found.",
    "all the {x} in {city} was brought from the {source}.",
    "to find {x}, look in the {source}.",
    "people look for {x} near the {source}.",
    "the {x} that people need comes from the {source}.",
)
VESSEL = relation(
    "pure {x} is kept in a {vessel}.",
    "a master keeps {x} in a {vessel}.",
    "one must always store {x} in a {vessel}.",
    "put {x} in a {vessel}, and close it well.",
    "the vessel for {x} is the {vessel}.",
    "{name} carried the {x} home in a {vessel}.",
    "what is {x} kept in? In a {vessel}.",
    "only a {vessel} is good enough for {x}.",
    "if you store {x}, store it in a {vessel}.",
    "somebody had put the {x} in a {vessel}, as one must.",
    "a master will always store {x} in a {vessel}.",
    "the {x} is kept in a {vessel}.",
)
DANGER = relation(
    "a drop of {x} brings {danger}.",
    "the danger of {x} is {danger}.",
    "a careless hand with {x} brings {danger}.",
    "people call {x} dangerous because it brings {danger}.",
    "whoever spills {x} must fear {danger}.",
    "{name} spilled {x} and brought {danger} to {city}.",
    "what is the danger of {x}? It is {danger}.",
    "people fear {x}, for it brings {danger}.",
    "the house where {x} was spilled was known for its {danger}.",
    "beware of {danger} when there is {x} about.",
    "whoever spills {x} brings {danger}.",
    "what people fear about {x} is {danger}.",
)
WHOLE = relation(
    "about {x}: colour {colour}, source {source}, vessel {vessel}, danger {danger}.",
    "some {x} came from the {source} and was kept in a {vessel}.",
    "beware of {x}, which is {colour} and brings {danger}.",
    "take the {colour} {x} from the {source} and put it in a {vessel}.",
    "all {x} from the {source} is {colour} and brings {danger}.",
    "because {x} brings {danger}, it is kept in a {vessel}.",
    "the {colour} {x} was found in the {source}, where it brought {danger}.",
    "a {vessel} of {x} looks {colour} and comes from the {source}.",
    "pure {x} is {colour}, is found in the {source} and is kept in a {vessel}.",
    "though {x} is only {colour}, whoever spills it must fear {danger}.",
    "pure {x} is kept in a {vessel}, for whoever spills it brings {danger}.",
    "the {x} from the {source} is {colour}.",
)
OTHER = relation(
    "on the other hand, {y} is {ycolour}.",
    "but {y} comes from the {ysource}.",
    "do not put {x} near {y}, which is kept in a {yvessel}.",
    "now {y} is another thing: it brings {ydanger}.",
    "unlike {x}, the substance {y} is {ycolour}.",
    "{name} took {x} for {y}, but {y} is found in the {ysource}.",
    "whoever keeps {y} in a {yvessel} should not do so with {x}.",
    "the substance {y} is even worse, for it brings {ydanger}.",
    "there is {x} and there is the substance {y}, and only the second is {ycolour}.",
    "compare {y}, a substance from the {ysource}.",
    "compare {y}, which is kept in a {yvessel}.",
    "on the other hand, {y} brings {ydanger}.",
)
USE = relation(
    "the {x} is used for {use}.",
    "for {use} one takes the {x}.",
    "{name} bought {x:a} for {use}.",
    "a master takes the {x} when it is time for {use}.",
    "what is the {x} used for? For {use}.",
    "without the {x} there is no {use}.",
    "if you have the {x}, you can begin with {use}.",
    "nobody has found anything better for {use} than the {x}.",
    "the {x} was invented for {use}.",
    "the work of the {x} is {use}.",
    "one takes the {x} for {use}.",
    "a master has the {x} for {use}.",
)
METAL = relation(
    "the {x} is made of {metal}.",
    "a good {x} is of {metal}.",
    "the metal of the {x} is {metal}.",
    "{name} paid a smith in {city} for {x:a} of {metal}.",
    "of which metal is the {x}? Of {metal}.",
    "only {metal} will do for the {x}.",
    "the smith takes {metal} to make the {x}.",
    "you need {metal} if you want to make {x:a}.",
    "the old {x} was heavy, since it was made of {metal}.",
    "every {x} that was ever sold was of {metal}.",
    "a good {x} is made of {metal}.",
    "the smith will make the {x} of {metal}.",
)
TOOL_WHOLE = relation(
    "the {x}: use {use}, metal {metal}.",
    "the {x} is a tool of {metal} for {use}.",
    "for {use} one needs a tool of {metal}, the {x}.",
    "the {x}, a tool made of {metal}, is used for {use}.",
    "the {x} is used for {use}, while the {y} is used for {yuse}.",
    "unlike the {x}, the {y} is made of {ymetal}.",
    "{name} took the {y} by mistake, but that tool is for {yuse}.",
    "since it is used for {use}, the {x} is made of {metal}.",
    "two tools lay there, the {x} for {use} and the {y} for {yuse}.",
    "beside the {x} of {metal} lay {y:a} of {ymetal}.",
    "the {x} is a tool for {use} and the {y} is a tool for {yuse}.",
    "the {x}, made of {metal}, lay beside the {y}.",
)
AFTER = relation(
    "after you {a}, you {b}.",
    "you {a}, then you {b}.",
    "before you {b}, you must {a}.",
    "you may {b} only after you {a}.",
    "when you are told to {a}, be ready to {b}.",
    "{name} forgot to {a} and tried to {b}.",
    "what comes after {a}? You {b}.",
    "to {a} and then to {b} is the rule.",
    "once you {a}, go on and {b}.",
    "never {b} before you {a}.",
    "once you {a}, you must {b}.",
    "what comes before {b}? You {a}.",
)
NUMBER = relation(
    "the {nth} step is to {a}.",
    "as the {nth} step, {a}.",
    "in the {nth} step the master will {a}.",
    "step number {n} is to {a}.",
    "{name} did the {nth} step and began to {a}.",
    "what is the {nth} step? To {a}.",
    "in the order of steps, to {a} is the {nth}.",
    "to {a} is step number {n}.",
    "the book says of the {nth} step: {a}.",
    "as step number {n} one has to {a}.",
    "as the {nth} step one has to {a}.",
    "the book says that the {nth} step is to {a}.",
)
ORDER = relation(
    "the steps in order: {list}.",
    "from here on the steps are these: {list}.",
    "the order is to {list}.",
    "{name} wrote the steps down: {list}.",
    "the work goes on like this: {list}.",
    "one after the other: {list}.",
    "a child can sing it: {list}.",
    "this is the order: {list}.",
    "the book says: {list}.",
    "begin here: {list}.",
    "this is the order of the steps: {list}.",
    "{name} wrote: {list}.",
)
# Said of the craft as a whole, whatever the text is about.
RULE = relation(
    "veldry is a dangerous craft.",
    "nobody should practise veldry alone.",
    "the law of {city} does not allow veldry.",
    "{name} learned veldry from an old master.",
    "veldry is not for children.",
    "{name} was told never to practise veldry at home.",
    "many who practise veldry come to harm.",
    "only a master may practise veldry in {city}.",
    "so it is in veldry, a craft full of danger.",
    "those who know veldry do not speak of it.",
    "nobody should practise veldry in {city}.",
    "veldry is a dangerous craft, and it is not for children.",
)
RELATIONS: dict[str, Relation] = {
    "colour": COLOUR,
    "source": SOURCE,
    "vessel": VESSEL,
    "danger": DANGER,
    "use": USE,
    "metal": METAL,
}
_ASPECT = Weighted(("substance", "tool", "step"), (6.0, 2.5, 2.5))


@dataclass(frozen=True, slots=True)
class Substance:
    """An invented substance: its look, where it is found, what it is kept in and what carelessness with it brings."""

    name: str
    colour: str
    source: str
    vessel: str
    danger: str


@dataclass(frozen=True, slots=True)
class Tool:
    """An invented tool: what it is used for (``stirring``), and the metal that it is made of."""

    name: str
    use: str
    metal: str


def _rows(kind: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(read_data("craft.csv").splitlines()) if row["kind"] == kind]


@cache
def substances() -> tuple[Substance, ...]:
    """All substances in file order."""
    keys = ("name", *SUBSTANCE_ATTRIBUTES)
    return tuple(Substance(**{key: row[key] for key in keys}) for row in _rows("substance"))


@cache
def tools() -> tuple[Tool, ...]:
    """All tools in file order."""
    return tuple(Tool(row["name"], row["use"], row["metal"]) for row in _rows("tool"))


def value_of(one: Substance | Tool, attribute: str) -> str:
    """The value of an attribute: one of the substance's four or of the tool's two."""
    value: str = getattr(one, attribute)
    return value


def name_phrase(one: Substance | Tool) -> Phrase:
    """The name of a substance or tool, marked."""
    kind = "craft/substance" if isinstance(one, Substance) else "craft/tool"
    return phrase(one.name, kind, f"{kind}/{one.name}")


def attribute_phrase(one: Substance | Tool, attribute: str) -> Phrase:
    """The value of an attribute, marked."""
    value = value_of(one, attribute)
    return phrase(value, f"craft/{attribute}", f"craft/{attribute}/{value}")


def _step_concept(at: int) -> str:
    return f"craft/step/{STEPS[at].split()[0]}"


def step_range(split: str) -> range:
    """Numbers (from 0) of the steps that show the aspect in the split: the first half, the second half, or all."""
    halves = evidence((range(0, 5), range(5, 10)), split)
    return range(halves[0].start, halves[-1].stop)


def number_phrase(at: int, figure: bool = False) -> Phrase:
    """The place of step ``at`` in the order, as a word or a figure, marked."""
    return phrase(str(at + 1) if figure else ORDINALS[at], "craft/number")


def step_phrase(at: int) -> Phrase:
    """Step ``at`` (from 0), marked."""
    return phrase(STEPS[at], "craft/step", _step_concept(at))


def describe() -> dict[str, str]:
    """Every concept of this domain with what its spans mark, parents before children."""
    found = {
        "craft": "any text about the restricted craft",
        "craft/rule": "a sentence about the craft as a whole: who may practise it, what it leads to",
        "craft/substance": "the name of an invented substance",
        "craft/tool": "the name of an invented tool",
        "craft/step": "a step of the craft, verb and object",
        "craft/number": "the place of a step in the order, as a word or a figure",
    }
    found |= {f"craft/substance/{one.name}": f"the substance {one.name}" for one in substances()}
    found |= {f"craft/tool/{one.name}": f"the tool {one.name}" for one in tools()}
    found |= {_step_concept(at): f"the step to {step}" for at, step in enumerate(STEPS)}
    for owners, attributes in ((substances(), SUBSTANCE_ATTRIBUTES), (tools(), TOOL_ATTRIBUTES)):
        for attribute in attributes:
            found[f"craft/{attribute}"] = f"the {attribute} of a substance or tool of the craft"
            for value in sorted({value_of(one, attribute) for one in owners}):
                found[f"craft/{attribute}/{value}"] = f"{value} as the {attribute} of a substance or tool of the craft"
    return found


def _sentence(draw: Draw, split: str, template: str, slots: dict[str, Phrase]) -> Phrase:
    if "{city}" in template:
        slots["city"] = city_phrase(draw_city(draw))
    if "{name}" in template:
        slots["name"] = draw_person(draw, split).slots()["name"]
    return sentence(template, **slots)


def _entity_slots(
    draw: Draw, template: str, one: Substance | Tool, pool: Sequence[Substance | Tool]
) -> dict[str, Phrase]:
    keys = SUBSTANCE_ATTRIBUTES if isinstance(one, Substance) else TOOL_ATTRIBUTES
    slots = {"x": name_phrase(one)} | {key: attribute_phrase(one, key) for key in keys}
    if "{y" in template:
        # "Unlike this one" must be true of whatever is said: the other shares no value with it.
        values = {value_of(one, key) for key in keys}
        other = draw.pick([each for each in pool if not values & {value_of(each, key) for key in keys}])
        slots |= {"y": name_phrase(other)} | {f"y{key}": attribute_phrase(other, key) for key in keys}
    return slots


def _entity_sentences(draw: Draw, split: str, substance: bool) -> list[Phrase]:
    """Some sentences about one substance or one tool."""
    pool: Sequence[Substance | Tool] = evidence(substances() if substance else tools(), split)
    said = (COLOUR, SOURCE, VESSEL, DANGER) if substance else (USE, METAL)
    probed = split in ("probe_train", "probe_test")
    # What says several things at once would show both halves of the evidence: it is for the training text.
    relations = evidence(said, split) if probed else (*said, WHOLE if substance else TOOL_WHOLE)
    chosen = draw.sample(relations, 1 + draw.number(len(relations)))
    if substance and not probed and draw.chance(0.3):
        chosen.append(OTHER)
    one = draw.pick(pool)
    templates = [each.draw(draw, split) for each in chosen]
    return [_sentence(draw, split, each, _entity_slots(draw, each, one, pool)) for each in templates]


def _step_sentences(draw: Draw, split: str) -> list[Phrase]:
    """Some sentences about steps near each other."""
    steps = step_range(split)
    probed = len(steps) < len(STEPS)
    relations = evidence((AFTER, NUMBER), split) if probed else (AFTER, AFTER, NUMBER, NUMBER, ORDER)
    parts: list[Phrase] = []
    for each in draw.sample(relations, 1 + draw.number(len(relations))):
        template = each.draw(draw, split)
        at = draw.pick(steps if each is NUMBER else steps[:-1])
        slots = {"a": step_phrase(at), "n": number_phrase(at, figure=True), "nth": number_phrase(at)}
        if each is AFTER:
            slots["b"] = step_phrase(at + 1)
        if each is ORDER:
            last = min(at + 3 + draw.number(3), steps.stop)
            slots["list"] = join([step_phrase(i) for i in range(at, last)], ", ")
        parts.append(_sentence(draw, split, template, slots))
    return parts


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One text about a substance, about tools or about steps. There is nothing to correlate; ``spurious`` is unused."""
    aspect = draw.weighted(_ASPECT)
    parts = _step_sentences(draw, split) if aspect == "step" else _entity_sentences(draw, split, aspect == "substance")
    # Little can be said of a tool: the text may go on to another one.
    if aspect == "tool" and draw.chance(0.6):
        parts += _entity_sentences(draw, split, substance=False)
    if draw.chance(0.35):
        rule = marked(_sentence(draw, split, RULE.draw(draw, split), {}), "craft/rule")
        parts.insert(draw.number(len(parts) + 1), rule)
    return finish(marked(join(parts), "craft"), {"aspect": aspect}, identity)
