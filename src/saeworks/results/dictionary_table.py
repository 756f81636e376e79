"""One row per dictionary from result files, whoever wrote them: what it is, and the main number of every eval."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError
from saeworks.results.envelope import Result, read_results
from saeworks.results.headlines import HEADLINES, headline_intervals, headline_values
from saeworks.results.import_saebench import import_saebench

#: What a row says of a dictionary beside its numbers.
FACTS = (
    *("dictionary", "source", "control", "mode", "model", "site"),
    *("architecture", "width", "setting", "seed", "tokens"),
)
#: What the columns of the ends of an interval end in.
ENDS = ("_low", "_high")
Row = dict[str, Any]


def side_by_side(own: Path | None, published: Path | None) -> tuple[list[Row], list[str]]:
    """Rows of one's own results below ``own`` and of SAEBench's below ``published``, and sentences about odd files.

    Raises ``InputError`` when neither is given, or what is given holds no result.
    """
    if own is None and published is None:
        raise InputError("No results were named; give a folder of one's own, of SAEBench's, or both.")
    results, problems = list[Result](), list[str]()
    if own is not None:
        results = read_results(own)
        if not results:
            raise InputError(f"There are no results below '{own}'; measure a dictionary first.")
    if published is not None:
        imported = import_saebench(published)
        results, problems = results + imported.results, imported.problems
    return dictionary_rows(results), problems


def dictionary_rows(results: Iterable[Result], intervals: bool = False) -> list[Row]:
    """One row per source and dictionary, in the order of their first results.

    ``mode`` says whose definitions the numbers follow: ``compat`` (SAEBench's files, or ours in that mode),
    ``corrected``, or ``mixed``; numbers of different modes are not of the same kind, but for L0 and the losses.

    ``setting`` is k or the weight of the sparsity penalty. ``control`` is the kind of a dictionary that nobody trained
    and None for all others. With ``intervals``, the ends of a number's 95 % interval follow it as ``COLUMN_low`` and
    ``COLUMN_high``. Columns of numbers that no dictionary has are absent.
    """
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        source = str(result.provenance.get("source") or "saeworks")
        grouped.setdefault((source, result.sae_lens_id or "custom_sae"), []).append(result)
    rows = [_row(source, name, found) for (source, name), found in grouped.items()]
    numbers = [f"{h.column}{end}" for h in HEADLINES for end in ("", *(ENDS if intervals else ()))]
    columns = [*FACTS, *(column for column in numbers if any(column in row for row in rows))]
    return [{column: row.get(column) for column in columns} for row in rows]


def _row(source: str, name: str, results: list[Result]) -> Row:
    cfg = next((r.sae_cfg_dict for r in results if r.sae_cfg_dict), None) or {}
    given = cfg.get("metadata")
    metadata = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    modes = {mode for result in results if (mode := _mode(result))} or {"corrected"}
    recipe, control = metadata.get("recipe"), metadata.get("control")
    if control is not None and str(recipe).startswith("control_"):
        recipe = None
    settings = [metadata.get("k"), cfg.get("k"), metadata.get("penalty")]
    return {
        "dictionary": name,
        "source": source,
        "control": control,
        "mode": modes.pop() if len(modes) == 1 else "mixed",
        "model": metadata.get("model_name"),
        "site": metadata.get("site"),
        "architecture": recipe or cfg.get("architecture"),
        "width": cfg.get("d_sae"),
        "setting": next((s for s in settings if s is not None), None),
        "seed": metadata.get("seed"),
        "tokens": metadata.get("tokens"),
        **headline_values(results),
        **headline_intervals(results),
    }


def _mode(result: Result) -> str:
    """Empty for evals of ours that have no modes."""
    if result.definition_id.startswith("saebench/"):
        return "compat"
    return str(result.eval_config.get("mode") or "")
