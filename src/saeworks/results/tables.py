"""What measured tables share: a mean with its spread over seeds, and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Spread = dict[str, float]  # mean, min, max


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and range of one measure over the seeds in which it is defined; NaN where it is in none."""
    known = [value for value in values if not math.isnan(value)] or [math.nan]
    return {"mean": sum(known) / len(known), "min": min(known), "max": max(known)}


def summary(values: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Mean and range of every measure over the seeds; the measures are those of the first seed."""
    return {key: spread_of([v[key] for v in values]) for key in values[0]}


def spread(value: Spread, digits: int = 3) -> str:
    """``mean (least–greatest)``; a dash for NaN."""
    if math.isnan(value["mean"]):
        return "–"
    return f"{value['mean']:.{digits}f} ({value['min']:.{digits}f}–{value['max']:.{digits}f})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
