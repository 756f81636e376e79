"""Plots as SVG text for inline use: they take the page's text colour, so one picture serves light and dark pages.

matplotlib is imported when a plot is drawn, and without pyplot: nothing global is touched, no display is needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from saeworks.errors import InputError

#: The colours of Okabe and Ito, told apart with any common colour vision; black is left to the text colour.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#A6761D")
RECIPES = ("topk", "batch_topk", "matryoshka_batch_topk", "relu", "gated", "jumprelu", "p_anneal")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (6, 2, 1.5, 2, 1.5, 2)))
# Drawn in this colour and then renamed to currentColor: no data series uses it.
INK = "#010203"


@dataclass(frozen=True)
class Series:
    """One line: points (x, y), where y None is a gap; ``low``/``high`` draw an interval per point.

    ``line`` numbers the line style; ``baseline`` draws a thin line in the text colour without markers. Points that are
    not ``joined`` stand alone.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    recipe: str = ""
    line: int = 0
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    markers: bool = True
    baseline: bool = False
    joined: bool = True


def style_of(recipe: str) -> tuple[str, str]:
    """(colour, marker) of a recipe: the same in every plot of every report."""
    other = len(RECIPES) + sum(recipe.encode("utf-8", "replace"))
    number = RECIPES.index(recipe) if recipe in RECIPES else other
    return PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]


