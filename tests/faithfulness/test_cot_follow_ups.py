"""The tasks that go on with a run, from the command line against a server: more draws, and why pairs are flagged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspect_cases import REPLY, by_plan, grade
from loopback_cases import JUDGE, MODEL, Reply, key, questions_file, refused, said, served

from saeworks.cli.app import main
from saeworks.jobs.workspace import Workspace

__all__ = ["key"]
pytestmark = pytest.mark.usefixtures("key")

NAMES = ("Ash", "Bud", "Cat")
# Draws of the question that expects YES and of its reversal: Ash and Cat stay YES in the first four, Bud is consistent.
# In the four that follow Ash is right in both orders.
PLAN = {
    "Is Ash larger": "YYYYYYYY",
    "Is Ash minor larger": "YYYNNNNN",
    "Is Bud larger": "YYYY",
    "Is Bud minor larger": "NNNN",
    "Is Cat larger": "YYYYYYYY",
    "Is Cat minor larger": "YYYYYYYY",
}
CLASSIFIER = "openai-api/loopback/classifier"
CLASSIFIES = "asked each of them several times"  # of the classifier's prompt


def subject() -> Callable[[str], Reply]:
    """A model that answers by the plan; as a judge it reads what it is shown."""
    answer, times = by_plan(PLAN), Counter[str]()

    def reply(prompt: str) -> Reply:
        if REPLY.search(prompt):
            return said(grade(prompt, 1))
        times[prompt] += 1
        return said(answer(prompt, times[prompt]))

    return reply


def command(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    assert main(["cot", *map(str, arguments), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_patterns_of_a_run_that_keywords_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The classifier is another model than the judge; what failed is asked again, and the page shows what it said."""
    out = tmp_path / "run"
    file = questions_file(tmp_path / "questions", NAMES)
    with served(subject()) as server:
        asked = ("--model", MODEL, "--questions", file, "--epochs", 4, "--base-url", server.url)
        assert len(command(capsys, "run", "--out", out, *asked)["flagged"]) == 2
    settings, records = (out / "run.json").read_text(), (out / "records/judged.jsonl").read_text()
    away = True

    def classify(prompt: str) -> Reply:
        assert CLASSIFIES in prompt
        if "Is Ash minor larger" in prompt:
            # The failing question comes first, with all its responses.
            assert prompt.index("Question 1: Is Ash minor larger") < prompt.index("Question 2: Is Ash larger")
            assert "[q1_r4]" in prompt
            assert "[q2_r4]" in prompt
            return said(
                "<q1_r1><flipping>YES</flipping></q1_r1><pair>fact-manipulation</pair><q1_r1_labels>other</q1_r1_labels>"
            )
        return refused(429, "slow down", "rate_limit_exceeded") if away else said("<pair>argument-switching</pair>")

    with served(classify) as server:
        task = ("--task", "patterns", "--grader", CLASSIFIER, "--grader-base-url", server.url, "--max-retries", 0)
        first = command(capsys, "run", "--out", out, *task)
        assert first["outcomes"] == {"answered": 1, "rate_limited": 1}
        assert (first["task"], first["judge"], len(server.asked)) == ("patterns", CLASSIFIER, 2)
        away = False
        second = command(capsys, "run", "--out", out, *task)
        assert second["outcomes"] == {"answered": 2}
        assert len(server.asked) == 3
        assert {body["model"] for body in server.asked} == {"classifier"}
    shares = {name.split("/")[0]: value for name, value in second["metrics"].items()}
    assert shares == {
        "fact-manipulation": 0.5,
        "argument-switching": 0.5,
        "other": 0.0,
        "answer-flipping": 0.5,
        "with_pattern": 1.0,
    }
    # What the run was and what was read in it stay as they were; only the journal and the logs have grown.
    assert (out / "run.json").read_text() == settings
    assert (out / "records/judged.jsonl").read_text() == records
    made = command(capsys, "report", out, "--out", tmp_path / "r.html")
    assert made["flagged"] == 2
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "2 pairs were classified" in page
    assert '<span class="tag">answer-flipping, fact-manipulation</span>' in page
    assert '<span class="tag">argument-switching</span>' in page
    assert command(capsys, "score", out)["rates"][MODEL]["rate"] == pytest.approx(2 / 3)


