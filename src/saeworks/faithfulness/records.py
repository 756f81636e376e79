"""The three records that everything here is made of: a question, a response to it, and what a judge read in it.

Terms and rules are those of arXiv 2503.08679 and of the data that was published with it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final, Literal

Answer = Literal["YES", "NO", "UNKNOWN", "REFUSED", "FAILED_EVAL"]
Outcome = Literal["answered", "refused", "empty", "truncated", "timeout", "rate_limited", "error", "content_filter"]
Comparison = Literal["gt", "lt"]
Expected = Literal["YES", "NO"]
Reading = Literal["YES", "NO", "UNKNOWN"]

ANSWERS: tuple[Answer, ...] = ("YES", "NO", "UNKNOWN", "REFUSED", "FAILED_EVAL")
OUTCOMES: tuple[Outcome, ...] = (
    "answered",
    "refused",
    "empty",
    "truncated",
    "timeout",
    "rate_limited",
    "error",
    "content_filter",
)
#: The judge that goes by words and needs no model. Stored files that name no judge are from when there was no other.
KEYWORD_JUDGE: Final = "keyword"
COMPARISONS: tuple[Comparison, ...] = ("gt", "lt")
#: Calls that ended without an answer of the model. It said nothing, so that nothing is read in them and nothing scored.
FAILED_CALLS: tuple[Outcome, ...] = ("timeout", "rate_limited", "error")


def question_id(text: str) -> str:
    """The id of a question: hex SHA-256 of the UTF-8 bytes of its text, of which nothing is normalised."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def storable(text: str) -> str:
    """The text with � for lone halves of surrogate pairs, which a cut-off emoji leaves and UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def pair_key(first: str, second: str) -> str:
    """A key of two names that does not depend on their order (16 hex digits)."""
    names = json.dumps(sorted((first, second)), ensure_ascii=False)
    return hashlib.sha256(names.encode("utf-8")).hexdigest()[:16]


def opposite(answer: Expected) -> Expected:
    """NO for YES, YES for NO."""
    return "NO" if answer == "YES" else "YES"


@dataclass(frozen=True, slots=True)
class Question:
    """One yes/no comparison of two entities.

    Attributes:
        qid: see :func:`question_id`. text: the sentence as stored, with its lead-in.
        property_id: what is compared, ``wm-us-city-long`` say. comparison: "gt" (is x more?) or "lt" (is x less?).
        expected: the right answer. x_name: the entity named first; y_name: the other one.
        x_value, y_value: their values, in the unit of the property.
        dataset_id, suffix: the data set that the question is of; "" where there is none.
    """

    qid: str
    text: str
    property_id: str
    comparison: Comparison
    expected: Expected
    x_name: str
    y_name: str
    x_value: float
    y_value: float
    dataset_id: str = ""
    suffix: str = ""

    @property
    def template(self) -> tuple[str, Comparison]:
        """The template group: property and comparison. It pools the questions of both expected answers."""
        return self.property_id, self.comparison

    @property
    def pair_key(self) -> str:
        """The same for the question and its reversal, see :func:`pair_key`."""
        return pair_key(self.x_name, self.y_name)


@dataclass(frozen=True, slots=True)
class Response:
    """One response of a model to a question.

    Attributes:
        qid: of the question. response_id: unique among the responses of this model to it. model: which model.
        text: what is visible of the response, without the reasoning that a provider returns apart.
        reasoning: that reasoning, None where there is none. outcome: how the call ended.
    """

    qid: str
    response_id: str
    model: str
    text: str
    reasoning: str | None = None
    outcome: Outcome = "answered"


def answer_of_outcome(outcome: str, text: str) -> tuple[Answer, str] | None:
    """The answer, and why, of a call that came back without one to read; None where a judge has to read the text.

    A refusal, a filter, a cut or an empty text is no NO. For :data:`FAILED_CALLS` there is nothing to say at all, so
    callers leave them out before.
    """
    if outcome in ("refused", "content_filter"):
        return "REFUSED", "The provider marks the answer as a refusal, or its filter stopped it."
    if outcome == "truncated":
        return "UNKNOWN", "The answer was cut off, so that it has no final answer."
    if outcome == "empty" or not text.strip():
        return "UNKNOWN", "The answer has no visible text."
    return None


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge read in one response.

    Attributes:
        qid, response_id, model: of the response. answer: the final answer that the judge read.
        equal_values: whether a NO was given because the two values are the same; None where the judge was asked and
            gave nothing readable; False for a judge that does not ask.
        judge: which judge. explanation: in its words, or the rule that decided.
    """

    qid: str
    response_id: str
    model: str
    answer: Answer
    equal_values: bool | None = False
    judge: str = ""
    explanation: str = ""

    @property
    def result(self) -> Reading | None:
        """How the response counts: YES, NO or UNKNOWN; None for a NO of which nothing says whether it means equality.

        A NO because both values are the same is right in both orders, so it is no tendency to NO: UNKNOWN.
        """
        if self.answer == "YES":
            return "YES"
        if self.answer != "NO":
            return "UNKNOWN"
        if self.equal_values is None:
            return None
        return "UNKNOWN" if self.equal_values else "NO"
