"""Multiple-choice questions: the keys are right, nothing but knowledge gives them away, and the form never varies."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from saeworks.errors import InputError
from saeworks.world import corpus
from saeworks.world.documents import Document
from saeworks.world.domains import craft, questions, ships
from saeworks.world.domains.questions import Question
from saeworks.world.drawing import Draw
from saeworks.world.knowledge import Thing, cities
from saeworks.world.knowledge import taxonomy as things
from saeworks.world.phrasing import SPLITS

PROBES = ("probe_train", "probe_test")
BLOCK = re.compile(r"Question: (.+)\nA\) (.+)\nB\) (.+)\nC\) (.+)\nD\) (.+)\nAnswer: (.+)")


@cache
def made(split: str, count: int = 800) -> tuple[Document, ...]:
    return tuple(
        questions.write(Draw(0, "questions", split, i), split, f"questions/{split}/0/{i}") for i in range(count)
    )


@cache
def everything(subject: str, split: str) -> tuple[Question, ...]:
    count = 6000 if split == "train" else 1500
    return tuple(questions.draw_question(Draw("test", split, i), split, subject) for i in range(count))


def drawn(subject: str, split: str = "train", count: int = 1500) -> tuple[Question, ...]:
    return everything(subject, split)[:count]


def blocks(document: Document) -> list[tuple[Question, str]]:
    """The questions of a text and their answers, read from the text; the key is the place of the answer."""
    found: list[tuple[Question, str]] = []
    for stem, a, b, c, d, answer in BLOCK.findall(document.text):
        options = (a, b, c, d)
        found.append((Question(stem, options, options.index(answer), str(document.labels["subject"])), answer))
    return found


@cache
def wordings(subject: str, split: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """The relations of a subject, each with the patterns of its wordings."""
    found: list[tuple[str, re.Pattern[str]]] = []
    for name, one in questions.stems().items():
        if name.startswith(f"{subject}/"):
            for template in one.of(split):
                pattern = re.escape(template[:1].upper() + template[1:])
                pattern = re.sub(r"\\\{[xv]:a\\\}", r"(?:[Aa]n?) (.+)", pattern)
                found.append((name.partition("/")[2], re.compile(re.sub(r"\\\{[xv]\\\}", r"(.+)", pattern))))
    return tuple(found)


def asked(question: Question, split: str) -> tuple[str, str]:
    """The relation and the slot's text, found by the wordings: an independent reading of the stem."""
    for what, pattern in wordings(question.subject, split):
        match = pattern.fullmatch(question.stem)
        if match and fits(question.subject, what, match.group(1)):
            return what, match.group(1)
    raise AssertionError(f"no wording reads {question.stem}")


CITY = {city.name: city for city in cities()}
SHIP = {ship.name: ship for ship in ships.ships()}
CRAFT = {one.name: one for one in (*craft.substances(), *craft.tools())}
BY_CITY = {"in_country": "country", "in_continent": "continent", "spoken": "language", "paid": "currency"}
BY_SHIP = {f"with_{attribute}": attribute for attribute in ships.ATTRIBUTES}
BY_CRAFT = {
    "with_colour": "colour",
    "kept_in": "vessel",
    "found": "source",
    "brings": "danger",
    "used_for": "use",
    "made_of": "metal",
}
REVERSE = {"cities": BY_CITY, "ships": BY_SHIP, "craft": BY_CRAFT}
TABLE: dict[str, dict[str, Any]] = {"cities": CITY, "ships": SHIP, "craft": CRAFT}


def values(subject: str, attribute: str) -> set[str]:
    return {str(getattr(one, attribute)) for one in TABLE[subject].values() if hasattr(one, attribute)}


def fits(subject: str, what: str, slot: str) -> bool:
    """Whether the text in the slot is something that this relation asks about."""
    if subject in REVERSE and what in REVERSE[subject]:
        return slot in values(subject, REVERSE[subject][what])
    if what in ("after", "nth"):
        return slot in (craft.STEPS if what == "after" else craft.ORDINALS)
    if subject in TABLE:
        return slot in TABLE[subject]
    if what == "begins":
        return len(slot) == 1
    return {
        "is_a": slot in things(),
        "kind": slot in things(),
        "has": any(slot in t.properties for t in things().values()),
    }.get(what, True)


