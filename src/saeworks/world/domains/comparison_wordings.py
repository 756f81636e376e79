"""The words of the comparisons: two ways to speak of every property, and the sentences around them."""

from __future__ import annotations

from dataclasses import dataclass

from saeworks.world.phrasing import relation


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to speak of a property. Square brackets stand around the words that name it.

    Attributes:
        claims: ``x`` has more, ``x`` has less than ``y``.
        asks: The same two as questions.
        orders: How a ranking begins that goes up, and one that goes down.
        tops: ``x`` has the most, ``x`` has the least of several.
        fact: The value ``v`` of ``x``, where this wording tells values.
    """

    claims: tuple[str, str]
    asks: tuple[str, str]
    orders: tuple[str, str]
    tops: tuple[str, str]
    fact: str | None = None


@dataclass(frozen=True, slots=True)
class Property:
    """Something that is compared: how far values must lie apart, and the two ways to speak of it."""

    ratio: float
    wordings: tuple[Wording, Wording]


PROPERTIES: dict[str, Property] = {
    "weight": Property(
        1.4,
        (
            Wording(
                ("{x} is [heavier] than {y}", "{x} is [lighter] than {y}"),
                ("is {x} [heavier] than {y}", "is {x} [lighter] than {y}"),
                ("from [light to heavy]", "from [heavy to light]"),
                ("{x} is the [heaviest]", "{x} is the [lightest]"),
            ),
            Wording(
                ("{x} [weighs more] than {y}", "{x} [weighs less] than {y}"),
                ("does {x} [weigh more] than {y}", "does {x} [weigh less] than {y}"),
                ("from the [least weight] to the [most]", "from the [most weight] to the [least]"),
                ("{x} [weighs the most]", "{x} [weighs the least]"),
                "{x} [weighs] about {v}",
            ),
        ),
    ),
    "speed": Property(
        1.4,
        (
            Wording(
                ("{x} is [faster] than {y}", "{x} is [slower] than {y}"),
                ("is {x} [faster] than {y}", "is {x} [slower] than {y}"),
                ("from [slow to fast]", "from [fast to slow]"),
                ("{x} is the [fastest]", "{x} is the [slowest]"),
            ),
            Wording(
                ("{x} [reaches a higher speed] than {y}", "{x} [reaches a lower speed] than {y}"),
                ("does {x} [reach a higher speed] than {y}", "does {x} [reach a lower speed] than {y}"),
                ("from the [lowest speed] to the [highest]", "from the [highest speed] to the [lowest]"),
                ("{x} [reaches the highest speed]", "{x} [reaches the lowest speed]"),
                "{x} [reaches] about {v}",
            ),
        ),
    ),
    "age": Property(
        1.2,
        (
            Wording(
                ("{x} is [older] than {y}", "{x} is [newer] than {y}"),
                ("is {x} [older] than {y}", "is {x} [newer] than {y}"),
                ("from [new to old]", "from [old to new]"),
                ("{x} is the [oldest]", "{x} is the [newest]"),
            ),
            Wording(
                ("{x} was [invented before] {y}", "{x} was [invented after] {y}"),
                ("was {x} [invented before] {y}", "was {x} [invented after] {y}"),
                ("from the [last invention] to the [first]", "from the [first invention] to the [last]"),
                ("{x} was [invented first]", "{x} was [invented last]"),
                "{x} was [invented] about {v} ago",
            ),
        ),
    ),
    "area": Property(
        1.2,
        (
            Wording(
                ("{x} is [larger] than {y}", "{x} is [smaller] than {y}"),
                ("is {x} [larger] than {y}", "is {x} [smaller] than {y}"),
                ("from [small to large]", "from [large to small]"),
                ("{x} is the [largest]", "{x} is the [smallest]"),
            ),
            Wording(
                ("{x} [covers more land] than {y}", "{x} [covers less land] than {y}"),
                ("does {x} [cover more land] than {y}", "does {x} [cover less land] than {y}"),
                ("from the [least land] to the [most]", "from the [most land] to the [least]"),
                ("{x} [covers the most land]", "{x} [covers the least land]"),
                "{x} [covers] about {v}",
            ),
        ),
    ),
    "latitude": Property(
        1.2,
        (
            Wording(
                ("{x} is [further north] than {y}", "{x} is [further south] than {y}"),
                ("is {x} [further north] than {y}", "is {x} [further south] than {y}"),
                ("from [south to north]", "from [north to south]"),
                ("{x} is the [furthest north]", "{x} is the [furthest south]"),
            ),
            Wording(
                ("{x} lies [nearer to the pole] than {y}", "{x} lies [nearer to the equator] than {y}"),
                ("does {x} lie [nearer to the pole] than {y}", "does {x} lie [nearer to the equator] than {y}"),
                ("from the [equator to the pole]", "from the [pole to the equator]"),
                ("{x} lies [nearest to the pole]", "{x} lies [nearest to the equator]"),
                "{x} lies about {v} from the [equator]",
            ),
        ),
    ),
    "population": Property(
        1.4,
        (
            Wording(
                ("{x} has [more people] than {y}", "{x} has [fewer people] than {y}"),
                ("does {x} have [more people] than {y}", "does {x} have [fewer people] than {y}"),
                ("from [few people to many]", "from [many people to few]"),
                ("{x} has the [most people]", "{x} has the [fewest people]"),
            ),
            Wording(
                ("{x} is [more populous] than {y}", "{x} is [less populous] than {y}"),
                ("is {x} [more populous] than {y}", "is {x} [less populous] than {y}"),
                ("from the [least populous] to the [most]", "from the [most populous] to the [least]"),
                ("{x} is the [most populous]", "{x} is the [least populous]"),
                "{x} [has] about {v}",
            ),
        ),
    ),
}

ASK = relation(
    "{ask}?",
    "{ask}?",
    "is it true that {claim}?",
    "tell me, {ask}?",
    "would you say that {claim}?",
    "can we say that {claim}?",
    "is it right that {claim}?",
    "do you agree that {claim}?",
    "a child asks: {ask}?",
    "I think that {claim}. Is that right?",
    "one question: {ask}?",
    "it is said that {claim}. Is it true?",
    "is it right to say that {claim}?",
    "tell me, is it true that {claim}?",
)
ASK_NOT = relation(
    "is it {false} that {claim}?",
    "is it {wrong} to say that {claim}?",
    "is it {untrue} that {claim}?",
    "is it a {mistake} to think that {claim}?",
    "am I {wrong} if I say that {claim}?",
    "I think that {claim}. Am I {wrong}?",
    "I think that {claim}. Is that {false}?",
    "it is said that {claim}. Is it {false}?",
    "would you say it is {false} that {claim}?",
    "can we say it is {wrong} that {claim}?",
    "do you think it is {wrong} to say that {claim}?",
    "they say that {claim}. Is it {false}?",
)
REPLY = relation(
    "{answer}.",
    "{answer}.",
    "{answer}, {reason}.",
    "{answer}, because {reason}.",
    "{answer}: {reason}.",
    "{answer}, for {reason}.",
    "{answer}, since {reason}.",
    "{answer}, everyone knows that {reason}.",
    "{answer}, and this is why: {reason}.",
    "{answer}, as {name} says: {reason}.",
    "{answer}, this is because {reason}.",
    "{answer}, as everyone knows: {reason}.",
)
STATE = relation(
    "{claim}.",
    "{claim}.",
    "of course {claim}.",
    "it is true that {claim}.",
    "everyone knows that {claim}.",
    "{name} learned at school that {claim}.",
    "you can be sure that {claim}.",
    "the book says that {claim}.",
    "as {name} says, {claim}.",
    "remember that {claim}.",
    "everyone can be sure that {claim}.",
    "of course it is true that {claim}.",
)
DENY = relation(
    "it is {false} that {claim}.",
    "it is {wrong} to say that {claim}.",
    "it is a {mistake} to think that {claim}.",
    "it is {untrue} that {claim}.",
    "whoever says that {claim} is {wrong}.",
    "{nobody} can say that {claim}.",
    "{name} thought that {claim}, but that was a {mistake}.",
    "the book does {not} say that {claim}.",
    "some people think that {claim}, but they are {wrong}.",
    "they say that {claim}, but that is {false}.",
    "some people say that {claim}, but it is a {mistake}.",
    "people say that {claim}, and they are {wrong}.",
)
RANK = relation(
    "{order}: {list}.",
    "{order}: {list}.",
    "{order} we have {list}.",
    "here they are {order}: {list}.",
    "{name} wrote them down {order}: {list}.",
    "put in a row {order}, they are {list}.",
    "the list goes {order}: {list}.",
    "the right order, {order}, is {list}.",
    "{order}, that is {list}.",
    "compare them {order}: {list}.",
    "here is the list {order}: {list}.",
    "put in the right order {order}, they are {list}.",
)
MOST = relation(
    "of {list}, {top}.",
    "among {list}, {top}.",
    "look at {list}: {top}.",
    "if you compare {list}, {top}.",
    "take {list}: {top}.",
    "think of {list}; {top}.",
    "there are {list}, and {top}.",
    "{name} wrote about {list}: {top}.",
    "when we compare {list}, we see that {top}.",
    "who knows {list} knows that {top}.",
    "if you look at {list}, you see that {top}.",
    "when you think of {list}, {top}.",
)
