"""How much memory harvesting holds, against a bound added up from named parts, as the tokens pass.

    python benchmarks/harvest_memory.py                         # a million tokens, several times
    python benchmarks/harvest_memory.py --model DIR --data FILE --site layers.6.resid_post --out memory.json

Method. Every run is a process of its own. It loads the model, reads and tokenises the first texts, and then samples its
memory every few milliseconds: first during bare forward passes of the largest batch there can be (a full harvest batch
of full contexts, layers cut off behind the site, nothing kept), then while a ``LiveStream`` hands out the tokens. Both
count from the moment before, and what is reported is the largest growth so far after each number in ``--tokens``. Runs
differ in what they sample:

* *allocated*: bytes that the program holds, by the count of the C library (``mallinfo2``), with Python's objects
  (``PYTHONMALLOC=malloc``);
* *resident*: memory that the system has given to the process. The allocator keeps freed blocks for later use, and
  blocks of many sizes leave holes; the bare forward passes show how much of that there is without any stream.

The bound is the sum of

* the shuffle buffer: ``buffer_tokens × (width × 4 + 32)`` bytes;
* the larger of what a bare forward pass takes, as measured in the same way (of resident memory that is what the model
  allocates, and the allocator's holes), and two copies of a harvest batch (as captured, and its kept rows): the pass
  has given its memory back when the rows are selected, and the rows lie in the buffer before the next pass begins;
* the batch that the caller holds while the next one is made: ``batch × (width × 4 + 24)``;
* tokenised texts, as lists of Python integers: two pools that are complete, and one that is being read.

Needs Linux and version 2.33 or later of the GNU C library.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harvest import cut_off_behind

from saeworks.activations.contexts import POOL_BATCHES, ContextReader
from saeworks.activations.streams import LiveStream
from saeworks.activations.texts import open_texts
from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel, load_language_model
from saeworks.models.tokens import TokenBatch
from saeworks.results.tables import markdown, spread, summary

MIB = 2**20
# What is sampled, by the environment of the process.
KINDS: dict[str, dict[str, str]] = {
    "allocated": {"PYTHONMALLOC": "malloc"},
    "resident": {},
}
# A token in a list: 8 bytes of pointer and a Python integer of 28 bytes, which takes a block of 48.
BYTES_PER_LISTED_TOKEN = 56
BYTES_PER_WINDOW = 256  # the list, the window, its document and start
FORWARD_PASSES = 10


class MallInfo(ctypes.Structure):
    """What ``mallinfo2`` of the GNU C library returns, with the names it gives."""

    _fields_ = (
        ("arena", ctypes.c_size_t),
        ("ordblks", ctypes.c_size_t),
        ("smblks", ctypes.c_size_t),
        ("hblks", ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),
        ("usmblks", ctypes.c_size_t),
        ("fsmblks", ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    )


class Memory:
    """Samples one number: bytes allocated, or bytes resident."""

    def __init__(self, kind: str) -> None:
        self._library = ctypes.CDLL("libc.so.6")
        self._library.mallinfo2.restype = MallInfo
        self._allocated = kind == "allocated"

    def now(self) -> int:
        """Blocks in the heaps and blocks mapped on their own; or pages in memory."""
        if self._allocated:
            info = self._library.mallinfo2()
            return info.uordblks + info.hblkhd
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    @contextmanager
    def sampled(self) -> Generator[dict[str, int]]:
        """``growth`` since the beginning of the block: the largest so far, kept up to date in it."""
        gc.collect()
        self._library.malloc_trim(0)  # growth would be hidden by pages that were freed before
        before, peak, stop = self.now(), {"growth": 0}, threading.Event()

        def sample() -> None:
            while not stop.wait(0.004):
                peak["growth"] = max(peak["growth"], self.now() - before)

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            stop.set()
            thread.join()


def parts_of_bound(asked: argparse.Namespace, width: int, working: int) -> dict[str, int]:
    """The named parts, in bytes; see the top of this file."""
    row, rows = width * 4, asked.harvest_batch_size
    # Texts are tokenised a harvest batch at a time until a pool is full, and each may be cut into two windows.
    windows = (POOL_BATCHES + 2) * rows
    return {
        "buffer": asked.buffer_tokens * (row + 32),
        "model or harvest batch": max(working, 2 * rows * asked.context_length * (row + 24)),
        "caller's batch": asked.batch * (row + 24),
        "tokenised texts": 3 * windows * (asked.context_length * BYTES_PER_LISTED_TOKEN + BYTES_PER_WINDOW),
    }


def working_memory(memory: Memory, model: LanguageModel, site: str, asked: argparse.Namespace) -> int:
    """Growth during bare forward passes of a full harvest batch."""
    full = model.batch_from_ids([[0] * asked.context_length] * asked.harvest_batch_size)
    with cut_off_behind(model, site) as run:
        run(full)
        with memory.sampled() as peak:
            for _ in range(FORWARD_PASSES):
                run(full)
    return peak["growth"]


def record_largest(model: LanguageModel) -> list[int]:
    """``[rows, positions]`` of the largest batch that the model has harvested, kept up to date."""
    largest, harvest = [0, 0], model.harvest

    def recording(batch: TokenBatch, sites: list[str]) -> Any:
        if batch.token_ids.numel() > largest[0] * largest[1]:
            largest[:] = batch.token_ids.shape
        return harvest(batch, sites)

    model.harvest = recording  # type: ignore[method-assign]
    return largest


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """One run in this process."""
    memory, model = Memory(asked.one), load_language_model(asked.model, device="cpu")
    site = model.site(asked.site or f"layers.{(model.n_layers - 1) // 2}.resid_post")
    source = open_texts(asked.data)
    # Tables that the source and the tokenizer build once are no part of a stream.
    reader = ContextReader(model, source, asked.context_length, asked.harvest_batch_size)
    for _ in zip(range(2 * POOL_BATCHES), reader.batches(), strict=False):
        pass
    del reader
    working = working_memory(memory, model, site.name, asked)
    largest, passed, marks = record_largest(model), 0, list[dict[str, Any]]()
    with memory.sampled() as peak:
        stream = LiveStream(
            model, source, site.name, asked.context_length, asked.buffer_tokens, asked.harvest_batch_size
        )
        for tokens in sorted(asked.tokens):
            while passed < tokens:
                stream.next_batch(asked.batch)
                passed += asked.batch
            marks.append({"tokens": tokens, "largest": list(largest), **peak})
    parts = parts_of_bound(asked, site.width, working)
    return {"marks": marks, "working": working, "bound": sum(parts.values()), "parts": parts, "width": site.width}


def in_own_process(kind: str) -> dict[str, Any]:
    """:func:`measure` in a new process with the arguments of this one."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", kind]
    done = subprocess.run(command, env=os.environ | KINDS[kind], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)  # the process has said why
    return {"kind": kind, **json.loads(done.stdout)}


