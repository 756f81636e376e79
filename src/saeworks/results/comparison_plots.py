"""The figures of a comparison: sweeps of sparsity with controls and intervals, and Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saeworks.results.comparison import Sweep, pareto_front, sweeps
from saeworks.results.headlines import headline
from saeworks.results.plots import Series, line_plot
from saeworks.results.readings import number
from saeworks.results.report_plots import figure
from saeworks.results.report_text import visible

#: Controls in the order of their line styles, which are the same in every plot.
STYLES = ("identity", "pca", "random_directions", "oracle", "permuted_decoder")
#: A control is drawn when it lies within this many spans of the dictionaries' values; else the caption gives its value.
REACH = 1.0
L0_LABEL = "L0: active latents per token"
_PANEL = ("model", "site", "width")
Row = Mapping[str, Any]


def sweep_figures(rows: Iterable[Row], column: str) -> list[str]:
    """A number against L0: one panel per width (and site and model, where there are several), one line per kind."""
    rows = [row for row in rows if number(row.get(column)) is not None]
    trained = [row for row in rows if not row.get("control") and (number(row.get("l0")) or 0) > 0]
    panels: dict[tuple[Any, ...], list[Row]] = {}
    for row in trained:
        panels.setdefault(tuple(row.get(key) for key in _PANEL), []).append(row)
    varying = [i for i in range(len(_PANEL)) if len({panel[i] for panel in panels}) > 1]
    out: list[str] = []
    for panel, own in sorted(panels.items(), key=lambda item: tuple(str(v).zfill(12) for v in item[0])):
        _, site, width = panel
        controls = [
            row
            for row in rows
            if row.get("control")
            and row.get("site") == site
            and (row.get("width") == width or row["control"] not in ("random_directions", "permuted_decoder"))
        ]
        said = [f"{v:,} latents".replace(",", " ") if i == 2 and v else str(v) for i, v in enumerate(panel)]
        title = ", ".join(said[i] for i in varying) or (said[2] if width else "all dictionaries")
        identifier = f"sweep-{column}-{len(out)}"
        svg, beyond = _panel(own, controls, column, title, identifier)
        out.append(figure(title, svg, f"Off the plot: {'; '.join(beyond)}." if beyond else ""))
    return out


def _panel(
    rows: Sequence[Row], controls: Sequence[Row], column: str, title: str, identifier: str
) -> tuple[str, list[str]]:
    """The plot, and what controls reach that lie too far away to be drawn."""
    series = trained_series(rows, column)
    xs = [x for s in series for x in s.x]
    ends = [v for s in series for part in (s.y, s.low or (), s.high or ()) for v in part if v is not None]
    low, high = min(ends), max(ends)
    span = max(high - low, 0.02 * max(abs(low), abs(high)), 1e-6)
    left, right = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) / 1.5, max(xs) * 1.5)
    drawn: list[float] = [low, high]
    beyond: list[str] = []
    for kind in STYLES:
        line = _control_line([row for row in controls if row["control"] == kind], column, (left, right))
        if line is None:
            continue
        x, y = line
        near = [v for v in y if low - REACH * span <= v <= high + REACH * span]
        drawn += near
        name = kind.replace("_", " ")
        if near:
            series.append(Series(name, x, y, line=STYLES.index(kind), baseline=True))
        else:
            beyond.append(f"{name} {_range(y)}")
    margin = 0.06 * (max(drawn) - min(drawn) or span)
    svg = line_plot(
        series,
        L0_LABEL,
        _label(column),
        f"{_label(column)} against L0, {title}",
        identifier=identifier,
        log_x=True,
        x_ticks=round_ticks(left, right),
        y_range=(min(drawn) - margin, max(drawn) + margin),
    )
    return svg, beyond


def trained_series(rows: Sequence[Row], column: str) -> list[Series]:
    """A line with intervals for every kind of dictionary; where seeds are averaged, it spans theirs."""
    by_name = {str(row.get("dictionary")): row for row in rows}
    seen: dict[str, int] = {}
    out: list[Series] = []
    for sweep in sweeps(rows, column):
        first = by_name[sweep.names[0][0]]
        architecture = str(first.get("architecture") or "unknown")
        line = seen.get(architecture, 0)
        seen[architecture] = line + 1
        name = sweep.label if sweep.kind else architecture
        out.append(
            Series(
                visible(name),
                sweep.x,
                sweep.y,
                recipe=architecture,
                line=line,
                low=_ends(sweep, by_name, f"{column}_low", min),
                high=_ends(sweep, by_name, f"{column}_high", max),
            )
        )
    return out


def _ends(sweep: Sweep, by_name: Mapping[str, Row], column: str, most: Any) -> list[float | None]:
    found = [[v for name in names if (v := number(by_name[name].get(column))) is not None] for names in sweep.names]
    return [most(values) if values else None for values in found]


def _control_line(
    rows: Sequence[Row], column: str, ends: tuple[float, float]
) -> tuple[list[float], list[float]] | None:
    """Where a control lies: along L0 when it was measured at several, else the same at all."""
    if not rows:
        return None
    along = sweeps(rows, column, kind=("control",)) if all(number(row.get("l0")) for row in rows) else []
    if along and len(along[0].x) > 1:
        return list(along[0].x), list(along[0].y)
    mean = sum(float(row[column]) for row in rows) / len(rows)
    return list(ends), [mean, mean]


def _range(values: Sequence[float]) -> str:
    ends = [f"{min(values):.3g}", f"{max(values):.3g}"]
    return " to ".join(dict.fromkeys(ends)).replace("-", "−")


def front_figure(rows: Iterable[Row], y: str, x: str = "l0") -> tuple[str, list[Row]]:
    """All dictionaries as points, what no other one dominates joined by a line; and the latter. Empty without two."""
    rows = [
        row
        for row in rows
        if not row.get("control") and number(row.get(x)) is not None and number(row.get(y)) is not None
    ]
    if len(rows) < 2 or (x == "l0" and any(float(row[x]) <= 0 for row in rows)):
        return "", []
    front = pareto_front(rows, y, x, more_x=x != "l0" and headline(x).better > 0)
    series = [Series("front: no other is better in both", *_points(front, x, y), baseline=True)]
    kinds = list(dict.fromkeys(str(row.get("architecture") or "unknown") for row in rows))
    for kind in kinds:
        own = sorted(
            (row for row in rows if str(row.get("architecture") or "unknown") == kind), key=lambda row: float(row[x])
        )
        series.append(Series(visible(kind), *_points(own, x, y), recipe=kind, joined=False))
    values = [float(row[x]) for row in rows]
    label = L0_LABEL if x == "l0" else _label(x)
    svg = line_plot(
        series,
        label,
        _label(y),
        f"{_label(y)} and {label} of every dictionary",
        identifier=f"front-{y}-{x}",
        log_x=x == "l0",
        x_ticks=round_ticks(min(values), max(values)) if x == "l0" else None,
    )
    return figure(f"{_label(y)} and {'L0' if x == 'l0' else _label(x)}", svg), front


def _points(rows: Sequence[Row], x: str, y: str) -> tuple[list[float], list[float | None]]:
    return [float(row[x]) for row in rows], [float(row[y]) for row in rows]


def _label(column: str) -> str:
    return column.replace("_", " ")


def round_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from ``low`` to ``high`` for a logarithmic axis; the ends themselves where there are too few."""
    for mantissas in ((1, 2, 3, 4, 6, 8), (1, 2, 4, 8), (1, 2, 5), (1,)):
        steps = [m * 10.0**e for e in range(-2, 7) for m in mantissas]
        if mantissas == (1, 2, 4, 8):
            steps = [2.0**e for e in range(-4, 21)]
        inside = [step for step in steps if low * 0.99 <= step <= high * 1.01]
        if 2 <= len(inside) <= most:
            return inside
    return sorted({float(f"{v:.2g}") for v in (low, math.sqrt(low * high), high)})
