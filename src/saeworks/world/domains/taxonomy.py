"""Texts about things and kinds: what a thing is, what it inherits, what sets it apart.

Document label: ``root`` (animal, plant, tool, food, vehicle, instrument). Every mention of a thing carries the concepts
of the thing and of all its ancestors at the same characters, and every property carries the concept of the kind that
owns it, so that a text about a beagle cannot be continued well without knowing that it is a dog and a mammal.

The probe splits never say the root or what is true of all of it, and each of them has every second branch below the
root (mammals and fish in one, birds and reptiles in the other): that a trout is an animal has to be known.
"""

from __future__ import annotations

from functools import cache

from saeworks.world.documents import Document
from saeworks.world.drawing import Draw, Weighted
from saeworks.world.knowledge import Thing, concept_of, leaves, roots, taxonomy
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

LABELS = ("root",)

IS_A = relation(
    "{x:a} is {kind:a}.",
    "{x:a} is a kind of {kind}.",
    "every {x} is {kind:a}.",
    "a person who sees {x:a} sees {kind:a}.",
    "the {x} is one of the {kinds}.",
    "{xs} are {kinds}.",
    "among the {kinds} we find the {x}.",
    "the {x} belongs to the {kinds}.",
    "as everyone knows, {x:a} is {kind:a}.",
    "the word {x} means {kind:a} of a certain sort.",
    "the {x} counts as {kind:a}.",
    "all {xs} are {kinds}.",
)
CHAIN = relation(
    "{x:a} is {kind:a}, and {kind:a} is {above:a}.",
    "the {x} is {kind:a} and therefore {above:a}.",
    "{xs} are {kinds}, which are {aboves}.",
    "since {x:a} is {kind:a}, it is also {above:a}.",
    "every {x} is {kind:a} and every {kind} is {above:a}.",
    "from {x} to {kind}, from {kind} to {above}: that is the order.",
    "the {x} is among the {kinds}, and these are {aboves}.",
    "if it is {x:a}, then it is {kind:a}, and so {above:a}.",
    "being {kind:a}, the {x} is {above:a}.",
    "the {x}, like other {kinds}, is {above:a}.",
)
INHERITS = relation(
    "like every {kind}, the {x} {has}.",
    "because it is {kind:a}, the {x} {has}.",
    "the {x} {has}, and this holds for every {kind}.",
    "the {x} is {kind:a}, so it {has}.",
    "every {kind} {has}, and so the {x} {has}.",
    "it {has}, for the {x} is {kind:a}.",
    "what {has} may be {kind:a}, and the {x} is one.",
    "the {kind} {has}; this is true of the {x} as well.",
    "as {kind:a}, the {x} {has}.",
    "we know that the {x} {has}, since it is {kind:a}.",
)
OWN = relation(
    "the {x} {has}.",
    "you can tell the {x} by this: it {has}.",
    "of all {kinds}, the {x} is the one that {has}.",
    "unlike other {kinds}, the {x} {has}.",
    "a good {x} {has}.",
    "everyone has heard that the {x} {has}.",
    "in {city} people say that the {x} {has}.",
    "the {x} is known because it {has}.",
    "people like the {x} because it {has}.",
    "what is special about the {x}? It {has}.",
)
TWO_TRAITS = relation(
    "the {x} {has} and {has2}.",
    "the {x} {has}, and it {has2}.",
    "it {has} and it {has2}: that is the {x}.",
    "the {x} not only {has}, it {has2}.",
    "whatever {has} and {has2} could be the {x}.",
    "first, the {x} {has}; second, it {has2}.",
    "an old book says that the {x} {has} and {has2}.",
    "the {x}, which {has}, also {has2}.",
    "the {x} {has}; what is more, it {has2}.",
    "both are true of the {x}: it {has} and it {has2}.",
)
SCENE = relation(
    "{name} saw {x:a} in {city}.",
    "in the garden of {name} there was {x:a}.",
    "{name} once drew {x:a} for a child.",
    "yesterday {name} spoke about the {x}.",
    "{name} dreamed of {x:a} that {has}.",
    "there is {x:a} on the picture that {name} sent from {city}.",
    "{name} wanted to know what {x:a} is.",
    "when {name} was small, {subj} was fond of one particular {x}.",
    "{name} from {city} has written a song about the {x}.",
    "at the market in {city} {name} asked for {x:a}.",
)
SIBLING = relation(
    "the {x} and the {y} are both {kinds}.",
    "like the {y}, the {x} is {kind:a}.",
    "the {x} is {kind:a}, and so is the {y}.",
    "do not confuse the {x} with the {y}, though both are {kinds}.",
    "other {kinds} are the {y} and the like.",
    "the {y} is {kind:a} too, but it {yhas}.",
    "{kinds} such as the {x} and the {y} have much in common.",
    "the {x} {has}, while the {y} {yhas}.",
    "whether {x} or {y}, it is {kind:a}.",
    "the {y}, another of the {kinds}, {yhas}.",
)
UNLIKE = relation(
    "the {x} is not {other:a}.",
    "nobody would call the {x} {other:a}.",
    "{x:a} is {root:a}, not {other:a}.",
    "the {x} has nothing to do with {z:a}, which is {other:a}.",
    "while {z:a} is {other:a}, {x:a} is {root:a}.",
    "is the {x} {other:a}? No, it is {root:a}.",
    "{x:a} is no {z}, for {z:a} is {other:a}.",
    "some {others} can be found near it, but the {x} is {root:a}.",
    "never mistake the {x} for {other:a}; it is {root:a}.",
    "the {z} is {other:a} but the {x} is {root:a}.",
)
RIDDLE = relation(
    "it {top}, it {has} and it {has2}: what is it? It is the {x}.",
    "guess: it {top} and it {has}, and it {has2}. The answer: the {x}.",
    "what {top}, {has} and {has2}? The {x}.",
    "I am thinking of {root:a} that {has} and {has2}. It is the {x}.",
    "a riddle: {root:a}, it {has}, it {has2}. The {x}!",
    "which {kind} {has2}? The {x}, which also {has}.",
    "name {kind:a} that {has2}. One answer is the {x}.",
    "it {has}. It {top}. It {has2}. You have guessed it: the {x}.",
    "think of something that {top}, {has} and {has2}: the {x}.",
    "here is {kind:a} that {has2}: the {x}.",
)
_RELATIONS: tuple[Relation, ...] = (IS_A, CHAIN, INHERITS, OWN, TWO_TRAITS, SCENE, SIBLING, UNLIKE, RIDDLE)


