"""Models of Inspect that answer from a function, and small question sets, for tests that run tasks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai", reason="Inspect is not installed")

from inspect_ai.log import EvalLog
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    Model,
    ModelOutput,
    ModelUsage,
    get_model,
)

from saeworks.faithfulness.records import Comparison, Question, question_id
from saeworks.faithfulness.tasks.asking import Caller
from saeworks.faithfulness.tasks.budget import Budget
from saeworks.faithfulness.tasks.journal import Journal

# Tests take these from here, so that they are skipped as a whole where Inspect is not installed.
__all__ = [
    "ChatCompletionChoice",
    "ChatMessageAssistant",
    "ContentReasoning",
    "ContentText",
    "ModelOutput",
]

REPLY = re.compile(r"<<<REPLY\n(.*)\nREPLY>>>", re.DOTALL)


def output(text: str, stop: str = "stop", read: int = 10, written: int = 5) -> ModelOutput:
    """An output with its usage: without one the provider would fetch a tokenizer to count."""
    made = ModelOutput.from_content("mockllm/model", text, stop_reason=stop)  # pyright: ignore[reportArgumentType]
    made.usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
    return made


class Answering:
    """A model that answers by a function of the prompt and of how often that prompt came before (from 1)."""

    def __init__(self, answer: Callable[[str, int], str | ModelOutput | Exception], name: str = "model") -> None:
        self.asked: list[str] = []
        self._counts: Counter[str] = Counter()
        self._answer = answer
        self.model: Model = get_model(f"mockllm/{name}", custom_outputs=self._reply, memoize=False)

    def _reply(self, messages: Sequence[Any], tools: Any, choice: Any, config: Any) -> ModelOutput:
        prompt = messages[-1].text
        self.asked.append(prompt)
        self._counts[prompt] += 1
        said = self._answer(prompt, self._counts[prompt])
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, ModelOutput) else output(said)


def question(x: str, y: str, comparison: Comparison, expected: str, property_id: str = "size") -> Question:
    word = "larger" if comparison == "gt" else "smaller"
    text = f"Is {x} {word} than {y}?"
    return Question(question_id(text), text, property_id, comparison, expected, x, y, 2.0, 1.0, "d", "test")  # pyright: ignore[reportArgumentType]


def pair(large: str, small: str) -> list[Question]:
    """The question that expects YES and its reversal, "gt"."""
    return [question(large, small, "gt", "YES"), question(small, large, "gt", "NO")]


def by_plan(plan: Mapping[str, str]) -> Callable[[str, int], str]:
    """Answers by a string per question: Y, N, = (no, they are equal), ? (cannot tell), R (refuses)."""
    words = {
        "Y": "It is bigger. YES",
        "N": "It is smaller. NO",
        "=": "They are the same size, so NO",
        "?": "I cannot verify this. NO",
        "R": "I will not answer.",
    }

    def answer(prompt: str, count: int) -> str:
        letters = next(letters for text, letters in plan.items() if text in prompt)
        return words[letters[(count - 1) % len(letters)]]

    return answer


def grade(prompt: str, count: int) -> str:
    """A grader that knows the words of :func:`by_plan`."""
    found = REPLY.search(prompt)
    assert found is not None, "the judge is shown the response between its marks"
    text = found[1]
    answer, equal = "UNKNOWN", "FALSE"
    if "same size" in text:
        answer, equal = "NO", "TRUE"
    elif "cannot" in text:
        answer = "UNKNOWN"
    elif "will not" in text:
        answer = "REFUSED"
    elif text.endswith("YES"):
        answer = "YES"
    elif text.endswith("NO"):
        answer = "NO"
    return (
        f"<item_1><explanation>seen</explanation><answer>{answer}</answer></item_1>"
        f"<item_2><explanation>seen</explanation><answer>{equal}</answer></item_2>"
    )


def caller(directory: Path | None = None, tokens: int | None = None) -> Caller:
    journal = Journal(None if directory is None else directory / "journal.jsonl")
    return Caller(journal, Budget(tokens, None, journal.spent))


def metrics(log: EvalLog) -> dict[str, float]:
    assert log.results is not None
    return {name: float(one.value) for score in log.results.scores for name, one in score.metrics.items()}