def table(runs: list[dict[str, Any]]) -> str:
    """One row per kind of memory and number of tokens, in MiB: mean, least and greatest of the runs."""
    rows: list[list[str]] = []
    for kind in dict.fromkeys(run["kind"] for run in runs):
        same = [run for run in runs if run["kind"] == kind]
        sizes = summary([{name: run[name] / MIB for name in ("bound", "working")} for run in same])
        for marks in zip(*(run["marks"] for run in same), strict=True):
            growth = summary([{"growth": mark["growth"] / MIB} for mark in marks])["growth"]
            largest = max((mark["largest"] for mark in marks), key=math.prod)
            cells = [spread(value, 1) for value in (growth, sizes["bound"], sizes["working"])]
            rows.append([kind, f"{marks[0]['tokens']:,}", "×".join(map(str, largest)), *cells])
    return markdown(["memory", "after tokens", "largest batch so far", "growth", "bound", "bare forward passes"], rows)


def verdict(runs: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether every run stayed within its bound, and a sentence with the numbers."""
    closest = max(runs, key=lambda run: run["marks"][-1]["growth"] / run["bound"])
    share = closest["marks"][-1]["growth"] / closest["bound"]
    later = max(run["marks"][-1]["growth"] - run["marks"][0]["growth"] for run in runs) / MIB
    first, last = runs[0]["marks"][0]["tokens"], runs[0]["marks"][-1]["tokens"]
    return share <= 1, (
        f"The run closest to its bound took {share:.1%} of it ({closest['kind']}). From {first:,} to {last:,} tokens "
        f"no run grew by more than {later:.1f} MiB; the activations in between take "
        f"{(last - first) * runs[0]['width'] * 4 / MIB:,.0f} MiB."
    )


def main() -> None:
    """Measure in processes of their own, print the table (MiB); exit status 1 when a run is above its bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="world")
    parser.add_argument("--data", nargs="+", default=["world"])
    parser.add_argument("--site", default=None, help="default: resid_post of the middle layer")
    parser.add_argument("--tokens", type=int, nargs="+", default=[300_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind of memory")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--context-length", type=int, default=128)
    parser.add_argument("--harvest-batch-size", type=int, default=64)
    parser.add_argument("--buffer-tokens", type=int, default=65536)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", choices=list(KINDS), default=None, help="one run in this process, as JSON")
    asked = parser.parse_args()
    if asked.one is not None:
        try:
            print(json.dumps(measure(asked)))
        except InputError as e:
            raise SystemExit(f"harvest_memory: {e}") from None
        return
    runs: list[dict[str, Any]] = []
    for kind in KINDS:
        for _ in range(asked.repeats):
            runs.append(in_own_process(kind))
            if asked.out is not None:
                asked.out.write_text(json.dumps(runs, indent=2) + "\n")
    parts = ", ".join(f"{name} {size / MIB:.1f}" for name, size in runs[0]["parts"].items())
    within, sentence = verdict(runs)
    print(f"{table(runs)}\n\nBound of the first run in MiB: {parts}. {sentence}")
    raise SystemExit(0 if within else 1)


if __name__ == "__main__":
    main()
