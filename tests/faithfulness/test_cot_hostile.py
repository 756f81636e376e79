"""What a stranger may feed the commands: every case ends in a sentence or a right result, and nothing is lost."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cot_cases import mirrored_questions

from saeworks.cli.app import main
from saeworks.faithfulness.importers import Study, read_study, write_study
from saeworks.faithfulness.keyword_judge import keyword_verdict
from saeworks.faithfulness.records import Judged, Question, Response

QUESTIONS = [question for pair in mirrored_questions(4) for question in pair]
RESPONSES = [Response(q.qid, str(i), "m", "So YES.") for q in QUESTIONS for i in range(3)]
JUDGED = [Judged(one.qid, one.response_id, "m", "YES", False, "j") for one in RESPONSES]
EVIL = "</p></script><script>alert('1')</script>\x00\x1b[31m\u202e\"x\" \U0001f4a9\ud83d " + "w" * 5000 + " YES"
NAME = "a<script>\x1b[2J/../\x00" + "m" * 400


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["cot", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def as_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(asdict(row)) + "\n" for row in rows)


class Tags(HTMLParser):
    """The tags that a page opens."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.add(tag)


def test_texts_that_attack_the_page_the_terminal_and_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers, reasoning, names of models, judges, properties and entities, all at once."""
    questions = [replace(question, property_id="<script>p</script>/..") for question in QUESTIONS]
    responses = [replace(one, text=EVIL, model=NAME, reasoning=EVIL) for one in RESPONSES]
    judged = [replace(one, model=NAME, judge="[/red]<script>\x1b[2J", explanation=EVIL) for one in JUDGED]
    for name, rows in (("questions", questions), ("responses", responses), ("judged", judged)):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.jsonl").write_text(as_lines(rows), encoding="ascii")
    page = tmp_path / "out" / "r.html"
    for command in (
        ("score", tmp_path / "in", "--out", tmp_path / "out", "--cache", tmp_path / "cache"),
        ("score", tmp_path / "in", "--cache", tmp_path / "cache"),
        ("report", tmp_path / "in", "--out", page, "--label-sample", 2),
    ):
        code, out, error = call(capsys, *command)
        assert (code, "\x1b" in out + error, "\x00" in out + error) == (0, False, False), out + error
    text = page.read_text(encoding="utf-8")
    assert not {"script", "img"} & Tags(text).found
    assert not {"\x00", "\x1b", "\u202e"} & set(text)
    assert text.count("&lt;script&gt;alert") >= len(responses)
    sample = list(csv.DictReader((tmp_path / "out/to_label.csv").open(encoding="utf-8", newline="")))
    assert {row["model"] for row in sample} == {NAME}
    (result,) = (tmp_path / "out/results").rglob("*.json")
    assert result.parent.parent == tmp_path / "out/results"


def test_labels_that_somebody_filled_in_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path / "s", Study(QUESTIONS, RESPONSES, JUDGED))
    command = ("report", tmp_path / "s", "--out", tmp_path / "r.html", "--label-sample", 2)
    assert call(capsys, *command)[0] == 0
    assert call(capsys, *command)[0] == 0  # nothing is filled in yet
    file = tmp_path / "to_label.csv"
    filled = "\ufeff" + file.read_text(encoding="utf-8").replace(",,", ",YES,", 1)  # as a spreadsheet saves it
    file.write_text(filled, encoding="utf-8")
    code, _, error = call(capsys, *command)
    assert (code, "would be lost" in error) == (2, True)
    assert file.read_text(encoding="utf-8") == filled
    # The other rows have no label yet.
    assert "agrees with 'hand' on 100.0% of 1" in call(capsys, "score", tmp_path / "s", "--labels", file)[1]


def test_marks_and_line_ends_of_other_systems(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "q.jsonl").write_bytes(mark + as_lines(QUESTIONS).replace("\n", "\r\n").encode())
    (tmp_path / "r.jsonl").write_bytes(mark + as_lines(RESPONSES).replace("\n", "\r\n").encode())
    (tmp_path / "e.json").write_bytes(mark + b"[]")
    study = read_study(tmp_path)
    assert (study.questions, study.responses, study.notes) == (QUESTIONS, RESPONSES, [])


def test_records_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    other: Question = replace(QUESTIONS[0], expected="NO")
    changed = [replace(RESPONSES[0], text="NO"), RESPONSES[1]]
    write_study(tmp_path, Study([*QUESTIONS, QUESTIONS[1], other], RESPONSES + changed, [*JUDGED, JUDGED[0]]))
    study = read_study(tmp_path)
    assert study.questions == QUESTIONS
    told = " ".join(study.notes)
    assert "1 questions are stored again with another right answer" in told
    assert "1 responses have the id of an earlier one" in told
    assert "judgements" not in told


def test_questions_without_a_reversal_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, Study([replace(q, x_name=f"{q.x_name} ") for q in QUESTIONS], [], JUDGED))
    code, out, error = call(capsys, "score", tmp_path, "--json")
    assert (code, json.loads(out)["pairs"]) == (0, 0)
    assert "no pair to score" in error


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", 'model_id: m\nresponses_by_qid:\n  q: {r: "abc', "not valid YAML"),
        ("a.yaml", "model_id: m\nresults_by_qid: {q: {a: 2001-99-99}}\n", "not valid YAML"),
        ("a.yaml", "x: " + "1" * 5000, "not valid YAML"),
        ("a.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nmodel_id: *b\nresponses_by_qid: {}\n", "has a list as 'model_id'"),
        ("a.json", "[" + "1" * 5000 + "]", "not valid JSON"),
        ("a.jsonl", '{"qid": ' + "1" * 5000 + "}\n", "not valid JSON"),
        ("a.jsonl", json.dumps({**asdict(QUESTIONS[0]), "x_value": 10**400}) + "\n", "a finite number"),
        ("a.jsonl", json.dumps({**asdict(QUESTIONS[0]), "text": "cut \ud83d?"}) + "\n", "SHA-256"),
        ("a.jsonl", json.dumps({**asdict(RESPONSES[0]), "reasoning": 5}) + "\n", "'5' as 'reasoning'"),
        ("a.jsonl", json.dumps({**asdict(RESPONSES[0]), "outcome": ["x"]}) + "\n", "the outcome a list"),
    ],
)
def test_damage_of_every_kind_is_one_sentence(
    name: str, content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    code, _, error = call(capsys, "score", tmp_path)
    assert code == 2
    assert words in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("place", [("score", "--out"), ("score", "--cache"), ("report", "--out")])
def test_places_that_cannot_be_written(
    place: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path / "s", Study(QUESTIONS, [], JUDGED))
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for target in (tmp_path / "file" / "below", tmp_path / "file" if place[0] == "score" else tmp_path):
        code, _, error = call(capsys, place[0], tmp_path / "s", place[1], target)
        assert (code, "cannot be written" in error) == (1, True), error
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


ROWS = "name,value\n" + "".join(f"Town {chr(65 + i)},{100 * i}\n" for i in range(20))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (ROWS + "Z,\n", "line 22, has nothing in the column 'value'"),
        (ROWS + "Z\n", "line 22, has nothing in the column 'value'"),
        (ROWS + ",5\n", "has no name"),
        (ROWS + "Z,NaN\n", "'NaN'"),
        (ROWS + 'Z,"1,234"\n', "'1,234'"),
        (ROWS + "Z,1,234\n", "more cells than the header"),
        (ROWS + "Town A,7\n", "keep one of them"),
        ("name,value,value\nA,1,2\n", "several columns named 'value'"),
        (ROWS.replace(",", ";"), "no column 'name'"),
        ("name,value\nA,1\n", "None of the 1 entities"),
        ("name,value\n", "holds no row"),
        ("", "holds no row"),
    ],
)
def test_tables_with_holes_and_doubles(
    table: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "t.csv", tmp_path / "q.json"
    file.write_text(table, encoding="utf-8")
    asked = ("--property", "towns", "--gt", "Is {x} bigger than {y}?", "--lt", "Is {x} smaller than {y}?")
    code, _, error = call(capsys, "questions", "--table", file, "--out", out, *asked)
    assert (code, out.exists()) == (2, False)
    assert words in error


def test_one_sentence_cannot_ask_for_more_and_for_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text(ROWS, encoding="utf-8")
    same = "Is {x} bigger than {y}?"
    asked = ("--table", tmp_path / "t.csv", "--property", "towns", "--gt", same, "--lt", same)
    assert "cannot ask for more and for less" in call(capsys, "questions", "--out", tmp_path / "q.json", *asked)[2]


@pytest.mark.timeout(60)  # without care the first of these takes years
@pytest.mark.parametrize("text", ["so" + " " * 20_000 + "x", "answer" + "*" * 20_000, "answer: " + "* " * 10_000])
def test_the_judge_of_words_is_not_held_up_by_a_long_gap(text: str) -> None:
    assert keyword_verdict(text)[0] == "UNKNOWN"
    assert keyword_verdict("Therefore" + " " * 20_000 + "yes")[0] == "YES"
