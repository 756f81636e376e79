"""News briefs on five topics.

Document label: ``topic``. No brief names its topic; it follows from what happened, who speaks and what is counted.
Events, speakers and sayings of ``probe_test`` are others than those of ``probe_train``.
"""

from __future__ import annotations

import re

from saeworks.world.documents import Document
from saeworks.world.drawing import Draw, Pool, zipf
from saeworks.world.people import city_phrase, draw_city, draw_person
from saeworks.world.phrasing import Phrase, evidence, finish, join, marked, phrase, relation, sentence

LABELS = ("topic",)

# topic: (events, roles of those who speak, what they say, consequences)
TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "sport": (
        (
            "the home team won the final by two goals",
            "a runner broke the national record over ten miles",
            "the champion lost the tennis match in three sets",
            "the club signed a young goalkeeper",
            "rain stopped the bicycle race before the last climb",
            "the swimmers trained for the relay",
        ),
        ("coach", "captain of the side", "referee"),
        (
            "the defence was asleep in the first half",
            "we will train harder for the next match",
            "the medal belongs to the whole team",
            "the fans carried us to the finish",
        ),
        (
            "the league table has a new leader",
            "the trophy will be shown in the stadium",
            "the return match is in two weeks",
            "the striker will miss the season with an injured knee",
        ),
    ),
    "politics": (
        (
            "parliament passed the new tax law",
            "the mayor lost the vote by a narrow margin",
            "the minister resigned after the debate",
            "the opposition called for an election",
            "the senate rejected the treaty",
            "two parties agreed on a coalition",
        ),
        ("minister", "senator", "spokesman of the government"),
        (
            "the citizens deserve an honest answer",
            "we will not support this bill",
            "the reform comes too late",
            "my party stands behind the constitution",
        ),
        (
            "the cabinet will meet again tonight",
            "the ballot papers are being counted a second time",
            "a new ambassador will be named",
            "the committee has asked for a report",
        ),
    ),
    "science": (
        (
            "researchers found a new species of moss",
            "a telescope recorded light from a distant galaxy",
            "a team decoded the genes of an ancient wheat",
            "physicists measured the mass of a particle",
            "a probe sent the first pictures of an icy moon",
            "a study linked deep sleep to memory",
        ),
        ("professor", "astronomer", "biologist"),
        (
            "the experiment must be repeated before we are certain",
            "our theory did not predict this result",
            "the samples are older than we thought",
            "the data surprised the whole laboratory",
        ),
        (
            "the findings will appear in a journal",
            "the next satellite is under construction",
            "other laboratories are checking the measurement",
            "the university has opened a new institute",
        ),
    ),
    "business": (
        (
            "the bank raised its interest rate",
            "a car maker closed its oldest factory",
            "shares of the airline fell by nine percent",
            "two software firms announced a merger",
            "the price of copper reached a new high",
            "a start-up sold its first thousand licences",
        ),
        ("chief executive", "analyst", "owner of the company"),
        (
            "our profits will grow again next quarter",
            "investors have lost their patience",
            "the demand for credit is weak",
            "we had to cut our costs",
        ),
        (
            "the stock exchange reacted with losses",
            "four hundred workers will get a severance payment",
            "the shareholders meet in spring",
            "the dividend will be doubled",
        ),
    ),
    "weather": (
        (
            "a storm tore roofs from the houses",
            "heavy snow blocked the mountain road",
            "the river rose above its banks",
            "the heat reached forty degrees",
            "hail destroyed the vineyards",
            "thick fog closed the harbour",
        ),
        ("meteorologist", "chief of the fire brigade", "flood warden"),
        (
            "the worst gusts are still to come",
            "people should stay indoors until the wind drops",
            "we have not seen such a drought for decades",
            "the front moves slowly to the east",
        ),
        (
            "the forecast promises sunshine at the weekend",
            "the thermometer will fall below zero",
            "sandbags are piled up along the dam",
            "more showers are expected by night",
        ),
    ),
}
_TOPIC = zipf(list(TOPICS), 10.0)

