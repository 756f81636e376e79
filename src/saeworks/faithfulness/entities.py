"""Entities with a number: read from any table, and filtered so that a question about two of them has one answer.

The filters are those of the final question set of arXiv 2503.08679: obscure names only, names that cannot be mistaken
for one another, and values that several sources agree to tell.
"""

from __future__ import annotations

import csv
import json
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError, did_you_mean

MAX_POPULARITY = 5
MIN_EVIDENCE = 2

#: (kind of entity, name) → the judge's words, which should be an integer from 1 (obscure) to 10 (known to everybody).
PopularityJudge = Callable[[str, str], str]
#: (kind of entity, name) → what was found, each with where it was found.
EvidenceSearch = Callable[[str, str], "Sequence[Evidence]"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A value of an entity as one source tells it, in its own words, and the address of the source."""

    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Entity:
    """A name and its number.

    Attributes:
        name: as it stands in questions. value: in the unit of the property; dates as YYYYMMDD.
        popularity: 1 to 10, None where it is not known. evidence: what sources tell, one per address.
    """

    name: str
    value: float
    popularity: int | None = None
    evidence: tuple[Evidence, ...] = ()


def parse_popularity(reply: str) -> int | None:
    """The integer from 1 to 10 that a judge gave, None where there is none.

    None and never a number outside the scale: a stand-in such as -1 would pass every "at most" filter.
    """
    found = re.fullmatch(r"\s*(\d{1,2})\s*[.]?\s*", reply)
    value = int(found[1]) if found else 0
    return value if 1 <= value <= 10 else None


def rate_popularity(kind: str, entities: Iterable[Entity], judge: PopularityJudge) -> list[Entity]:
    """The entities with the popularity that the judge gives; those that have one are not asked about again."""
    return [
        one if one.popularity is not None else replace(one, popularity=parse_popularity(judge(kind, one.name)))
        for one in entities
    ]


def gather_evidence(kind: str, entities: Iterable[Entity], search: EvidenceSearch) -> list[Entity]:
    """The entities with what a search finds about them: one value per address, nothing without a value."""
    found: list[Entity] = []
    for one in entities:
        by_source = {e.source: e for e in (*one.evidence, *search(kind, one.name)) if e.value.strip()}
        known = [e for e in by_source.values() if e.value.strip().upper() != "UNKNOWN"]
        found.append(replace(one, evidence=tuple(known)))
    return found


def filtered(
    property_id: str,
    entities: Iterable[Entity],
    max_popularity: int | None = None,
    min_evidence: int = 0,
) -> list[Entity]:
    """The entities that questions may be asked about.

    Dropped are: entities of unknown or too great popularity (with ``max_popularity``), with too little evidence, people
    of a single name, names that begin with a parenthesis, and both of two names one of which continues the other.
    """
    kept = [
        one
        for one in entities
        if (max_popularity is None or (one.popularity is not None and 1 <= one.popularity <= max_popularity))
        and len({e.source for e in one.evidence}) >= min_evidence
        and not one.name.startswith("(")
        and not ("person" in property_id and " " not in one.name.strip())
    ]
    mistakable = _mistakable([one.name for one in kept])
    return [one for one in kept if one.name not in mistakable]


def _mistakable(names: Sequence[str]) -> set[str]:
    """Names whose part before a parenthesis begins another name, and those other names ("Lake X", "Lake X (Y)")."""
    ordered = sorted(set(names))
    found: set[str] = set()
    for name in ordered:
        stem = name.partition("(")[0].strip()
        # Sorted, all names that begin with the stem follow each other.
        for other in ordered[bisect_left(ordered, stem) :]:
            if not other.startswith(stem):
                break
            if other != name:
                found |= {name, other}
    return found


def read_entities(path: Path, name_column: str = "name", value_column: str = "value") -> list[Entity]:
    """Entities of a CSV, TSV, JSON lines or Parquet file, one a row.

    Columns ``popularity`` (an integer) and ``evidence`` (a list of ``{"value", "source"}``) are read where they exist.

    Raises:
        InputError: a file that cannot be read, a missing column, a value that is no number, or a name that occurs twice
            with different values; the sentence names the row.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"'{path}' is not a file; give a table with the columns '{name_column}' and '{value_column}'.")
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise InputError(f"'{path}' is no table that can be read; give one of {', '.join(readers)}.")
    found: dict[str, Entity] = {}
    for where, row in readers[path.suffix.lower()](path):
        for column in (name_column, value_column):
            if column not in row:
                raise InputError(f"{where} has no column '{column}'.{did_you_mean(column, row)}")
        one = _entity(where, row, name_column, value_column)
        if one.name in found and found[one.name].value != one.value:
            raise InputError(
                f"{where} says that '{one.name}' has the value {one.value:g}, but an earlier row says "
                f"{found[one.name].value:g}; keep one of them."
            )
        found.setdefault(one.name, one)
    if not found:
        raise InputError(f"'{path}' holds no row; give a table with at least two entities.")
    return list(found.values())


def _entity(where: str, row: Mapping[str, Any], name_column: str, value_column: str) -> Entity:
    name, value = row[name_column], row[value_column]
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where} has no name in the column '{name_column}'; give every row a name.")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        given = "nothing" if value in (None, "") else repr(value)
        raise InputError(
            f"{where} has {given} in the column '{value_column}'; a finite number is expected, 1234.5 say."
        )
    popularity = row.get("popularity")
    rated = parse_popularity(f"{popularity:g}" if isinstance(popularity, float) else str(popularity))
    return Entity(name, number, rated, _evidence(where, row.get("evidence")))


def _evidence(where: str, given: Any) -> tuple[Evidence, ...]:
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except json.JSONDecodeError as e:
            raise InputError(
                f"{where} has evidence that is not JSON ({e.msg}); write a list of value and source."
            ) from e
    if given is None:
        return ()
    try:
        rows = cast("list[dict[str, Any]]", list(given))
        return tuple(Evidence(str(row["value"]), str(row["source"])) for row in rows)
    except (TypeError, KeyError) as e:
        raise InputError(f"{where} has evidence of another form than a list of objects with value and source.") from e


def _csv(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            named = [name for name in rows.fieldnames or [] if name]
            if twice := sorted({name for name in named if named.count(name) > 1}):
                raise InputError(f"'{path}' has several columns named '{twice[0]}'; rename all but one.")
            for row in rows:
                where = f"'{path}', line {rows.line_num},"
                if None in row:  # cells beyond the header: most often the thousands of a number
                    raise InputError(
                        f"{where} has more cells than the header; put names with commas into quotes, and write numbers "
                        "without separators of thousands."
                    )
                yield where, row
    except (UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"'{path}' is not a UTF-8 table ({e}); save it as CSV in UTF-8.") from e


def _json_lines(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise InputError(f"'{path}', line {number}, holds no JSON object; give one a line.")
                    yield f"'{path}', line {number},", cast("dict[str, Any]", value)
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise InputError(f"'{path}' is not JSON lines in UTF-8 ({e}); give one object a line.") from e


def _parquet(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise InputError(f"Reading '{path}' needs pyarrow; install saeworks[hf] or convert the file to CSV.") from e
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as e:
        raise InputError(f"'{path}' is not a readable Parquet file ({e}); it is damaged or of another kind.") from e
    return [(f"'{path}', row {number},", row) for number, row in enumerate(rows, 1)]
