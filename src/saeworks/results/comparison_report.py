"""A comparison as one page: the table, every number between its controls, sweeps of sparsity, fronts, matched L0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saeworks.files import atomic_write_text
from saeworks.results.comparison import L0_VALUES, Sweep, common_range, matched_l0, sweeps
from saeworks.results.comparison_plots import front_figure, round_ticks, sweep_figures
from saeworks.results.dictionary_table import FACTS
from saeworks.results.headlines import HEADLINES, Headline, headline
from saeworks.results.plots import style_of
from saeworks.results.readings import number, readings
from saeworks.results.report_page import Section, page, plots
from saeworks.results.report_text import esc, visible
from saeworks.results.report_text import number as said

#: Fronts of fidelity against everything else have this number for the other axis, the first that is there.
FIDELITY = ("ce_loss_score", "explained_variance")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What a page shows: ``rows`` with intervals, facts for its head, sentences, and what could not be measured.

    ``l0_values`` are those of the tables at matched L0; None chooses round ones that the sweeps cover.
    """

    title: str
    rows: Sequence[Row]
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    metrics: Sequence[str] | None = None
    l0_values: Sequence[float] | None = None


def write_comparison(path: Path, comparison: Comparison) -> Path:
    """Write the page to ``path`` and return it. It opens without a network; everything in it is escaped."""
    atomic_write_text(path, render(comparison))
    return path


def render(comparison: Comparison) -> str:
    """The page as text."""
    rows = [dict(row) for row in comparison.rows]
    shown = metrics_of(rows, comparison.metrics)
    trained = [row for row in rows if not row.get("control")]
    sections = [
        Section("table", "All dictionaries", "Controls stand below, set apart.", _table(rows)),
        Section(
            "controls",
            "Between floor and ceiling",
            "The floor is the best that random directions or a permuted decoder reach: a score that is no better shows "
            "nothing. The ceiling is the identity's fidelity, or what a dictionary built from the true concepts "
            "reaches.",
            _readings(rows),
        ),
        Section(
            "sweeps",
            "Scores against sparsity",
            "One panel per width. Bars are 95 % intervals of one dictionary (where seeds are averaged, they span the "
            "intervals of all). Thin lines are controls, level where there is one of its kind. Beside the panels "
            "stands the front: dictionaries that no other one equals in L0 and score and beats in one of them.",
            "".join(_metric(rows, trained, h, comparison.l0_values) for h in shown),
        ),
        Section(
            "fronts",
            "Concepts against fidelity",
            "A dictionary is on the front when no other one is as good in both numbers and better in one.",
            _fronts(trained, shown),
        ),
        Section("missing", "Not measured", "", _missing(comparison.missing)),
        Section("definitions", "Definitions", "", _definitions(shown)),
    ]
    footer = "Made by saeworks from result files alone."
    return page(comparison.title, _header(comparison), sections, footer)


def metrics_of(rows: Sequence[Row], chosen: Sequence[str] | None = None) -> list[Headline]:
    """The numbers that a dictionary has and that have a better and a worse, or the ``chosen`` ones."""
    if chosen is not None:
        return [headline(column) for column in chosen]
    trained = [row for row in rows if not row.get("control")]
    return [h for h in HEADLINES if h.better and any(number(row.get(h.column)) is not None for row in trained)]


def l0_values_of(found: Sequence[Sweep]) -> tuple[float, ...]:
    """Round L0s that the sweeps cover: those of SAEBench's suite, or finer ones where fewer than two of these do."""
    low, high = min((s.x[0] for s in found), default=1.0), max((s.x[-1] for s in found), default=0.0)
    inside = tuple(v for v in L0_VALUES if low <= v <= high)
    if len(inside) >= 2 or low > high:
        return inside
    return tuple(v for v in round_ticks(low, high) if low <= v <= high)


