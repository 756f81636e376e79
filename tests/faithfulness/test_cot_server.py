"""A whole run against a server that speaks as OpenAI's does, and misbehaves in every way that providers do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspect_cases import REPLY
from loopback_cases import MODEL, Reply, key, questions_file, raw, refused, said, served

from saeworks.errors import InputError
from saeworks.faithfulness.tasks import asking
from saeworks.jobs.cot_run import cot_run

__all__ = ["key"]
pytestmark = pytest.mark.usefixtures("key")

TROUBLES: list[tuple[str, str, Callable[[], Reply]]] = [
    ("Ash", "rate_limited", lambda: refused(429, "slow down", "rate_limit_exceeded", Retry_After="0")),
    ("Bud", "error", lambda: refused(500, "broken")),
    ("Cat", "timeout", lambda: raw(said("NO")[2], "slow")),
    ("Dog", "error", lambda: raw(b"{not json, NO")),
    ("Elm", "error", lambda: raw(said("NO")[2], "cut")),
    ("Fox", "empty", lambda: said("")),
    ("Gnu", "refused", lambda: said(None, refusal="No, I cannot help with that.")),
    ("Hen", "content_filter", lambda: said("", "content_filter")),
    ("Ibis", "truncated", lambda: said("So far it looks like NO", "length")),
    ("Jay", "answered", lambda: said("It is bigger. YES")),
]


def misbehaving(prompt: str) -> Reply:
    """One trouble per pair, in the order of :data:`TROUBLES`; the judge always behaves."""
    if found := REPLY.search(prompt):
        word = "YES" if found[1].strip().endswith("YES") else "UNKNOWN"
        return said(
            f"<item_1><explanation>e</explanation><answer>{word}</answer></item_1>"
            "<item_2><explanation>e</explanation><answer>FALSE</answer></item_2>"
        )
    return next(reply for name, _, reply in TROUBLES if f"{name} " in prompt)()


def test_every_trouble_is_told_apart_and_none_is_a_no(tmp_path: Path) -> None:
    file = questions_file(tmp_path / "questions.json", [name for name, _, _ in TROUBLES])
    with served(misbehaving) as server:
        summary = cot_run(
            {
                "out": tmp_path / "run",
                "model": MODEL,
                "grader": "openai-api/loopback/judge",
                "questions": str(file),
                "epochs": 1,
                "base_url": server.url,
                "grader_base_url": server.url,
                "max_retries": 0,
            }
        )
    expected = Counter(outcome for name, outcome, _ in TROUBLES if name != "Cat")
    # The slow answer (0.8 s) is an answer where nobody set a limit, and says NO.
    got = Counter(summary["outcomes"])
    assert got == Counter({outcome: 2 * count for outcome, count in expected.items()}) + Counter(answered=2)
    records = [json.loads(line) for line in (tmp_path / "run/records/judged.jsonl").read_text().splitlines()]
    assert Counter(one["answer"] for one in records) == {"YES": 2, "UNKNOWN": 2 + 2 + 2, "REFUSED": 4}
    assert summary["answers"].get("NO") is None
    (rate,) = summary["rates"].values()
    assert rate["groups_left_out"] == 1  # 8 of 20 responses failed, so that the group is not scored
    assert any("left out" in warning for warning in rate["warnings"])


def test_a_slow_answer_is_a_timeout_where_there_is_a_limit(tmp_path: Path) -> None:
    file = questions_file(tmp_path / "questions.json", ["Cat"])

    def late(prompt: str) -> Reply:
        time.sleep(1.6)
        return said("NO")

    with served(late) as server:
        summary = cot_run(
            {"out": tmp_path / "run", "model": MODEL, "questions": str(file), "epochs": 1}
            | {"base_url": server.url, "max_retries": 0, "timeout": 1}
        )
    assert summary["outcomes"] == {"timeout": 2}
    assert summary["answers"] == {}


def test_what_failed_is_asked_again_and_what_was_answered_is_not(tmp_path: Path) -> None:
    file = questions_file(tmp_path / "questions.json", ["Ash", "Jay"])
    settings = {"out": tmp_path / "run", "model": MODEL, "questions": str(file), "epochs": 2, "max_retries": 0}
    with served(misbehaving) as server:
        first = cot_run({**settings, "base_url": server.url})
    assert first["outcomes"] == {"rate_limited": 4, "answered": 4}
    with served(lambda _: said("It is smaller. NO")) as server:
        with pytest.raises(InputError, match="holds a run already; add --resume"):
            cot_run({**settings, "base_url": server.url})
        with pytest.raises(InputError, match="has questions = "):
            cot_run({"out": tmp_path / "run", "questions": "world", "resume": True})
        second = cot_run({"out": tmp_path / "run", "resume": True, "base_url": server.url})
    assert len(server.asked) == 4
    assert second["outcomes"] == {"answered": 8}
    assert second["answers"] == {"YES": 4, "NO": 4}


def ended(journal: Path) -> int:
    """How many calls came to an end, by a journal to which another process may be writing."""
    return journal.read_bytes().count(b'"outcome"')


def waits(journal: Path) -> bool:
    """Whether seven calls came to an end and another one is on its way."""
    return ended(journal) >= 7 and journal.read_bytes().count(b'"begun"') > ended(journal)


KILLED = """
import sys
from saeworks.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    file = questions_file(tmp_path / "questions.json", ["Ash", "Bud", "Cat"])
    journal = tmp_path / "run" / "journal.jsonl"
    held = True

    def answer(prompt: str) -> Reply:
        # After seven answers nothing comes back any more until the run has been killed.
        while held and journal.exists() and ended(journal) >= 7:
            time.sleep(0.05)
        return said("YES")

    command = ["cot", "run", "--out", str(tmp_path / "run"), "--model", MODEL, "--questions", str(file)]
    with served(answer) as server:
        arguments = [*command, "--epochs", "2", "--base-url", server.url, "--max-connections", "1", "--json"]
        with subprocess.Popen([sys.executable, "-c", KILLED, *arguments], env=dict(os.environ)) as process:
            end = time.monotonic() + 120
            while time.monotonic() < end and process.poll() is None and not (journal.exists() and waits(journal)):
                time.sleep(0.05)
            assert process.poll() is None, "the run ended before it could be killed"
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        held = False
        with open(journal, "ab") as half:
            half.write(b'{"key": "cut o')
        before = len(server.asked)
        summary = cot_run({"out": tmp_path / "run", "resume": True, "base_url": server.url})
    assert summary["outcomes"] == {"answered": 12}
    # Twelve answers, of which the first process had seven.
    assert len(server.asked) - before == 5
    # Calls on their way when the run was killed may have been paid for: they count with the most they can cost.
    lines = journal.read_bytes().splitlines()
    begun = [json.loads(line) for line in lines if b'"begun"' in line]
    lost = Counter(one["key"] for one in begun)
    most = {one["key"]: one["tokens"] for one in begun if lost[one["key"]] == 2}
    assert min(most.values()) > 2000
    assert summary["spent"]["tokens"] == 12 * 15 + sum(most.values())
    (rate,) = summary["rates"].values()
    assert (rate["pairs"], rate["flagged"], rate["coverage"]) == (3, 3, 1.0)


