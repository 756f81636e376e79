"""Which rank of a run is gone, and why: every rank gives a sign of life in the store that ``torchrun`` keeps.

A collective operation that fails says that some connection broke, and one that hangs says nothing at all. The signs
tell the survivors whom they lost, so that a person reads one sentence instead of a hundred lines of every rank.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass, field

from torch.distributed import Store  # pyright: ignore

BEAT = 0.5
# A rank from which there is no sign for so long, while the others give theirs, is taken for dead ...
SILENT = 3.0
# ... and after so long nobody waits any more for what the others may say.
LONGEST_LOOK = 20.0
# A rank that is silent without any connection having failed: long, because a loaded machine may starve a thread.
HUNG = 120.0
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Lost:
    """A rank that is gone and what it said last; ``reason`` is None when it could say nothing."""

    rank: int
    count: int
    reason: str | None = None

    def sentence(self) -> str:
        """What happened and what to do."""
        if self.reason is not None:
            return f"Rank {self.rank} of {self.count} stopped: {self.reason}"
        return (
            f"Rank {self.rank} of {self.count} is gone (it was killed, or its machine failed), so the others stopped; "
            "what was saved is kept. Run the same command with --resume to continue from the last checkpoint."
        )


@dataclass
class _Sign:
    """The last sign of one rank: its number, when it was seen, and how the rank left, if it did."""

    beat: int = -1
    seen: float = field(default_factory=time.monotonic)
    left: str | None = None


class Watch:
    """Gives this rank's signs and reads those of the others, in a thread of its own.

    Args:
        store: shared by all ranks, with a prefix of its own; the thread needs a connection that nothing else blocks.
        rank, count: this rank and how many there are.
        hung: seconds after which a silent rank ends this process although no operation failed.
    """

    def __init__(self, store: Store, rank: int, count: int, hung: float = HUNG) -> None:
        self._store, self.rank, self.count, self._hung = store, rank, count, hung
        self._signs = {other: _Sign() for other in range(count) if other != rank}
        self._store_gone = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)
        self._thread.start()

    def leave(self, reason: str) -> None:
        """Say why this rank goes, and give no more signs."""
        try:
            self._store.set(f"left/{self.rank}", reason)
        except RuntimeError:  # the store is gone with the process that kept it, and with it whoever would read this
            self._store_gone = True
        self._ended.set()
        self._thread.join(timeout=5 * BEAT)

    def speaks(self) -> bool:
        """Whether this rank, among those that found the same loss, is the one to say so."""
        try:
            return self._store.add("spoken", 1) == 1
        except RuntimeError:  # kept by the first rank, or beside it
            return self.rank == 1

    def lost(self) -> Lost | None:
        """The rank that is gone, found by waiting for a sign of every other; None when all are there.

        Ranks that were interrupted, as this one may have been, are not lost.
        """
        began = time.monotonic()
        # What a lost rank wrote before it went may not have been read yet: only later signs are signs of life.
        self._read()
        before = {rank: sign.beat for rank, sign in self._signs.items()}
        while True:
            time.sleep(BEAT / 5)
            elapsed = time.monotonic() - began
            if self._store_gone:
                return Lost(0, self.count) if self.rank != 0 else None
            signs = dict(self._signs)
            said = next((r for r, s in signs.items() if s.left not in (None, "", INTERRUPTED)), None)
            silent = [r for r, s in signs.items() if s.left is None and s.beat == before[r]]
            if silent and elapsed >= SILENT and (len(silent) == 1 or elapsed >= 2 * SILENT):
                return Lost(silent[0], self.count)
            if said is not None and (not silent or elapsed >= SILENT):
                return Lost(said, self.count, signs[said].left)
            if not silent or elapsed >= LONGEST_LOOK:
                return None

    def _run(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT):
            beat += 1
            try:
                self._store.set(f"beat/{self.rank}", str(beat))
            except RuntimeError:
                self._store_gone = True
            self._read()
            if self._store_gone:
                return
            silent = next((r for r, s in self._signs.items() if self._is_hung(s)), None)
            if silent is not None:
                self._give_up(silent)

    def _read(self) -> None:
        try:
            for rank, sign in self._signs.items():
                self._look(rank, sign)
        except RuntimeError:
            self._store_gone = True

    def _look(self, rank: int, sign: _Sign) -> None:
        if self._store.check([f"left/{rank}"]):
            sign.left = self._store.get(f"left/{rank}").decode()
        if self._store.check([f"beat/{rank}"]):
            beat = int(self._store.get(f"beat/{rank}"))
            if beat != sign.beat:
                sign.beat, sign.seen = beat, time.monotonic()

    def _is_hung(self, sign: _Sign) -> bool:
        return sign.left is None and time.monotonic() - sign.seen > self._hung

    def _give_up(self, rank: int) -> None:
        """End the process: the main thread waits in an operation that will never return, so it cannot be asked to."""
        if self.speaks():
            sys.stderr.write(f"saeworks: {Lost(rank, self.count).sentence()}\n")
            sys.stderr.flush()
        os._exit(1)
