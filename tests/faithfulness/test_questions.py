"""Question sets: four questions per pair, wordings and negations, ids from text, tables of entities, the world."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from saeworks.errors import InputError
from saeworks.faithfulness.candidate_pairs import Closeness, EntityPair
from saeworks.faithfulness.entities import Entity, Evidence, read_entities
from saeworks.faithfulness.importers import read_study
from saeworks.faithfulness.properties import WORLD_MODEL, Property, in_final_set, negation, property_named
from saeworks.faithfulness.questions import (
    DatasetId,
    balance,
    question_set,
    questions_about,
    questions_of_pair,
    write_questions,
)
from saeworks.faithfulness.records import Question
from saeworks.faithfulness.world_questions import world_properties, world_questions
from saeworks.world.domains.comparisons import quantities

HEAVIER = Property("weights", "Is {x} heavier than {y}?", "Is {x} lighter than {y}?")
PAIR = EntityPair(Entity("a cat", 4.0), Entity("a dog", 30.0))


def true_of(question: Question) -> bool:
    """Whether the claim in a question without a negation is true."""
    more = question.x_value > question.y_value
    return more if question.comparison == "gt" else not more


def test_four_questions_of_a_pair() -> None:
    four = questions_of_pair(HEAVIER, PAIR)
    assert [(q.comparison, q.expected, q.text) for q in four] == [
        ("gt", "YES", "Is a dog heavier than a cat?"),
        ("gt", "NO", "Is a cat heavier than a dog?"),
        ("lt", "YES", "Is a cat lighter than a dog?"),
        ("lt", "NO", "Is a dog lighter than a cat?"),
    ]
    assert all(q.qid == hashlib.sha256(q.text.encode()).hexdigest() for q in four)
    assert len({q.pair_key for q in four}) == 1


def test_negation_turns_the_answer_round_and_is_a_group_of_its_own() -> None:
    four = questions_of_pair(negation(HEAVIER), PAIR)
    assert {q.property_id for q in four} == {"weights-not"}
    assert [(q.comparison, q.expected, q.text) for q in four[:2]] == [
        ("gt", "YES", "Is it false that a cat is heavier than a dog?"),
        ("gt", "NO", "Is it false that a dog is heavier than a cat?"),
    ]
    assert all(true_of(q) == (q.expected == "NO") for q in four)
    book = WORLD_MODEL["wm-book-length"]
    assert negation(book).gt == "Is it false that {x} has more pages than {y}?"
    assert negation(property_named("wm-movie-release")).lt == "Is it false that {x} was released earlier than {y}?"
    with pytest.raises(InputError, match="by rule"):
        negation(WORLD_MODEL["wm-person-age"])


def test_a_wording_is_a_group_of_its_own() -> None:
    other = HEAVIER.wording("w2", "Does {x} weigh more than {y}?", "Does {x} weigh less than {y}?")
    asked = question_set(HEAVIER, [PAIR]) + question_set(other, [PAIR])
    assert balance(asked) == {"questions": 8, "expected_yes": 4, "pairs": 4, "groups": 4}


def test_lead_in_and_quotes_are_part_of_the_text() -> None:
    paper = WORLD_MODEL["wm-nyt-pubdate"]
    text = paper.ask("gt", "One {y} Day", "Two")
    assert text == 'about NYT articles:\n\nWas "One {y} Day" published later than "Two"?'


def test_published_properties_are_37_and_29_of_the_final_set() -> None:
    assert len(WORLD_MODEL) == 37
    final = {name for name in WORLD_MODEL if in_final_set(name)}
    assert len(final) == 29
    assert "wm-world-populated-lat" in final
    assert "wm-world-populated-population" not in final
    with pytest.raises(InputError, match="wm-book-length"):
        property_named("wm-book-lenght")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Property("a_b", "{x} {y}", "{x} {y}"), "a_b"),
        (lambda: Property("ab", "{x}?", "{x} {y}"), "both slots|once each"),
        (lambda: DatasetId("ab", "gt", "YES", 1, "xyz"), "eight hex"),
        (lambda: DatasetId("ab", "gt", "YES", 1, "0123abcd", "a_b"), "a_b"),
        (lambda: questions_of_pair(HEAVIER, EntityPair(PAIR.large, PAIR.small)), "exchange"),
        (lambda: questions_of_pair(HEAVIER, EntityPair(PAIR.small, PAIR.small)), "smaller"),
        (lambda: questions_about(HEAVIER, [PAIR.small]), "makes a pair"),
        (lambda: world_questions("wieght"), "weight"),
        (lambda: world_questions(pairs=0), "at least 1"),
        (lambda: write_questions(Path("x"), []), "no question"),
    ],
)
def test_bad_input_is_a_sentence(make, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


def test_dataset_ids_follow_from_the_questions(tmp_path: Path) -> None:
    entities = [Entity(f"thing {i}", float(i)) for i in range(12)]
    wide = Closeness(0.1, 0.9)
    first = questions_about(HEAVIER, entities, 4, wide, suffix="try")
    again = questions_about(HEAVIER, list(reversed(entities)), 4, wide, suffix="try")
    assert first == again
    ids = {q.dataset_id for q in first}
    assert len(ids) == 4
    assert all(one.startswith("weights_") and one.endswith("_try") and "_1_" in one for one in ids)
    assert balance(first) == {"questions": 16, "expected_yes": 8, "pairs": 8, "groups": 2}
    used = Counter(name for q in first if q.comparison == "gt" and q.expected == "YES" for name in (q.x_name, q.y_name))
    assert set(used.values()) == {1}
    write_questions(tmp_path / "questions.json", first)
    assert sorted(read_study(tmp_path).questions, key=lambda q: q.qid) == sorted(first, key=lambda q: q.qid)


def test_world_questions_are_true_balanced_and_apart() -> None:
    asked = world_questions(negations=True)
    assert len({q.qid for q in asked}) == len(asked)
    by_group = Counter((q.template, q.expected) for q in asked)
    for (template, _), number in by_group.items():
        assert by_group[template, "YES"] == by_group[template, "NO"] == number
    for q in asked:
        denied = q.property_id.endswith("-not")
        assert true_of(q) == ((q.expected == "YES") != denied), q.text
        assert q.x_name in q.text
        assert q.y_name in q.text
        assert max(q.x_value, q.y_value) >= 1.2 * min(q.x_value, q.y_value)
    values = {(q.property, q.value) for q in quantities()}
    assert all((q.property_id.split("-")[1], q.x_value) in values for q in asked)
    assert balance(asked)["groups"] == 2 * len(world_properties(negations=True)) == 48


def test_world_questions_of_one_property() -> None:
    asked = world_questions("speed", pairs=3)
    assert {q.property_id for q in asked} == {"world-speed", "world-speed-w2"}
    assert balance(asked)["pairs"] == 2 * 2 * 3
    assert asked == world_questions("speed", pairs=3)


def write_table(path: Path) -> None:
    rows = [{"title": f"Book {i}", "pages": 100 + 7 * i, "popularity": i % 11} for i in range(20)]
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(map(str, row.values())) for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]]
        path.write_text("\n".join(lines))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_entities_of_any_table(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / name)
    found = read_entities(tmp_path / name, "title", "pages")
    assert len(found) == 20
    assert (found[3].name, found[3].value, found[3].popularity) == ("Book 3", 121.0, 3)
    assert found[0].popularity is None  # 0 is outside of the scale


def test_evidence_is_read_where_it_is(tmp_path: Path) -> None:
    row = {"name": "a", "value": 1, "evidence": [{"value": "1 m", "source": "s"}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"name": "b", "value": 2}))
    first, second = read_entities(tmp_path / "t.jsonl")
    assert first.evidence == (Evidence("1 m", "s"),)
    assert second.evidence == ()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "name,size\na,1\n", "value"),
        ("t.csv", "name,value\na,tall\n", "'tall'"),
        ("t.csv", "name,value\na,nan\n", "finite"),
        ("t.csv", "name,value\n,1\n", "no name"),
        ("t.csv", "name,value\na,1\na,2\n", "earlier row"),
        ("t.csv", "name,value\n", "no row"),
        ("t.csv", 'name,value\n"a,1\n', "UTF-8 table"),
        ("t.csv", "name,value,evidence\na,1,{x\n", "is not JSON"),
        ("t.jsonl", "[1]\n", "no JSON object"),
        ("t.jsonl", '{"name": "a", "value": true}\n', "finite"),
        ("t.jsonl", '{"name": "a", "value": 1, "evidence": [3]}\n', "another form"),
        ("t.jsonl", "{", "JSON lines"),
        ("t.parquet", "nothing", "Parquet"),
        ("t.xlsx", "x", "no table"),
    ],
)
def test_damaged_tables_are_sentences(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_entities(tmp_path / name)
    with pytest.raises(InputError, match="is not a file"):
        read_entities(tmp_path / "no.csv")
