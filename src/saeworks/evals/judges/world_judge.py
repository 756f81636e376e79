"""The judge that needs no model: it knows which concept every span carries, and every word it sees.

Asked to explain, it names the concept, or the one word, whose tokens agree best (F1) with the active tokens. Asked
where a latent with such an explanation is active, it looks the concept or the word up. A score under this judge is
therefore exact about the dictionary: nothing is lost to the reading and writing of a language model, and latents
that follow a known concept on the nose reach 1. What it cannot say (two concepts, grammar, a position) scores low.
On texts without spans it knows words alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache

from saeworks.evals.judges.protocol import Answer, Detect, Explain, Question, Rate, SeenText

VERSION = "1"
_WORD = 'the word "'
_NOTHING = "nothing that I know"


class WorldJudge:
    """Answers questions that carry their evidence; any other is ``malformed``."""

    name = "world"
    workers = 1
    lasting = False

    def identity(self) -> dict[str, str]:
        """The version of its rules."""
        return {"kind": "world", "version": VERSION}

    def room(self) -> int | None:
        """Any number."""
        return None

    def usage(self) -> dict[str, int | float]:
        """Nothing is spent."""
        return {}

    def close(self) -> None:
        """Nothing to give back."""

    def answer(self, question: Question) -> Answer:
        """An answer in the form that the question's text asks for."""
        match question.evidence:
            case Explain(texts):
                return Answer(f"This unit activates on {in_words(best_explanation(texts))}.")
            case Detect(explanation, texts):
                found = [str(i) for i, text in enumerate(texts, 1) if shows(text, explanation)]
                return Answer(", ".join(found) or "None")
            case Rate(concepts, texts):
                rated = ", ".join(f'"{name}": {rating(texts, name)}' for name in concepts)
                return Answer(f"```json\n{{{rated}}}\n```")
            case None:
                return Answer("", "malformed", "the world's judge reads no prose: the question has no evidence")


def best_explanation(texts: Iterable[SeenText]) -> str:
    """The concept id, or ``the word "…"``, with the best F1 over the tokens of the texts; "" where nothing is active.

    Among equals a concept goes before a word, then the deepest concept, then the alphabet decides.
    """
    total: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    active = 0
    for text in texts:
        for i, token in enumerate(text.tokens):
            names = _names(token, text.concepts[i])
            total.update(names)
            if text.active is not None and text.active[i]:
                active += 1
                hits.update(names)
    if not hits:
        return ""
    return min(hits, key=lambda n: (-2 * hits[n] / (active + total[n]), n.startswith(_WORD), -n.count("/"), n))


def in_words(name: str) -> str:
    """An explanation as text: a concept's id with its description, or the word."""
    if not name:
        return _NOTHING
    description = _descriptions().get(name)
    return f"{name}: {description}" if description else name


def shows(text: SeenText, explanation: str) -> bool:
    """Whether any token of the text has the concept, or is the word, that :func:`in_words` named."""
    name = explanation if explanation.startswith(_WORD) else explanation.partition(":")[0].strip()
    return any(name in _names(token, concepts) for token, concepts in zip(text.tokens, text.concepts, strict=True))


def rating(texts: Iterable[SeenText], concept: str) -> int:
    """0 to 4: the F1 of the active tokens against the concept's, in fifths."""
    hits = active = total = 0
    for text in texts:
        for i, concepts in enumerate(text.concepts):
            fires = text.active is not None and text.active[i]
            hits += fires and concept in concepts
            active += fires
            total += concept in concepts
    return min(4, int(5 * 2 * hits / (active + total))) if active + total else 0


def _names(token: str, concepts: frozenset[str]) -> set[str]:
    word = token.strip().lower()
    return {*concepts, f'{_WORD}{word}"'} if word else set(concepts)


@cache
def _descriptions() -> dict[str, str]:
    from saeworks.world.concepts import concepts

    return {name: concept.description for name, concept in concepts().items()}