def test_every_attempt_is_counted_and_none_is_made_behind_our_back(tmp_path: Path, monkeypatch: Any) -> None:
    """Two failures of the server, then answers: each attempt is one request, in the journal and in the budget."""
    monkeypatch.setattr(asking, "LONGEST_WAIT", 0.0)
    file = questions_file(tmp_path / "questions.json", ["Ash"])
    times: Counter[str] = Counter()

    def answer(prompt: str) -> Reply:
        times[prompt] += 1
        return refused(500, "broken") if times[prompt] <= 2 else said("YES")

    settings = {"model": MODEL, "questions": str(file), "epochs": 1, "max_tokens": 100, "max_connections": 1}
    with served(answer) as server:
        patient = cot_run({**settings, "out": tmp_path / "a", "base_url": server.url, "max_retries": 2})
        assert (patient["outcomes"], len(server.asked)) == ({"answered": 2}, 6)
        entries = [json.loads(line) for line in (tmp_path / "a/journal.jsonl").read_text().splitlines()]
        ends = [one for one in entries if "outcome" in one]
        assert [one["outcome"] for one in ends] == ["error", "error", "answered"] * 2
        worst = max(one["tokens"] for one in ends)
        assert patient["spent"]["tokens"] == sum(one["tokens"] for one in ends) > 4 * 100 + 2 * 15
        times.clear()
        # There is room for one attempt that fails, and not for a second one.
        short = cot_run({**settings, "out": tmp_path / "b", "base_url": server.url, "budget": worst + 50})
        assert len(server.asked) == 6 + 1
        assert short["stopped_by_budget"]
        assert short["spent"]["tokens"] <= worst + 50
        assert (short["outcomes"], short["not_asked"]) == ({"error": 1}, 1)
        times.clear()
        few = cot_run({**settings, "out": tmp_path / "c", "base_url": server.url, "max_retries": 1})
        assert (few["outcomes"], len(server.asked)) == ({"error": 2}, 7 + 4)


def test_a_budget_in_dollars_needs_prices_and_stops_in_time(tmp_path: Path) -> None:
    file = questions_file(tmp_path / "questions.json", ["Ash", "Bud"])
    prices = tmp_path / "prices.yaml"
    settings = {"out": tmp_path / "run", "model": MODEL, "questions": str(file), "max_tokens": 100, "epochs": 5}
    with pytest.raises(InputError, match="--prices FILE"):
        cot_run({**settings, "budget_cost": 1.0, "base_url": "http://127.0.0.1:9/v1"})
    prices.write_text(f"{MODEL}: {{input: 1000, output: 10000}}")  # an answer costs 10 × 0.001 + 5 × 0.01 = 0.06
    with served(lambda _: said("YES")) as server:
        summary = cot_run(
            {**settings, "budget_cost": 2.0, "prices": prices, "base_url": server.url, "max_connections": 2}
        )
        assert summary["stopped_by_budget"]
        assert summary["spent"]["dollars"] == pytest.approx(0.06 * len(server.asked))
        assert summary["spent"]["dollars"] <= 2.0
        assert summary["not_asked"] == 20 - len(server.asked) > 0
        prices.write_text("other: {input: 1, output: 1}")
        with pytest.raises(InputError, match="needs the price of"):
            cot_run({"out": tmp_path / "run", "resume": True, "budget_cost": 9.0, "base_url": server.url})
