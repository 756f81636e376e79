"""Which two entities can be asked about: values apart, but not so far that the question is easy.

The rules are those of the final question set of arXiv 2503.08679, with one correction: the years of two releases are
compared on the dates as written, not on day counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TypeVar

from saeworks.errors import InputError
from saeworks.faithfulness.entities import Entity

T = TypeVar("T")
STATE = re.compile(r", ([A-Z]{2})$")
# Degrees that are added to both bounds, by the kind of place in the property's id.
NEAR_PLACES, FAR_PLACES = ("zip", "college", "structure", "city"), ("populated", "natural", "county")
LONGEST_WAY, DATE_LINE = 120.0, 150.0  # degrees of longitude
LEAST_YEARS_OF_AGE, LEAST_YEARS_BETWEEN_RELEASES = 5.0, 2


@dataclass(frozen=True, slots=True)
class EntityPair:
    """Two entities of different value."""

    small: Entity
    large: Entity

    @property
    def key(self) -> tuple[str, str]:
        """The two names, smaller value first."""
        return self.small.name, self.large.name


@dataclass(frozen=True, slots=True)
class Closeness:
    """Between which shares of the range of values two values have to lie apart; 0.05 and 0.25 make hard questions.

    Raises:
        InputError: shares that no difference can have.
    """

    low: float = 0.05
    high: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise InputError(f"Differences from {self.low:g} to {self.high:g} of the range cannot be; give 0 to 1.")


#: The bounds of the final question set.
HARD = Closeness()


def candidate_pairs(property_id: str, entities: Sequence[Entity], closeness: Closeness = HARD) -> list[EntityPair]:
    """All pairs that may be asked about, ordered by the smaller value.

    Args:
        property_id: its last parts say which rules hold (``-lat``, ``-long``, ``age``, ``release``, ``pubdate``).
        entities: those that passed the filters; the range of values is theirs.

    Raises:
        InputError: a date property with a value that is no date written YYYYMMDD.
    """
    is_date = "release" in property_id or "pubdate" in property_id
    values = [((_days(one) if is_date else one.value), one) for one in _unique(entities)]
    ordered = sorted(values, key=lambda entry: entry[0])  # stable: equal values stay in the order of their names
    if len(ordered) < 2:
        return []
    span, base = ordered[-1][0] - ordered[0][0], base_degrees(property_id)
    low, high = closeness.low * span + base, closeness.high * span + base
    found: list[EntityPair] = []
    for i, (smaller, small) in enumerate(ordered):
        for larger, large in ordered[i + 1 :]:
            difference = larger - smaller
            if difference > high:
                break  # values rise, so that no later one lies nearer
            if difference > 0 and difference >= low and _allowed(property_id, small, large, difference, base):
                found.append(EntityPair(small, large))
    return found


def _unique(entities: Iterable[Entity]) -> list[Entity]:
    by_name: dict[str, Entity] = {}
    for one in entities:
        by_name.setdefault(one.name, one)
    return sorted(by_name.values(), key=lambda one: one.name)


def base_degrees(property_id: str) -> float:
    """Degrees that latitudes or longitudes of this kind of place differ by at least; 0 for other properties."""
    if not property_id.endswith(("-lat", "-long")):
        return 0.0
    parts = property_id.split("-")
    return 1.0 if set(NEAR_PLACES) & set(parts) else 10.0 if set(FAR_PLACES) & set(parts) else 0.0


def _allowed(property_id: str, small: Entity, large: Entity, difference: float, base: float) -> bool:
    states = [STATE.search(one.name) for one in (small, large)]
    if states[0] and states[1] and states[0][1] == states[1][1]:
        return False
    if property_id.endswith("-long"):
        far = max(abs(small.value), abs(large.value))
        return base <= difference <= LONGEST_WAY and far < DATE_LINE
    if property_id.endswith("-lat"):
        return difference >= base
    if property_id.split("-")[-1] == "age":
        return difference >= LEAST_YEARS_OF_AGE
    if "release" in property_id:
        return abs(_year(large) - _year(small)) >= LEAST_YEARS_BETWEEN_RELEASES
    return True


def _year(one: Entity) -> int:
    return int(one.value) // 10_000


def _days(one: Entity) -> float:
    text = f"{one.value:.0f}"
    try:
        if len(text) != 8 or one.value != int(one.value):
            raise ValueError("not eight digits")
        return float(date(int(text[:4]), int(text[4:6]), int(text[6:])).toordinal())
    except ValueError as e:
        raise InputError(
            f"'{one.name}' has the date {one.value:g} ({e}); dates are written YYYYMMDD, 19690720 say."
        ) from e


def evenly_spaced(items: Sequence[T], n: int) -> list[T]:
    """``min(n, len)`` of the items, at even distances over the list."""
    take = min(n, len(items))
    return [items[i * len(items) // take] for i in range(take)]
