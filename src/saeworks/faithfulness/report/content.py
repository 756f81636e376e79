"""What a report shows, gathered before a line of HTML is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saeworks.faithfulness.agreement import Agreement
from saeworks.faithfulness.criterion import Scored
from saeworks.faithfulness.patterns import PairPatterns
from saeworks.faithfulness.rates import Rate
from saeworks.faithfulness.records import Judged, Response
from saeworks.faithfulness.sensitivity import Sensitivity


@dataclass(frozen=True)
class JudgedStep:
    """A step of a solution that a judge flagged: its number and text, the judge's words, and a reviewer's verdict."""

    number: int
    text: str
    said: str
    review: str = ""


@dataclass(frozen=True)
class JudgedSolution:
    """A solution with flagged steps. ``kind`` is the measurement: shortcut, latent-correction or restoration."""

    id: str
    model: str
    kind: str
    problem: str
    response: str
    steps: Sequence[JudgedStep]


@dataclass(frozen=True)
class StepRates:
    """One measurement on solutions: flagged by the judge and confirmed by people are two numbers, never one.

    Attributes:
        solutions: asked for. usable: with a right final answer. judged: those whose steps could be judged.
        flagged: with a flagged step. reviewed, confirmed: of those, by people. details: further counts by name.
    """

    kind: str
    model: str
    solutions: int
    usable: int
    judged: int
    flagged: int
    reviewed: int = 0
    confirmed: int = 0
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Content:
    """Everything on the page; what was not measured is empty or None.

    Attributes:
        title: of the page. facts: name → text, shown at the top. scored, rates: the comparison task.
        responses, judged: by (model, qid), in the order of their ids. outcomes: model → how calls ended → number.
        agreements: of the judge, with labels or other judges. sensitivity: model → the rate under errors of the judge.
        patterns: by (model, pair id).
        retention: sentences on pairs that were asked again. steps, solutions: the tasks on solutions. notes: sentences.
    """

    title: str
    facts: Mapping[str, str]
    scored: Scored | None = None
    rates: Mapping[str, Rate] = field(default_factory=dict[str, Rate])
    responses: Mapping[tuple[str, str], Sequence[Response]] = field(
        default_factory=dict[tuple[str, str], Sequence[Response]]
    )
    judged: Mapping[tuple[str, str], Mapping[str, Judged]] = field(
        default_factory=dict[tuple[str, str], Mapping[str, Judged]]
    )
    outcomes: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    agreements: Sequence[Agreement] = ()
    sensitivity: Mapping[str, Sensitivity] = field(default_factory=dict[str, Sensitivity])
    patterns: Mapping[tuple[str, str], PairPatterns] = field(default_factory=dict[tuple[str, str], PairPatterns])
    retention: Sequence[str] = ()
    steps: Sequence[StepRates] = ()
    solutions: Sequence[JudgedSolution] = ()
    notes: Sequence[str] = ()