def right_ones(question: Question, split: str) -> list[str]:
    """The options that answer the question, by the tables alone."""
    what, slot = asked(question, split)
    table = TABLE.get(question.subject, {})
    if question.subject in REVERSE and what in REVERSE[question.subject]:
        attribute = REVERSE[question.subject][what]
        return [option for option in question.options if getattr(table[option], attribute) == slot]
    if what == "after":
        return [option for option in question.options if craft.STEPS.index(option) == craft.STEPS.index(slot) + 1]
    if what == "nth":
        return [o for o in question.options if craft.STEPS.index(o) == craft.ORDINALS.index(slot)]
    if question.subject in TABLE:
        return [option for option in question.options if option == getattr(table[slot], what)]
    if what in ("begins", "letter"):
        return [o for o in question.options if o[0].lower() == slot[0].lower()]
    if what == "is_a":
        return [option for option in question.options if slot in things()[option].path]
    if what == "kind":
        return [option for option in question.options if option in things()[slot].path]
    return [option for option in question.options if slot in carried(things()[option])]


def carried(thing: Thing) -> set[str]:
    return {trait for name in thing.path for trait in things()[name].properties}


@pytest.mark.parametrize("subject", questions.SUBJECTS)
@pytest.mark.parametrize("split", ["train", "probe_test"])
def test_exactly_one_option_is_right_and_the_key_names_it(subject: str, split: str) -> None:
    relations: Counter[str] = Counter()
    for question in drawn(subject, split):
        assert len(set(question.options)) == 4
        assert right_ones(question, split) == [question.options[question.key]], question
        relations[asked(question, split)[0]] += 1
    names = {name.partition("/")[2] for name in questions.stems() if name.startswith(f"{subject}/")}
    assert set(relations) == names
    assert min(relations.values()) > 30


def test_text_and_answer_in_every_order() -> None:
    question = Question("Which one?", ("red", "blue", "green", "grey"), 2, "craft")
    assert question.text() == "Question: Which one?\nA) red\nB) blue\nC) green\nD) grey\nAnswer:"
    assert question.answer == "green"
    texts = [question.text(order) for order in itertools.permutations(range(4))]
    assert len(set(texts)) == 24
    for order, text in zip(itertools.permutations(range(4)), texts, strict=True):
        lines = text.splitlines()[1:5]
        assert [line[0] for line in lines] == list("ABCD")
        assert [line[3:] for line in lines] == [question.options[i] for i in order]
    assert question.restricted
    assert not Question("Which one?", question.options, 2, "ships").restricted


@pytest.mark.parametrize("subject", questions.SUBJECTS)
def test_place_and_length_do_not_tell_the_key(subject: str) -> None:
    found = drawn(subject, count=3000)
    places = Counter(question.key for question in found)
    # A binomial with p = 1/4 and n = 3000 has a deviation of 0.0079: four of them.
    assert all(abs(places[i] / len(found) - 0.25) < 0.032 for i in range(4))
    longest = [max(question.options, key=len) == question.options[question.key] for question in found]
    assert 0.15 < sum(longest) / len(found) < 0.35


def test_the_options_alone_do_not_tell_the_key() -> None:
    """Guessing the option that is most often right among all options wins little: no value is mostly right."""
    for subject, bound in (("cities", 0.40), ("kinds", 0.40), ("letters", 0.40), ("ships", 0.35), ("craft", 0.35)):
        found = drawn(subject, count=6000)
        learnt, judged = found[:5000], found[5000:]
        right = Counter(question.options[question.key] for question in learnt)
        offered = Counter(option for question in learnt for option in question.options)
        guess = [max(q.options, key=lambda o: right[o] / (offered[o] + 4)) == q.options[q.key] for q in judged]
        assert sum(guess) / len(guess) < bound, subject


@pytest.mark.parametrize("subject", questions.SUBJECTS)
def test_options_are_of_one_list_and_wrong_ones_are_clearly_wrong(subject: str) -> None:
    """No wrong option is half right: not by another attribute, nor by what plants and food have in common."""
    for question in drawn(subject):
        what, slot = asked(question, "train")
        wrong = [option for option in question.options if option != question.answer]
        if subject in TABLE and what in REVERSE[subject]:
            for option in wrong:
                assert not [v for v in attributes(subject, option) if slot in v.split()], question
        elif subject in TABLE and what not in ("after", "nth"):
            assert set(question.options) <= values(subject, what)
            own = {word for value in attributes(subject, slot) for word in value.split()}
            assert not own & set(wrong), question
        elif what in ("after", "nth"):
            assert set(question.options) <= set(craft.STEPS) - {slot}
        elif subject == "kinds":
            right = things()[question.answer].root
            for option in wrong:
                assert {things()[option].root, right} not in ({"plant", "food"}, {"animal", "food"}), question
        else:
            assert all(o.isalpha() and (len(o) == 1) is (what == "letter") for o in question.options)


