"""The same sentences in English, French, German, Spanish and Italian.

Document labels: ``language`` (five) and ``meaning``, what is talked about (seven). The language is by nature told by
words. The meaning is shown to the probe splits by different sentences and different things, so that no word that
belongs to a single meaning stands in both; what they share is known to a reader of the whole text. A text of sentences
in one language has both labels; a text of translations has two languages and therefore only a meaning.

Everything stands in ``data/languages.txt``, sentence by sentence in five languages, and slots are filled with whole
phrases in the case that their place asks for. Sentences are therefore parallel by construction, and their grammar is
that of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from string import Formatter

from saeworks.world.documents import Document, Label
from saeworks.world.drawing import Draw, Pool
from saeworks.world.knowledge import read_data
from saeworks.world.phrasing import (
    Phrase,
    Relation,
    evidence,
    finish,
    join,
    marked,
    phrase,
    relation,
    render,
    sentence,
)

LABELS = ("language", "meaning")
LANGUAGES: tuple[str, ...] = ("English", "French", "German", "Spanish", "Italian")
_FRAMES_HELD_OUT = 4
# A text of more characters gets no further sentence, so that it fits the language model's context.
_LONG = 150
# A sentence with nothing around it; in probe_test every sentence has one of the held-out frames.
_PLAIN = "{C}."
# Slots whose fillings belong to one meaning; the others are met with several meanings.
TELLING = ("food", "drink", "kin", "goods", "subject", "destination")

# {a} and {b} are the sentences with their full stops, {A} and {B} the names of their languages.
TRANSLATION = relation(
    "{A}: {a} {B}: {b}",
    "{a} In {B}: {b}",
    "{A}: {a}\n{B}: {b}",
    '"{a}" is {A} and means "{b}" in {B}.',
    "in {A} one says: {a} In {B} one says: {b}",
    'how do you say "{a}" in {B}? "{b}"',
    "{A} to {B}: {a} -> {b}",
    "translate into {B}: {a} {b}",
    "from {A} into {B}: {a} {b}",
    'what is "{a}" in {B}? It is "{b}"',
    "one says in {A}: {a} One says in {B}: {b}",
    "{a} What is it in {B}? {b}",
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing that can be said in every language.

    Attributes:
        key: Its name, e.g. ``weather/rain``.
        meaning: What it talks about, e.g. ``weather``.
        texts: By language, without capital and full stop; slots in braces.
        slots: Names of its slots.
    """

    key: str
    meaning: str
    texts: dict[str, str]
    slots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Filling:
    """What a slot can be filled with: the concept's last word, and the phrase in every language."""

    slot: str
    key: str
    texts: dict[str, str]

    @property
    def concept(self) -> str:
        """The concept id, e.g. ``languages/word/food/rice``."""
        return f"languages/word/{self.slot}/{self.key}"


@cache
def _sections() -> dict[str, list[str]]:
    """The lines of the data file by section, without comments and empty lines."""
    found: dict[str, list[str]] = {}
    section: list[str] = []
    for line in read_data("languages.txt").splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            section.append(line)
    return found


@cache
def fillings() -> dict[str, tuple[Filling, ...]]:
    """The fillings of every slot, in file order."""
    found: dict[str, tuple[Filling, ...]] = {}
    for name, lines in _sections().items():
        if name.startswith("fill "):
            slot = name.removeprefix("fill ")
            rows = [line.split(" | ") for line in lines]
            found[slot] = tuple(
                Filling(slot, row[0].split()[-1].lower(), dict(zip(LANGUAGES, row, strict=True))) for row in rows
            )
    return found


@cache
def statements() -> dict[str, Statement]:
    """Every statement by its key, in file order."""
    found: dict[str, Statement] = {}
    for meaning, lines in _sections().items():
        if meaning == "frames" or meaning.startswith("fill "):
            continue
        for at in range(0, len(lines), 6):
            texts = dict(zip(LANGUAGES, lines[at + 1 : at + 6], strict=True))
            slots = tuple(name for _, name, _, _ in Formatter().parse(texts["English"]) if name)
            key = f"{meaning}/{lines[at]}"
            found[key] = Statement(key, meaning, texts, slots)
    return found


@cache
def meanings() -> dict[str, tuple[Statement, ...]]:
    """The statements of every meaning."""
    names = dict.fromkeys(one.meaning for one in statements().values())
    return {name: tuple(one for one in statements().values() if one.meaning == name) for name in names}


@cache
def frames() -> dict[str, Relation]:
    """What may stand around a sentence, by language; place by place they are parallel."""
    lines = _sections()["frames"]
    return {
        language: Relation(tuple(lines[i :: len(LANGUAGES)]), _FRAMES_HELD_OUT) for i, language in enumerate(LANGUAGES)
    }


def describe() -> dict[str, str]:
    """Every concept of the domain with what its spans mark, parents before children."""
    found = {
        "languages": "any text of sentences in human languages",
        "languages/language": "a sentence, which is in one of five languages",
        "languages/name": "the name of a human language",
        "languages/translation": "the second sentence of a pair that says the same as the first",
        "languages/meaning": "what a sentence says, without the words around it",
        "languages/word": "a phrase that names the same thing in every language",
    }
    found |= {f"languages/language/{name.lower()}": f"a sentence in {name}" for name in LANGUAGES}
    for name, ones in meanings().items():
        found[f"languages/meaning/{name}"] = f"a statement about the topic {name}, in any language"
        for one in ones:
            found[f"languages/meaning/{one.key}"] = f'a statement like "{one.texts["English"]}", in any language'
    for slot, options in fillings().items():
        found[f"languages/word/{slot}"] = f"a phrase of the kind {slot}, in any language"
        found |= {one.concept: f'what "{one.texts["English"]}" is in any language' for one in options}
    return found


