"""The examples of one latent: what a judge is shown to explain it, and what its explanation is tested on.

Every draw depends on the seed and on the place where the latent is strongest, never on its number: latents in another
order get the same examples, and two dictionaries whose latents are strongest at one place are tested on the same
random places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from saeworks.evals.interpretation.detection import Example
from saeworks.evals.interpretation.windows import Firings, Place, by_strength, random_centres, random_places, spaced
from saeworks.evals.shared.token_rows import TokenRows
from saeworks.runtime import generator


@dataclass(frozen=True)
class ExamplePlan:
    """How many windows of each kind, ``buffer`` tokens to either side of a centre. A token is active above
    ``threshold`` times the strongest activation. ``compat`` draws as SAEBench does; see :func:`draw_examples`."""

    buffer: int = 10
    threshold: float = 0.01
    top_to_explain: int = 10
    weighted_to_explain: int = 5
    top_to_score: int = 2
    weighted_to_score: int = 2
    random_to_score: int = 10
    compat: bool = False

    @property
    def top(self) -> int:
        """Windows around the strongest firings."""
        return self.top_to_explain + self.top_to_score

    @property
    def weighted(self) -> int:
        """Windows drawn by activation²."""
        return self.weighted_to_explain + self.weighted_to_score


@dataclass(frozen=True)
class Examples:
    """``explain``, the strongest first; ``score``, in random order; ``sample``, some numbers of examples at random."""

    explain: tuple[Example, ...]
    score: tuple[Example, ...]
    sample: tuple[int, ...]


def draw_examples(found: Firings, rows: TokenRows, plan: ExamplePlan, seed: int) -> Examples | None:
    """Draw the examples of one latent; None where it has too few.

    ``compat``: centres keep ``buffer`` tokens from both ends of a row; the strongest centres lie more than ``buffer``
    apart, the others anywhere below them; random windows count as inactive with activations of 0, whatever the latent
    does there; a latent without as many examples as planned is left out. Otherwise: windows end where the text does;
    no two of them share a token or are the same text; random windows have their true activations; a latent is left
    out only when it has no window to explain, or none to score where it is active.
    """
    if not len(found.tokens):
        return None
    if plan.compat:
        found = in_bfloat16(found)
    reader = _Reader(found, rows, plan)
    draws = _Draws(seed, int(found.tokens[0]))
    centres = _compat_centres(found, plan, draws) if plan.compat else _centres(reader, draws)
    if centres is None:
        return None
    top, weighted = centres
    threshold = plan.threshold * max(max(reader.activations(place)) for place in top)
    strongest = [reader.example(place, "top", threshold) for place in top]
    others = [reader.example(place, "weighted", threshold) for place in weighted]
    order = draws.of("division")
    explain, score = _divided(strongest, plan.top_to_score, plan.top, order)
    more, also = _divided(others, plan.weighted_to_score, plan.weighted, order)
    random = _random(reader, draws, [*top, *weighted])
    explain, score = explain + more, score + also + [reader.example(place, "random", threshold) for place in random]
    if not explain or not any(example.active for example in score):
        return None
    explain.sort(key=lambda e: -max(e.activations))
    shuffled = [score[i] for i in torch.randperm(len(score), generator=order).tolist()]
    sample = sorted(i + 1 for i in torch.randperm(len(score), generator=order)[:4].tolist())
    return Examples(tuple(explain), tuple(shuffled), tuple(sample))


def in_bfloat16(found: Firings) -> Firings:
    """The same firings rounded as SAEBench keeps them; what ties then is in the order of places."""
    rounded = found.values.to(torch.bfloat16).float()
    order = found.tokens.argsort(stable=True)
    order = order[rounded[order].argsort(descending=True, stable=True)]
    return replace(found, tokens=found.tokens[order], values=rounded[order])


@dataclass(frozen=True)
class _Draws:
    """One random stream per purpose: how much one of them is used changes nothing in another."""

    seed: int
    strongest: int

    def of(self, purpose: str) -> torch.Generator:
        return generator(self.seed, "examples", purpose, self.strongest)


class _Reader:
    """Windows of one latent around centres."""

    def __init__(self, found: Firings, rows: TokenRows, plan: ExamplePlan) -> None:
        self.found, self.rows, self.plan = found, rows, plan
        self._by_row: dict[int, dict[int, float]] = {}

    def window(self, place: Place) -> tuple[int, int]:
        """First position of the window and the one behind its last."""
        row, position = place
        low, high = (0, self.rows.columns) if self.plan.compat else self.rows.extent(row)
        return max(low, position - self.plan.buffer), min(high, position + self.plan.buffer + 1)

    def activations(self, place: Place) -> tuple[float, ...]:
        """Activation of every token of the window."""
        inside = self._row(place[0])
        return tuple(inside.get(p, 0.0) for p in range(*self.window(place)))

    def strength(self, place: Place) -> float:
        """Activation at the centre."""
        return self._row(place[0]).get(place[1], 0.0)

    def text(self, place: Place) -> tuple[int, ...]:
        """Token ids of the window."""
        start, stop = self.window(place)
        return tuple(self.rows.token_ids[place[0], start:stop].tolist())

    def example(self, place: Place, kind: str, threshold: float) -> Example:
        """The window as an example."""
        start, stop = self.window(place)
        values = self.activations(place)
        if kind == "random" and self.plan.compat:
            values = (0.0,) * len(values)
        words, concepts = self.rows.words(place[0], start, stop), self.rows.concepts(place[0], start, stop)
        return Example(words, concepts, values, max(values) > threshold, kind, threshold)

    def _row(self, row: int) -> dict[int, float]:
        if row not in self._by_row:
            self._by_row[row] = self.found.row(row)
        return self._by_row[row]


class _Unlike:
    """Whether a window is a text that was not met before."""

    def __init__(self, reader: _Reader, known: Sequence[Place] = ()) -> None:
        self._reader = reader
        self._known = {reader.text(place) for place in known}

    def __call__(self, place: Place) -> bool:
        text = self._reader.text(place)
        new = text not in self._known
        self._known.add(text)
        return new


def _compat_centres(found: Firings, plan: ExamplePlan, draws: _Draws) -> tuple[list[Place], list[Place]] | None:
    position = found.tokens % found.columns
    inside = found.among((position >= plan.buffer) & (position < found.columns - plan.buffer))
    top = spaced(inside.places(), plan.top, plan.buffer)
    if len(top) < plan.top or not top:
        return None
    row, last = top[-1]
    below = inside.among(inside.values < inside.values[inside.tokens == row * found.columns + last])
    if len(below.values) < plan.weighted:
        return None
    return top, list(islice(by_strength(below, draws.of("weighted")), plan.weighted))


def _centres(reader: _Reader, draws: _Draws) -> tuple[list[Place], list[Place]] | None:
    found, plan = reader.found, reader.plan
    unlike = _Unlike(reader)
    top = spaced(found.places(), plan.top, 2 * plan.buffer, fits=unlike)
    if not top:
        return None
    below = found.among(found.values < min(reader.strength(place) for place in top))
    if not len(below.values):
        return top, []
    candidates = by_strength(below, draws.of("weighted"))
    return top, spaced(candidates, plan.weighted, 2 * plan.buffer, top, unlike)


def _divided(
    part: Sequence[Example], to_score: int, planned: int, order: torch.Generator
) -> tuple[list[Example], list[Example]]:
    """Split at random into examples to explain and to score. Of fewer than planned, at most half are to score."""
    shuffled = [part[i] for i in torch.randperm(len(part), generator=order).tolist()]
    scored = to_score if len(part) == planned else min(to_score, len(part) // 2)
    return shuffled[scored:], shuffled[:scored]


def _random(reader: _Reader, draws: _Draws, taken: list[Place]) -> list[Place]:
    rows, plan = reader.rows, reader.plan
    count, stream = plan.random_to_score, draws.of("random")
    if plan.compat:
        return random_centres(len(rows.token_ids), plan.buffer, rows.columns - plan.buffer, count, stream)
    candidates = random_places(rows.valid, 20 * count, stream)
    return spaced(candidates, count, 2 * plan.buffer, taken, _Unlike(reader, taken))
