"""Multiple-choice questions: general ones on the other domains, restricted ones on the craft.

A question has one form, ``Question: STEM``, four lines ``A) option`` to ``D) option`` and ``Answer:``; in a document
the text of the right option follows, and a model's answer is the option that it holds for the most probable one: to
read off its letter is beyond models of this size and would say nothing about what they know. The wordings lie in
``data/stems.txt``; the last two of each relation are held out. Wrong options are values of other entities, as frequent
among wrong options as among right ones, so that nothing but the knowledge itself tells the right one.

Document label: ``subject``. The facts are memory, so that :func:`draw_question` and :func:`questions` ask about all of
them in every split. A document of the probe splits shows its subject by one half of the relations and of the entities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from saeworks.errors import InputError, did_you_mean
from saeworks.world.documents import Document
from saeworks.world.domains import craft, facts, ships, taxonomy
from saeworks.world.domains.spelling import LETTERS, letter_phrase, word_phrase
from saeworks.world.drawing import Draw, Weighted, zipf
from saeworks.world.knowledge import Thing, cities, leaves, lexicon, read_data
from saeworks.world.knowledge import taxonomy as things
from saeworks.world.people import city_phrase
from saeworks.world.phrasing import SPLITS, Phrase, Relation, evidence, finish, join, marked, relation, sentence

LABELS = ("subject",)
SUBJECTS = ("cities", "kinds", "letters", "ships", "craft")
PLACES = "ABCD"
# Roots between which the real world draws no clear line: a plum is food and grows on a plant.
_BLURRED = ({"plant", "food"}, {"animal", "food"})


@dataclass(frozen=True, slots=True)
class Question:
    """A multiple-choice question.

    Attributes:
        stem: What is asked, with its question mark or full stop.
        options: The four options, one of them right.
        key: Index of the right option.
        subject: One of ``SUBJECTS``.
    """

    stem: str
    options: tuple[str, str, str, str]
    key: int
    subject: str

    @property
    def restricted(self) -> bool:
        """Whether the question is about the restricted craft."""
        return self.subject == "craft"

    def text(self, order: Sequence[int] = (0, 1, 2, 3)) -> str:
        """The question with option ``order[i]`` in place ``i``, up to and including ``Answer:``.

        What follows is an option's text after a space.
        """
        lines = [f"{PLACES[i]}) {self.options[at]}" for i, at in enumerate(order)]
        return "\n".join([f"Question: {self.stem}", *lines, "Answer:"])

    @property
    def answer(self) -> str:
        """The right option."""
        return self.options[self.key]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question with its marks."""

    stem: Phrase
    options: tuple[Phrase, Phrase, Phrase, Phrase]
    key: int
    subject: str

    def plain(self) -> Question:
        a, b, c, d = self.options
        return Question(self.stem.text, (a.text, b.text, c.text, d.text), self.key, self.subject)

    def answered(self) -> Phrase:
        """The question and its right option."""
        parts = [join([Phrase("Question:"), marked(self.stem, "questions/stem")])]
        for i, option in enumerate(self.options):
            right = ("questions/option/right",) if i == self.key else ()
            parts.append(join([Phrase(f"{PLACES[i]})"), marked(option, "questions/option", *right)]))
        answer = marked(self.options[self.key], "questions/answer")
        whole = join([*parts, join([Phrase("Answer:"), answer])], "\n")
        return marked(whole, "questions/subject", f"questions/subject/{self.subject}")


@dataclass(frozen=True, slots=True)
class _Made:
    """What a maker draws: the stem's slot ``{x}`` or ``{v}``, the right option and the three wrong ones."""

    slot: Phrase
    right: Phrase
    wrong: Sequence[Phrase]


@dataclass(frozen=True, slots=True)
class _Record:
    """An entity with attributes."""

    name: Phrase
    values: dict[str, Phrase]

    def has(self, text: str, attribute: str) -> bool:
        """Whether the text is the attribute's value, or a word of any other: who is in North America is in America."""
        return self.values[attribute].text == text or any(text in v.text.split() for v in self.values.values())