def _options(slot: str, split: str) -> tuple[Filling, ...]:
    """What a slot of a statement may be filled with in the split; a person may be a pronoun there."""
    options = fillings()[slot] + (fillings()["pronoun"] if slot == "person" else ())
    return tuple(evidence(options, split)) if slot in TELLING else options


def _pools(split: str) -> dict[str, Pool[Filling]]:
    """The document's fillings; none comes twice before all others came."""
    return {slot: Pool(_options(slot, split)) for slot in fillings()}


def _fill(draw: Draw, statement: Statement, pools: Mapping[str, Pool[Filling]]) -> dict[str, Filling]:
    return {slot: pools[slot].take(draw) for slot in statement.slots}


def _word(one: Filling, language: str) -> Phrase:
    return phrase(one.texts[language], "languages/word", f"languages/word/{one.slot}", one.concept)


def _say(statement: Statement, language: str, filled: Mapping[str, Filling]) -> Phrase:
    """The statement in a language, without capital and full stop."""
    slots = {slot: _word(one, language) for slot, one in filled.items()}
    said = render(statement.texts[language], **slots)
    return marked(
        said, "languages/meaning", f"languages/meaning/{statement.meaning}", f"languages/meaning/{statement.key}"
    )


def _capital(inner: Phrase) -> Phrase:
    return Phrase(inner.text[:1].upper() + inner.text[1:], inner.marks)


def _in_language(inner: Phrase, language: str) -> Phrase:
    return marked(inner, "languages/language", f"languages/language/{language.lower()}")


def translate(key: str, language: str, chosen: Mapping[str, str] | None = None) -> str:
    """A statement as a sentence of a language.

    Args:
        key: A key of :func:`statements`, e.g. ``meal/eat``.
        language: One of ``LANGUAGES``.
        chosen: For slots the key of their filling, e.g. ``{"food": "rice"}``; the first one where nothing is chosen.

    Raises:
        KeyError: Unknown statement, language or filling.
    """
    statement = statements()[key]
    filled: dict[str, Filling] = {}
    for slot in statement.slots:
        by_key = {one.key: one for one in _options(slot, "train")}
        filled[slot] = by_key[(chosen or {}).get(slot, next(iter(by_key)))]
    return _capital(_say(statement, language, filled)).text + "."


def parallel_sentences(split: str, count: int, seed: int = 0) -> list[tuple[str, dict[str, str]]]:
    """Keys of statements, each with one sentence per language that says it with the same fillings.

    The statements and fillings are those that the split may show.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for i in range(count):
        draw = Draw(seed, "parallel sentences", split, i)
        statement = draw.pick(evidence(meanings()[draw.pick(list(meanings()))], split))
        filled = _fill(draw, statement, _pools(split))
        found.append(
            (statement.key, {one: _capital(_say(statement, one, filled)).text + "." for one in LANGUAGES}),
        )
    return found


def _text(draw: Draw, split: str, meaning: str, language: str) -> Phrase:
    """Some sentences in one language on one meaning."""
    pools = _pools(split)
    said = Pool(evidence(meanings()[meaning], split))
    ways = Pool(frames()[language].of(split))
    parts: list[Phrase] = []
    while not parts or (len(parts) < 4 and sum(len(part.text) for part in parts) <= _LONG and draw.chance(0.7)):
        frame = _PLAIN if split != "probe_test" and draw.chance(0.4) else ways.take(draw)
        slots: dict[str, Phrase] = {}
        named: set[str] = set()
        for slot in ("c", "c2") if "{c2}" in frame else ("c",):
            statement = said.take(draw)
            filled = _fill(draw, statement, pools)
            slots[slot] = _say(statement, language, filled)
            named |= {one.key for one in filled.values()}
        slots["C"] = _capital(slots["c"])
        if "{person}" in frame:
            # Whoever speaks is somebody else than those spoken of.
            one = draw.pick([one for one in fillings()["person"] if one.key not in named])
            slots["person"] = _word(one, language)
        parts.append(_opening(frame, slots))
    return _in_language(join(parts), language)


def _opening(frame: str, slots: Mapping[str, Phrase]) -> Phrase:
    """The frame filled, with a capital at the beginning, which in Spanish may stand behind a question mark."""
    made = sentence(frame, **slots)
    if made.text.startswith("¿"):
        return Phrase("¿" + made.text[1:2].upper() + made.text[2:], made.marks)
    return made


def _translations(draw: Draw, split: str, meaning: str) -> Phrase:
    """One or two sentences of one language with their translations into another."""
    first, second = draw.sample(LANGUAGES, 2)
    template = TRANSLATION.draw(draw, split)
    pools = _pools(split)
    said = Pool(evidence(meanings()[meaning], split))
    parts: list[Phrase] = []
    for _ in range(1 + draw.number(2)):
        statement = said.take(draw)
        filled = _fill(draw, statement, pools)
        a, b = (
            _in_language(join([_capital(_say(statement, one, filled)), Phrase(".")], ""), one)
            for one in (first, second)
        )
        names = {"A": phrase(first, "languages/name"), "B": phrase(second, "languages/name")}
        parts.append(sentence(template, a=a, b=marked(b, "languages/translation"), **names))
    return join(parts, "\n")


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One text about a meaning, in one language or in two. Its labels are independent; ``spurious`` is unused."""
    meaning = draw.pick(list(meanings()))
    if draw.chance(0.25):
        body = _translations(draw, split, meaning)
        labels: dict[str, Label] = {"meaning": meaning}
    else:
        language = draw.pick(LANGUAGES)
        body = _text(draw, split, meaning, language)
        labels = {"language": language, "meaning": meaning}
    return finish(marked(body, "languages"), labels, identity)