def _header(comparison: Comparison) -> str:
    facts = "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in comparison.facts.items())
    notes = "".join(f"<p>{esc(note)}</p>" for note in comparison.notes)
    return (
        f'<header class="top"><p class="kicker">saeworks comparison</p><h1>{esc(comparison.title)}</h1>'
        f'<dl class="facts">{facts}</dl>{f"<div class=summary>{notes}</div>" if notes else ""}</header>'
    )


def _table(rows: Sequence[Row]) -> str:
    """Dictionaries, then controls; the best value of a column is marked, intervals stand below it."""
    columns = [h for h in HEADLINES if any(number(row.get(h.column)) is not None for row in rows)]
    facts = [fact for fact in ("source", "width", "setting") if len({row.get(fact) for row in rows}) > 1]
    trained, controls = ([row for row in rows if bool(row.get("control")) is wanted] for wanted in (False, True))
    best = {h.column: _best(h, trained) for h in columns}
    head = "<tr><th>Dictionary</th>" + "".join(f"<th>{esc(fact)}</th>" for fact in facts)
    head += "".join(f"<th>{esc(h.column.replace('_', ' '))}{_arrow(h)}</th>" for h in columns) + "</tr>"

    def line(row: Row) -> str:
        colour, _ = style_of(str(row.get("architecture") or ""))
        dot = "" if row.get("control") else f'<span class="dot" style="background:{colour}"></span>'
        cells = "".join(f"<td>{_fact(row.get(fact))}</td>" for fact in facts)
        for h in columns:
            value = number(row.get(h.column))
            mark = ' class="best"' if value is not None and not row.get("control") and value == best[h.column] else ""
            cells += f"<td{mark}>{said(value, 1 if h.column == 'l0' else 3)}{_interval(row, h)}</td>"
        name = esc(row.get("dictionary")).replace("_", "_<wbr>")
        return f'<tr><th class="name">{dot}{name}</th>{cells}</tr>'

    span = 1 + len(facts) + len(columns)
    apart = f'<tr><th colspan="{span}" class="left soft">Controls</th></tr>' if controls else ""
    body = "".join(map(line, trained)) + apart + "".join(map(line, controls))
    return f'<div class="scroll" tabindex="0"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _best(h: Headline, rows: Sequence[Row]) -> float | None:
    values = [v for row in rows if (v := number(row.get(h.column))) is not None]
    if not h.better or len(values) < 2:
        return None
    return max(values) if h.better > 0 else min(values)


def _arrow(h: Headline) -> str:
    return {1: " ↑", -1: " ↓"}.get(h.better, "")


def _interval(row: Row, h: Headline) -> str:
    low, high = number(row.get(f"{h.column}_low")), number(row.get(f"{h.column}_high"))
    if low is None or high is None:
        return ""
    digits = 1 if h.column == "l0" else 3
    return f"<small>{said(low, digits)} – {said(high, digits)}</small>"


