"""What a reader should know of results before their numbers: what was not measured and why, and notes of the evals."""

from __future__ import annotations

from collections.abc import Iterable

from saeworks.results.envelope import Result


def remarks(results: Iterable[Result]) -> list[str]:
    """One sentence for each reason and note in the details of ``results``, with the dictionaries that it is about.

    Details say it in two forms: ``{"not_measured": [...], "reason": ...}`` and ``{"note": ...}``.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for row in result.eval_result_details:
            text = row.get("note") or (row.get("reason") if row.get("not_measured") else None)
            if text:
                found.setdefault((result.eval_type_id, str(text)), []).append(result.sae_lens_id or "custom_sae")
    out: list[str] = []
    for (eval_type, text), names in found.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        out.append(f"{eval_type} of {names[0]}{others}: {text.strip().rstrip('.')}.")
    return out