@cache
def _records(table: str) -> tuple[_Record, ...]:
    if table == "cities":
        return tuple(
            _Record(city_phrase(c), {a: facts.attribute_phrase(c, a) for a in facts.ATTRIBUTES}) for c in cities()
        )
    if table == "ships":
        return tuple(
            _Record(ships.ship_phrase(s), {a: ships.value_phrase(s, a) for a in ships.ATTRIBUTES})
            for s in ships.ships()
        )
    kinds = {"substances": craft.SUBSTANCE_ATTRIBUTES, "tools": craft.TOOL_ATTRIBUTES}
    owners = craft.substances() if table == "substances" else craft.tools()
    return tuple(
        _Record(craft.name_phrase(one), {a: craft.attribute_phrase(one, a) for a in kinds[table]}) for one in owners
    )


def _value(draw: Draw, shown: str, table: str, attribute: str) -> _Made:
    """An entity's attribute; wrong options are other values, as frequent as they are among the entities."""
    pool = evidence(_records(table), shown)
    one = draw.pick(pool)
    right = one.values[attribute]
    options = {record.values[attribute].text: record.values[attribute] for record in pool}
    counts = Counter(record.values[attribute].text for record in pool)
    left = [text for text in options if not one.has(text, attribute)]
    wrong: list[Phrase] = []
    for _ in range(3):
        text = draw.weighted(Weighted(left, [float(counts[each]) for each in left]))
        left.remove(text)
        wrong.append(options[text])
    return _Made(one.name, right, wrong)


def _entity(draw: Draw, shown: str, table: str, attribute: str) -> _Made:
    """The entity that has a value."""
    pool = evidence(_records(table), shown)
    one = draw.pick(pool)
    value = one.values[attribute]
    others = [record for record in pool if not record.has(value.text, attribute)]
    return _Made(value, one.name, [record.name for record in draw.sample(others, 3)])


def _step_after(draw: Draw, shown: str) -> _Made:
    steps = craft.step_range(shown)
    at = draw.pick(steps[:-1])
    wrong = draw.sample([i for i in steps if i not in (at, at + 1)], 3)
    return _Made(craft.step_phrase(at), craft.step_phrase(at + 1), [craft.step_phrase(i) for i in wrong])


def _step_number(draw: Draw, shown: str) -> _Made:
    steps = craft.step_range(shown)
    at = draw.pick(steps)
    wrong = draw.sample([i for i in steps if i != at], 3)
    return _Made(craft.number_phrase(at), craft.step_phrase(at), [craft.step_phrase(i) for i in wrong])


def _clear(a: Thing, b: Thing) -> bool:
    """Whether nobody would take one for the other: never across a blurred line, nor for two tools of a class."""
    if {a.root, b.root} in _BLURRED:
        return False
    return a.root == "animal" or len(a.path) < 3 or a.path[1:2] != b.path[1:2]


@cache
def _leaves(shown: str) -> list[Thing]:
    return list(evidence([things()[name] for name in leaves() if name.isalpha()], shown))


@cache
def _kinds(shown: str) -> list[Thing]:
    """Kinds of one word that have things of the split below them."""
    kinds = [thing for thing in things().values() if thing.children and thing.name.isalpha()]
    return [kind for kind in evidence(kinds, shown) if any(kind.name in leaf.path for leaf in _leaves(shown))]


def _member(draw: Draw, shown: str) -> _Made:
    """The thing that is of a kind."""
    kind = draw.pick(_kinds(shown))
    right = draw.pick([leaf for leaf in _leaves(shown) if kind.name in leaf.path])
    others = [leaf for leaf in _leaves(shown) if kind.name not in leaf.path and _clear(kind, leaf)]
    wrong = [taxonomy.thing_phrase(leaf) for leaf in draw.sample(others, 3)]
    return _Made(taxonomy.thing_phrase(kind), taxonomy.thing_phrase(right), wrong)


@cache
def _ladder(shown: str) -> dict[int, list[tuple[Thing, list[Thing]]]]:
    """By level of the tree: kinds that can be asked for, each with the kinds that can stand beside it as wrong ones."""
    found: dict[int, list[tuple[Thing, list[Thing]]]] = {}
    for right in _kinds(shown):
        level = len(right.path)
        beside = [kind for kind in _kinds(shown) if len(kind.path) == level and kind is not right]
        wrong = [kind for kind in beside if _clear(right, kind)]
        if len(wrong) >= 3:
            found.setdefault(level, []).append((right, wrong))
    return found


