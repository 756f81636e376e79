"""Entity filters, candidate pairs and the ambiguity filter: every rule with a case on either side of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saeworks.errors import InputError
from saeworks.faithfulness.ambiguity import (
    AmbiguityFilter,
    Verdict,
    clarity_prompt,
    consistency_prompt,
    parse_classification,
    select_pairs,
    vote,
)
from saeworks.faithfulness.candidate_pairs import (
    Closeness,
    EntityPair,
    base_degrees,
    candidate_pairs,
    evenly_spaced,
)
from saeworks.faithfulness.entities import (
    Entity,
    Evidence,
    filtered,
    gather_evidence,
    parse_popularity,
    rate_popularity,
)
from saeworks.faithfulness.properties import WORLD_MODEL

ANY = Closeness(0.0, 1.0)


def names(pairs: list[EntityPair]) -> list[tuple[str, str]]:
    return [pair.key for pair in pairs]


def places(*rows: tuple[str, float]) -> list[Entity]:
    return [Entity(name, value) for name, value in rows]


def test_popularity_that_cannot_be_read_drops_the_entity() -> None:
    assert [parse_popularity(text) for text in ("7", " 10.", "0", "11", "-1", "seven", "")] == [7, 10] + [None] * 5
    asked: list[str] = []

    def judge(kind: str, name: str) -> str:
        asked.append(name)
        return {"known": "9", "obscure": "2"}.get(name, "I cannot say")

    given = [Entity("known", 1), Entity("obscure", 2), Entity("strange", 3), Entity("rated", 4, popularity=5)]
    rated = rate_popularity("books", given, judge)
    assert [one.popularity for one in rated] == [9, 2, None, 5]
    assert asked == ["known", "obscure", "strange"]
    assert [one.name for one in filtered("wm-book-length", rated, max_popularity=5)] == ["obscure", "rated"]
    # A stored -1, the published stand-in, does not pass either.
    assert filtered("wm-book-length", [Entity("a", 1, popularity=-1)], max_popularity=5) == []


def test_names_that_cannot_be_asked_about() -> None:
    given = places(("Ada", 1), ("Ada Byron", 2), ("(Untitled)", 3))
    assert [one.name for one in filtered("wm-person-age", given)] == ["Ada Byron"]
    lakes = places(("Lake Rosa", 1), ("Lake Rosa (North)", 2), ("Rosa", 3), ("Lake Tana (East)", 4), ("Lake Ta", 5))
    # "Lake Rosa" continues in the second; "Lake Tana" does not continue in "Lake Ta", but "Lake Ta" does in it.
    assert [one.name for one in filtered("wm-world-natural-area", lakes)] == ["Rosa"]
    assert len(filtered("wm-world-natural-area", lakes[2:4])) == 2


def test_evidence_is_counted_by_source() -> None:
    found = {"a": [Evidence("3 m", "s1"), Evidence("3.1 m", "s1"), Evidence("UNKNOWN", "s2"), Evidence(" ", "s3")]}
    (one,) = gather_evidence("rivers", [Entity("a", 3)], lambda kind, name: found[name])
    assert one.evidence == (Evidence("3.1 m", "s1"),)
    assert filtered("x", [one], min_evidence=2) == []
    assert filtered("x", [one], min_evidence=1) == [one]


def test_values_lie_apart_by_a_share_of_the_range() -> None:
    given = places(("a", 0), ("b", 4.9), ("c", 5), ("d", 25), ("e", 25.1), ("f", 100))
    found = names(candidate_pairs("sizes", given))
    assert ("a", "b") not in found
    assert ("a", "c") in found
    assert ("a", "d") in found
    assert ("a", "e") not in found
    assert names(candidate_pairs("sizes", places(("a", 1), ("b", 1)), ANY)) == []
    assert candidate_pairs("sizes", places(("a", 1)), ANY) == []


def test_degrees_are_added_to_both_bounds() -> None:
    assert [
        base_degrees(f"wm-{kind}") for kind in ("us-zip-lat", "us-county-long", "nyc-place-lat", "us-zip-popu")
    ] == [
        1,
        10,
        0,
        0,
    ]
    given = places(("a", 0), ("b", 5.5), ("c", 6), ("d", 26), ("e", 26.5), ("f", 100))
    found = names(candidate_pairs("wm-us-city-lat", given))
    assert ("a", "b") not in found  # 0.05 of 100, and 1 degree more
    assert ("a", "c") in found
    assert ("a", "d") in found
    assert ("a", "e") not in found  # 0.25 of 100, and 1 degree more


def test_longitudes_stay_away_from_the_date_line() -> None:
    given = places(("a", -149), ("b", -29), ("c", -28.9), ("d", 20), ("e", 150), ("f", -150))
    found = names(candidate_pairs("wm-world-structure-long", given, ANY))
    assert ("a", "b") in found  # 120 degrees
    assert ("a", "c") not in found
    assert not any({"e", "f"} & set(pair) for pair in found)


def test_two_places_of_one_state_are_not_compared() -> None:
    given = places(("Ame, ND", 40), ("Bix, ND", 45), ("Cor, SD", 50), ("Dun", 55), ("Eck", 60))
    found = names(candidate_pairs("wm-us-city-lat", given, ANY))
    assert ("Ame, ND", "Bix, ND") not in found
    assert ("Ame, ND", "Cor, SD") in found
    assert ("Dun", "Eck") in found  # neither has a state: that is no common state


def test_ages_and_releases_lie_years_apart() -> None:
    ages = places(("a b", 50), ("c d", 54.9), ("e f", 55))
    assert names(candidate_pairs("wm-person-age", ages, ANY)) == [("a b", "e f")]
    films = places(("a", 19991231), ("b", 20001231), ("c", 20010101))
    # A day apart from the second, the third lies two calendar years after the first.
    assert names(candidate_pairs("wm-movie-release", films, ANY)) == [("a", "c")]
    news = places(("a", 20130924), ("b", 20131008))
    assert names(candidate_pairs("wm-nyt-pubdate", news, ANY)) == [("a", "b")]


def test_dates_are_compared_by_days() -> None:
    # 0.05 of the ten years are 182 days; as plain numbers 20000101 and 20000601 would lie 500 of 100,000 apart.
    given = places(("a", 20000101), ("b", 20000601), ("c", 20000801), ("d", 20100101))
    found = names(candidate_pairs("wm-nyt-pubdate", given))
    assert ("a", "b") not in found
    assert ("a", "c") in found


@pytest.mark.parametrize("value", [1999, 19991332, 19991231.5])
def test_other_dates_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="YYYYMMDD"):
        candidate_pairs("wm-song-release", places(("a", value), ("b", 20000101)))


def test_bounds_that_cannot_be() -> None:
    with pytest.raises(InputError, match="give 0 to 1"):
        Closeness(0.3, 0.2)


def test_evenly_spaced_takes_the_published_places() -> None:
    assert evenly_spaced(list(range(10)), 4) == [0, 2, 5, 7]
    assert evenly_spaced([1, 2], 5) == [1, 2]
    assert evenly_spaced([], 3) == []


BOOKS = WORLD_MODEL["wm-book-length"]
PAIR = EntityPair(
    Entity("A Thin Book", 100, evidence=(Evidence("100 pages", "s1"), Evidence("104 pp", "s2"))),
    Entity("A Fat Book", 300),
)


def test_prompts_hold_question_and_evidence() -> None:
    first, second = clarity_prompt(BOOKS, PAIR), consistency_prompt(BOOKS, PAIR)
    assert "`about books: Does A Thin Book have more pages than A Fat Book?`" in first
    assert "A Fat Book have more pages than A Thin Book" not in first
    assert "A Fat Book have more pages than A Thin Book" in second
    for prompt in (first, second):
        assert "- 104 pp (s2)" in prompt
        assert "nothing was found" in prompt


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<analysis>x</analysis><classification>CLEAR</classification>", "CLEAR"),
        ("<classification>ambiguous.</classification>", "AMBIGUOUS"),
        ("<CLASSIFICATION>Consistent</Classification>", "CLEAR"),
        ("<classification>INCONSISTENT</classification>", "AMBIGUOUS"),
        ("first AMBIGUOUS, but in the end CLEAR</classification>", "CLEAR"),
        ("<classification>CLEAR</classification> no: <classification>AMBIGUOUS</classification>", "AMBIGUOUS"),
        ("CLEAR", "FAILED_EVAL"),
        ("<classification></classification>", "FAILED_EVAL"),
        ("", "FAILED_EVAL"),
    ],
)
def test_classification_is_read(reply: str, expected: str) -> None:
    assert parse_classification(reply) == expected


def test_votes() -> None:
    assert vote(["CLEAR", "AMBIGUOUS", "FAILED_EVAL"]) == "AMBIGUOUS"
    assert vote(["CLEAR", "CLEAR"]) == "CLEAR"
    assert vote(["CLEAR", "FAILED_EVAL"]) == "FAILED_EVAL"
    assert vote([]) == "FAILED_EVAL"


def judge_of(*words: str):
    """A judge that says these words one after another, and the prompts it saw."""
    left, seen = list(words), list[str]()

    def judge(prompt: str) -> str:
        seen.append(prompt)
        return f"<classification>{left.pop(0)}</classification>"

    return judge, seen


@pytest.mark.parametrize(
    ("words", "votes", "expected", "calls"),
    [
        (["CLEAR", "CONSISTENT"], 1, "CLEAR", 2),
        (["AMBIGUOUS"], 1, "AMBIGUOUS", 1),
        (["CLEAR", "INCONSISTENT"], 1, "AMBIGUOUS", 2),
        (["CLEAR", "hm"], 1, "FAILED_EVAL", 2),  # an unread second stage drops the pair
        (["hm"], 1, "FAILED_EVAL", 1),
        (["CLEAR", "CLEAR", "AMBIGUOUS"], 3, "AMBIGUOUS", 3),
        (["CLEAR"] * 3 + ["CONSISTENT"] * 3, 3, "CLEAR", 6),
    ],
)
def test_two_stages(words: list[str], votes: int, expected: str, calls: int) -> None:
    judge, seen = judge_of(*words)
    assert AmbiguityFilter(BOOKS, judge, votes).verdict(PAIR) == expected
    assert len(seen) == calls


def test_verdicts_are_kept_and_a_torn_line_is_judged_again(tmp_path: Path) -> None:
    cache = tmp_path / "books.jsonl"
    judge, seen = judge_of("CLEAR", "CONSISTENT", "AMBIGUOUS", "CLEAR", "CONSISTENT")
    other = EntityPair(Entity("Third", 1), Entity("Fourth", 2))
    assert AmbiguityFilter(BOOKS, judge, cache=cache).evaluate([PAIR, other, PAIR]) == ["CLEAR", "AMBIGUOUS", "CLEAR"]
    assert AmbiguityFilter(BOOKS, judge, cache=cache).evaluate([PAIR, other]) == ["CLEAR", "AMBIGUOUS"]
    assert len(seen) == 3
    cache.write_bytes(cache.read_bytes()[:-20])
    assert AmbiguityFilter(BOOKS, judge, cache=cache).evaluate([PAIR, other]) == ["CLEAR", "CLEAR"]
    assert len(seen) == 5
    assert len([json.loads(line) for line in cache.read_text().splitlines()]) == 2
    with pytest.raises(InputError, match="its own file"):
        AmbiguityFilter(WORLD_MODEL["wm-movie-length"], judge, cache=cache)
    cache.write_text("{}\n")
    with pytest.raises(InputError, match="damaged"):
        AmbiguityFilter(BOOKS, judge, cache=cache)
    with pytest.raises(InputError, match="0 votes"):
        AmbiguityFilter(BOOKS, judge, 0)


def grid(size: int) -> list[EntityPair]:
    entities = [Entity(f"e{i:03}", i) for i in range(size)]
    return [EntityPair(a, b) for i, a in enumerate(entities) for b in entities[i + 1 :]]


def test_selection_uses_every_entity_once() -> None:
    asked: list[EntityPair] = []

    def evaluate(pairs) -> list[Verdict]:
        asked.extend(pairs)
        return ["CLEAR"] * len(pairs)

    found = select_pairs(grid(30), 100, evaluate)
    used = [name for pair in found for name in pair.key]
    assert len(used) == len(set(used))
    assert len(found) >= 14
    assert len(asked) == len({pair.key for pair in asked})
    assert len(select_pairs(grid(30), 5, evaluate)) == 5


def test_selection_goes_on_past_unclear_pairs_and_respects_the_room() -> None:
    def evaluate(pairs) -> list[Verdict]:
        return ["CLEAR" if int(pair.key[0][1:]) % 2 else "AMBIGUOUS" for pair in pairs]

    found = select_pairs(grid(40), 12, evaluate, max_comparisons=2)
    assert len(found) == 12
    assert all(int(pair.key[0][1:]) % 2 for pair in found)
    used = [name for pair in found for name in pair.key]
    assert max(used.count(name) for name in used) <= 2
    assert select_pairs(grid(10), 5, lambda pairs: ["FAILED_EVAL"] * len(pairs)) == []
    with pytest.raises(InputError, match="at least 1"):
        select_pairs(grid(3), 0, evaluate)
