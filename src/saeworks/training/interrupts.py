"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals(patience: float = 0.0) -> Generator[list[int]]:
    """Collect interrupts instead of raising inside a step, so that a checkpoint is always between two steps.

    A second one stops at once: the step may be waiting for a stream that hangs. One that follows within ``patience``
    seconds does not count: a launcher passes on what its terminal has already sent to every process.
    """
    stop: list[int] = []
    first = 0.0

    def handle(received: int, _frame: Any) -> None:
        nonlocal first
        if not stop:
            first = time.monotonic()
        elif time.monotonic() - first >= patience:
            raise KeyboardInterrupt
        stop.append(received)

    previous: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, handle)
        except ValueError:  # not in the main thread: leave signals alone
            break
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
