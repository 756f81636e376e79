"""The concepts of the world in plain text: as a tree, and marked inside a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

OPEN, CLOSE, BETWEEN = "⟦", "⟧", " · "


def tree_lines(concepts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line per concept, indented below its parent where that is shown; parents come before their children."""
    depths: dict[str, int] = {}
    for one in concepts:
        parent = one["parent"]
        depth = depths[parent] + 1 if parent in depths else 0
        depths[one["id"]] = depth
        name = one["id"].rpartition("/")[2] if depth else one["id"]
        hidden = f" (+{one['hidden']:,} below)" if one.get("hidden") else ""
        yield f"{'  ' * depth}{name}: {one['description']} [{one['domain']}, {one['known_to']}]{hidden}"


def marked(text: str, spans: Sequence[Sequence[Any]]) -> str:
    """The text with its concepts inside: ``⟦Anna · person/name⟧``.

    Concepts of one place share brackets, and a concept is not named beside one below it (every dog is an animal). What
    covers the whole text is left out. A span that crosses the end of another is shown in two parts.
    """
    places: dict[tuple[int, int], list[str]] = {}
    for start, end, concept in spans:
        if start < end and (start, end) != (0, len(text)):
            places.setdefault((start, end), []).append(concept)
    names = {place: ", ".join(_deepest(found)) for place, found in places.items()}
    out: list[str] = []
    inside: list[tuple[int, str]] = []
    done = 0
    for edge in sorted({edge for place in places for edge in place}):
        out.append(text[done:edge])
        done = edge
        cut: list[tuple[int, str]] = []
        while any(end == edge for end, _ in inside):
            end, name = inside.pop()
            out.append(BETWEEN + name + CLOSE)
            if end != edge:
                cut.append((end, name))
        begun = [(end, names[start, end]) for start, end in places if start == edge]
        for one in sorted(cut + begun, reverse=True):
            out.append(OPEN)
            inside.append(one)
    return "".join([*out, text[done:]])


def _deepest(concepts: Sequence[str]) -> list[str]:
    """Without those that stand above another one."""
    return [one for one in dict.fromkeys(concepts) if not any(other.startswith(one + "/") for other in concepts)]
