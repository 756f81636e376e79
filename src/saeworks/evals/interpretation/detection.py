"""Detection scoring: what is asked, how answers are read, and what they are worth.

The questions are our own words for the protocol of arXiv 2410.13928 as SAEBench runs it. How an answer is read
has two modes: ``compat`` reads as SAEBench does, ``corrected`` forgives what is clear and refuses what is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from saeworks.evals.judges.protocol import Answer, Detect, Explain, Question, SeenText

STEM = "activates on"
_EXPLAIN = (
    "You are shown passages of text on which one unit of a language model is active, the strongest first. The tokens "
    "on which it is active stand between << and >>. Find out what they have in common: a word or part of a word, a "
    "subject, a way of writing. Look at capital letters and punctuation too. Reply with one sentence of at most 20 "
    "words that fits most of the marked tokens. Do not list many words, and do not be narrower than the passages are."
)
_DEMOS = (
    "This is how such sentences look:\n"
    "This unit activates on names of months.\n"
    "This unit activates on the first word after a colon.\n"
    "This unit activates on words about rain and storms.\n"
    "This unit activates on the letters 'un' at the start of adjectives."
)
_WITHOUT_DEMOS = f"Begin your sentence with: This unit {STEM}"
_DETECT = (
    "A unit of a language model is described to you, then {count} numbered passages follow. Name the passages in which "
    "the unit should be active on at least one token. Reply with their numbers alone, separated by commas, or with "
    "the word None if there is no such passage. A reply could look like this: {example}"
)


@dataclass(frozen=True)
class Example:
    """One window: its tokens as text, their concepts and activations, and whether the latent counts as active there.

    ``kind`` is ``top``, ``weighted`` or ``random``; ``threshold`` is the activation above which a token is active.
    """

    tokens: tuple[str, ...]
    concepts: tuple[frozenset[str], ...]
    activations: tuple[float, ...]
    active: bool
    kind: str
    threshold: float

    def seen(self, marked: bool) -> SeenText:
        """What a judge may see: with ``marked``, which tokens are active."""
        active = tuple(a > self.threshold for a in self.activations) if marked else None
        return SeenText(self.tokens, self.concepts, active)

    def text(self, marked: bool) -> str:
        """The window as one line, active tokens between << and >> where ``marked``."""
        parts = [
            f"<<{token}>>" if marked and activation > self.threshold else token
            for token, activation in zip(self.tokens, self.activations, strict=True)
        ]
        return "".join(parts).replace("�", "").replace("\n", "↵")


def explanation_question(examples: Sequence[Example], demos: bool = True, max_tokens: int = 30) -> Question:
    """Ask for an explanation of marked windows."""
    lines = [f"{i}. {example.text(marked=True)}" for i, example in enumerate(examples, 1)]
    system = f"{_EXPLAIN}\n\n{_DEMOS if demos else _WITHOUT_DEMOS}"
    user = "The passages:\n\n" + "\n".join(lines)
    return Question(system, user, max_tokens, Explain(tuple(e.seen(marked=True) for e in examples)))


def detection_question(explanation: str, examples: Sequence[Example], sample: Sequence[int] = (1, 4)) -> Question:
    """Ask which of the unmarked windows fit the explanation; at most two tokens a number and five more.

    ``sample`` are the numbers of the made-up reply that shows the form; draw them, or judges will favour them.
    """
    count = len(examples)
    system = _DETECT.format(count=count, example=", ".join(str(i) for i in sample))
    lines = [f"{i}. {example.text(marked=False)}" for i, example in enumerate(examples, 1)]
    user = f"The unit {STEM} {explanation}.\n\nThe passages:\n\n" + "\n".join(lines)
    evidence = Detect(explanation, tuple(e.seen(marked=False) for e in examples))
    return Question(system, user, 2 * count + 5, evidence)


def parse_explanation(text: str) -> str:
    """What stands after the last "activates on", without the final period."""
    return text.rpartition(STEM)[2].strip().removesuffix(".").strip()


def parse_numbers(text: str, count: int | None = None, compat: bool = True) -> list[int] | None:
    """The numbers of an answer; None where it cannot be read.

    ``compat``: numbers with commas or "and" between them, or exactly "None" or nothing; whatever else stands between
    commas, even nothing, makes the answer unreadable, and any number is taken. Otherwise brackets, a comma before "and"
    and "none" in any case are understood, and a number above ``count`` or below 1 makes it unreadable.
    """
    text = text.strip().removesuffix(".")
    if compat:
        pieces = [p.strip() for p in text.replace("and", ",").replace("None", "").split(",")]
        if pieces == [""]:
            return []
        return [int(p) for p in pieces] if all(re.fullmatch("[0-9]+", p) for p in pieces) else None
    text = text.strip("[](){} \t\n").lower()
    if text in ("none", ""):
        return [] if text else None
    pieces = [p.strip() for p in re.split(r",|;|\band\b|&", text)]
    numbers = [int(p) for p in pieces if re.fullmatch("[0-9]{1,9}", p)]
    clear = len(numbers) == sum(1 for p in pieces if p)
    inside = count is None or all(1 <= n <= count for n in numbers)
    return numbers if numbers and clear and inside else None


def usable_explanation(answer: Answer, compat: bool) -> str | None:
    """The explanation in an answer; None where there is none.

    ``compat`` takes any text for an explanation, a refusal too. Otherwise a refusal is none; a sentence that was cut
    off is one, since what stands there still says something.
    """
    if answer.outcome in ("malformed", "failed") or (answer.outcome == "refused" and not compat):
        return None
    return parse_explanation(answer.text) or None


def usable_numbers(answer: Answer, count: int, compat: bool) -> list[int] | None:
    """The numbers in an answer; None where it cannot be read.

    ``compat`` reads whatever came. Otherwise an answer that was cut off is not read: its last number may be half a one.
    """
    if answer.outcome in ("malformed", "failed") or (answer.outcome != "answered" and not compat):
        return None
    return parse_numbers(answer.text, count, compat)


@dataclass(frozen=True)
class Confusion:
    """Counts of one detection: named and active, named alone, active alone, neither."""

    hits: int
    false_alarms: int
    misses: int
    rejections: int

    @property
    def accuracy(self) -> float:
        """Share judged rightly. Naming none gives the share of the inactive."""
        return (self.hits + self.rejections) / (self.hits + self.false_alarms + self.misses + self.rejections)

    @property
    def precision(self) -> float:
        """Share of the named that are active; NaN where none is named."""
        return _ratio(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        """Share of the active that are named; NaN where none is active."""
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def one_sided(self) -> bool:
        """Whether all examples are active, or all inactive."""
        return self.hits + self.misses == 0 or self.false_alarms + self.rejections == 0

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the shares of active and of inactive examples judged rightly; 0.5 is chance.

        0.5 too where there is but one kind of example: nothing can be told apart there.
        """
        if self.one_sided:
            return 0.5
        return (self.recall + self.rejections / (self.rejections + self.false_alarms)) / 2

    @property
    def f1(self) -> float:
        """2·hits / (named + active); NaN where nothing is named and nothing active."""
        return _ratio(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)


def confusion(named: Collection[int], active: Sequence[bool]) -> Confusion:
    """Compare the numbers named (from 1; others are ignored) with which examples are active."""
    chosen = [i in set(named) for i in range(1, len(active) + 1)]
    pairs = list(zip(chosen, active, strict=True))
    return Confusion(
        pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True)), pairs.count((False, False))
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
