"""One row of a file or dataset: its text, its labels, and the concept spans that a labelled text may bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from saeworks.activations.texts import without_surrogates
from saeworks.errors import InputError
from saeworks.world.documents import Span

Label = str | int | float | bool


@dataclass(frozen=True)
class Columns:
    """Which columns hold text, label and spurious label."""

    text: str
    label: str | None = None
    spurious: str | None = None

    @property
    def labels(self) -> dict[str, str]:
        """Name of the document label → column that holds it."""
        named = {"label": self.label, "spurious_label": self.spurious}
        return {name: column for name, column in named.items() if column is not None}


def clean(text: str) -> str:
    """Text with LF line ends and without white space around it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def exactly(text: str) -> str:
    """The text to the character, empty when it is blank."""
    return without_surrogates(text) if text.strip() else ""


def text_of(value: Any, where: str, column: str) -> str:
    """The text of a cell, stripped; empty for null. Anything else than text is an ``InputError``."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{where}: column '{column}' holds {type(value).__name__}, not text; choose another text column."
        )
    return clean(without_surrogates(value))


def labels_of(fields: Mapping[str, Any], where: str, columns: Columns) -> dict[str, Label]:
    """The row's own ``labels``, and ``label`` and ``spurious_label`` from the columns asked for; null is no label."""
    own = own_labels(fields)
    found: dict[str, Label] = dict(own or {})
    for name, column in columns.labels.items():
        value = label_of(fields if column in fields else found, where, column)
        if value is not None:
            found[name] = value
    return found


def own_labels(fields: Mapping[str, Any]) -> dict[str, Label] | None:
    """The labels of a row that brings them as an object under ``labels``; None when it has none of this form."""
    value = fields.get("labels")
    if not isinstance(value, dict):
        return None
    named = cast("dict[str, Any]", value)
    if not all(one is None or isinstance(one, str | int | float | bool) for one in named.values()):
        return None
    return {name: one for name, one in named.items() if one is not None}


def label_of(fields: Mapping[str, Any], where: str, column: str) -> Label | None:
    """The label of a row; None when it is null or absent."""
    value = fields.get(column)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise InputError(f"{where}: label column '{column}' holds {type(value).__name__}; expected text or a number.")


def spans_of(fields: Mapping[str, Any], where: str, column: str) -> tuple[Span, ...] | None:
    """The row's ``spans``, a list of ``[start, end, concept]``; None when it has none of this form.

    Raises:
        InputError: a span that lies outside the text.
    """
    value, text = fields.get("spans"), fields.get(column)
    if not isinstance(value, list) or not isinstance(text, str):
        return None
    spans: list[Span] = []
    for entry in cast("list[Any]", value):
        match entry:
            case [int(start), int(end), str(concept)]:
                if not 0 <= start <= end <= len(text):
                    raise InputError(
                        f"{where}: the span [{start}, {end}] of '{concept}' lies outside the text of {len(text)} "
                        "characters; spans count the characters of the text from 0."
                    )
                spans.append(Span(start, end, concept))
            case _:
                return None
    return tuple(spans)
