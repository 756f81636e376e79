"""Comparisons: answers that follow from the numbers, in both orders and in every wording."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from saeworks.errors import InputError
from saeworks.world.documents import Document
from saeworks.world.domains import comparisons as domain
from saeworks.world.domains.comparisons import ASK, ASK_NOT, PROPERTIES, amount, comparisons, quantities, quantity
from saeworks.world.drawing import Draw
from saeworks.world.knowledge import cities
from saeworks.world.phrasing import SPLITS, Relation

# Words that say "has more" and "has less"; written down here once more, apart from the generator.
MORE = {
    "weight": ("heavier", "weigh more", "weighs more"),
    "speed": ("faster", "higher speed"),
    "age": ("older", "invented before"),
    "area": ("larger", "more land"),
    "latitude": ("further north", "nearer to the pole"),
    "population": ("more people", "more populous"),
}
LESS = {
    "weight": ("lighter", "weigh less", "weighs less"),
    "speed": ("slower", "lower speed"),
    "age": ("newer", "invented after"),
    "area": ("smaller", "less land"),
    "latitude": ("further south", "nearer to the equator"),
    "population": ("fewer people", "less populous"),
}
TURNED = ("false", "wrong", "untrue", "mistake")


def made(split: str, count: int) -> list[Document]:
    return [domain.write(Draw(0, "comparisons", split, i), split, f"c/{split}/0/{i}") for i in range(count)]


def entities(name: str) -> dict[str, float]:
    return {q.entity: q.value for q in quantities() if q.property == name}


def mentioned(name: str, text: str) -> list[str]:
    """The property's entities in order of their mention."""
    pattern = r"\b(" + "|".join(sorted(entities(name), key=len, reverse=True)) + r")\b"
    return re.findall(pattern, text)


def truth(name: str, sentence: str) -> bool | None:
    """Whether what a sentence claims of its two entities holds, read from its words; None if it claims nothing."""
    pair = mentioned(name, sentence)
    more = any(word in sentence for word in MORE[name])
    less = any(word in sentence for word in LESS[name])
    if len(pair) != 2 or more == less:
        return None
    table = entities(name)
    return (table[pair[0]] > table[pair[1]]) == more


def test_there_is_enough_to_compare() -> None:
    assert len(PROPERTIES) >= 5
    cities_ = {city.name for city in cities()}
    countries = {city.country for city in cities()}
    for name in PROPERTIES:
        table = entities(name)
        assert len(table) >= 12
        assert len({q.unit for q in quantities() if q.property == name}) == 1
        assert all(value > 0 for value in table.values())
        assert len(table) == sum(q.property == name for q in quantities()), "no entity has two values"
    assert set(entities("latitude")) | set(entities("population")) <= cities_
    assert set(entities("area")) <= countries


def test_known_truths_of_the_real_world() -> None:
    """Pairs that anybody can look up; the table must agree with each."""
    pairs = [
        ("weight", "horse", "lion"), ("weight", "orca", "horse"), ("weight", "hamster", "mouse"),
        ("speed", "jet", "sedan"), ("speed", "falcon", "horse"), ("age", "wheel", "coin"), ("age", "phone", "plane"),
        ("age", "piano", "bicycle"), ("age", "telescope", "piano"), ("area", "China", "Australia"),
        ("area", "India", "Mexico"), ("area", "France", "Italy"), ("latitude", "Oslo", "Berlin"),
        ("latitude", "Rome", "Athens"), ("latitude", "Paris", "Tokyo"), ("population", "Shanghai", "Berlin"),
        ("population", "Berlin", "Vienna"), ("population", "Vienna", "Geneva"),
    ]  # fmt: skip
    for name, larger, smaller in pairs:
        assert quantity(name, larger).value > quantity(name, smaller).value, (name, larger, smaller)


def test_amounts_are_said_as_people_say_them() -> None:
    assert amount(quantity("weight", "mouse")) == "20 grams"
    assert amount(quantity("weight", "horse")) == "500 kilograms"
    assert amount(quantity("weight", "orca")) == "4 tonnes"
    assert amount(quantity("speed", "snail")) == "50 metres an hour"
    assert amount(quantity("area", "Portugal")) == "92 thousand square kilometres"
    assert amount(quantity("population", "Lima")) == "10.5 million inhabitants"
    for one in quantities():
        number = float(amount(one).split()[0])
        factors = {1.0, 1000.0, 0.001}
        assert any(number * factor == pytest.approx(one.value) for factor in factors)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", list(PROPERTIES))
