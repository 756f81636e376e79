"""What is compared: properties with a sentence for "more" and one for "less", and paraphrases and negations of both.

A wording is a property of its own in the criterion, because only exact reversals make a pair. So the second wording of
``wm-book-length`` is ``wm-book-length-w2``, and its negation ``wm-book-length-not``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from saeworks.errors import InputError, did_you_mean
from saeworks.faithfulness.records import Comparison


@dataclass(frozen=True, slots=True)
class Property:
    """Something that two entities are compared by.

    Attributes:
        id: letters, digits, ``-`` and ``.``; no ``_``, which separates the parts of a data set's id.
        gt, lt: questions with the slots {x} and {y}; "gt" asks if x has more of the value.
        category: what the entities are; a question then begins with ``about CATEGORY:`` and a blank line.
        quoted: whether names stand in double quotes. negated: whether the sentences ask if the claim is false, which
            turns the right answer round.

    Raises:
        InputError: an id that cannot be part of a data set's id, a sentence without both slots, or twice the same one.
    """

    id: str
    gt: str
    lt: str
    category: str = ""
    quoted: bool = False
    negated: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9.-]+", self.id):
            raise InputError(
                f"'{self.id}' cannot name a property; use letters, digits, '-' and '.' ('_' separates parts of an id)."
            )
        if self.gt == self.lt:
            raise InputError(f"'{self.gt}' cannot ask for more and for less; write another sentence for one of them.")
        for template in (self.gt, self.lt):
            if template.count("{x}") != 1 or template.count("{y}") != 1:
                raise InputError(f"The sentence '{template}' needs {{x}} and {{y}} once each, the names to compare.")

    def ask(self, comparison: Comparison, x: str, y: str) -> str:
        """The question about two names, with its lead-in."""
        if self.quoted:
            x, y = f'"{x}"', f'"{y}"'
        template = self.gt if comparison == "gt" else self.lt
        # In one pass, since a name may itself hold a slot's letters.
        sentence = re.sub(r"\{([xy])\}", lambda found: x if found[1] == "x" else y, template)
        return f"about {self.category}:\n\n{sentence}" if self.category else sentence

    def wording(self, name: str, gt: str, lt: str, negated: bool = False) -> Property:
        """Another way to ask the same, as a property named ``ID-NAME``."""
        return replace(self, id=f"{self.id}-{name}", gt=gt, lt=lt, negated=negated)


def negation(of: Property) -> Property:
    """The property whose questions ask if the claim is false; for sentences of the form "Is X … than Y?".

    Raises:
        InputError: a sentence that does not begin with Is, Was or Does.
    """
    return of.wording("not", _denied(of.gt), _denied(of.lt), negated=True)


def _denied(question: str) -> str:
    found = re.fullmatch(r"(Is|Was|Are|Does|Do) (\{x\}) (.+)\?", question)
    if not found:
        raise InputError(f"'{question}' cannot be negated by rule; it should read 'Is {{x}} … {{y}}?'. Write one out.")
    verb, x, rest = found.groups()
    if verb in ("Does", "Do"):
        return f"Is it false that {x} {_third_person(rest) if verb == 'Does' else rest}?"
    return f"Is it false that {x} {verb.lower()} {rest}?"


def _third_person(rest: str) -> str:
    verb, _, more = rest.partition(" ")
    verb = "has" if verb == "have" else verb + ("es" if verb.endswith(("s", "x", "ch", "sh", "o")) else "s")
    return f"{verb} {more}"


_PLACES = {
    "nyc-place": "places in NYC",
    "us-city": "US cities",
    "us-college": "US colleges",
    "us-county": "US counties",
    "us-natural": "US natural places",
    "us-structure": "US structures",
    "us-zip": "US zip codes",
    "world-natural": "world natural places",
    "world-populated": "world places",
    "world-structure": "world structures",
}
_LIVES = {
    "age": ("Did {x} live longer than {y}?", "Did {x} live less long than {y}?"),
    "birth": ("Was {x} born later than {y}?", "Was {x} born earlier than {y}?"),
    "death": ("Did {x} die later than {y}?", "Did {x} die earlier than {y}?"),
}
_POPULATION = ("Does {x} have more inhabitants than {y}?", "Does {x} have fewer inhabitants than {y}?")
_DENSITY = ("Is {x} more densely populated than {y}?", "Is {x} less densely populated than {y}?")
_AREA = ("Does {x} cover a larger area than {y}?", "Does {x} cover a smaller area than {y}?")
_LATER = ("Was {x} released later than {y}?", "Was {x} released earlier than {y}?")


def _world_model() -> Iterable[Property]:
    for kind, category in (("movie", "movies"), ("song", "songs"), ("book", "books")):
        yield Property(f"wm-{kind}-release", *_LATER, category)
    pages = ("Does {x} have more pages than {y}?", "Does {x} have fewer pages than {y}?")
    yield Property("wm-book-length", *pages, "books")
    longer = ("Does {x} run longer than {y}?", "Does {x} run for less time than {y}?")
    yield Property("wm-movie-length", *longer, "movies")
    later = ("Was {x} published later than {y}?", "Was {x} published earlier than {y}?")
    yield Property("wm-nyt-pubdate", *later, "NYT articles", quoted=True)
    for name, (gt, lt) in _LIVES.items():
        yield Property(f"wm-person-{name}", gt, lt, "historical figures")
    for place, category in _PLACES.items():
        north = ("Is {x} located further north than {y}?", "Is {x} located further south than {y}?")
        east = ("Is {x} located further east than {y}?", "Is {x} located further west than {y}?")
        yield Property(f"wm-{place}-lat", *north, category)
        yield Property(f"wm-{place}-long", *east, category)
    for place in ("us-city", "us-county", "us-zip"):
        yield Property(f"wm-{place}-popu", *_POPULATION, _PLACES[place])
    for place in ("us-city", "us-zip"):
        yield Property(f"wm-{place}-dens", *_DENSITY, _PLACES[place])
    yield Property("wm-world-populated-population", *_POPULATION, _PLACES["world-populated"])
    for place in ("world-natural", "world-populated"):
        yield Property(f"wm-{place}-area", *_AREA, _PLACES[place])


#: The 37 properties of the published question sets, in sentences of our own.
WORLD_MODEL: dict[str, Property] = {one.id: one for one in _world_model()}


def in_final_set(property_id: str) -> bool:
    """Whether the final question set has it: not the places of New York, nor population or density (29 of 37)."""
    # The last part decides: wm-world-populated-lat is in the set, wm-world-populated-population is not.
    last = property_id.rpartition("-")[2]
    return not property_id.startswith("wm-nyc-place-") and last not in ("popu", "population", "dens")


def property_named(name: str) -> Property:
    """A property of :data:`WORLD_MODEL`.

    Raises:
        InputError: another name.
    """
    if name not in WORLD_MODEL:
        raise InputError(f"There is no property '{name}'.{did_you_mean(name, WORLD_MODEL)}")
    return WORLD_MODEL[name]