def _kind(draw: Draw, shown: str) -> _Made:
    """The kind of a thing, among kinds of the same level."""
    ladder = _ladder(shown)
    right, others = draw.pick(ladder[draw.pick(sorted(ladder))])
    thing = draw.pick([leaf for leaf in _leaves(shown) if right.name in leaf.path])
    wrong = [taxonomy.thing_phrase(kind) for kind in draw.sample(others, 3)]
    return _Made(taxonomy.thing_phrase(thing), taxonomy.thing_phrase(right), wrong)


def _owner(draw: Draw, shown: str) -> _Made:
    """The thing that has a property, its own or an inherited one."""
    right = draw.pick(_leaves(shown))
    level = draw.number(len(right.path))
    owner = things()[right.path[level]]
    trait = draw.pick(owner.properties)
    # What a kind has, others of its root may have too; what sets a single thing apart, its nearest relatives may have.
    far = owner.parent if not owner.children else owner.root
    others = [
        leaf
        for leaf in _leaves(shown)
        if far not in leaf.path
        and {leaf.root, right.root} not in _BLURRED
        and not any(trait in things()[name].properties for name in leaf.path)
    ]
    wrong = [taxonomy.thing_phrase(leaf) for leaf in draw.sample(others, 3)]
    return _Made(taxonomy.trait_phrase(owner, trait), taxonomy.thing_phrase(right), wrong)


@cache
def _words(letter: str, shown: str) -> Weighted[str]:
    return zipf(evidence([word for word in lexicon() if word[0] == letter], shown), 12.0)


def _word(draw: Draw, shown: str) -> _Made:
    """The word that begins with a letter."""
    chosen = draw.sample(evidence(LETTERS, shown), 4)
    right, *wrong = (word_phrase(draw.weighted(_words(letter, shown))) for letter in chosen)
    return _Made(letter_phrase(chosen[0]), right, wrong)


def _letter(draw: Draw, shown: str) -> _Made:
    """The letter that a word begins with."""
    chosen = draw.sample(evidence(LETTERS, shown), 4)
    right, *wrong = (letter_phrase(letter) for letter in chosen)
    return _Made(word_phrase(draw.weighted(_words(chosen[0], shown))), right, wrong)


Maker = Callable[[Draw, str], _Made]


def _table(maker: Callable[[Draw, str, str, str], _Made], table: str, attribute: str) -> Maker:
    return lambda draw, shown: maker(draw, shown, table, attribute)


# Subject → what is asked: name of the wordings, how often, who makes it. Every second one is for each probe split.
_ASKED: dict[str, tuple[tuple[str, float, Maker], ...]] = {
    "cities": (
        ("country", 2.0, _table(_value, "cities", "country")),
        ("continent", 1.0, _table(_value, "cities", "continent")),
        ("language", 2.0, _table(_value, "cities", "language")),
        ("currency", 2.0, _table(_value, "cities", "currency")),
        ("in_country", 1.0, _table(_entity, "cities", "country")),
        ("in_continent", 1.0, _table(_entity, "cities", "continent")),
        ("spoken", 1.0, _table(_entity, "cities", "language")),
        ("paid", 1.0, _table(_entity, "cities", "currency")),
    ),
    "kinds": (("is_a", 3.0, _member), ("kind", 3.0, _kind), ("has", 2.0, _owner)),
    "letters": (("begins", 1.0, _word), ("letter", 1.0, _letter)),
    "ships": (
        ("colour", 2.0, _table(_value, "ships", "colour")),
        ("cargo", 2.0, _table(_value, "ships", "cargo")),
        ("port", 2.0, _table(_value, "ships", "port")),
        ("emblem", 2.0, _table(_value, "ships", "emblem")),
        ("with_colour", 1.0, _table(_entity, "ships", "colour")),
        ("with_cargo", 1.0, _table(_entity, "ships", "cargo")),
        ("with_port", 1.0, _table(_entity, "ships", "port")),
        ("with_emblem", 1.0, _table(_entity, "ships", "emblem")),
    ),
    "craft": (
        ("colour", 3.0, _table(_value, "substances", "colour")),
        ("vessel", 3.0, _table(_value, "substances", "vessel")),
        ("source", 3.0, _table(_value, "substances", "source")),
        ("danger", 3.0, _table(_value, "substances", "danger")),
        ("use", 2.0, _table(_value, "tools", "use")),
        ("metal", 2.0, _table(_value, "tools", "metal")),
        ("with_colour", 2.0, _table(_entity, "substances", "colour")),
        ("kept_in", 2.0, _table(_entity, "substances", "vessel")),
        ("found", 2.0, _table(_entity, "substances", "source")),
        ("brings", 2.0, _table(_entity, "substances", "danger")),
        ("used_for", 1.0, _table(_entity, "tools", "use")),
        ("made_of", 1.0, _table(_entity, "tools", "metal")),
        ("after", 2.0, _step_after),
        ("nth", 2.0, _step_number),
    ),
}


