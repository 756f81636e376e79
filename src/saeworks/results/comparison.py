"""Dictionaries compared fairly: along sweeps of sparsity, at equal L0, and by what no other one dominates.

A score at one L0 says little about a kind of dictionary, since most scores rise or fall with L0 (SAEBench, arXiv
2503.09532). So a *sweep* is all dictionaries of one kind along L0; between its points scores are interpolated linearly
in log L0, and beyond its ends there is no value. Rows are those of
:func:`saeworks.results.dictionary_table.dictionary_rows`, or any mappings with the columns named.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from saeworks.errors import InputError, did_you_mean
from saeworks.results.headlines import HEADLINES

#: What makes two dictionaries of one kind, so that only sparsity and seed differ between them.
KIND = ("source", "control", "mode", "model", "site", "architecture", "width", "tokens")
#: The L0 that SAEBench's suite aims at.
L0_VALUES = (20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Dictionaries of one kind in order of L0.

    ``kind`` has the columns that tell it from other sweeps; ``x`` is rising L0, ``y`` the metric; ``names`` are the
    dictionaries of each point, several where seeds were averaged.
    """

    kind: dict[str, Any]
    x: tuple[float, ...]
    y: tuple[float, ...]
    names: tuple[tuple[str, ...], ...]

    @property
    def label(self) -> str:
        """The kind in a few words."""
        return ", ".join(str(v) for v in self.kind.values() if v is not None) or "all"

    def at(self, l0: float) -> float | None:
        """The metric at an L0, linear in log L0 between points; None outside the sweep."""
        if not self.x or not self.x[0] <= l0 <= self.x[-1]:
            return None
        right = bisect_left(self.x, l0)
        if self.x[right] == l0:
            return self.y[right]
        (x0, x1), (y0, y1) = self.x[right - 1 : right + 1], self.y[right - 1 : right + 1]
        return y0 + (y1 - y0) * math.log(l0 / x0) / math.log(x1 / x0)

    def mean(self, low: float, high: float) -> float | None:
        """The mean over log L0 from ``low`` to ``high`` of the interpolated line; None where it is not covered."""
        if not self.x or not 0 < low <= high or low < self.x[0] or high > self.x[-1]:
            return None
        if low == high:
            return self.at(low)
        ends = [low, *(x for x in self.x if low < x < high), high]
        values = [self.at(x) for x in ends]
        area = sum(
            (a + b) / 2 * math.log(x1 / x0)
            for (x0, x1), (a, b) in zip(pairwise(ends), pairwise(v for v in values if v is not None), strict=True)
        )
        return area / math.log(high / low)


def sweeps(rows: Iterable[Row], metric: str, kind: Sequence[str] = KIND, x: str = "l0") -> list[Sweep]:
    """One sweep per kind that has the metric, in the order of the rows.

    Rows of one kind with the same ``setting`` (k or penalty) are seeds of one point: their metrics are averaged and
    their L0 too (geometrically). So are rows without a setting that have the same L0. Rows without a positive L0 or
    without the metric are left out.

    Raises ``InputError`` when no row has the column at all.
    """
    rows = list(rows)
    for column in (metric, x):
        known = {c for row in rows for c in row}
        if rows and column not in known:
            raise InputError(f"No result has a column '{column}'.{did_you_mean(column, sorted(known))}")
    grouped: dict[tuple[Any, ...], dict[Any, list[tuple[float, float, str]]]] = {}
    for row in rows:
        a, b = _number(row.get(x)), _number(row.get(metric))
        if a is None or b is None or a <= 0:
            continue
        setting = row.get("setting")
        point = ("l0", a) if setting is None else ("setting", setting)
        of_kind = grouped.setdefault(tuple(row.get(c) for c in kind), {})
        of_kind.setdefault(point, []).append((a, b, str(row.get("dictionary"))))
    varying = [i for i in range(len(kind)) if len({key[i] for key in grouped}) > 1]
    out: list[Sweep] = []
    for key, points in grouped.items():
        merged = sorted(
            (_geometric([p[0] for p in ps]), _mean([p[1] for p in ps]), tuple(p[2] for p in ps))
            for ps in points.values()
        )
        merged = _distinct(merged)
        xs, ys, names = zip(*merged, strict=True)
        out.append(Sweep({kind[i]: key[i] for i in varying}, xs, ys, names))
    return out


