"""How templates become text with concept spans.

A :class:`Phrase` is a text with marks; templates are ordinary format strings whose slots are filled with phrases,
and the marks move along. A slot may ask for an article: ``{thing:a}`` gives "a dog" or "an oak" with the mark on
the noun alone.

A :class:`Relation` holds the paraphrases of one statement. Its last ``held_out`` templates are kept for the
``probe_test`` split and appear in no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from typing import TypeVar

from saeworks.world.documents import Document, Label, Span
from saeworks.world.drawing import Draw

SPLITS = ("train", "validation", "probe_train", "probe_test")
PROBE_SPLITS = ("probe_train", "probe_test")
T = TypeVar("T")
Mark = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A text and its marks ``(start, end, concept)`` in characters of that text."""

    text: str
    marks: tuple[Mark, ...] = ()


def phrase(text: str, *concepts: str) -> Phrase:
    """``text`` marked as a whole with every one of the concepts."""
    return Phrase(text, tuple((0, len(text), concept) for concept in concepts))


def marked(inner: Phrase, *concepts: str) -> Phrase:
    """``inner`` with further concepts over its whole length."""
    return Phrase(inner.text, tuple((0, len(inner.text), c) for c in concepts) + inner.marks)


def join(parts: Iterable[Phrase], separator: str = " ") -> Phrase:
    """Phrases one after another."""
    text = ""
    marks: list[Mark] = []
    for i, part in enumerate(parts):
        text += separator if i else ""
        offset = len(text)
        text += part.text
        marks += [(start + offset, end + offset, concept) for start, end, concept in part.marks]
    return Phrase(text, tuple(marks))


def listing(parts: list[Phrase], word: str = "and") -> Phrase:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(parts) == 1:
        return parts[0]
    return join([join(parts[:-1], ", "), parts[-1]], f" {word} ")


def article(noun: str) -> str:
    """``a`` or ``an`` for the noun, by its sound where the spelling misleads."""
    word = noun.lower()
    if word.startswith(("uni", "euro", "use", "one", "ewe")):
        return "a"
    return "an" if word[:1] in "aeiou" or word.startswith(("hour", "honest", "heir")) else "a"


@lru_cache(maxsize=4096)
def _parse(template: str) -> tuple[tuple[str, str | None, str], ...]:
    return tuple((before, name, spec or "") for before, name, spec, _ in Formatter().parse(template))


def render(template: str, **slots: Phrase | str) -> Phrase:
    """Fill the template's slots; marks inside the slots are kept at their new places."""
    text = ""
    marks: list[Mark] = []
    for before, name, spec in _parse(template):
        text += before
        if name is None:
            continue
        slot = slots[name]
        value = Phrase(slot) if isinstance(slot, str) else slot
        if spec == "a":
            text += article(value.text) + " "
        offset = len(text)
        text += value.text
        marks += [(start + offset, end + offset, concept) for start, end, concept in value.marks]
    return Phrase(text, tuple(marks))


def sentence(template: str, **slots: Phrase | str) -> Phrase:
    """:func:`render` with a capital at the beginning."""
    inner = render(template, **slots)
    return Phrase(inner.text[:1].upper() + inner.text[1:], inner.marks)


@dataclass(frozen=True, slots=True)
class Relation:
    """Paraphrases of one statement; the last ``held_out`` of them are for ``probe_test`` alone."""

    templates: tuple[str, ...]
    held_out: int = 2

    def of(self, split: str, without: Sequence[str] = ()) -> tuple[str, ...]:
        """The templates that the split may use, but for those that have one of the slots ``without``."""
        allowed = self.templates[-self.held_out :] if split == "probe_test" else self.templates[: -self.held_out]
        return tuple(t for t in allowed if not any(f"{{{slot}" in t for slot in without)) if without else allowed

    def draw(self, draw: Draw, split: str, without: Sequence[str] = ()) -> str:
        """One of the templates of :meth:`of`, uniformly."""
        return draw.pick(self.of(split, without))

    def say(self, draw: Draw, split: str, **slots: Phrase | str) -> Phrase:
        """One sentence: a template of the split, filled."""
        return sentence(self.draw(draw, split), **slots)


def relation(*templates: str, held_out: int = 2) -> Relation:
    """The relation of these templates, the last ``held_out`` of them kept for ``probe_test``."""
    return Relation(templates, held_out)


def evidence(options: Sequence[T], split: str) -> Sequence[T]:
    """The options by which the split may show a label: the even ones in ``probe_train``, the odd in ``probe_test``.

    A probe then meets words that it was not fitted on and has to read what they have in common, which the language
    model, whose training text has all of them, knows and a count of words does not.
    """
    parts = {"probe_train": options[0::2], "probe_test": options[1::2]}
    return parts.get(split, options)


def finish(body: Phrase, labels: dict[str, Label], identity: str) -> Document:
    """The document of a finished phrase; spans sorted by start, longest first."""
    spans = sorted({Span(*mark) for mark in body.marks}, key=lambda s: (s.start, -s.end, s.concept))
    return Document(text=body.text, labels=labels, spans=tuple(spans), id=identity)
