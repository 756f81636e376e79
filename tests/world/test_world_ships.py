"""Ships: attributes that say nothing about each other, and texts that agree with the table."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Sequence

import pytest

from saeworks.errors import InputError
from saeworks.world.documents import Document
from saeworks.world.domains import ships as domain
from saeworks.world.domains.ships import ATTRIBUTES, RELATIONS, SHARED, prompts, ships, values
from saeworks.world.drawing import Draw
from saeworks.world.knowledge import cities, leaves, taxonomy
from saeworks.world.phrasing import SPLITS, Relation, sentence


def made(split: str, count: int) -> list[Document]:
    return [domain.write(Draw(0, "ships", split, i), split, f"ships/{split}/0/{i}") for i in range(count)]


def relations() -> list[Relation]:
    return [value for value in vars(domain).values() if isinstance(value, Relation)] + list(SHARED.values())


def column(attribute: str) -> list[str]:
    return [ship.value(attribute) for ship in ships()]


def information(one: Sequence[str], other: Sequence[str]) -> float:
    """Mutual information in nats of two columns."""
    n, a, b, both = len(one), Counter(one), Counter(other), Counter(zip(one, other, strict=True))
    return sum(c / n * math.log(c * n / (a[x] * b[y])) for (x, y), c in both.items())


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(ATTRIBUTES, 2)))
def test_no_attribute_tells_another(one: str, other: str) -> None:
    shuffled = random.Random(0)
    floor: list[float] = []
    for _ in range(50):
        column_ = column(other)
        shuffled.shuffle(column_)
        floor.append(information(column(one), column_))
    assert information(column(one), column(other)) <= min(floor) + 1e-9
    assert len(set(zip(column(one), column(other), strict=True))) == 64
    # The measure itself sees a dependence where there is one.
    assert information(column(one), column(one)) == pytest.approx(math.log(8))


def test_every_value_occurs_eight_times() -> None:
    for attribute in ATTRIBUTES:
        assert set(Counter(column(attribute)).values()) == {8}
        assert len(values(attribute)) == 8


def test_names_are_unique_and_hint_at_nothing() -> None:
    names = [ship.name for ship in ships()]
    assert len(set(names)) == len(names) == 64
    assert len({name.split()[1] for name in names}) == 64, "the second word belongs to one ship alone"
    words = {word.lower() for name in names for word in name.split()}
    taken = {value.lower() for attribute in ATTRIBUTES for value in values(attribute)}
    assert not words & (taken | set(taxonomy()) | {city.name.lower() for city in cities()})
    by_first: dict[str, list[domain.Ship]] = {}
    for ship in ships():
        by_first.setdefault(ship.name.split()[0], []).append(ship)
    for group in by_first.values():
        assert len(group) == 4
        for attribute in ATTRIBUTES:
            assert len({ship.value(attribute) for ship in group}) == 4, "a shared first word means nothing"


def test_ports_are_cities_and_emblems_are_animals() -> None:
    assert set(values("port")) <= {city.name for city in cities()}
    assert all(taxonomy()[name].root == "animal" and name in leaves() for name in values("emblem"))


def test_spans_agree_with_the_table() -> None:
    """In a text about one ship every attribute is that ship's, or the one of the ship named in the same sentence."""
    table = {ship.name: ship for ship in ships()}
    checked: Counter[str] = Counter()
    for split in SPLITS:
        for document in made(split, 400):
            named = [s for s in document.spans if s.concept.startswith("ships/ship/")]
            assert named
            for span in named:
                assert document.text[span.start : span.end].lower().replace(" ", "_") == span.concept.split("/")[2]
            allowed = [table[document.text[s.start : s.end]] for s in named]
            for span in document.spans:
                _, _, rest = span.concept.partition("/")
                attribute, _, value = rest.partition("/")
                if span.concept.startswith("ships/") and attribute in ATTRIBUTES:
                    text = document.text[span.start : span.end]
                    assert text.lower() == value
                    assert any(ship.value(attribute).lower() == value for ship in allowed)
                    checked[attribute] += 1
    assert min(checked[attribute] for attribute in ATTRIBUTES) > 400