def matched_l0(
    found: Sequence[Sweep], l0_values: Sequence[float] = L0_VALUES, baseline: str | None = None
) -> list[dict[str, Any]]:
    """A table of one row per sweep: its kind, and the metric at every L0 (None outside its range).

    With ``baseline`` (the label of a sweep), the values are differences to it, and ``mean_difference`` is the mean
    difference over log L0 on the range that both cover.

    Raises ``InputError`` for a baseline that is not there, or an L0 that is not positive.
    """
    if any(l0 <= 0 for l0 in l0_values):
        raise InputError(f"L0 must be positive, but {min(l0_values):g} was asked for.")
    base = None
    if baseline is not None:
        by_label = {s.label: s for s in found}
        if baseline not in by_label:
            raise InputError(f"There is no sweep '{baseline}' to compare with.{did_you_mean(baseline, by_label)}")
        base = by_label[baseline]
    out: list[dict[str, Any]] = []
    for sweep in found:
        row: dict[str, Any] = {"sweep": sweep.label, **sweep.kind, "from_l0": sweep.x[0], "to_l0": sweep.x[-1]}
        for l0 in l0_values:
            row[f"{l0:g}"] = _minus(sweep.at(l0), None if base is None else base.at(l0), base is not None)
        if base is not None:
            low, high = max(sweep.x[0], base.x[0]), min(sweep.x[-1], base.x[-1])
            row["mean_difference"] = _minus(sweep.mean(low, high), base.mean(low, high), True)
        out.append(row)
    return out


def common_range(found: Sequence[Sweep]) -> tuple[float, float] | None:
    """The L0 that all sweeps cover; None when there is none."""
    low, high = max((s.x[0] for s in found), default=1.0), min((s.x[-1] for s in found), default=0.0)
    return (low, high) if low <= high else None


def mean_over_l0(found: Sequence[Sweep], low: float = 20.0, high: float = 200.0) -> list[dict[str, Any]]:
    """A row per sweep: its kind and the mean of the metric over log L0 in [low, high], None where it is not covered."""
    return [{"sweep": s.label, **s.kind, "from_l0": low, "to_l0": high, "mean": s.mean(low, high)} for s in found]


def pareto_front(
    rows: Iterable[Row], y: str, x: str = "l0", more_y: bool | None = None, more_x: bool = False
) -> list[Row]:
    """The rows that no other dominates, by rising ``x``.

    A row dominates another that is no better in either column and worse in one. Equal rows are all kept; rows without
    one of the numbers are left out.

    Args:
        more_y: whether more of ``y`` is better; None: as for the headline of that name.
        more_x: whether more of ``x`` is better; of L0, less is.

    Raises:
        InputError: a ``y`` whose direction is not known and not given.
    """
    sign_x, sign_y = 1.0 if more_x else -1.0, _direction(y, more_y)
    points: list[tuple[float, float, Row]] = []
    for row in rows:
        a, b = _number(row.get(x)), _number(row.get(y))
        if a is not None and b is not None:
            points.append((sign_x * a, sign_y * b, row))
    # Best x first, then best y: a point is on the front when it beats all that are better in x.
    points.sort(key=lambda p: (-p[0], -p[1]))
    front: list[tuple[float, Row]] = []
    best, at = -math.inf, -math.inf
    for a, b, row in points:
        if b > best or (b == best and a == at):
            best, at = b, a
            front.append((sign_x * a, row))
    return [row for _, row in sorted(front, key=lambda p: p[0])]


def _direction(column: str, more: bool | None) -> float:
    if more is not None:
        return 1.0 if more else -1.0
    known = {h.column: h.better for h in HEADLINES}
    if not known.get(column):
        raise InputError(f"It is not known whether more or less of '{column}' is better; say so with more_y.")
    return float(known[column])


def _minus(value: float | None, base: float | None, differ: bool) -> float | None:
    if not differ:
        return value
    return None if value is None or base is None else value - base


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _geometric(values: Sequence[float]) -> float:
    # Equal values stay what they are to the last digit.
    return values[0] if len(set(values)) == 1 else math.exp(_mean([math.log(v) for v in values]))


def _distinct(points: list[tuple[float, float, tuple[str, ...]]]) -> list[tuple[float, float, tuple[str, ...]]]:
    """Points of different settings that happen to have one L0 become one: interpolation needs rising L0."""
    out: dict[float, list[tuple[float, tuple[str, ...]]]] = {}
    for a, b, names in points:
        out.setdefault(a, []).append((b, names))
    return [(a, _mean([b for b, _ in ps]), tuple(n for _, names in ps for n in names)) for a, ps in out.items()]