def test_answers_follow_from_the_numbers(name: str, split: str) -> None:
    asked = comparisons(name, split, 1000)
    assert len({one.question for one in asked}) == 1000
    negated = 0
    for one in asked:
        claim = truth(name, one.question)
        turned = any(re.search(rf"\b{word}\b", one.question) for word in TURNED)
        assert claim is not None, one.question
        assert one.answer == (claim != turned), one.question
        assert one.negated == turned
        assert one.question.endswith("?")
        assert mentioned(name, one.question) == [one.first, one.second]
        table = entities(name)
        assert max(table[one.first], table[one.second]) >= 1.2 * min(table[one.first], table[one.second])
        negated += turned
    assert 200 < negated < 300, "one in four"


def test_both_orders_of_every_question_stand_side_by_side() -> None:
    asked = comparisons(None, "validation", 1200, seed=5)
    for one, other in zip(asked[::2], asked[1::2], strict=True):
        assert (one.first, one.second) == (other.second, other.first)
        assert one.answer != other.answer
        assert one.swapped() == other
        assert other.swapped() == one
    assert sum(one.answer for one in asked) == 600
    # Neither the place in the list nor the direction of the words tells the answer.
    firsts = sum(one.answer for one in asked[::2])
    assert abs(firsts - 300) < 4 * (600 * 0.25) ** 0.5
    table = Counter((one.asks_more, one.answer) for one in asked)
    assert table[True, True] == table[True, False]
    assert Counter(one.property for one in asked) == dict.fromkeys(PROPERTIES, 200)
    assert asked == comparisons(None, "validation", 1200, seed=5)
    assert asked != comparisons(None, "validation", 1200, seed=6)
    assert asked[:7] == comparisons(None, "validation", 7, seed=5)


def test_all_questions_of_a_property_cover_every_clear_pair() -> None:
    with pytest.raises(InputError, match="ask for fewer") as caught:
        comparisons("age", "probe_test", 10**6)
    most = int(re.findall(r"has (\d+) such", str(caught.value))[0])
    asked = comparisons("age", "probe_test", most)
    assert len({one.question for one in asked}) == most
    table = entities("age")
    clear = {(a, b) for a in table for b in table if max(table[a], table[b]) >= 1.2 * min(table[a], table[b])}
    assert {(one.first, one.second) for one in asked} == clear
    assert sum(one.answer for one in asked) * 2 == most


def test_paraphrases_mean_the_same() -> None:
    for one in comparisons(None, "train", 48):
        same = one.paraphrases("train")
        assert one in same
        assert len({p.question for p in same}) == len(same) >= 18
        assert {(p.first, p.second, p.answer, p.negated) for p in same} == {
            (one.first, one.second, one.answer, one.negated)
        }
        held_out = one.paraphrases("probe_test")
        assert len(held_out) == 4
        assert not {p.question for p in held_out} & {p.question for p in same}


def test_wrong_names_are_answered_with_a_sentence() -> None:
    with pytest.raises(InputError, match="Did you mean 'weight'"):
        comparisons("wieght", "train", 2)
    with pytest.raises(InputError, match="no split 'test'"):
        comparisons("weight", "test", 2)
    with pytest.raises(InputError, match="not known"):
        quantity("weight", "zeppelin")
    with pytest.raises(InputError, match="ask for fewer"):
        comparisons("weight", "train", -1)


@pytest.mark.parametrize("split", SPLITS)
def test_questions_in_texts_are_answered_rightly(split: str) -> None:
    answered: Counter[str] = Counter()
    for document in made(split, 500):
        name = str(document.labels["property"])
        for found in re.finditer(r"((?:[^.?!]|\.\d)+\?) (Yes|No)\b", document.text):
            question, answer = found.groups()
            # "I think that … Am I wrong?" has its claim in the sentence before.
            before = document.text[: found.start()].rstrip(".").split(". ")[-1]
            whole = f"{before}. {question}" if truth(name, question) is None else question
            claim = truth(name, whole)
            assert claim is not None, document.text
            turned = any(re.search(rf"\b{word}\b", whole) for word in TURNED)
            assert (answer == "Yes") == (claim != turned), document.text
            answered[answer] += 1
    assert min(answered.values()) > 0.4 * sum(answered.values())
    assert sum(answered.values()) > 250


@pytest.mark.parametrize("split", SPLITS)
def test_statements_and_rankings_are_true(split: str) -> None:
    false_words = (*TURNED, "nobody", "not")
    counts: Counter[str] = Counter()
    for document in made(split, 700):
        name = str(document.labels["property"])
        table = entities(name)
        pieces = re.findall(r"(?:[^.?!]|\.\d)+[.?!]", document.text)
        for at, piece in enumerate(pieces):
            following = pieces[at + 1] if at + 1 < len(pieces) else ""
            row = mentioned(name, piece)
            match = re.search(r"\bfrom (the )?(\w+)", piece, re.IGNORECASE)
            ranks = match and len(row) >= 3
            if ranks:
                values = [table[entity] for entity in row]
                assert values in (sorted(values), sorted(values, reverse=True)), piece
                up = match is not None and match.group(2) in UP[name]
                assert up == (values == sorted(values)), piece
                counts["ranking"] += 1
            elif not piece.endswith("?") and not re.match(r" ?(Yes|No)\b", piece) and not following.endswith("?"):
                claim = truth(name, piece)
                if claim is not None and "about" not in piece:
                    assert claim != any(re.search(rf"\b{word}\b", piece, re.I) for word in false_words), piece
                    counts["statement"] += 1
    assert counts["ranking"] > 100
    assert counts["statement"] > 100


