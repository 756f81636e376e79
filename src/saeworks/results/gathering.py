"""Result files from several places, one's own and SAEBench's in any mixture, as the rows of one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError
from saeworks.files import read_json
from saeworks.results.dictionary_table import Row, dictionary_rows
from saeworks.results.envelope import SUFFIX, Result, read_result
from saeworks.results.import_saebench import import_files


def gather(places: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """Rows (with intervals) of every result file below ``places``, and sentences about what is odd.

    A place is a workspace, a bench, a folder of results, a folder of SAEBench's, or one file. Dictionaries of one name
    from several places are told apart by the place's name, unless their weights are the same: then the later
    measurement of an eval counts.

    Raises:
        InputError: a place that does not exist or has no result that can be used.
    """
    own: list[tuple[Path, list[Result]]] = []
    published: list[Result] = []
    problems: list[str] = []
    for place in map(Path, places):
        files = _files(place)
        ours = [file for file in files if _is_ours(file)]
        theirs = sorted(set(files) - set(ours))
        own.append((place, [read_result(file) for file in ours]))
        if theirs:
            try:
                imported = import_files(theirs, f"below '{place}'")
                published += imported.results
                problems += imported.problems
            except InputError as e:
                if not ours:
                    raise
                problems.append(str(e))
    return dictionary_rows([*_told_apart(own, problems), *published], intervals=True), problems


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise InputError(f"'{place}' does not exist; give a workspace, a folder of results, or one of SAEBench's.")
    files = [place] if place.is_file() else sorted(place.rglob(f"*{SUFFIX}"))
    if not files:
        raise InputError(
            f"Below '{place}' there is no result file (their names end in '{SUFFIX}'); measure a dictionary first, or "
            "give another folder."
        )
    return files


def _is_ours(file: Path) -> bool:
    """Whether saeworks wrote a file: it says which version of a definition its numbers follow."""
    try:
        record = read_json(file)
    except InputError:
        return False  # what is damaged is reported with the others that cannot be used
    return isinstance(record, dict) and bool(cast("dict[str, Any]", record).get("definition_id"))


def _told_apart(own: Sequence[tuple[Path, list[Result]]], problems: list[str]) -> list[Result]:
    hashes: dict[str, dict[Path, set[str]]] = {}
    for place, results in own:
        for result in results:
            of_name = hashes.setdefault(result.sae_lens_id or "custom_sae", {})
            of_name.setdefault(place, set()).add(_hash(result))
    found: dict[tuple[str, str], Result] = {}
    for place, results in own:
        for result in results:
            name = result.sae_lens_id or "custom_sae"
            places = hashes[name]
            if len(places) > 1 and len(set.union(*places.values())) > 1:
                result.sae_lens_id = name = f"{place.resolve().name}/{name}"
            earlier = found.get((name, result.eval_type_id), result)
            later = max((earlier, result), key=lambda r: r.datetime_epoch_millis)
            if earlier is not result:
                problems.append(
                    f"'{name}' was measured by {result.eval_type_id} twice; '{later.path}' is later and counts."
                )
            found[name, result.eval_type_id] = later
    return list(found.values())


def _hash(result: Result) -> str:
    hashes = result.provenance.get("hashes")
    return str(cast("dict[str, Any]", hashes).get("dictionary")) if isinstance(hashes, dict) else ""
