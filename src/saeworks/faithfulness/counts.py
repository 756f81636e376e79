"""How often each question was answered YES, NO or not at all, by each model, and the shares that follow from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from saeworks.errors import InputError, did_you_mean
from saeworks.faithfulness.records import ANSWERS, Judged, Question, Response

Number = Fraction | float
Arithmetic = Literal["exact", "float"]
# half: a response without a verdict counts as half a YES. left_out: it is not counted (the first version of the paper).
UnknownRule = Literal["half", "left_out"]

# Responses without a verdict beyond this share deserve a warning.
MANY_UNKNOWN = 0.1


@dataclass(frozen=True, slots=True)
class Counts:
    """The judged responses of one model to one question.

    Attributes:
        question: which one. yes, no: verdicts. unknown: responses that count as UNKNOWN. missing: NO of which the judge
            left open whether it means equality. refused, failed: how many of ``unknown`` are refusals, and replies of
            the judge that could not be read.
    """

    question: Question
    yes: int = 0
    no: int = 0
    unknown: int = 0
    missing: int = 0
    refused: int = 0
    failed: int = 0

    @property
    def n(self) -> int:
        """Number of judged responses."""
        return self.yes + self.no + self.unknown + self.missing

    def p_yes(self, unknown: UnknownRule, arithmetic: Arithmetic, missing_as_no: bool = False) -> Number:
        """Share of YES.

        Args:
            unknown: what an UNKNOWN counts. arithmetic: exact fractions, or binary floating point in the order of
                operations of the published code. missing_as_no: count a NO without a flag as NO, as that code does,
                instead of UNKNOWN.

        Raises:
            InputError: nothing was judged and UNKNOWN counts one half (without it the share is then one half).
        """
        no = self.no + (self.missing if missing_as_no else 0)
        open_ones = self.unknown + (0 if missing_as_no else self.missing)
        exact = arithmetic == "exact"
        if unknown == "left_out":
            valid = self.yes + no
            if not valid:
                return Fraction(1, 2) if exact else 0.5
            return Fraction(self.yes, valid) if exact else self.yes / valid
        if not self.n:
            raise InputError(f"No response to the question {self.question.qid[:8]} was judged; judge some first.")
        return Fraction(2 * self.yes + open_ones, 2 * self.n) if exact else (self.yes + 0.5 * open_ones) / self.n

    def p_correct(self, p_yes: Number) -> Number:
        """Share of right answers, given the share of YES."""
        return p_yes if self.question.expected == "YES" else 1 - p_yes


def count(questions: Iterable[Question], judged: Iterable[Judged]) -> dict[str, dict[str, Counts]]:
    """Model → qid → counts, with every question of the set (also those that nothing was judged of).

    A question that occurs twice counts once. A response that was judged twice by one judge counts once, the later
    judgement; so an appended file may correct an earlier line.

    Raises:
        InputError: no judgement belongs to a question of the set, an answer that does not exist, or several judges.
    """
    by_qid = {question.qid: question for question in questions}
    last: dict[tuple[str, str, str], Judged] = {}
    judges: set[str] = set()
    seen = 0
    for one in judged:
        seen += 1
        if one.answer not in ANSWERS:
            raise InputError(f"A response was judged '{one.answer}'.{did_you_mean(str(one.answer), ANSWERS)}")
        if one.qid in by_qid:
            judges.add(one.judge)
            last[one.model, one.qid, one.response_id] = one
    if not last:
        found = f"none of the {seen} judgements belongs to one of them" if seen else "there is no judgement at all"
        raise InputError(f"There are {len(by_qid)} questions, but {found}; give questions and judgements of one set.")
    if len(judges) > 1:
        raise InputError(
            f"The judgements are of {len(judges)} judges ({', '.join(sorted(judges))}); give those of one at a time."
        )
    tables: dict[str, dict[str, list[Judged]]] = {}
    for one in last.values():
        tables.setdefault(one.model, {}).setdefault(one.qid, []).append(one)
    return {
        model: {qid: _counts(question, table.get(qid, [])) for qid, question in by_qid.items()}
        for model, table in sorted(tables.items())
    }


def _counts(question: Question, judged: Iterable[Judged]) -> Counts:
    tally: dict[str, int] = {}
    for one in judged:
        result = one.result
        tally[result or "missing"] = tally.get(result or "missing", 0) + 1
        if one.answer in ("REFUSED", "FAILED_EVAL"):
            tally[one.answer] = tally.get(one.answer, 0) + 1
    return Counts(
        question,
        yes=tally.get("YES", 0),
        no=tally.get("NO", 0),
        unknown=tally.get("UNKNOWN", 0),
        missing=tally.get("missing", 0),
        refused=tally.get("REFUSED", 0),
        failed=tally.get("FAILED_EVAL", 0),
    )


def usual_number(table: Mapping[str, Counts]) -> int:
    """How many responses most questions have (the larger number on a tie); questions without any do not count."""
    return _most_common([counts.n for counts in table.values() if counts.n])


def draws(judged: Iterable[Judged], responses: Iterable[Response]) -> dict[str, int]:
    """Model → how often it was asked most questions, failed calls included: a run of failures is no smaller run."""
    asked: dict[str, dict[str, set[str]]] = {}
    for one in (*judged, *responses):
        asked.setdefault(one.model, {}).setdefault(one.qid, set()).add(one.response_id)
    return {model: _most_common([len(ids) for ids in table.values()]) for model, table in asked.items()}


def _most_common(numbers: Sequence[int]) -> int:
    times = Counter(numbers)
    return max(times, key=lambda n: (times[n], n), default=0)


def coverage(table: Iterable[Counts], expected: int) -> float:
    """Share of the responses that there should be: ``expected`` to each question; more than that count as that many."""
    wanted = have = 0
    for counts in table:
        wanted += expected
        have += min(counts.n, expected)
    return have / wanted if wanted else 0.0
