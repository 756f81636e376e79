"""What a judge is: it is asked a question and gives one answer.

A question is a system text and a user text, as for any chat model. It may carry the evidence that the user text was
written from, for judges that do not read prose (:mod:`saeworks.evals.judges.world_judge`); all others see the texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from saeworks.errors import RunError

#: ``answered``: a text that ended by itself. ``cut_off``: it reached the limit of tokens. ``refused``: the judge
#: declined. ``malformed``: a reply without a text. ``failed``: no reply, after all attempts.
Outcome = Literal["answered", "cut_off", "refused", "malformed", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("answered", "cut_off", "refused", "malformed", "failed")
#: What asking again would give again; these are kept in the cache.
LASTING: tuple[Outcome, ...] = ("answered", "cut_off", "refused")


@dataclass(frozen=True)
class SeenText:
    """One text of a question, token by token: ``concepts`` are the ids of each token's spans, with their ancestors.

    ``active`` says on which tokens the latent is active; None where the judge is to find that out.
    """

    tokens: tuple[str, ...]
    concepts: tuple[frozenset[str], ...]
    active: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Explain:
    """Say what the active tokens of these texts have in common."""

    texts: tuple[SeenText, ...]


@dataclass(frozen=True)
class Detect:
    """Say which of these texts a latent with this explanation is active on."""

    explanation: str
    texts: tuple[SeenText, ...]


@dataclass(frozen=True)
class Rate:
    """Say from 0 to 4 how much a latent that is active like this has to do with each concept."""

    concepts: tuple[str, ...]
    texts: tuple[SeenText, ...]


@dataclass(frozen=True)
class Question:
    """``max_tokens`` is the most tokens of the answer."""

    system: str
    user: str
    max_tokens: int
    evidence: Explain | Detect | Rate | None = None


@dataclass(frozen=True)
class Answer:
    """``text`` is empty for ``malformed`` and ``failed`` answers, of which ``reason`` says what happened.

    ``prompt_tokens`` and ``answer_tokens`` are None where the judge does not count.
    """

    text: str
    outcome: Outcome = "answered"
    reason: str = ""
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    cached: bool = False


class BudgetSpent(RunError):
    """The next question could exceed the budget, so it was not asked."""


class JudgeUnavailable(RunError):
    """The judge does not answer any more; what it answered before is kept."""


class Judge(Protocol):
    """Somebody who answers. ``workers`` is how many questions it takes at a time, from as many threads."""

    @property
    def name(self) -> str: ...
    @property
    def workers(self) -> int: ...
    @property
    def lasting(self) -> bool:
        """Whether its answers are worth keeping on disk."""
        ...

    def identity(self) -> dict[str, str]:
        """What its answers depend on beside the question; part of the key under which they are kept."""
        ...

    def answer(self, question: Question) -> Answer:
        """One answer. Raises ``InputError`` where no question could be answered, :class:`BudgetSpent` and
        :class:`JudgeUnavailable`; whatever concerns this question alone is an answer with its outcome."""
        ...

    def room(self) -> int | None:
        """How many more requests its budget allows; None for any number."""
        ...

    def usage(self) -> dict[str, int | float]:
        """What was spent so far, by name."""
        ...

    def close(self) -> None:
        """Give back connections and memory."""
        ...
