"""Portable random choices that keep count of their probability.

Every document of the world is a pure function of its name. The generator below therefore uses nothing of
:mod:`random` but ``random()`` seeded with an integer, whose bits Python fixes on every platform and version;
``choice``, ``shuffle`` and hash-based seeding are written out here because their algorithms are not promised.

The running sum of log-probabilities is what the card compares a language model with: the probability of the
path of choices that led to a text is never larger than the probability of the text, so its negative logarithm is
an upper bound of the text's own surprise.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


def stable_integer(*names: str | int) -> int:
    """A 64-bit integer that depends only on the names."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def stable_fraction(*names: str | int) -> float:
    """A number in [0, 1) that depends only on the names; used to deal entities to splits."""
    return (stable_integer(*names) >> 11) / (1 << 53)


class Weighted(Generic[T]):
    """Options with probabilities, ready to be drawn from.

    Args:
        options: What can be drawn.
        weights: Positive weights of the same length.
    """

    def __init__(self, options: Sequence[T], weights: Sequence[float]) -> None:
        self.options = list(options)
        total = 0.0
        self._edges: list[float] = []
        for weight in weights:
            total += weight
            self._edges.append(total)
        self._total = total
        self._logs = [math.log(weight / total) for weight in weights]

    def at(self, u: float) -> tuple[T, float]:
        """The option at quantile ``u`` in [0, 1), with its log-probability."""
        i = min(bisect_right(self._edges, u * self._total), len(self.options) - 1)
        return self.options[i], self._logs[i]


def zipf(options: Sequence[T], shift: float) -> Weighted[T]:
    """Weights ``1 / (rank + shift)`` with rank from 1: a Zipf-Mandelbrot law of exponent one."""
    return Weighted(options, [1.0 / (rank + shift) for rank in range(1, len(options) + 1)])


class Draw:
    """A stream of random choices named by ``names``; ``log_probability`` sums over the choices made so far."""

    def __init__(self, *names: str | int) -> None:
        self._random = random.Random(stable_integer(*names))
        self.log_probability = 0.0

    def number(self, n: int) -> int:
        """A uniform integer in ``[0, n)``."""
        self.log_probability -= math.log(n)
        return int(self._random.random() * n)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, uniformly."""
        return options[self.number(len(options))]

    def weighted(self, options: Weighted[T]) -> T:
        """One of the options, by their weights."""
        option, log = options.at(self._random.random())
        self.log_probability += log
        return option

    def chance(self, p: float) -> bool:
        """True with probability ``p`` in (0, 1); a certain outcome costs no draw."""
        if p <= 0.0 or p >= 1.0:
            return p >= 1.0
        hit = self._random.random() < p
        self.log_probability += math.log(p if hit else 1.0 - p)
        return hit

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """``count`` different options in random order."""
        pool = list(options)
        taken: list[T] = []
        for _ in range(min(count, len(pool))):
            taken.append(pool.pop(self.number(len(pool))))
        return taken


class Pool(Generic[T]):
    """Options that are not repeated before all have been taken, so that a document does not say a thing twice."""

    def __init__(self, options: Sequence[T]) -> None:
        self._options = options
        self._left: list[T] = []

    def take(self, draw: Draw) -> T:
        """One of the options that are left, uniformly."""
        if not self._left:
            self._left = list(self._options)
        return self._left.pop(draw.number(len(self._left)))