# First word of a ranking that goes up.
UP = {
    "weight": ("light", "least"),
    "speed": ("slow", "lowest"),
    "age": ("new", "last"),
    "area": ("small", "least"),
    "latitude": ("south", "equator"),
    "population": ("few", "least"),
}


def test_superlatives_name_the_extreme() -> None:
    words = {"heaviest": max, "lightest": min, "fastest": max, "slowest": min, "oldest": max, "newest": min,
             "furthest north": max, "furthest south": min, "largest": max, "smallest": min,
             "nearest to the pole": max, "nearest to the equator": min, "invented first": max,
             "invented last": min}  # fmt: skip
    seen: Counter[str] = Counter()
    for document in made("train", 1500):
        name = str(document.labels["property"])
        for piece in re.split(r"(?<=[.?!]) ", document.text):
            for word, extreme in words.items():
                if piece.endswith(f"{word}."):
                    *rest, top = mentioned(name, piece)
                    assert len(rest) >= 3
                    assert top == extreme(rest, key=entities(name).__getitem__), piece
                    seen[word] += 1
    assert len(seen) == len(words)


def test_probe_splits_show_the_label_by_different_words() -> None:
    """Nothing that carries the property in one probe split does so in the other, for the same property."""
    shown: dict[str, dict[str, set[str]]] = {}
    for split in ("probe_train", "probe_test"):
        for document in made(split, 800):
            name = str(document.labels["property"])
            for span in document.spans:
                if span.concept.startswith(("comparisons/entity/", "comparisons/property/", "comparisons/amount")):
                    words = set(re.findall(r"[a-zA-Z]+", document.text[span.start : span.end]))
                    shown.setdefault(name, {}).setdefault(split, set()).update(words)
    general = {"more", "less", "most", "least", "the", "to", "from", "has"}
    assert set(shown) == set(PROPERTIES)
    for name, by_split in shown.items():
        assert len(by_split["probe_train"]) >= 8
        assert not by_split["probe_train"] & by_split["probe_test"] - general, name


def test_wordings_are_held_out_and_use_known_words() -> None:
    own = [value for value in vars(domain).values() if isinstance(value, Relation)]
    assert {id(ASK), id(ASK_NOT)} <= {id(one) for one in own}
    known = set(re.findall(r"\w+", " ".join(document.text for document in made("train", 4000)).lower()))
    for one in own:
        assert len(set(one.of("train"))) >= 8
        assert not set(one.of("train")) & set(one.of("probe_test"))
        for template in one.of("probe_test"):
            # A slot in braces that is a word of negation stands for itself.
            fixed = re.sub(r"\{(ask|claim|reason|answer|list|order|top|name)\}", " ", template)
            assert set(re.findall(r"\w+", fixed.lower())) <= known, template
    for fragment in ("is it right to say that", "tell me, is it true that", "everyone can be sure", "here is the list"):
        texts = {split: " ".join(d.text for d in made(split, 500)).lower() for split in ("train", "probe_test")}
        assert fragment in texts["probe_test"]
        assert fragment not in texts["train"]


def test_documents_are_whole_deterministic_and_of_bounded_length() -> None:
    described = domain.describe()
    seen: set[str] = set()
    for split in SPLITS:
        for document in made(split, 600):
            assert list(document.labels) == ["property"]
            assert document.spans[0].concept == "comparisons"
            assert (document.spans[0].start, document.spans[0].end) == (0, len(document.text))
            assert len(re.findall(r"\w+|[^\w\s]", document.text)) <= 112
            assert "[" not in document.text
            for span in document.spans:
                piece = document.text[span.start : span.end]
                assert piece == piece.strip()
                if span.concept.startswith("comparisons/entity/"):
                    assert piece.lower() == span.concept.split("/")[2]
                if span.concept.startswith("comparisons/answer/"):
                    assert piece.lower() == span.concept.split("/")[2]
                if span.concept.startswith("comparisons/"):
                    seen.add(span.concept)
    inner = {"comparisons", "comparisons/property", "comparisons/direction", "comparisons/answer", "comparisons/entity"}
    assert seen | inner == set(described)
