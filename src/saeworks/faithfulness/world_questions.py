"""A question set without a download: comparisons of real things by number, from the embedded world's facts."""

from __future__ import annotations

from saeworks.errors import InputError, did_you_mean
from saeworks.faithfulness.candidate_pairs import EntityPair, evenly_spaced
from saeworks.faithfulness.entities import Entity
from saeworks.faithfulness.properties import Property
from saeworks.faithfulness.questions import question_set, unique
from saeworks.faithfulness.records import Question
from saeworks.world.domains.comparison_wordings import PROPERTIES, Wording
from saeworks.world.domains.comparisons import Quantity, entity_phrase, quantities

SUFFIX = "world"


def world_properties(negations: bool = False) -> dict[str, tuple[str, Property]]:
    """Property id → (what the world compares by, the property): two wordings of each, and with ``negations`` those.

    ``world-weight`` asks in the first wording, ``world-weight-w2`` in the second; ``world-weight-not`` and
    ``world-weight-w2-not`` ask if the claim is false.
    """
    found: dict[str, tuple[str, Property]] = {}
    for name, one in PROPERTIES.items():
        for number, wording in enumerate(one.wordings, 1):
            id = f"world-{name}" if number == 1 else f"world-{name}-w{number}"
            plain = Property(id, _sentence(wording.asks[0]), _sentence(wording.asks[1]))
            found[id] = (name, plain)
            if negations:
                found[f"{id}-not"] = (name, plain.wording("not", *_denials(wording), negated=True))
    return found


def _sentence(ask: str) -> str:
    plain = ask.replace("[", "").replace("]", "")
    return plain[0].upper() + plain[1:] + "?"


def _denials(wording: Wording) -> tuple[str, str]:
    more, less = (claim.replace("[", "").replace("]", "") for claim in wording.claims)
    return f"Is it false that {more}?", f"Is it false that {less}?"


def world_questions(property: str | None = None, pairs: int | None = None, negations: bool = False) -> list[Question]:
    """Questions about all pairs of entities whose values lie clearly apart.

    Args:
        property: what is compared, ``weight`` say; None for all.
        pairs: entity pairs per property at most, evenly spaced over the smaller value; None for all.
        negations: whether every question is also asked as "is it false that …".

    Raises:
        InputError: a property that the world does not have, or a number of pairs below 1.
    """
    if property is not None and property not in PROPERTIES:
        raise InputError(f"The world compares nothing by '{property}'.{did_you_mean(property, PROPERTIES)}")
    if pairs is not None and pairs < 1:
        raise InputError(f"{pairs} pairs per property were asked for; give at least 1.")
    found: list[Question] = []
    for name, one in world_properties(negations).values():
        if property in (None, name):
            every = _pairs(name)
            some = every if pairs is None else evenly_spaced(every, pairs)
            found += question_set(one, some, max_comparisons=len(every), suffix=SUFFIX)
    return unique(found)


def _pairs(name: str) -> list[EntityPair]:
    """Pairs whose larger value is at least the property's ratio times the smaller one, by the smaller value."""
    ordered = sorted((q for q in quantities() if q.property == name), key=lambda q: q.value)
    ratio = PROPERTIES[name].ratio
    return [
        EntityPair(_entity(low), _entity(high))
        for i, low in enumerate(ordered)
        for high in ordered[i + 1 :]
        if high.value >= ratio * low.value
    ]


def _entity(one: Quantity) -> Entity:
    return Entity(entity_phrase(one.entity).text, one.value)