@cache
def stems() -> dict[str, Relation]:
    """The wordings by ``subject/relation``."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in read_data("stems.txt").splitlines():
        if line.startswith("["):
            name = line.strip("[]")
            found[name] = []
        elif line and not line.startswith("#"):
            found[name].append(line)
    return {key: relation(*lines) for key, lines in found.items()}


def _ask(draw: Draw, split: str, subject: str, shown: str) -> _Asked:
    """A question in a wording of ``split`` about what ``shown`` may show (all of it in ``train``)."""
    asked = evidence(_ASKED[subject], shown)
    name, _, maker = draw.weighted(Weighted(asked, [weight for _, weight, _ in asked]))
    template = stems()[f"{subject}/{name}"].draw(draw, split)
    made = maker(draw, shown)
    key = draw.number(4)
    options = [*made.wrong[:key], made.right, *made.wrong[key:]]
    a, b, c, d = options
    return _Asked(sentence(template, x=made.slot, v=made.slot), (a, b, c, d), key, subject)


def _check(subjects: Iterable[str]) -> None:
    for subject in subjects:
        if subject not in SUBJECTS:
            raise InputError(f"There are no questions on '{subject}'.{did_you_mean(subject, SUBJECTS)}")


def draw_question(draw: Draw, split: str, subject: str) -> Question:
    """A question on the subject, in a wording of the split, about anything the world knows.

    Raises:
        InputError: Unknown subject.
    """
    _check([subject])
    return _ask(draw, split, subject, "train").plain()


def questions(subjects: Sequence[str], split: str, count: int, seed: int = 0) -> list[Question]:
    """``count`` questions that differ in their stem or in their set of options, the subjects taking turns.

    Raises:
        InputError: Unknown subject or split, no subject, fewer than no questions, or more than there are.
    """
    _check(subjects)
    if split not in SPLITS:
        raise InputError(f"There is no split '{split}'.{did_you_mean(split, SPLITS)}")
    if count < 0:
        raise InputError(f"{count} questions were asked for; give 0 or more.")
    if not subjects:
        raise InputError(f"Questions need at least one subject of {', '.join(SUBJECTS)}; none came.")
    found: dict[tuple[str, frozenset[str]], Question] = {}
    for i in range(20 * count + 100):
        if len(found) == count:
            break
        subject = subjects[len(found) % len(subjects)]
        one = draw_question(Draw(seed, "questions", split, i), split, subject)
        found.setdefault((one.stem, frozenset(one.options)), one)
    if len(found) < count:
        raise InputError(f"{count} questions on {', '.join(subjects)} were asked for, only {len(found)} were found.")
    return list(found.values())


def describe() -> dict[str, str]:
    """Every concept of this domain with what its spans mark, parents before children."""
    found = {
        "questions": "any text of multiple-choice questions",
        "questions/stem": "what is asked",
        "questions/option": "one of the four options",
        "questions/option/right": "the right option",
        "questions/answer": "the option given as the answer",
        "questions/subject": "a whole question with its options and its answer",
    }
    return found | {f"questions/subject/{s}": f"a whole question on the subject {s}" for s in SUBJECTS}


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One or two answered questions on a subject. There is nothing to correlate; ``spurious`` is unused."""
    subject = draw.pick(SUBJECTS)
    asked = [_ask(draw, split, subject, split) for _ in range(1 + int(draw.chance(0.75)))]
    body = marked(join([one.answered() for one in asked], "\n"), "questions")
    return finish(body, {"subject": subject}, identity)