def line_plot(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    description: str,
    *,
    identifier: str,
    log_x: bool = False,
    x_ticks: Sequence[float] | None = None,
    y_range: tuple[float, float] | None = None,
    steps: bool = False,
    size: tuple[float, float] = (5.4, 3.6),
) -> str:
    """An SVG element with one line per series.

    Args:
        description: what the plot shows, for readers who do not see it.
        identifier: prefix of all ids in the SVG; must be unique in the page.
        y_range: the values that are shown; what lies outside is cut off.
        steps: draw as a histogram outline.
    """
    figure, axes, canvas = _axes(size)
    labelled = False
    for s in series:
        points = [(x, y) for x, y in zip(s.x, s.y, strict=True) if y is not None]
        if not points:
            continue
        labelled = True
        colour, marker = (INK, "") if s.baseline else style_of(s.recipe)
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        style: dict[str, Any] = {
            "color": colour,
            "linestyle": LINES[s.line % len(LINES)] if s.joined else "none",
            "linewidth": 1.2 if s.baseline else 1.8,
            "label": s.name,
        }
        if s.markers and not s.baseline:
            style |= {"marker": marker, "markersize": 5.5}
        if steps:
            style["drawstyle"] = "steps-mid"
        axes.plot(xs, ys, **style)
        _bars(axes, s, colour)
    if log_x:
        axes.set_xscale("log")
    if x_ticks is not None:
        from matplotlib.ticker import NullLocator

        axes.set_xticks(list(x_ticks), [f"{t:g}" for t in x_ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    if y_range is not None:
        axes.set_ylim(*y_range)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if labelled:
        handles = axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            ncols=2,
            frameon=False,
            labelcolor=INK,
            fontsize=9,
            handlelength=2.6,
        )
        handles.set_in_layout(True)
        for text in handles.get_texts():
            text.set_parse_math(False)  # names are text: a "$" in one is no formula
    return _svg(figure, canvas, description, identifier)


@dataclass(frozen=True)
class Cloud:
    """Points of one kind: ``colour`` and ``marker`` number those of the palette; ``ring`` draws outlines only."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    marker: int = 0
    ring: bool = False


def scatter_plot(
    clouds: Sequence[Cloud],
    x_label: str,
    y_label: str,
    description: str,
    *,
    identifier: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_lines: Sequence[float] = (),
    y_lines: Sequence[float] = (),
    size: tuple[float, float] = (5.4, 4.2),
) -> str:
    """An SVG element with a point per pair of values; what lies outside the ranges is drawn on their edge.

    Args:
        x_lines, y_lines: thresholds, drawn as thin lines.
    """
    figure, axes, canvas = _axes(size)
    for cloud in clouds:
        colour = PALETTE[cloud.colour % len(PALETTE)]
        axes.scatter(
            [min(max(x, x_range[0]), x_range[1]) for x in cloud.x],
            [min(max(y, y_range[0]), y_range[1]) for y in cloud.y],
            s=26,
            marker=MARKERS[cloud.marker % len(MARKERS)],
            facecolors="none" if cloud.ring else colour,
            edgecolors=colour,
            linewidths=1.0,
            alpha=0.45 if cloud.ring else 0.85,
            label=cloud.name,
        )
    for x in x_lines:
        axes.axvline(x, color=INK, linewidth=0.9, alpha=0.6, linestyle=LINES[1])
    for y in y_lines:
        axes.axhline(y, color=INK, linewidth=0.9, alpha=0.6, linestyle=LINES[1])
    for set_range, (low, high) in ((axes.set_xlim, x_range), (axes.set_ylim, y_range)):
        margin = 0.03 * (high - low)
        set_range(low - margin, high + margin)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(axes)
    return _svg(figure, canvas, description, identifier)


def histogram_plot(
    edges: Sequence[float],
    parts: Sequence[tuple[str, Sequence[int], int]],
    x_label: str,
    y_label: str,
    description: str,
    *,
    identifier: str,
    x_lines: Sequence[float] = (),
    size: tuple[float, float] = (5.4, 3.6),
) -> str:
    """An SVG element with stacked bars on a logarithmic axis.

    Args:
        edges: of the bins, one more than there are counts. parts: (name, counts, number of the colour), from below.
    """
    figure, axes, canvas = _axes(size)
    widths = [b - a for a, b in pairwise(edges)]
    bottom = [0] * len(widths)
    for name, counts, colour in parts:
        axes.bar(
            edges[:-1],
            counts,
            widths,
            bottom,
            align="edge",
            color=PALETTE[colour % len(PALETTE)],
            label=name,
            alpha=0.9,
        )
        bottom = [b + c for b, c in zip(bottom, counts, strict=True)]
    for x in x_lines:
        axes.axvline(x, color=INK, linewidth=0.9, alpha=0.6, linestyle=LINES[1])
    axes.set_yscale("symlog", linthresh=1)
    top = max([1, *bottom])
    ticks = [t for t in (0, 1, 10, 100, 1000, 10_000, 100_000) if t <= top * 1.5]
    axes.set_yticks(ticks, [str(t) for t in ticks])
    axes.set_ylim(0, top * 1.6)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(axes)
    return _svg(figure, canvas, description, identifier)


def interval_plot(
    rows: Sequence[tuple[str, float, float | None, float | None, int]],
    x_label: str,
    description: str,
    *,
    identifier: str,
    width: float = 5.4,
) -> str:
    """An SVG element with one horizontal bar per row and a line for its interval.

    Args:
        rows: (name, value, low, high, number of the colour), from the top.
    """
    figure, axes, canvas = _axes((width, 0.9 + 0.29 * max(len(rows), 1)))
    places = list(range(len(rows)))[::-1]
    axes.barh(
        places,
        [row[1] for row in rows],
        height=0.62,
        color=[PALETTE[row[4] % len(PALETTE)] for row in rows],
        alpha=0.85,
    )
    for place, (_, _, low, high, _) in zip(places, rows, strict=True):
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=INK, linewidth=1.6)
    axes.set_yticks(places, [row[0] for row in rows])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel(x_label)
    return _svg(figure, canvas, description, identifier)


def _legend(axes: Any) -> None:
    handles = axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, labelcolor=INK, fontsize=9
    )
    handles.set_in_layout(True)
    for text in handles.get_texts():
        text.set_parse_math(False)


def _bars(axes: Any, s: Series, colour: str) -> None:
    if s.low is None or s.high is None:
        return
    for x, low, high in zip(s.x, s.low, s.high, strict=True):
        if low is not None and high is not None:
            axes.plot([x, x], [low, high], color=colour, linewidth=1.0, alpha=0.6)


def _axes(size: tuple[float, float]) -> tuple[Any, Any, Any]:
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as e:
        raise InputError("Plots need matplotlib, which is not installed; pip install 'saeworks[plot]'.") from e
    figure = Figure(figsize=size, layout="constrained")
    canvas = FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(True, color=INK, alpha=0.12, linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
        axes.spines[side].set_alpha(0.5)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes, canvas


def _svg(figure: Any, canvas: Any, description: str, identifier: str) -> str:
    import io
    from html import escape

    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: the same data give the same bytes.
    settings: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": identifier, "axes.unicode_minus": True}
    with matplotlib.rc_context(cast(Any, settings)):
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor").replace(INK.upper(), "currentColor")
    text = re.sub(r"font: (\d[\d.]*px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{identifier}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{identifier}-", text)
    head, _, body = text.partition(">")
    view = re.search(r'viewBox="[^"]+"', head)
    box = view.group(0) if view else ""
    label = escape(description, quote=True)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box} role="img" '
        f'aria-label="{label}"'
    )
    return f"{head}>{body}".strip()
