"""What may be spent on a judge, and how fast. Both are shared by all threads that ask it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from saeworks.evals.judges.protocol import BudgetSpent


@dataclass(frozen=True)
class Clock:
    """The time, and how it is waited for. ``now`` counts seconds from anywhere; ``wall`` since 1970."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    wall: Callable[[], float] = time.time


class Budget:
    """The most requests and tokens that may be spent (None: any number).

    Before a request the most that it could cost is set aside, so that no request can exceed the budget; when its
    cost is known, the rest is given back.
    """

    def __init__(self, requests: int | None = None, tokens: int | None = None) -> None:
        self._most_requests, self._most_tokens = requests, tokens
        self._lock = threading.Lock()
        self.requests = 0
        self.tokens = 0
        self._set_aside = 0

    def reserve(self, tokens: int) -> None:
        """Count one request and set ``tokens`` aside; :class:`BudgetSpent` where that could exceed the budget."""
        with self._lock:
            if self._most_requests is not None and self.requests + 1 > self._most_requests:
                raise BudgetSpent(
                    f"The judge's budget of {self._most_requests} requests is spent. Its answers are kept: raise "
                    "judge_budget_requests and run the same command again, and it goes on from here."
                )
            taken = self.tokens + self._set_aside
            if self._most_tokens is not None and taken + tokens > self._most_tokens:
                raise BudgetSpent(
                    f"Of the judge's budget of {self._most_tokens} tokens {taken} are spent, and the next question "
                    f"may take {tokens}. Its answers are kept: raise judge_budget_tokens and run the same command "
                    "again, and it goes on from here."
                )
            self.requests += 1
            self._set_aside += tokens

    def settle(self, reserved: int, spent: int) -> None:
        """The request for which ``reserved`` tokens were set aside took ``spent``."""
        with self._lock:
            self._set_aside -= reserved
            self.tokens += spent

    def room(self) -> int | None:
        """Requests left; None for any number."""
        with self._lock:
            return None if self._most_requests is None else self._most_requests - self.requests


class Pace:
    """At most ``per_minute`` requests a minute, evenly spaced (None: as fast as they come)."""

    def __init__(self, per_minute: float | None, clock: Clock) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock.now()
        self.waited = 0.0

    def wait(self) -> None:
        """Return when the next request may be sent."""
        with self._lock:
            now = self._clock.now()
            start = max(now, self._free_at)
            self._free_at = start + self._interval
            self.waited += start - now
        if start > now:
            self._clock.sleep(start - now)

    def hold(self, seconds: float) -> None:
        """Send nothing for ``seconds``: whoever was told to slow down tells all threads."""
        with self._lock:
            self._free_at = max(self._free_at, self._clock.now() + seconds)