def test_single_statements_are_read_back_from_the_text() -> None:
    """The plainest wordings, read by a pattern, give the table again."""
    table = {ship.name: ship for ship in ships()}
    patterns = {
        "colour": r"The colour of the (\w+ \w+) is (\w+)\.",
        "cargo": r"The cargo of the (\w+ \w+) is (\w+)\.",
        "port": r"The home port of the (\w+ \w+) is (\w+)\.",
        "emblem": r"The emblem of the (\w+ \w+) is the (\w+)\.",
    }
    texts = " ".join(document.text for document in made("probe_test", 1500))
    for attribute, pattern in patterns.items():
        read = set(re.findall(pattern, texts))
        assert len(read) == 64
        assert all(table[name].value(attribute) == value for name, value in read)


def test_ships_that_share_a_value_share_it() -> None:
    table = {ship.name: ship for ship in ships()}
    seen = 0
    for document in made("train", 600):
        for names, cargo in re.findall(r"(?:^|\. )The ([^.?]+) all carry (\w+)\.", document.text):
            for name in re.split(r", the | and the ", names):
                assert table[name].cargo == cargo
                seen += 1
    assert seen > 10


def test_prompts_end_before_the_attribute() -> None:
    for attribute in ATTRIBUTES:
        for split in SPLITS:
            found = prompts(attribute, split)
            assert len(found) >= 128
            texts = {sentence(t, ship=s.name, **{attribute: s.value(attribute)}).text for s in ships()
                     for t in RELATIONS[attribute].of(split) if "{name}" not in t}  # fmt: skip
            for prompt, answer, ship in found:
                assert answer == f" {ship.value(attribute)}"
                assert ship.name in prompt
                assert any(text.startswith(prompt + answer) for text in texts)
        # Held-out prompts are the two at the end, for every ship, and none is a training prompt.
        held_out, trained = prompts(attribute, "probe_test"), prompts(attribute, "train")
        assert len(held_out) == 128
        assert not {p for p, _, _ in held_out} & {p for p, _, _ in trained}
    with pytest.raises(InputError, match="Did you mean 'colour'"):
        prompts("color")


def test_wordings_are_held_out_and_use_known_words() -> None:
    trained_text = " ".join(document.text for document in made("train", 3000)).lower()
    known = set(re.findall(r"\w+", trained_text))
    held_out = " ".join(document.text for document in made("probe_test", 600)).lower()
    for one in relations():
        assert len(set(one.of("train"))) >= 8
        assert len(one.of("probe_test")) == 2
        assert not set(one.of("train")) & set(one.of("probe_test"))
        for template in one.of("probe_test"):
            fixed = re.sub(r"\{[^}]*\}", " ", template)
            assert set(re.findall(r"\w+", fixed.lower())) <= known, template
    fragments = [
        "the colour of the {} is",
        "the cargo of the {} is",
        "the emblem of the {} is",
        "the hold of the {} carries",
    ]
    for fragment in fragments:
        pattern = fragment.replace("{}", r"\w+ \w+") + r" \w+( \w+)?\."
        assert re.search(pattern, held_out)
        assert not re.search(pattern, trained_text)


def test_pronouns_never_follow_another_ship() -> None:
    """Where sentences name one ship each, a ship other than the first is named in the last sentence alone."""
    names = [ship.name for ship in ships()]
    seen = 0
    for document in made("train", 1500):
        sentences = re.split(r"(?<=[.?]) ", document.text)
        found = [[name for name in names if name in one] for one in sentences]
        if any(len(one) > 1 for one in found):
            continue
        places = [at for at, one in enumerate(found) if one and one != found[0]]
        assert places in ([], [len(sentences) - 1]), document.text
        seen += len(places)
    assert seen > 100


def test_documents_are_whole_deterministic_and_of_bounded_length() -> None:
    described = domain.describe()
    seen: set[str] = set()
    for split in SPLITS:
        for document in made(split, 500):
            assert document.labels == {}
            assert document.spans[0] == type(document.spans[0])(0, len(document.text), "ships")
            assert len(re.findall(r"\w+|[^\w\s]", document.text)) <= 110
            seen |= {s.concept for s in document.spans if s.concept.startswith("ships")}
    kinds = {"ships/ship", *(f"ships/{attribute}" for attribute in ATTRIBUTES)}
    assert seen | kinds == set(described), "what is described is what is emitted"
    assert all(not key.rpartition("/")[0] or key.rpartition("/")[0] in described for key in described)