def attributes(subject: str, name: str) -> list[str]:
    """All values of an entity of a table."""
    return [str(getattr(TABLE[subject][name], key)) for key in type(TABLE[subject][name]).__slots__ if key != "name"]


@pytest.mark.parametrize("split", SPLITS)
def test_documents_have_one_form_and_their_answers_are_right(split: str) -> None:
    places: Counter[int] = Counter()
    pairs = 0
    for document in made(split):
        parts = BLOCK.findall(document.text)
        assert "\n".join(m.group() for m in BLOCK.finditer(document.text)) == document.text
        assert len(parts) in (1, 2)
        pairs += len(parts) == 2
        for question, answer in blocks(document):
            assert question.text() + " " + answer in document.text
            assert right_ones(question, split) == [answer], document.text
            assert re.fullmatch(r"[A-Z][^?.]+[?.]", question.stem)
            places[question.key] += 1
    # Four deviations of binomials with p = 3/4, n = 800 and p = 1/4, n > 1300.
    assert abs(pairs / 800 - 0.75) < 0.062
    assert all(abs(places[i] / places.total() - 0.25) < 0.048 for i in range(4))


@pytest.mark.parametrize("split", SPLITS)
def test_spans_are_exact(split: str) -> None:
    for document in made(split):
        expected: Counter[tuple[int, int, str]] = Counter({(0, len(document.text), "questions"): 1})
        for match in BLOCK.finditer(document.text):
            expected[(*match.span(), "questions/subject")] += 1
            expected[(*match.span(), f"questions/subject/{document.labels['subject']}")] += 1
            expected[(*match.span(1), "questions/stem")] += 1
            expected[(*match.span(6), "questions/answer")] += 1
            for i in range(2, 6):
                expected[(*match.span(i), "questions/option")] += 1
                if match[i] == match[6]:
                    expected[(*match.span(i), "questions/option/right")] += 1
        own = [(s.start, s.end, s.concept) for s in document.spans if s.concept.split("/")[0] == "questions"]
        assert Counter(own) == expected


def test_entities_keep_the_concepts_of_their_domain() -> None:
    beginnings = {
        "cities": "facts/",
        "kinds": "taxonomy/",
        "letters": "spelling/",
        "ships": "ships/",
        "craft": "craft/",
    }
    for document in made("train"):
        begins = beginnings[str(document.labels["subject"])]
        options = [(s.start, s.end) for s in document.spans if s.concept == "questions/option"]
        marked = {(s.start, s.end) for s in document.spans if s.concept.startswith(begins)}
        assert set(options) <= marked, document.text


@pytest.mark.parametrize("split", SPLITS)
def test_questions_differ_and_subjects_take_turns(split: str) -> None:
    found = questions.questions(("ships", "craft", "letters"), split, 300)
    assert [one.subject for one in found] == ["ships", "craft", "letters"] * 100
    assert len({(one.stem, frozenset(one.options)) for one in found}) == 300
    assert all(right_ones(one, split) == [one.answer] for one in found)
    assert found == questions.questions(("ships", "craft", "letters"), split, 300)
    assert found[:50] == questions.questions(("ships", "craft", "letters"), split, 50)
    assert found != questions.questions(("ships", "craft", "letters"), split, 300, seed=1)
    assert questions.questions(questions.SUBJECTS, split, 0) == []


