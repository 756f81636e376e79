"""Scores between their floor and their ceiling: what dictionaries reach that nobody trained.

The floor of a number is the best that a degraded control reaches (random directions, a permuted decoder): a score that
is no better shows nothing. The ceiling is what the identity reaches where fidelity is measured, and the oracle where
concepts are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saeworks.results.headlines import HEADLINES, Headline

FLOORS = ("random_directions", "permuted_decoder")
#: Eval → the control that is the ceiling of its numbers; the oracle for all others. A rebuilding through annotated
#: concepts alone is poor, and the decoder of neither says what structure could be had.
CEILINGS: dict[str, str | None] = {"core": "identity", "mdl": None, "meta_structure_decoder_variance": None}
Row = Mapping[str, Any]


def readings(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One row per number that has a better and a worse, and a control: floor, dictionaries, ceiling.

    ``rows`` are those of :func:`saeworks.results.dictionary_table.dictionary_rows`. ``worst`` and ``best`` are of the
    dictionaries; ``floor_of`` and ``ceiling_of`` name controls.
    """
    rows = list(rows)
    out: list[dict[str, Any]] = []
    for h in HEADLINES:
        trained = values(rows, h.column)
        controls = [row for row in rows if row.get("control") and number(row.get(h.column)) is not None]
        if not h.better or not trained or not controls:
            continue
        floor = _best(h, [row for row in controls if row["control"] in FLOORS])
        ceiling = _best(h, [row for row in controls if row["control"] == CEILINGS.get(h.eval, "oracle")])
        ends = sorted((value for _, value in trained), key=lambda v: v * h.better)
        out.append(
            {
                "number": h.column,
                "better": "more" if h.better > 0 else "less",
                "floor": None if floor is None else floor[h.column],
                "worst": ends[0],
                "best": ends[-1],
                "ceiling": None if ceiling is None else ceiling[h.column],
                "floor_of": None if floor is None else floor["dictionary"],
                "ceiling_of": None if ceiling is None else ceiling["dictionary"],
            }
        )
    return out


def values(rows: Iterable[Row], column: str) -> list[tuple[Row, float]]:
    """The rows that are no controls and have the number."""
    found = ((row, number(row.get(column))) for row in rows if not row.get("control"))
    return [(row, value) for row, value in found if value is not None]


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    return float(value) if fits else None


def _best(h: Headline, rows: Sequence[Row]) -> Row | None:
    return max(rows, key=lambda row: float(row[h.column]) * h.better, default=None)
