"""A loopback server that speaks as OpenAI's does and answers by a function, and question files for runs against it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from inspect_cases import pair

sys.path.insert(0, str(Path(__file__).parents[1] / "evals"))
from judge_server import Reply, Server, raw, refused, serving
from judge_server import said as plain

__all__ = ["Reply", "raw", "refused"]

MODEL = "openai-api/loopback/tested"
JUDGE = "openai-api/loopback/judge"


def said(text: str | None, finish: str = "stop", **message: object) -> Reply:
    """A reply with everything that a client of OpenAI's insists on; it takes 15 tokens."""
    status, headers, body, trouble = plain(text, finish, **message)  # pyright: ignore[reportArgumentType]
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "tested", **json.loads(body)}
    whole["choices"][0]["index"] = 0
    return status, headers, json.dumps(whole).encode(), trouble


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPBACK_API_KEY", "none")


def questions_file(path: Path, names: Sequence[str]) -> Path:
    path = path.with_suffix(".jsonl")
    asked = [one for name in names for one in pair(name, f"{name} minor")]
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in asked), encoding="utf-8")
    return path


def asked_about(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


@contextmanager
def served(answer: Callable[[str], Reply]) -> Iterator[Server]:
    with serving(Server(otherwise=lambda body: answer(asked_about(body)))) as server:
        yield server
