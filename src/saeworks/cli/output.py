"""What commands print: tables for people, or exactly one JSON object."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

_real_stdout: Any = None
# Stored texts and names of models may hold what a terminal would obey; it is shown as a picture instead.
_CONTROL = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | dict.fromkeys(
    range(0x7F, 0xA0), "\N{REPLACEMENT CHARACTER}"
)


def print_json(value: Mapping[str, Any]) -> None:
    """Write one JSON object to standard output, also while :class:`quiet_stdout` is in force. NaN becomes null."""
    stream = _real_stdout or sys.stdout
    stream.write(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str) + "\n")
    stream.flush()


class quiet_stdout:
    """While in force, whatever libraries print goes to standard error, so that ``--json`` stays pure."""

    def __enter__(self) -> None:
        global _real_stdout
        _real_stdout, sys.stdout = sys.stdout, sys.stderr

    def __exit__(self, *exception: object) -> None:
        global _real_stdout
        sys.stdout, _real_stdout = _real_stdout, None


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table whose columns are the keys of the first row; numbers stand to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(title=Text(printable(title), "bold"), title_justify="left", header_style="")
    for key in rows[0]:
        number = all(isinstance(row.get(key), (int, float)) or row.get(key) is None for row in rows)
        table.add_column(key.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows:
        # As Text: a string would be read as markup, and whatever stands in square brackets would vanish.
        table.add_row(*(Text(_cell(row.get(key))) for key in rows[0]))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120).print(table)


def print_readings(rows: Sequence[Mapping[str, Any]]) -> None:
    """Every number of the dictionaries between the floor and the ceiling that controls give it."""
    print_table("Read against controls", rows)


def printable(text: str) -> str:
    """The text with pictures of control characters (␛ for escape), except for ends of lines and tabs."""
    return text.translate(_CONTROL)


def print_line(text: str) -> None:
    """Print one line to standard output."""
    sys.stdout.write(printable(text) + "\n")


def _finite(value: Any) -> Any:
    """The value with everything that JSON cannot say (NaN, infinity) replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in cast("Sequence[Any]", value)]
    return value


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(str(value))