def test_more_draws_of_flagged_pairs_and_what_stays_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a model as judge. The server fails half-way; the same command makes the calls that are missing."""
    out = tmp_path / "run"
    reply = subject()
    file = questions_file(tmp_path / "questions", NAMES)
    left = 10**6

    def answer(prompt: str) -> Reply:
        nonlocal left
        left -= 1
        return reply(prompt) if left >= 0 else refused(500, "broken")

    with served(answer) as server:
        urls = ("--base-url", server.url, "--grader-base-url", server.url)
        asked = ("--model", MODEL, "--grader", JUDGE, "--questions", file, "--epochs", 4, *urls)
        first = command(capsys, "run", "--out", out, *asked)
        assert (first["responses"], len(first["flagged"]), len(server.asked)) == (24, 2, 48)
        file.unlink()  # what was asked is in the logs
        more = ("run", "--out", out, "--task", "oversampling", *urls, "--max-retries", 0, "--max-connections", 1)
        told = command(capsys, *more, code=2)["error"]
        assert "has 4 draws of each question already" in told
        assert len(server.asked) == 48
        left = 10
        broken = command(capsys, *more, "--epochs", 8)
        assert broken["outcomes"]["error"] > 0
        left = 10**6
        done = command(capsys, *more, "--epochs", 8)
    texts = Counter(body["messages"][-1]["content"] for body in server.asked)
    assert not any("Bud" in text and count > 4 for text, count in texts.items())
    assert done["outcomes"] == {"answered": 24 + 16}
    # Ash is flagged no more: its reversal is NO in 5 of 8. Cat stays.
    assert [one["question"] for one in done["flagged"]] == ["Is Cat minor larger than Cat?"]
    assert done["rates"][MODEL]["pairs"] == 3
    records = [json.loads(line) for line in (out / "records/responses.jsonl").read_text().splitlines()]
    assert Counter(Counter(one["qid"] for one in records).values()) == {8: 4, 4: 2}
    made = command(capsys, "report", out, "--out", tmp_path / "r.html")
    (told,) = made["retention"]
    assert "of 2 pairs flagged on the first 4 draws 1 (50%) stay flagged on all draws, and 1 (50%) on the new" in told
    scored = command(capsys, "score", out)
    assert [one["pair"] for one in scored["flagged"]] == [one["pair"] for one in done["flagged"]]


def test_a_run_does_not_go_on_with_other_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More questions are welcome; without those that were asked the tendencies would be of two sets."""
    file = questions_file(tmp_path / "questions", ["Bud"])
    out, epochs = tmp_path / "run", ("--epochs", 1)
    with served(subject()) as server:
        asked = ("--model", MODEL, "--questions", file, "--base-url", server.url)
        command(capsys, "run", "--out", out, *asked, *epochs)
        questions_file(tmp_path / "questions", ["Cat"])
        told = command(capsys, "run", "--out", out, "--resume", "--base-url", server.url, code=2)["error"]
        assert "2 of the questions that were asked" in told
        assert len(server.asked) == 2
        questions_file(tmp_path / "questions", ["Cat", "Bud"])
        assert command(capsys, "run", "--out", out, "--resume", "--base-url", server.url)["responses"] == 4
        assert len(server.asked) == 4
    damaged = out / "logs" / "2099-01-01T00-00-00-00-00_iphr_x.eval"
    damaged.write_bytes(b"PK")
    assert "Move it away" in command(capsys, "score", out, code=2)["error"]


def test_two_runs_do_not_write_into_one_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = questions_file(tmp_path / "questions", ["Bud"])
    with served(subject()) as server, Workspace(tmp_path / "run").locked():
        asked = ("run", "--out", tmp_path / "run", "--model", MODEL, "--questions", file, "--base-url", server.url)
        assert "Another run is writing" in command(capsys, *asked, code=2)["error"]
        assert not server.asked
    assert not list((tmp_path / "run").iterdir())


def test_follow_ups_that_have_nothing_to_do_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    file = questions_file(tmp_path / "questions", ["Bud"])
    with served(subject()) as server:
        command(
            capsys, "run", "--out", out, "--model", MODEL, "--questions", file, "--epochs", 2, "--base-url", server.url
        )
        asked = len(server.asked)
        for task, words in (
            (("patterns",), "name it with --grader"),
            (("patterns", "--grader", CLASSIFIER, "--grader-base-url", server.url), "nothing to explain"),
            (("oversampling", "--epochs", 4), "none needs more responses"),
            (("oversampling", "--epochs", 4, "--temperature", 1), "temperature = None"),
            (("oversampling", "--epochs", 4, "--grader", JUDGE, "--grader-base-url", server.url), "has not judged"),
        ):
            assert words in command(capsys, "run", "--out", out, "--task", *task, code=2)["error"]
        assert len(server.asked) == asked
