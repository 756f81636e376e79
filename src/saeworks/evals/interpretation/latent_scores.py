"""Ask the judge about latents and add up what it said."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saeworks.evals.interpretation.detection import (
    Confusion,
    confusion,
    detection_question,
    usable_explanation,
    usable_numbers,
)
from saeworks.evals.interpretation.latent_examples import ExamplePlan, Examples, draw_examples
from saeworks.evals.interpretation.windows import Firings
from saeworks.evals.judges.asking import Asker
from saeworks.evals.judges.protocol import OUTCOMES, Answer, Question
from saeworks.evals.shared.bootstrap import Resampling, intervals
from saeworks.evals.shared.token_rows import TokenRows
from saeworks.results.envelope import Arrays, Metrics

#: What is averaged over latents and seeds: name → number of one detection.
_NUMBERS: dict[str, Callable[[Confusion], float]] = {
    "accuracy": lambda c: c.accuracy,
    "balanced_accuracy": lambda c: c.balanced_accuracy,
    "f1": lambda c: c.f1,
    "precision": lambda c: c.precision,
    "recall": lambda c: c.recall,
    "accuracy_of_none": lambda c: (c.rejections + c.false_alarms) / (c.hits + c.misses + c.rejections + c.false_alarms),
}


@dataclass(frozen=True)
class Case:
    """One latent under one seed; ``examples`` None where it has too few."""

    latent: int
    seed: int
    examples: Examples | None


@dataclass(frozen=True)
class Judged:
    """What came of a case. ``why_not`` says why there is no ``result``; ``swapped`` is the result with the explanation
    of another latent."""

    case: Case
    explanation: str | None = None
    predictions: tuple[int, ...] | None = None
    result: Confusion | None = None
    swapped: Confusion | None = None
    why_not: str = ""


def draw_cases(found: Mapping[int, Firings], rows: TokenRows, plan: ExamplePlan, seeds: Sequence[int]) -> list[Case]:
    """Every latent under every seed."""
    return [Case(i, seed, draw_examples(f, rows, plan, seed)) for seed in seeds for i, f in found.items()]


def interpret(
    name: str, cases: Sequence[Case], questions: Sequence[Question], asker: Asker, compat: bool, swapped: bool
) -> Scored:
    """Ask for explanations and test them.

    Args:
        questions: for an explanation, one per case with examples, in their order.
        swapped: also test every latent with the explanation of the next one under the same seed.
    """
    asked = [case for case in cases if case.examples is not None]
    answers = asker.ask(questions, f"explaining {name}")
    told = {id(case): usable_explanation(a, compat) for case, a in zip(asked, answers, strict=True)}
    outcomes: Counter[str] = Counter(f"explanation_{a.outcome}" for a in answers)
    explained = [case for case in asked if told[id(case)] is not None]
    own = _detect(name, explained, [told[id(case)] or "" for case in explained], asker, outcomes)
    others: dict[int, Answer] = {}
    if swapped:
        borrowed = _borrowed(explained, told)
        pairs = [(case, borrowed[id(case)]) for case in explained if borrowed[id(case)] is not None]
        others = _detect(f"{name}, swapped", [c for c, _ in pairs], [e or "" for _, e in pairs], asker, None)
    reasons = {id(case): a.outcome for case, a in zip(asked, answers, strict=True)}
    judged: list[Judged] = []
    for case in cases:
        if case.examples is None:
            judged.append(Judged(case, why_not="too few windows"))
        elif id(case) not in own:
            judged.append(Judged(case, why_not=f"explanation {reasons[id(case)]}"))
        else:
            judged.append(_read(case, told[id(case)] or "", own[id(case)], others.get(id(case)), compat, outcomes))
    return Scored(judged, dict(outcomes), swapped)


def _detect(
    name: str, cases: Sequence[Case], explanations: Sequence[str], asker: Asker, outcomes: Counter[str] | None
) -> dict[int, Answer]:
    questions = [
        detection_question(explanation, case.examples.score, case.examples.sample)
        for case, explanation in zip(cases, explanations, strict=True)
        if case.examples is not None
    ]
    answers = asker.ask(questions, f"testing {name}")
    if outcomes is not None:
        outcomes.update(f"detection_{a.outcome}" for a in answers)
    return {id(case): answer for case, answer in zip(cases, answers, strict=True)}


def _borrowed(cases: Sequence[Case], told: Mapping[int, str | None]) -> dict[int, str | None]:
    """For every case the explanation of the next latent of its seed that has another one; None where all agree."""
    out: dict[int, str | None] = {}
    for seed in dict.fromkeys(case.seed for case in cases):
        row = [case for case in cases if case.seed == seed]
        for i, case in enumerate(row):
            others = (told[id(other)] for other in [*row[i + 1 :], *row[:i]])
            out[id(case)] = next((e for e in others if e != told[id(case)]), None)
    return out


def _read(
    case: Case, explanation: str, answer: Answer, other: Answer | None, compat: bool, outcomes: Counter[str]
) -> Judged:
    assert case.examples is not None
    active = _active(Judged(case))
    numbers = usable_numbers(answer, len(active), compat)
    if numbers is None:
        unread = answer.outcome == "answered"
        outcomes["detection_unreadable"] += unread
        return Judged(case, explanation, why_not=f"detection {'unreadable' if unread else answer.outcome}")
    others = None if other is None else usable_numbers(other, len(active), compat)
    swapped = None if others is None else confusion(others, active)
    return Judged(case, explanation, tuple(numbers), confusion(numbers, active), swapped)


@dataclass(frozen=True)
class Scored:
    """All cases of one dictionary. ``outcomes`` counts the judge's answers, such as ``detection_cut_off``."""

    judged: list[Judged]
    outcomes: dict[str, int]
    swapped: bool

    def latents(self) -> list[int]:
        """Latents with a score under any seed, ascending."""
        return sorted({j.case.latent for j in self.judged if j.result is not None})

    def metrics(self) -> Metrics:
        """Means over latents and seeds, and how the judge answered. None where nothing was scored."""
        drawn = len(self.judged)
        scored = [j for j in self.judged if j.result is not None]
        seeds = list(dict.fromkeys(j.case.seed for j in self.judged))
        deviations = [d for d in (_deviation(self._values("accuracy", seed)) for seed in seeds) if d is not None]
        table: Metrics = {
            "autointerp": {
                "autointerp_score": _mean(self._values("accuracy")),
                "autointerp_std_dev": _mean(deviations),
            },
            "detection": {name: _mean(self._values(name)) for name in _NUMBERS if name != "accuracy"},
            "judge": {
                "frac_scored": len(scored) / drawn if drawn else None,
                "frac_one_sided": _mean([float(j.result.one_sided) for j in scored if j.result is not None]),
                "too_few_windows": sum(j.why_not == "too few windows" for j in self.judged),
                **{f"explanation_{o}": self.outcomes.get(f"explanation_{o}", 0) for o in OUTCOMES},
                **{f"detection_{o}": self.outcomes.get(f"detection_{o}", 0) for o in (*OUTCOMES, "unreadable")},
            },
        }
        if self.swapped:
            other = [j.swapped for j in self.judged if j.swapped is not None]
            table["control"] = {
                "swapped_accuracy": _mean([c.accuracy for c in other]),
                "swapped_balanced_accuracy": _mean([c.balanced_accuracy for c in other]),
            }
        return table

    def note(self) -> str | None:
        """Why there is no score, or why the score says nothing of the latents; None where neither is so."""
        scored = [j for j in self.judged if j.result is not None]
        if not scored:
            reasons = Counter(j.why_not for j in self.judged).most_common()
            why = ", ".join(f"{reason} ({count})" for reason, count in reasons) or "none fires often enough"
            return f"no latent has a score: {why}"
        active = {frozenset(i for i, yes in enumerate(_active(j), 1) if yes) for j in scored}
        said = {frozenset(j.predictions or ()) for j in scored}
        if len(active) == 1:
            return None
        if all(set(j.predictions or ()) == set(range(1, len(_active(j)) + 1)) for j in scored):
            answer = "all windows"
        elif len(said) == 1:
            answer = "the windows " + ", ".join(map(str, sorted(*said))) if any(said) else "no window"
        else:
            return None
        return (
            f"the judge named {answer} in each of {len(scored)} answers, whatever it was asked; its score says how the "
            "windows were mixed and nothing of the latents"
        )

    def of_seed(self, seed: int) -> dict[str, Any]:
        """The score of one seed, its spread over latents, and how many latents have one."""
        values = self._values("accuracy", seed)
        return {
            "autointerp_score": _mean(values),
            "autointerp_std_dev": _deviation(values),
            "balanced_accuracy": _mean(self._values("balanced_accuracy", seed)),
            "n_scored": len(values),
        }

    def intervals(self, resampling: Resampling) -> dict[str, tuple[float, float] | None]:
        """95 % intervals of the score and the balanced accuracy, resampling latents with all their seeds."""
        place = {latent: i for i, latent in enumerate(self.latents())}
        names = {"accuracy": "autointerp.autointerp_score", "balanced_accuracy": "detection.balanced_accuracy"}
        sums = {name: torch.zeros(len(place), dtype=torch.float64) for name in ("n", *names)}
        for j in self.judged:
            if j.result is not None:
                sums["n"][place[j.case.latent]] += 1
                for name in names:
                    sums[name][place[j.case.latent]] += _NUMBERS[name](j.result)
        return intervals(sums, {title: _share(name) for name, title in names.items()}, resampling)

    def arrays(self, latents: Sequence[int], seeds: Sequence[int]) -> Arrays:
        """``latent`` [latent]; ``accuracy`` and ``balanced_accuracy`` [latent, seed], NaN where there is no score."""
        place = {latent: i for i, latent in enumerate(latents)}
        out: Arrays = {"latent": np.array(latents, dtype=np.int64)}
        for name in ("accuracy", "balanced_accuracy"):
            out[name] = np.full((len(latents), len(seeds)), np.nan, dtype=np.float32)
            for j in self.judged:
                if j.result is not None:
                    out[name][place[j.case.latent], list(seeds).index(j.case.seed)] = _NUMBERS[name](j.result)
        return out

    def written_out(self, seed: int, show: int) -> dict[str, Any]:
        """SAEBench's record of each latent under one seed; ``logs`` holds the windows of the first ``show``."""
        out: dict[str, Any] = {}
        for j in self.judged:
            if j.case.seed != seed:
                continue
            examples = j.case.examples
            active = [i for i, yes in enumerate(_active(j), 1) if yes]
            out[str(j.case.latent)] = {
                "latent": j.case.latent,
                "explanation": j.explanation,
                "predictions": None if j.predictions is None else list(j.predictions),
                "correct seqs": active,
                "score": None if j.result is None else j.result.accuracy,
                "balanced_accuracy": None if j.result is None else j.result.balanced_accuracy,
                "why_not": j.why_not,
                "logs": _log(examples) if examples is not None and len(out) < show else "",
            }
        return out

    def _values(self, name: str, seed: int | None = None) -> list[float]:
        found = (j.result for j in self.judged if j.result is not None and seed in (None, j.case.seed))
        return [value for value in map(_NUMBERS[name], found) if not math.isnan(value)]


def _active(judged: Judged) -> list[bool]:
    """Which of the windows to score the latent is active on."""
    return [] if judged.case.examples is None else [example.active for example in judged.case.examples.score]


def _log(examples: Examples) -> str:
    explain = [f"{max(e.activations):8.3f} {e.kind:8} {e.text(marked=True)}" for e in examples.explain]
    score = [
        f"{i:3} {'active' if e.active else '':6} {e.kind:8} {e.text(marked=True)}"
        for i, e in enumerate(examples.score, 1)
    ]
    return "\n".join(["To explain:", *explain, "To test:", *score])


def _share(name: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda drawn: drawn[name] / drawn["n"]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
