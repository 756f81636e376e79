"""Ask many questions: what was answered before is read from disk, the rest is asked in parallel and kept at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from saeworks.errors import InputError
from saeworks.evals.judges.cache import AnswerCache
from saeworks.evals.judges.protocol import Answer, Judge, JudgeUnavailable, Question
from saeworks.progress import progress

#: After so many questions in a row without a reply, the judge is given up.
PATIENCE = 5


class Asker:
    """A judge with its cache (None: answers are not kept). ``outcomes`` counts the answers given, by outcome, and
    ``cached`` those that were read from disk."""

    def __init__(self, judge: Judge, cache: AnswerCache | None) -> None:
        self.judge = judge
        self._cache = cache
        self.outcomes: Counter[str] = Counter()
        self.cached = 0

    def ask(self, questions: Sequence[Question], description: str = "judging") -> list[Answer]:
        """One answer for each question, in their order; a question that comes twice is asked once.

        Raises:
            BudgetSpent, JudgeUnavailable: the answers so far are kept where there is a cache.
            InputError: no question could be answered (a wrong address, a refused key).
        """
        distinct = list(dict.fromkeys(questions))
        found = self._kept(distinct)
        left = [question for question in distinct if question not in found]
        bar = progress(len(left), description, unit="question")
        try:
            self._ask_all(left, found, bar)
        finally:
            bar.close()
        answers = [found[question] for question in questions]
        self.outcomes.update(answer.outcome for answer in answers)
        self.cached += sum(answer.cached for answer in answers)
        return answers

    def check_room(self, questions: Sequence[Question], times: int = 1) -> None:
        """``InputError`` before anything is spent where ``times`` as many requests as these need exceed the budget."""
        room = self.judge.room()
        if room is None:
            return
        distinct = list(dict.fromkeys(questions))
        needed = times * (len(distinct) - len(self._kept(distinct)))
        if needed > room:
            raise InputError(
                f"The judge would be asked {needed} questions, but its budget has {room} requests left; "
                "raise judge_budget_requests, or choose fewer latents, seeds or dictionaries."
            )

    def _kept(self, questions: Sequence[Question]) -> dict[Question, Answer]:
        if self._cache is None:
            return {}
        found = {question: self._cache.get(question) for question in questions}
        return {question: answer for question, answer in found.items() if answer is not None}

    def _ask_all(self, left: Sequence[Question], found: dict[Question, Answer], bar: Any) -> None:
        failures, remaining = 0, iter(left)
        running: dict[Future[Answer], Question] = {}
        with ThreadPoolExecutor(max_workers=self.judge.workers) as pool:
            while True:
                # No more are handed out than are taken at a time: an error then stops the rest at once.
                while len(running) < self.judge.workers and (question := next(remaining, None)) is not None:
                    running[pool.submit(self._ask, question)] = question
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    answer = found[running.pop(future)] = future.result()
                    bar.update()
                    failures = failures + 1 if answer.outcome == "failed" else 0
                    if failures >= PATIENCE:
                        raise JudgeUnavailable(
                            f"The judge '{self.judge.name}' gave no reply to {failures} questions in a row "
                            f"(the last: {answer.reason}). What it answered is kept: run the same command again later."
                        )

    def _ask(self, question: Question) -> Answer:
        answer = self.judge.answer(question)
        if self._cache is not None:
            self._cache.put(question, answer)
        return answer
