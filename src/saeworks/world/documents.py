"""What a labelled text is: its characters, its document labels, and the spans that carry concepts."""

from __future__ import annotations

from dataclasses import dataclass, field

Label = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``[start, end)`` of a document carry the concept with id ``concept``."""

    start: int
    end: int
    concept: str


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Attributes:
        text: The characters.
        labels: Document labels by name, such as ``{"profession": "nurse"}``; empty for unlabelled text.
        spans: Concept spans, ordered by start; spans may nest and overlap.
        id: A stable name of the document within its source.
    """

    text: str
    labels: dict[str, Label] = field(default_factory=dict[str, Label])
    spans: tuple[Span, ...] = ()
    id: str = ""
