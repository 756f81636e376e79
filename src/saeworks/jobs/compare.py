"""Compare what was measured, wherever the result files lie: at matched L0, on fronts, and as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saeworks.errors import InputError, did_you_mean
from saeworks.results.comparison import common_range, matched_l0, pareto_front, sweeps
from saeworks.results.comparison_report import Comparison, facts_of, l0_values_of, metrics_of, write_comparison
from saeworks.results.gathering import gather
from saeworks.results.headlines import HEADLINES, headline
from saeworks.results.readings import readings

Row = Mapping[str, Any]


def compare(
    places: Sequence[str | Path],
    *,
    at_l0: Sequence[float] | None = None,
    metrics: Sequence[str] | None = None,
    pareto: Sequence[str] | None = None,
    baseline: str | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Compare the dictionaries of result files; nothing is measured.

    Args:
        places: workspaces, benches, folders of results or of SAEBench's result files, single files.
        at_l0: L0s to compare at; None: round ones that the dictionaries cover.
        metrics: columns; None: every one that is there and has a better and a worse.
        pareto: two columns, across and up, for a front.
        baseline: the sweep whose values are taken from all others'.
        out: where to write the comparison as a page.

    Returns:
        ``{"table", "matched": {column: [row per sweep]}, "front", "readings", "report", "notes"}``.

    Raises:
        InputError: no usable file, an unknown column or baseline, an L0 that is not positive.
    """
    if not places:
        raise InputError("No results were named; give a workspace, a folder of results, or one of SAEBench's.")
    rows, problems = gather([Path(place) for place in places])
    trained = [row for row in rows if not row["control"]]
    shown = metrics_of(rows, metrics)
    for h in shown:
        if trained and h.column not in trained[0]:
            known = [c.column for c in HEADLINES if c.column in trained[0]]
            raise InputError(f"No result has a column '{h.column}'.{did_you_mean(h.column, known)}")
    with_l0 = any(row.get("l0") for row in trained)
    if not with_l0 and (at_l0 or baseline):
        raise InputError("None of the results says an L0, which the eval core measures; compare by --pareto instead.")
    matched = {h.column: _matched(trained, h.column, at_l0, baseline) for h in shown} if with_l0 else {}
    problems += [] if with_l0 else ["No result says an L0 (the eval core measures it), so nothing is compared by it."]
    front = _front(trained, pareto) if pareto else []
    if out is not None:
        title = f"Comparison of {', '.join(sorted({Path(place).resolve().name for place in places}))}"
        chosen = None if metrics is None else [h.column for h in shown]
        page = Comparison(title, rows, facts_of(rows), problems, {}, chosen, at_l0)
        write_comparison(out, page)
    return {
        "table": rows,
        "matched": matched,
        "front": front,
        "readings": readings(rows),
        "report": None if out is None else str(out),
        "notes": problems,
    }


def _matched(
    rows: Sequence[Row], column: str, at_l0: Sequence[float] | None, baseline: str | None
) -> list[dict[str, Any]]:
    """A row per sweep: the values at each L0, and the mean over the range that all sweeps cover (or, with a
    ``baseline``, the mean difference to it)."""
    found = sweeps(rows, column)
    values = l0_values_of(found) if at_l0 is None else at_l0
    table = matched_l0(found, values, baseline)
    covered = common_range(found)
    out: list[dict[str, Any]] = []
    for sweep, row in zip(found, table, strict=True):
        kept = {key: value for key, value in row.items() if key not in sweep.kind}
        mean = {} if baseline else {"mean": sweep.mean(*covered) if covered else None}
        out.append({**kept, **mean})
    return out


def _front(rows: Sequence[Row], pareto: Sequence[str]) -> list[dict[str, Any]]:
    if len(pareto) != 2:
        raise InputError(f"A front has two columns, as in --pareto l0,ce_loss_score, but {len(pareto)} were given.")
    x, y = pareto
    across = headline(x)
    if not across.better and x != "l0":
        raise InputError(f"Neither more nor less of '{x}' is better, so it makes no front; give another column.")
    return [
        {"dictionary": row["dictionary"], "source": row["source"], x: row[x], y: row[y]}
        for row in pareto_front(rows, headline(y).column, x, more_x=across.better > 0)
    ]
