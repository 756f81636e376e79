"""Solutions of problems: the task that asks for them, its judge of the final answer, and reading its log back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, ModelOutput, get_model
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from saeworks.errors import InputError
from saeworks.faithfulness.tasks.asking import NO_ANSWER, Asked, Caller
from saeworks.faithfulness.tasks.iphr import GRADER, remember
from saeworks.faithfulness.tasks.problems import Problem
from saeworks.faithfulness.tasks.shortcut_prompts import EQUIVALENT, fill, read_equivalence

ROLLOUT_CONFIG = GenerateConfig(temperature=0.0, max_tokens=32_000)
CORRECTNESS_CONFIG = GenerateConfig(temperature=0.0, max_tokens=1000)


@dataclass(frozen=True, slots=True)
class Solution:
    """A response to a problem.

    Attributes:
        problem: which one. model: who wrote it. text: what is visible. reasoning: what was thought, None if not told.
        outcome: how the call ended. correct: what the judge of final answers said, None where none did.
    """

    problem: Problem
    model: str
    text: str
    reasoning: str | None
    outcome: str
    correct: bool | None = None

    def whole(self) -> str:
        """Thought and answer under headings; the answer alone where there is no thought."""
        return f"WORKING\n\n{self.reasoning}\n\nANSWER\n\n{self.text}" if self.reasoning else self.text


def rollout_task(
    problems: Sequence[Problem],
    caller: Caller,
    template: str,
    *,
    config: GenerateConfig = ROLLOUT_CONFIG,
    compare: bool = True,
    name: str = "rollouts",
) -> Task:
    """One response per problem; stored responses are taken as they are.

    Args:
        template: the prompt, with a slot ``{problem}``.
        compare: whether the role ``grader`` compares final answers with references, which every problem must then have.

    Raises:
        InputError: no problems, or a missing reference.
    """
    if not problems:
        raise InputError("There are no problems to solve; give at least one.")
    if compare and (without := [p.id for p in problems if not p.reference]):
        raise InputError(f"Problem '{without[0]}' has no reference answer to compare with; add 'reference' to it.")
    samples = [
        Sample(id=p.id, input=fill(template, problem=p.text), target=p.reference, metadata=asdict(p)) for p in problems
    ]
    return Task(
        dataset=MemoryDataset(samples, name=name),
        solver=solve_problem(caller, config),
        scorer=final_answer(caller) if compare else None,
        config=config,
        name=name,
        metadata={"kind": name},
    )


@solver
def solve_problem(caller: Caller, config: GenerateConfig) -> Solver:
    """Ask for a solution, or take the stored one."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        stored = state.metadata.get("response")
        if stored is not None:
            output = ModelOutput.from_content(str(state.model), str(stored))
            remember(state, Asked("answered" if str(stored).strip() else "empty", str(stored), None, "", output))
            return state
        remember(
            state, await caller.ask("subject", get_model(), state.messages, config, str(state.sample_id), state.epoch)
        )
        return state

    return solve


@scorer(metrics=[mean(), stderr()])
def final_answer(caller: Caller) -> Scorer:
    """1 where the judge finds the final answer equivalent to the reference; a cut-off or empty answer is 0."""

    async def score(state: TaskState, target: Target) -> Score:
        outcome, text = str(state.store.get("outcome")), str(state.store.get("text") or "")
        if outcome in NO_ANSWER:  # a provider that failed has not failed the problem
            return Score.unscored(explanation=str(state.store.get("error")), metadata={"outcome": outcome})
        if outcome != "answered":
            return Score(value=0.0, explanation=f"The call ended as {outcome}.", metadata={"outcome": outcome})
        problem = Problem(**state.metadata)
        prompt = fill(EQUIVALENT, problem=problem.text, reference=problem.reference, solution=text)
        grader = get_model(role=GRADER, required=True)
        asked = await caller.ask("correctness", grader, prompt, CORRECTNESS_CONFIG, problem.id, state.epoch)
        if asked.failed:
            return Score.unscored(
                explanation=asked.error, metadata={"outcome": outcome, "judge_outcome": asked.outcome}
            )
        right, note = read_equivalence(asked.text)
        metadata = {"outcome": outcome, "judge_outcome": asked.outcome, "note": note, "judge": str(grader)}
        return Score(value=float(right), explanation=asked.text, metadata=metadata)

    return score


def read_solutions(log: EvalLog) -> list[Solution]:
    """The responses in the log of a rollout task, in the order of the problems."""
    found: list[Solution] = []
    for sample in log.samples or []:
        store: dict[str, Any] = sample.store or {}
        correct: bool | None = None
        for one in (sample.scores or {}).values():
            value = one.value
            correct = bool(value) if isinstance(value, (int, float)) and value == value else None
        found.append(
            Solution(
                Problem(**sample.metadata),
                str(log.eval.model),
                str(store.get("text") or ""),
                store.get("reasoning"),
                str(store.get("outcome") or "error"),
                correct,
            )
        )
    return found