# A probe must not be told the answer: templates with these slots stay out of the probe splits.
_TELLING = ("root", "top", "other", "z")


@cache
def _things(split: str) -> Weighted[str]:
    """Leaves three times as often as inner kinds; within each, a gentle Zipf law over a fixed order."""
    names = [name for name, thing in taxonomy().items() if thing.parent]
    if split in PROBE_SPLITS:
        branches = {branch for root in roots() for branch in evidence(taxonomy()[root].children, split)}
        names = [name for name in names if len(taxonomy()[name].path) > 2 and taxonomy()[name].path[1] in branches]
    spread = sorted(names, key=lambda name: sum(ord(c) * (i + 3) for i, c in enumerate(name)) % 997)
    leaf = set(leaves())
    return Weighted(spread, [(3.0 if name in leaf else 1.0) / (60.0 + i) for i, name in enumerate(spread)])


def thing_phrase(thing: Thing, plural: bool = False) -> Phrase:
    """The thing's name, marked with its own concept and those of all its ancestors."""
    concepts = [concept_of(thing.path[: i + 1]) for i in range(len(thing.path))]
    return phrase(thing.plural if plural else thing.name, *concepts)


def trait_phrase(owner: Thing, trait: str) -> Phrase:
    """A property, marked as belonging to the kind that owns it."""
    return phrase(trait, "property/" + owner.concept.removeprefix("taxonomy/"))


def _trait(draw: Draw, thing: Thing, level: int) -> Phrase:
    """A property that the ancestor at ``level`` of the path owns (``-1`` is the thing itself)."""
    owner = taxonomy()[thing.path[level]]
    return trait_phrase(owner, draw.pick(owner.properties))


def _slots(draw: Draw, split: str, template: str, one: Relation, thing: Thing) -> dict[str, Phrase]:
    world = taxonomy()
    lowest = 1 if split in PROBE_SPLITS else 0
    # Inherited properties come from any level above the thing, everything else speaks of the kind right above it.
    level = lowest + draw.number(len(thing.path) - 1 - lowest) if one is INHERITS else len(thing.path) - 2
    kind = world[thing.path[level]]
    root = world[thing.root]
    slots = {"x": thing_phrase(thing), "xs": thing_phrase(thing, plural=True), "root": thing_phrase(root)}
    slots |= {"kind": thing_phrase(kind), "kinds": thing_phrase(kind, plural=True)}
    above = world[thing.path[max(level - 1, lowest)]]
    slots |= {"above": thing_phrase(above), "aboves": thing_phrase(above, plural=True)}
    if "{has}" in template:
        own = one in (OWN, SIBLING) or (one is not INHERITS and draw.chance(0.5))
        at = len(thing.path) - 1 if own else level
        owner = world[thing.path[at]]
        pair = draw.sample(owner.properties, 1)
        slots["has"] = trait_phrase(owner, pair[0])
        if "{has2}" in template:
            rest = [(k, p) for k in (thing, kind) for p in k.properties if p != pair[0]]
            slots["has2"] = trait_phrase(*draw.pick(rest))
    elif "{has2}" in template:
        slots["has2"] = _trait(draw, thing, -1)
    if "{top}" in template:
        said = {slots[key].text for key in ("has", "has2") if key in slots}
        slots["top"] = trait_phrase(root, draw.pick([p for p in root.properties if p not in said]))
    if one is SIBLING:
        other = world[draw.pick([name for name in kind.children if name != thing.name])]
        slots["y"] = thing_phrase(other)
        if "{yhas}" in template:
            slots["yhas"] = _trait(draw, other, -1)
    if one is UNLIKE:
        other = world[draw.pick([name for name in roots() if name != root.name])]
        slots |= {"other": thing_phrase(other), "others": thing_phrase(other, plural=True)}
        if "{z" in template:
            slots["z"] = thing_phrase(world[draw.pick([n for n in leaves() if world[n].root == other.name])])
    if "{city}" in template:
        slots["city"] = city_phrase(draw_city(draw))
    if "{name}" in template:
        person = draw_person(draw, split).slots()
        slots |= {"name": person["name"], "subj": person["subj"]}
    return slots


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One text about a thing. Its single label has nothing to be correlated with; ``spurious`` is unused."""
    thing = taxonomy()[draw.weighted(_things(split))]
    probing = split in PROBE_SPLITS
    pool = [r for r in _RELATIONS if not (probing and r is UNLIKE)]
    parts: list[Phrase] = []
    for one in draw.sample(pool, 1 + draw.number(6)):
        # A chain needs three levels that may be named; otherwise the thing is described by what it is.
        used = IS_A if one is CHAIN and len(thing.path) < 3 + probing else one
        template = used.draw(draw, split, _TELLING if probing else ())
        parts.append(sentence(template, **_slots(draw, split, template, used, thing)))
    return finish(marked(join(parts), "taxonomy"), {"root": thing.root}, identity)
