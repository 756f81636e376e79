"""How words begin: single statements, lists in context, letter lists, the order of the alphabet.

No document labels; the letter stands in the spans: the word and its letter both carry ``spelling/first_letter/b``.
In lists every line starts with a space, so that the word is the same token as inside a sentence.
"""

from __future__ import annotations

from functools import cache

from saeworks.world.documents import Document
from saeworks.world.drawing import Draw, Weighted, zipf
from saeworks.world.knowledge import lexicon
from saeworks.world.phrasing import Phrase, finish, join, marked, phrase, relation, render, sentence

LABELS: tuple[str, ...] = ()
LETTERS = "abcdefghijklmnopqrstuvwxyz"

# Lines of a list; all lines of one document have the same form.
LINE = relation(
    "{word} has the first letter: {letter}",
    "{word} has the first letter: {letter}",
    "{word}: {letter}",
    "{word} starts with {letter}",
    "{word} begins with the letter {letter}",
    "{word} = {letter}",
    "the word {word} has the first letter: {letter}",
    "the first letter of {word} is {letter}",
    "- {word}: {letter}",
    "{word} -> {letter}",
    "{word} first letter: {letter}",
    "the word {word} starts with {letter}",
)
STATEMENT = relation(
    "The word {word} begins with {letter}.",
    "The first letter of {word} is {letter}.",
    "To write {word} you start with {letter}.",
    "In the dictionary you find {word} under {letter}.",
    "{letter} is the first letter of {word}.",
    "{letter} as in {word}.",
    "A child writes {letter} and goes on until the word {word} is done.",
    "What is the first letter of {word}? It is {letter}.",
    "Look up {word} among the words with {letter}.",
    "The word {word} has {letter} as its first letter.",
)
SAME = relation(
    "Words with {letter}: {words}.",
    "These words begin with {letter}: {words}.",
    "{letter}: {words}.",
    "Under {letter} the dictionary has {words}.",
    "The words {words} all start with {letter}.",
    "{words} share the first letter {letter}.",
    "Find more words like {words}, all with {letter}.",
    "If you like {letter}, write {words}.",
    "The letter {letter} opens {words}.",
    "{words} are words with {letter}.",
)
ORDER = relation(
    "After {a} comes {b}.",
    "In the alphabet {a} stands before {b}.",
    "{a} is followed by {b}.",
    "The letter before {b} is {a}.",
    "The letter after {a} is {b}.",
    "First {a}, then {b}.",
    "Between {a} and {c} stands {b}.",
    "The alphabet goes on: {a}, {b}, {c}.",
    "Next to {a} we have {b}.",
    "{a} and then {b} and then {c}.",
)
SORTED = relation(
    "In alphabetical order: {words}.",
    "Sorted from A to Z: {words}.",
    "The index lists {words}.",
    "A dictionary shows {words} in this order.",
    "From first to last: {words}.",
    "Put in order, the words are {words}.",
    "The glossary has {words}.",
    "By letter: {words}.",
    "The right order is {words}.",
    "Arranged by the alphabet: {words}.",
)


@cache
def _words() -> Weighted[str]:
    return zipf(lexicon(), 150.0)


@cache
def _by_letter() -> dict[str, Weighted[str]]:
    groups = {letter: [word for word in lexicon() if word[0] == letter] for letter in LETTERS}
    return {letter: zipf(words, 12.0) for letter, words in groups.items()}


def letter_concept(letter: str) -> str:
    """The concept of words that begin with the letter."""
    return f"spelling/first_letter/{letter.lower()}"


def word_phrase(word: str) -> Phrase:
    """A lexicon word as it stands in a spelling text."""
    return phrase(word, letter_concept(word[0]))


def letter_phrase(letter: str) -> Phrase:
    """A capital letter as an answer."""
    return phrase(letter.upper(), letter_concept(letter))


def _list(draw: Draw, split: str) -> Phrase:
    template = LINE.draw(draw, split)
    count = 2 + draw.number(10)
    # One word in four is drawn evenly over the letters: x and z would otherwise hardly be met.
    words = [
        draw.weighted(_by_letter()[draw.pick(LETTERS)]) if draw.chance(0.25) else draw.weighted(_words())
        for _ in range(count)
    ]
    separator = draw.pick(("\n ", "\n ", "\n", ", ", "; "))
    lines = [render(template, word=word_phrase(w), letter=letter_phrase(w[0])) for w in words]
    return join(
        [Phrase("\n" if separator[0] == "\n" else ""), join(lines, separator)], "" if separator == "\n" else " "
    )


def _statements(draw: Draw, split: str) -> Phrase:
    parts: list[Phrase] = []
    for _ in range(1 + draw.number(4)):
        word = draw.weighted(_words())
        parts.append(STATEMENT.say(draw, split, word=word_phrase(word), letter=letter_phrase(word[0])))
    return join(parts)


def _same_letter(draw: Draw, split: str) -> Phrase:
    parts: list[Phrase] = []
    for _ in range(1 + draw.number(2)):
        letter = draw.pick(LETTERS)
        words = [word_phrase(draw.weighted(_by_letter()[letter])) for _ in range(3 + draw.number(3))]
        parts.append(SAME.say(draw, split, letter=letter_phrase(letter), words=join(words, ", ")))
    return join(parts)


def _alphabet(draw: Draw, split: str) -> Phrase:
    parts: list[Phrase] = []
    for _ in range(1 + draw.number(3)):
        at = draw.number(24)
        a, b, c = (phrase(LETTERS[at + i].upper(), "spelling/alphabet") for i in range(3))
        parts.append(sentence(ORDER.draw(draw, split), a=a, b=b, c=c))
    return join(parts)


def _sorted_words(draw: Draw, split: str) -> Phrase:
    # One word for each of some ascending letters: drawing the letters by steps keeps the choices' count honest.
    at = draw.number(8)
    words: list[Phrase] = []
    while at < 26 and len(words) < 7:
        words.append(word_phrase(draw.weighted(_by_letter()[LETTERS[at]])))
        at += 1 + draw.number(4)
    return SORTED.say(draw, split, words=join(words, ", "))


_KINDS = Weighted((_list, _statements, _same_letter, _alphabet, _sorted_words), (5.0, 2.0, 1.5, 1.0, 1.0))


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One spelling text. It has no document label, so ``spurious`` is unused."""
    body = draw.weighted(_KINDS)(draw, split)
    return finish(marked(body, "spelling"), {}, identity)