def _fact(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else esc(value)


def _readings(rows: Sequence[Row]) -> str:
    found = readings(rows)
    if not found:
        return ""
    titles = ("Number", "Floor", "Dictionaries", "Ceiling", "Floor is", "Ceiling is")
    head = "".join(f"<th{' class=left' if title.endswith(' is') else ''}>{title}</th>" for title in titles)
    body = ""
    for row in found:
        between = f"{said(row['worst'])} – {said(row['best'])}"
        of = (row["floor_of"], row["ceiling_of"])
        names = "".join(f'<td class="left">{"–" if name is None else esc(name)}</td>' for name in of)
        arrow = " ↑" if row["better"] == "more" else " ↓"
        body += (
            f"<tr><th>{esc(row['number'].replace('_', ' '))}{arrow}</th><td>{said(row['floor'])}</td>"
            f"<td>{between}</td><td>{said(row['ceiling'])}</td>{names}</tr>"
        )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _metric(rows: Sequence[Row], trained: Sequence[Row], h: Headline, l0_values: Sequence[float] | None) -> str:
    """One number: its sweeps, and its values at matched L0."""
    if not any("l0" in row for row in trained):
        return ""
    figures = sweep_figures(rows, h.column)
    if not figures:
        return ""
    title = f"<h3>{esc(h.column.replace('_', ' '))}: {esc(h.direction)}</h3><p>{esc(_sentence(h.meaning))}</p>"
    return title + plots([*figures, _front(trained, h.column, "l0")]) + _matched(trained, h, l0_values)


def _matched(trained: Sequence[Row], h: Headline, l0_values: Sequence[float] | None) -> str:
    found = sweeps(trained, h.column)
    values = tuple(l0_values) if l0_values is not None else l0_values_of(found)
    table = matched_l0(found, values)
    if not values or all(row[f"{v:g}"] is None for row in table for v in values):
        return ""
    covered = common_range(found)
    means = [s.mean(*covered) if covered else None for s in found]
    columns = [[row[f"{v:g}"] for row in table] for v in values] + [means]
    best = [_extreme(h, column) for column in columns]
    mean_of = f"mean, L0 {covered[0]:.3g} – {covered[1]:.3g}" if covered else "mean"
    head = "<th>At matched L0</th>" + "".join(f"<th>{v:g}</th>" for v in values) + f"<th>{mean_of}</th>"
    body = ""
    for i, sweep in enumerate(found):
        cells = ""
        for column, top in zip(columns, best, strict=True):
            mark = ' class="best"' if column[i] is not None and column[i] == top else ""
            cells += f"<td{mark}>{said(column[i])}</td>"
        body += f"<tr><th>{esc(visible(_name(sweep, trained)))}</th>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _name(sweep: Sweep, rows: Iterable[Row]) -> str:
    """The kind in a few words; the architecture where there is only one kind."""
    if sweep.kind:
        return sweep.label
    return str(next(row for row in rows if row.get("dictionary") == sweep.names[0][0]).get("architecture") or "all")


def _extreme(h: Headline, values: Sequence[float | None]) -> float | None:
    found = [v for v in values if v is not None]
    if len(found) < 2:
        return None
    return max(found) if h.better > 0 else min(found)


def _fronts(trained: Sequence[Row], shown: Sequence[Headline]) -> str:
    """Every number that is not about fidelity, against the one that is."""
    fidelity = next((f for f in FIDELITY if any(h.column == f for h in shown)), None)
    return plots([_front(trained, h.column, fidelity) for h in shown if fidelity and h.eval != "core"])


def _front(trained: Sequence[Row], y: str, x: str) -> str:
    svg, front = front_figure(trained, y, x)
    names = ", ".join(esc(row.get("dictionary")) for row in front)
    return svg.replace("</figure>", f"<figcaption>On the front: {names}.</figcaption></figure>")


def _missing(missing: Mapping[str, str]) -> str:
    if not missing:
        return ""
    items = "".join(f"<li><b>{esc(what)}</b>: {esc(_sentence(why))}</li>" for what, why in missing.items())
    return f"<ul>{items}</ul>"


def _definitions(shown: Sequence[Headline]) -> str:
    items = "".join(
        f"<dt>{esc(h.column.replace('_', ' '))} <span class=soft>({esc(h.direction)})</span></dt>"
        f"<dd>{esc(_sentence(h.meaning))}</dd>"
        for h in shown
    )
    return f'<dl class="defs">{items}</dl>' if items else ""


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def facts_of(rows: Sequence[Row]) -> dict[str, str]:
    """Facts for the head of a page: how many dictionaries, and what all of them share."""
    trained = [row for row in rows if not row.get("control")]
    out = {"Dictionaries": str(len(trained)), "Controls": str(len(rows) - len(trained))}
    for fact in FACTS:
        values = sorted({str(row[fact]) for row in trained if row.get(fact) is not None})
        if fact in ("model", "site", "architecture", "width", "mode") and values:
            out[fact.capitalize()] = ", ".join(values[:6]) + (" …" if len(values) > 6 else "")
    return out