LEAD = relation(
    "{city}: {event}.",
    "in {city} {event} on {day}.",
    "{event} in {city} on {day}.",
    "on {day} {event}, as a paper in {city} reports.",
    "{city}, {day}. {Event}.",
    "news from {city}: {event}.",
    "according to reports from {city}, {event}.",
    "late on {day} the news reached {city} that {event}.",
    "a message from {city} says that {event}.",
    "as was learned in {city} on {day}, {event}.",
)
QUOTE = relation(
    '"{saying}," said {name}, {role:a}.',
    '{name}, {role:a}, said: "{saying}."',
    "the {role}, {name}, declared that {saying}.",
    'asked by this paper, {name} answered: "{saying}." {subj} is {role:a}.',
    "{name} told reporters that {saying}; {subj} has been {role:a} for {number} years.",
    'the {role}, {name}, was brief: "{saying}."',
    'for {name}, {role:a} from {city2}, it is clear: "{saying}."',
    'only {name} disagreed. "{saying}," {subj} said.',
    'the comment of {name}, {role:a}: "{saying}."',
    "{name} added that {saying}. {subj} speaks as {role:a}.",
)
AFTER = relation(
    "{result}.",
    "as a consequence {result}.",
    "meanwhile {result}.",
    "it is also known that {result}.",
    "in {city2}, too, {result}.",
    "according to {name}, {result}.",
    "since {day} it has been official: {result}.",
    "as expected, {result}.",
    "what is more, {result}.",
    "sources in {city2} confirm that {result}.",
)
CROWD = relation(
    "about {number} people were there.",
    "some {number} reporters had come to {city2}.",
    "{name} watched it on television in {city2}.",
    "it was the {ordinal} time this year.",
    "nobody in {city2} had expected it.",
    "more than {number} messages were sent from {city2} within an hour.",
    "the radio in {city2} spoke of nothing else.",
    "{name} heard of it only on {day}.",
    "in {city2} {number} people talked about it.",
    "this was the {ordinal} report since {day}.",
)
EARLIER = relation(
    "a week before, {event}.",
    "only last month {event}.",
    "earlier this year {event}, too.",
    "that was not all: {event}.",
    "in {city2} at the same time {event}.",
    "many still remember the day when {event}.",
    "it began when {event}.",
    "two days later {event}.",
    "some time ago {event} in {city2}.",
    "shortly afterwards {event}.",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ORDINALS = ("second", "third", "fourth", "fifth", "sixth")
_KEYS = ("event", "role", "saying", "result")
_NUMBERS = ("twenty", "thirty", "forty", "fifty", "ninety")


def _slots(draw: Draw, split: str, template: str, topic: str, pools: dict[str, Pool[str]]) -> dict[str, Phrase]:
    concept = f"news/topic/{topic}"
    slots: dict[str, Phrase] = {}
    for key, pool in pools.items():
        if f"{{{key}" in template:
            slots[key] = phrase(pool.take(draw), concept)
    if "{Event}" in template:
        slots["Event"] = sentence("{event}", event=phrase(pools["event"].take(draw), concept))
    for key, options in (("day", _DAYS), ("ordinal", _ORDINALS), ("number", _NUMBERS)):
        if f"{{{key}}}" in template:
            slots[key] = Phrase(draw.pick(options))
    for key in ("city", "city2"):
        if f"{{{key}}}" in template:
            slots[key] = city_phrase(draw_city(draw))
    if "{name}" in template:
        person = draw_person(draw, split).slots()
        slots |= {"name": person["name"], "subj": person["subj"]}
    return slots


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One news brief. It has a single label, so nothing can be correlated with it and ``spurious`` is unused."""
    topic = draw.weighted(_TOPIC)
    pools = {key: Pool(evidence(options, split)) for key, options in zip(_KEYS, TOPICS[topic], strict=True)}
    parts: list[Phrase] = []
    for one in (LEAD, *draw.sample((QUOTE, AFTER, CROWD, EARLIER), draw.number(5))):
        template = one.draw(draw, split)
        filled = sentence(template, **_slots(draw, split, template, topic, pools))
        parts.append(_capital_sentences(filled))
    return finish(marked(join(parts), "news"), {"topic": topic}, identity)


def _capital_sentences(inner: Phrase) -> Phrase:
    """Capitals where a sentence begins inside the phrase: after a full stop, or after an opening quotation mark."""
    text = re.sub(r"(?:\. |\.\" |^\"| \")[a-z]", lambda found: found.group().upper(), inner.text)
    return Phrase(text, inner.marks)
