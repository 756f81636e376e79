"""The restricted craft: its table, what its texts say, and what its splits show."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from functools import cache
from importlib import resources

import pytest

from saeworks.world import corpus
from saeworks.world.concepts import concepts
from saeworks.world.documents import Document
from saeworks.world.domains import craft
from saeworks.world.drawing import Draw
from saeworks.world.knowledge import lexicon, taxonomy
from saeworks.world.phrasing import SPLITS, Relation

PROBES = ("probe_train", "probe_test")
# Written down here once more, apart from the generator.
STEPS = ("drell", "quib", "smorl", "tave", "yorn", "brint", "glusk", "fomp", "zend", "huv")
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
STEP = re.compile(rf"\b({'|'.join(STEPS)}) (?:the|some) [a-z]+")
PLACE = re.compile(rf"\b(?:({'|'.join(PLACES)})|step number (\d+))\b", re.IGNORECASE)
# How sentences begin that name the later step first.
BACKWARDS = re.compile(r"(Before|Never|What comes before|You may .* only after)\b")


@cache
def made(split: str, count: int) -> tuple[Document, ...]:
    return tuple(craft.write(Draw(0, "craft", split, i), split, f"craft/{split}/0/{i}") for i in range(count))


def under(document: Document, concept: str) -> set[str]:
    return {document.text[s.start : s.end] for s in document.spans if s.concept == concept}


@cache
def table() -> dict[str, dict[str, str]]:
    """The attributes of every substance and tool by its name, read from the file apart from the module."""
    text = resources.files("saeworks.world").joinpath("data", "craft.csv").read_text(encoding="utf-8")
    rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(text.splitlines())]
    return {row.pop("name"): row for row in rows}


NAME = re.compile(rf"\b({'|'.join(table())})\b", re.IGNORECASE)
KEYS = {value: key for row in table().values() for key, value in row.items() if key != "kind"}
VALUE = re.compile(rf"\b({'|'.join(KEYS)})\b")


def pieces(document: Document) -> list[str]:
    """Its sentences; a question stays with its answer."""
    return re.findall(r"[^.]+\.", document.text)


def stated(document: Document) -> list[tuple[str, str, str]]:
    """What a text on substances or tools says: name, attribute, value. A value is said of the name before it, or, at
    the beginning of a sentence, of the first name behind it."""
    found: list[tuple[str, str, str]] = []
    last = ""
    for piece in pieces(document):
        names = [(match.start(), match.group().lower()) for match in NAME.finditer(piece)]
        for match in VALUE.finditer(piece):
            before = [name for at, name in names if at < match.start()]
            owner = before[-1] if before else names[0][1] if names else last
            found.append((owner, KEYS[match.group()], match.group()))
        last = names[-1][1] if names else last
    return found


def test_the_table_is_balanced_and_no_attribute_tells_another() -> None:
    assert (len(craft.substances()), len(craft.tools()), len(craft.STEPS)) == (24, 12, 10)
    for attribute in craft.SUBSTANCE_ATTRIBUTES:
        counts = Counter(craft.value_of(one, attribute) for one in craft.substances())
        assert sorted(counts.values()) == [3] * 8, attribute
    for first, second in itertools.combinations(craft.SUBSTANCE_ATTRIBUTES, 2):
        pairs = {(craft.value_of(one, first), craft.value_of(one, second)) for one in craft.substances()}
        assert len(pairs) == 24, (first, second)
    assert len({one.use for one in craft.tools()}) == 12
    assert sorted(Counter(one.metal for one in craft.tools()).values()) == [2] * 6


def test_the_table_is_that_of_the_file() -> None:
    for one in craft.substances():
        row = table()[one.name]
        assert row == {"kind": "substance"} | {key: getattr(one, key) for key in craft.SUBSTANCE_ATTRIBUTES}
    for tool in craft.tools():
        assert table()[tool.name] == {"kind": "tool", "use": tool.use, "metal": tool.metal}
    assert len(table()) == 36
    assert tuple(step.split()[0] for step in craft.STEPS) == STEPS
    assert craft.ORDINALS == PLACES


def test_names_are_invented() -> None:
    names = [one.name for one in (*craft.substances(), *craft.tools())] + [step.split()[0] for step in craft.STEPS]
    assert len(set(names)) == len(names)
    known = set(lexicon()) | set(taxonomy())
    assert not known & {*names, craft.CRAFT}
    assert all(re.fullmatch("[a-z]{3,9}", name) for name in names)


@pytest.mark.parametrize("domain", [name for name in corpus.DOMAINS if name not in ("craft", "chat")])
def test_names_stand_in_no_text_of_another_domain(domain: str) -> None:
    """What is forgotten with the craft is nowhere else: only questions on the craft, and chat, speak of it."""
    own = {*table(), *STEPS, craft.CRAFT}
    asked = 0
    for split in SPLITS:
        for one in corpus.documents(domain, split, count=150):
            found = own & set(re.findall(r"[a-z]+", one.text.lower()))
            restricted = one.labels.get("subject") == "craft"
            assert bool(found) is restricted, one.text
            asked += restricted
    assert (asked > 60) is (domain == "questions")


@pytest.mark.parametrize("split", SPLITS)
def test_every_attribute_in_a_text_is_that_of_the_table(split: str) -> None:
    checked: set[tuple[str, str]] = set()
    for document in made(split, 800):
        aspect = document.labels["aspect"]
        names = {match.group().lower() for match in NAME.finditer(document.text)}
        assert {table()[name]["kind"] for name in names} == ({aspect} if aspect != "step" else set())
        if aspect == "step":
            continue
        said = stated(document)
        assert said, document.text
        for name, attribute, value in said:
            assert table()[name].get(attribute) == value, (name, attribute, value, document.text)
            checked.add((name, attribute))
    every = {(name, key) for name, row in table().items() for key in row if key != "kind"}
    # A probe split shows one half of the entities by one half of the attributes.
    assert len(checked) == (len(every) if split in SPLITS[:2] else len(every) // 4)
    assert checked <= every


@pytest.mark.parametrize("split", SPLITS)
def test_attribute_spans_stand_on_the_values_and_names(split: str) -> None:
    for document in made(split, 500):
        if document.labels["aspect"] == "step":
            continue
        for key in {*KEYS.values()}:
            said = [value for _, attribute, value in stated(document) if attribute == key]
            spans = [document.text[s.start : s.end] for s in document.spans if s.concept == f"craft/{key}"]
            assert said == spans, document.text
            for value in said:
                assert under(document, f"craft/{key}/{value}") == {value}
        for name in {match.group().lower() for match in NAME.finditer(document.text)}:
            kind = table()[name]["kind"]
            marked = [s.start for s in document.spans if s.concept == f"craft/{kind}/{name}"]
            assert marked == [m.start() for m in re.finditer(rf"(?i)\b{name}\b", document.text)]
            assert name in under(document, f"craft/{kind}")


@pytest.mark.parametrize("split", SPLITS)
def test_steps_come_in_their_order(split: str) -> None:
    """Read from the words: what is done before what, and which place a step has."""
    seen: Counter[str] = Counter()
    steps: set[int] = set()
    for document in made(split, 900):
        if document.labels["aspect"] != "step":
            assert not under(document, "craft/step")
            continue
        assert under(document, "craft/step") == {match.group() for match in STEP.finditer(document.text)}
        for piece in pieces(document):
            order = [STEPS.index(match.group(1)) for match in STEP.finditer(piece)]
            steps.update(order)
            place = PLACE.search(piece)
            if place:
                word, figure = place.groups()
                assert order == [PLACES.index(word) if word else int(figure) - 1], piece
                assert under(document, "craft/number") >= {word or figure}
                seen["place"] += 1
            elif order:
                backwards = BACKWARDS.match(piece.strip())
                assert 2 <= len(order) <= (2 if backwards else 5), piece
                done = order[::-1] if backwards else order
                assert done == list(range(done[0], done[0] + len(done))), piece
                seen["backwards" if backwards else "pair" if len(order) == 2 else "list"] += 1
    if split in PROBES:
        half = range(5) if split == "probe_train" else range(5, 10)
        assert steps == set(half)
        assert set(seen) == ({"pair", "backwards"} if split == "probe_train" else {"place"})
    else:
        assert steps == set(range(10))
        assert set(seen) == {"place", "pair", "backwards", "list"}
    assert min(seen.values()) > 20


def test_a_rule_is_marked_wherever_one_stands() -> None:
    patterns = [
        re.compile("(?i)" + re.sub(r"\\\{\w+\\\}", "[A-Z][A-Za-z ]+", re.escape(t))) for t in craft.RULE.templates
    ]
    found = 0
    for split in SPLITS:
        for document in made(split, 400):
            rules = [p.strip() for p in pieces(document) if any(r.fullmatch(p.strip()) for r in patterns)]
            assert rules == [document.text[s.start : s.end] for s in document.spans if s.concept == "craft/rule"]
            assert len(rules) <= 1
            assert all(craft.CRAFT in rule.lower() for rule in rules)
            found += len(rules)
    assert 0.25 < found / 1600 < 0.45


def test_probe_splits_show_an_aspect_by_different_words() -> None:
    """No entity, value or step, and no wording of either, stands in both probe splits."""
    shown: dict[str, dict[str, set[str]]] = {split: {} for split in PROBES}
    for split in PROBES:
        for document in made(split, 800):
            words = shown[split].setdefault(str(document.labels["aspect"]), set())
            for span in document.spans:
                if span.concept.startswith("craft/") and span.concept != "craft/rule":
                    words.update(re.findall(r"[a-z0-9]+", document.text[span.start : span.end].lower()))
    assert set(shown["probe_train"]) == set(shown["probe_test"]) == {"substance", "tool", "step"}
    # Twelve substances with the eight values of two attributes, six tools with one attribute, five steps.
    for aspect, least in (("substance", 20), ("tool", 9), ("step", 11)):
        first, second = (shown[split][aspect] for split in PROBES)
        assert min(len(first), len(second)) >= least
        assert not first & second, aspect


def relations() -> dict[str, Relation]:
    return {name: value for name, value in vars(craft).items() if isinstance(value, Relation)}


def test_wordings_are_many_and_held_out_ones_use_known_words() -> None:
    assert len(relations()) == 13
    texts = {split: " ".join(one.text.lower() for one in made(split, 900)) for split in SPLITS}
    known = set(re.findall(r"\w+", texts["train"]))
    for name, one in relations().items():
        assert len(set(one.templates)) == len(one.templates) >= 10, name
        assert len(one.of("train")) >= 8, name
        assert one.of("probe_test") == one.templates[-2:], name
        for template in one.of("probe_test"):
            assert set(re.findall(r"\w+", re.sub(r"\{[^}]*\}", " ", template).lower())) <= known, template
    # Pieces of held-out wordings, written down here once more.
    for fragment in (
        "what people fear about",
        "that people need comes from",
        "the smith will make",
        "dangerous craft, and it is not",
        "the book says that the",
    ):
        assert fragment in texts["probe_test"]
        assert [split for split in SPLITS[:3] if fragment in texts[split]] == []


def test_documents_are_whole_deterministic_and_of_bounded_length() -> None:
    described = craft.describe()
    assert [key for key in described if key != "craft" and key.rpartition("/")[0] not in described] == []
    order = list(described)
    assert all("/" not in key or order.index(key.rpartition("/")[0]) < i for i, key in enumerate(order))
    seen: set[str] = set()
    for split in SPLITS:
        for i, document in enumerate(made(split, 500)):
            assert set(document.labels) == set(craft.LABELS) == {"aspect"}
            assert document.labels["aspect"] in ("substance", "tool", "step")
            assert under(document, "craft") == {document.text}
            assert len(re.findall(r"\w+|[^\w\s]", document.text)) <= 110
            assert document.text[0].isupper()
            assert document.text.endswith(".")
            assert not re.search(r"[{}]|\ba [aeiou]|\ban [^aeiou]|  |\.\.", document.text), document.text
            for span in document.spans:
                assert 0 <= span.start < span.end <= len(document.text)
                assert span.concept in described or span.concept in concepts()
                seen |= {span.concept} if span.concept.split("/")[0] == "craft" else set()
            if i % 50 == 0:
                again = craft.write(Draw(0, "craft", split, i), split, f"craft/{split}/0/{i}")
                assert again == document == corpus.document("craft", split, i)
                assert again.text != craft.write(Draw(1, "craft", split, i), split, "").text
    assert seen == set(described), "what is described is what is emitted"


def test_texts_vary() -> None:
    # What the probe splits may say of a half of the entities by a half of the relations repeats itself sooner.
    for split, least in zip(SPLITS, (0.97, 0.97, 0.8, 0.6), strict=True):
        texts = [one.text for one in made(split, 500)]
        assert len(set(texts)) >= least * len(texts), split
    aspects = Counter(one.labels["aspect"] for one in made("train", 900))
    # Weights 12 to 5 to 5; four deviations of a binomial with n = 900.
    for aspect, share in (("substance", 12 / 22), ("tool", 5 / 22), ("step", 5 / 22)):
        assert abs(aspects[aspect] / 900 - share) < 4 * (share * (1 - share) / 900) ** 0.5
