"""The journal of a run: every call to a model that came to an end, one JSON line each, so that none is made twice.

Before a call a line says what it may cost at most, after it another one how it ended. A run that is started again makes
the same calls under the same keys. What the journal has is taken from it; calls that failed for a reason that may pass
(rate limits, time-outs, errors of the server) are made again. The file is appended to and synced after every call: a
kill at any moment loses the calls that were on their way and nothing else. Those may have been paid for, so that they
count with the most that they could cost.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError
from saeworks.faithfulness.tasks.budget import Spending
from saeworks.files import disk_errors, sha256_json

#: How a call may end that is worth making again.
PASSING = frozenset({"rate_limited", "timeout", "error"})


def call_key(role: str, model: str, texts: list[str], config: dict[str, Any], sample: str, epoch: int) -> str:
    """What makes two calls the same one: who is asked what, with which settings, for which draw of which sample."""
    asked = {"role": role, "model": model, "texts": texts, "config": config, "sample": sample, "epoch": epoch}
    return sha256_json(asked)[:32]


class Journal:
    """The calls of a run by key.

    Args:
        path: file to read and append to; None keeps the journal in memory, for tests and single use.

    Raises:
        InputError: the file is damaged elsewhere than in its last line, which a kill may have cut.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._calls: dict[str, dict[str, Any]] = {}
        self._begun: dict[str, Spending] = {}
        self.spent = Spending()
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            # Cut, so that the next line does not grow onto half of one.
            with open(path, "r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                entry = cast("dict[str, Any]", json.loads(line))
                took = Spending(int(entry["tokens"]), float(entry["cost"]))
                if entry.get("begun"):
                    self.spent += self._begun.get(entry["key"], Spending())  # an earlier attempt, lost in a kill
                    self._begun[entry["key"]] = took
                    continue
                self._calls[entry["key"]] = entry
                self._begun.pop(entry["key"], None)
                self.spent += took
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
                raise InputError(
                    f"Line {number} of '{path}' is damaged ({e}); remove that line to make its call again."
                ) from e

        for lost in self._begun.values():
            self.spent += lost
        self._begun.clear()

    def find(self, key: str) -> dict[str, Any] | None:
        """The entry of a call that need not be made again."""
        entry = self._calls.get(key)
        return None if entry is None or entry["outcome"] in PASSING else entry

    def samples(self, model: str) -> set[str]:
        """The samples that a model was asked about as the one under test."""
        return {e["sample"] for e in self._calls.values() if (e.get("role"), e.get("model")) == ("subject", model)}

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Record a call that has ended: ``outcome``, ``tokens``, ``cost`` and whatever else is worth keeping."""
        line = {"key": key, **entry}
        self._calls[key] = line
        self.spent += Spending(int(entry["tokens"]), float(entry["cost"]))
        self._append(line)

    def begin(self, key: str, worst: Spending) -> None:
        """Say that a call is made that costs ``worst`` at most."""
        self._append({"key": key, "begun": True, "tokens": worst.tokens, "cost": worst.cost}, sync=False)

    def _append(self, line: dict[str, Any], sync: bool = True) -> None:
        if self._path is None:
            return
        data = json.dumps(line, ensure_ascii=True) + "\n"
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab") as file:
                file.write(data.encode("ascii"))
                file.flush()
                if sync:
                    os.fsync(file.fileno())
