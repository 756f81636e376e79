"""A table of dictionaries as one Parquet file, whose columns have the same types whatever stands in them."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saeworks.errors import InputError
from saeworks.files import atomic_write_bytes
from saeworks.results.headlines import HEADLINES
from saeworks.version import __version__

#: Columns that hold words, and those that hold whole numbers; all others hold numbers.
TEXTS = ("dictionary", "source", "control", "mode", "model", "site", "architecture", "failed")
WHOLES = ("width", "seed", "tokens")


def check_parquet() -> None:
    """Refuse, before any work, to go on without the library that writes Parquet."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError('The table is written with pyarrow, which is not installed; pip install "saeworks[hf]".')


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as :func:`saeworks.results.dictionary_table.dictionary_rows` gives them, atomically.

    Columns are those of the first row: strings for ``TEXTS``, int64 for ``WHOLES``, float64 for all others. What does
    not fit the type of its column, and NaN, is null. Field metadata ``better`` of a headline is 1 when more is better,
    -1 when less is, and 0 for what only describes.
    """
    columns = {name: [row.get(name) for row in rows] for name in (rows[0] if rows else ())}
    better = {h.column: str(h.better) for h in HEADLINES}
    return write_columns(path, columns, TEXTS, WHOLES, {name: {"better": v} for name, v in better.items()})


def write_columns(
    path: Path,
    columns: Mapping[str, Sequence[Any]],
    texts: Sequence[str],
    wholes: Sequence[str],
    notes: Mapping[str, Mapping[str, str]] | None = None,
) -> Path:
    """Write columns of equal length, atomically: strings for ``texts``, int64 for ``wholes``, float64 for all others.

    What does not fit the type of its column, and NaN, is null. ``notes``: metadata of fields, by column.
    """
    check_parquet()
    import pyarrow as pa
    import pyarrow.parquet as parquet

    arrays: list[Any] = []
    fields: list[Any] = []
    for column, values in columns.items():
        kind, convert = (
            (pa.string(), _text)
            if column in texts
            else (pa.int64(), _whole)
            if column in wholes
            else (pa.float64(), _number)
        )
        arrays.append(pa.array([convert(value) for value in values], kind))
        fields.append(pa.field(column, kind, metadata=(notes or {}).get(column)))
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata={"saeworks_version": __version__}))
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    atomic_write_bytes(path, buffer.getvalue())
    return path


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> float | None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fits else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None