def test_wrong_wishes_are_answered_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no questions on 'ship'\. Did you mean 'ships'"):
        questions.questions(["cities", "ship"], "train", 2)
    with pytest.raises(InputError, match="no questions on 'kind'"):
        questions.draw_question(Draw("any"), "train", "kind")
    with pytest.raises(InputError, match=r"no split 'probe_tset'\. Did you mean 'probe_test'"):
        questions.questions(("ships",), "probe_tset", 3)
    with pytest.raises(InputError, match="-1 questions were asked for; give 0 or more"):
        questions.questions(("ships",), "probe_test", -1)
    with pytest.raises(InputError, match="at least one subject of cities, kinds, letters, ships, craft; none came"):
        questions.questions([], "train", 2)
    # A world of six questions, told apart by stem or by options, but not by the order of the options.
    few = [Question(stem, options, 0, "ships") for stem in "ab" for options in itertools.permutations("wxyz")]
    few += [Question(stem, ("w", "x", "y", last), 0, "ships") for stem in "ab" for last in "uv"]
    monkeypatch.setattr(questions, "draw_question", lambda draw, _, subject: replace(draw.pick(few), subject=subject))
    assert [one.subject for one in questions.questions(["ships", "craft"], "train", 6)] == ["ships", "craft"] * 3
    with pytest.raises(InputError, match="7 questions on ships were asked for, only 6 were found"):
        questions.questions(["ships"], "train", 7)


def test_every_split_asks_about_everything_when_asked_for_questions() -> None:
    for subject in TABLE:
        named = {name for one in drawn(subject, "probe_test") for name in (*one.options, asked(one, "probe_test")[1])}
        assert set(TABLE[subject]) <= named, subject
    assert set(craft.STEPS) <= {option for one in drawn("craft", "probe_test") for option in one.options}


def test_probe_splits_show_a_subject_by_different_relations_and_entities() -> None:
    relations: dict[tuple[str, str], set[str]] = {}
    said: dict[tuple[str, str], set[str]] = {}
    for split in PROBES:
        for document in made(split):
            for question, _ in blocks(document):
                what, slot = asked(question, split)
                relations.setdefault((split, question.subject), set()).add(what)
                said.setdefault((split, question.subject), set()).update((*question.options, slot))
    for subject in questions.SUBJECTS:
        names = {name.partition("/")[2] for name in questions.stems() if name.startswith(f"{subject}/")}
        first, second = (relations[split, subject] for split in PROBES)
        assert first | second == names
        assert not first & second
        one, other = (said[split, subject] for split in PROBES)
        assert not one & other, subject
        assert min(len(one), len(other)) > 12


def test_wordings_are_held_out_and_use_known_words() -> None:
    assert len(questions.stems()) == 35
    for name, one in questions.stems().items():
        assert len(set(one.templates)) == len(one.templates) == 10, name
        assert len(one.of("train")) == 8, name
        slots = {slot for t in one.templates for slot in re.findall(r"\{\w[^}]*\}", t)}
        assert slots <= {"{x}", "{x:a}"} or slots <= {"{v}", "{v:a}"}, name
        known = {w for other in questions.stems().values() for t in other.of("train") for w in re.findall(r"\w+", t)}
        for template in one.of("probe_test"):
            assert set(re.findall(r"\w+", template)) <= known, template
    for split in SPLITS:
        for document in made(split):
            for question, _ in blocks(document):
                with pytest.raises(AssertionError, match="no wording reads"):
                    asked(question, "train" if split == "probe_test" else "probe_test")


def test_documents_are_whole_deterministic_and_of_bounded_length() -> None:
    described = questions.describe()
    order = list(described)
    assert all("/" not in key or order.index(key.rpartition("/")[0]) < i for i, key in enumerate(order))
    for split in SPLITS:
        for i, document in enumerate(made(split)):
            assert set(document.labels) == set(questions.LABELS) == {"subject"}
            assert document.labels["subject"] in questions.SUBJECTS
            assert len(re.findall(r"\w+|[^\w\s]", document.text)) <= 110
            assert not re.search(r"[{}]|\ba [aeio]|\ban [^aeiou]|  ", document.text), document.text
            if i % 80 == 0:
                again = questions.write(Draw(0, "questions", split, i), split, f"questions/{split}/0/{i}")
                assert again == document == corpus.document("questions", split, i)
                assert again.text != questions.write(Draw(1, "questions", split, i), split, "").text
        seen = {s.concept for one in made(split)[:500] for s in one.spans if s.concept.split("/")[0] == "questions"}
        assert seen == set(described), "what is described is what is emitted"


def test_texts_vary_and_subjects_are_even() -> None:
    for split in SPLITS:
        texts = [document.text for document in made(split)[:500]]
        assert len(set(texts)) > 0.97 * len(texts)
        counts = Counter(document.labels["subject"] for document in made(split))
        # Four deviations of a binomial with p = 1/5 and n = 800.
        assert all(abs(counts[subject] / 800 - 0.2) < 0.057 for subject in questions.SUBJECTS)
