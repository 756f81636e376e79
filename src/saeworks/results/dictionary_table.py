"""One row per dictionary from result files, whoever wrote them: what it is, and the main number of every eval."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError
from saeworks.results.envelope import Result, read_results
from saeworks.results.headlines import HEADLINES, headline_values
from saeworks.results.import_saebench import import_saebench

#: What a row says of a dictionary beside its numbers.
FACTS = ("dictionary", "source", "mode", "model", "site", "architecture", "width", "setting", "seed", "tokens")
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


def dictionary_rows(results: Iterable[Result]) -> list[Row]:
    """One row per source and dictionary, in the order of their first results.

    ``mode`` says whose definitions the numbers follow: ``compat`` (SAEBench's files, or ours in that mode),
    ``corrected``, or ``mixed``; numbers of different modes are not of the same kind, but for L0 and the losses.

    ``setting`` is k or the weight of the sparsity penalty. Columns that no dictionary has are absent.
    """
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        source = str(result.provenance.get("source") or "saeworks")
        grouped.setdefault((source, result.sae_lens_id or "custom_sae"), []).append(result)
    rows = [_row(source, name, found) for (source, name), found in grouped.items()]
    columns = [*FACTS, *(h.column for h in HEADLINES if any(h.column in row for row in rows))]
    return [{column: row.get(column) for column in columns} for row in rows]


def _row(source: str, name: str, results: list[Result]) -> Row:
    cfg = next((r.sae_cfg_dict for r in results if r.sae_cfg_dict), None) or {}
    given = cfg.get("metadata")
    metadata = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    modes = {mode for result in results if (mode := _mode(result))} or {"corrected"}
    settings = [metadata.get("k"), cfg.get("k"), metadata.get("penalty")]
    return {
        "dictionary": name,
        "source": source,
        "mode": modes.pop() if len(modes) == 1 else "mixed",
        "model": metadata.get("model_name"),
        "site": metadata.get("site"),
        "architecture": metadata.get("recipe") or cfg.get("architecture"),
        "width": cfg.get("d_sae"),
        "setting": next((s for s in settings if s is not None), None),
        "seed": metadata.get("seed"),
        "tokens": metadata.get("tokens"),
        **headline_values(results),
    }


def _mode(result: Result) -> str:
    """Empty for evals of ours that have no modes."""
    if result.definition_id.startswith("saebench/"):
        return "compat"
    return str(result.eval_config.get("mode") or "")
