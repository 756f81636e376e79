"""How fast activations are harvested, against the bare forward pass of the same batches.

    python benchmarks/harvest.py                                # one million tokens of the embedded model
    python benchmarks/harvest.py --model DIR --data FILE --site layers.6.resid_post --out harvest.json

Method. A ``LiveStream`` hands out batches of shuffled rows; the token batches it sent through the model are recorded.
Then the same token batches go through the bare model: its layers cut off behind the site, no hooks, nothing kept.
Stream and bare pass take turns, round by round, in one process; the ratio of each round is taken on its own batches,
and medians over rounds are reported. Tokens are kept rows: no padding, no special tokens. The first round, in which
the buffer fills and everything warms up, is not counted. Bare passes get their tokens ready made, the stream reads
and tokenises text, and mixes rows: the ratio is what all of that costs.

On a shared machine compare processor seconds (``cpu_time_ratio_to_bare_forward``), which do not count waiting.
``harvest_memory.py`` measures the memory that harvesting holds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from saeworks.activations.streams import LiveStream
from saeworks.activations.texts import open_texts
from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel, load_language_model
from saeworks.models.tokens import TokenBatch


@dataclass
class Clock:
    """Seconds per part of the work, and the token batches that went through the model."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    batches: list[TokenBatch] = field(default_factory=list[TokenBatch])

    def time(self, owner: Any, method: str, part: str, device: torch.device) -> None:
        """Replace a method of an object by one that is timed (and, for ``harvest``, recorded)."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            wait_for(device)
            start = time.perf_counter()
            result = original(*args, **kwargs)
            wait_for(device)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
            if method == "harvest":
                self.batches.append(args[0])
            return result

        setattr(owner, method, timed)


def wait_for(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def cut_off_behind(model: LanguageModel, site: str) -> Generator[Callable[[TokenBatch], None]]:
    """A function that runs the bare model up to and including the layer of ``site``."""
    place = model.site(site)
    if place.layer < 0:
        raise InputError(f"Site '{site}' lies in no layer; the bare pass can only be cut off behind a layer.")
    path = place.module.split(".")
    modules = dict(model.module.named_modules())
    at = next(i for i in range(len(path), 0, -1) if isinstance(modules.get(".".join(path[:i])), nn.ModuleList))
    layers: nn.ModuleList = modules[".".join(path[:at])]  # type: ignore[assignment]
    parent, name = modules[".".join(path[: at - 1])], path[at - 1]
    config = model.module.config.get_text_config()
    count = config.num_hidden_layers
    setattr(parent, name, layers[: place.layer + 1])
    config.num_hidden_layers = place.layer + 1
    options = {"use_cache": False} if model.is_causal else {}

    def run(batch: TokenBatch) -> None:
        with torch.no_grad():
            moved = batch.to(model.device)
            model.module.base_model(input_ids=moved.token_ids, attention_mask=moved.attention_mask.long(), **options)

    try:
        yield run
    finally:
        setattr(parent, name, layers)
        config.num_hidden_layers = count


def median_and_spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest value."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark; see the top of this file."""
    model = load_language_model(asked.model, device=asked.device, dtype=asked.dtype)
    site = model.site(asked.site or f"layers.{(model.n_layers - 1) // 2}.resid_post")
    source = open_texts(asked.data)
    rounds: list[dict[str, float]] = []
    # A refill takes in half a buffer at once; shorter rounds would see none, or one of their neighbour's.
    per_round = max(asked.tokens // asked.rounds, asked.buffer_tokens)
    stream = LiveStream(model, source, site.name, asked.context_length, asked.buffer_tokens, asked.harvest_batch_size)
    clock = Clock()
    clock.time(model, "harvest", "model", model.device)
    for method in ("push", "shuffle", "pop"):
        clock.time(stream._buffer, method, "buffer", model.device)  # pyright: ignore[reportPrivateUsage]
    for _ in range(asked.rounds + 1):
        clock.seconds, clock.batches = {}, []
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(-(-per_round // asked.batch)):
            stream.next_batch(asked.batch)
        wait_for(model.device)
        whole, cpu_whole = time.perf_counter() - start, time.process_time() - cpu
        with cut_off_behind(model, site.name) as run:
            start, cpu = time.perf_counter(), time.process_time()
            for batch in clock.batches:
                run(batch)
            wait_for(model.device)
            bare, cpu_bare = time.perf_counter() - start, time.process_time() - cpu
        kept = sum(int(batch.keep.sum()) for batch in clock.batches)
        padding = sum(int((~batch.attention_mask).sum()) for batch in clock.batches)
        cells = sum(batch.token_ids.numel() for batch in clock.batches)
        entry = {"tokens": kept, "stream": whole, "bare": bare, "padding": padding / cells, **clock.seconds}
        rounds.append({**entry, "cpu_ratio": cpu_whole / cpu_bare})
    counted = rounds[1:]

    return {
        "benchmark": "harvest",
        "model": asked.model,
        "layers": model.n_layers,
        "d_model": model.d_model,
        "site": site.name,
        "data": source.name,
        "tokens": int(sum(entry["tokens"] for entry in counted)),
        "context_length": asked.context_length,
        "harvest_batch_size": asked.harvest_batch_size,
        "batch": asked.batch,
        "rounds": asked.rounds,
        "time_ratio_to_bare_forward": median_and_spread([entry["stream"] / entry["bare"] for entry in counted]),
        "cpu_time_ratio_to_bare_forward": median_and_spread([entry["cpu_ratio"] for entry in counted]),
        "stream_tokens_per_second": median_and_spread([entry["tokens"] / entry["stream"] for entry in counted]),
        "bare_forward_tokens_per_second": median_and_spread([entry["tokens"] / entry["bare"] for entry in counted]),
        "share_of_time": {
            "model": statistics.median(entry["model"] / entry["stream"] for entry in counted),
            "buffer": statistics.median(entry["buffer"] / entry["stream"] for entry in counted),
            "other": statistics.median(1 - (entry["model"] + entry["buffer"]) / entry["stream"] for entry in counted),
        },
        "padding_share_of_positions": statistics.median(entry["padding"] for entry in counted),
        "machine": {
            "device": str(model.device),
            "dtype": asked.dtype,
            "processor": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def main() -> None:
    """Parse, measure, print JSON to standard output and a summary to standard error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="world")
    parser.add_argument("--data", nargs="+", default=["world"])
    parser.add_argument("--site", default=None, help="default: resid_post of the middle layer")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="in all; a round takes a buffer's worth at least")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--context-length", type=int, default=128)
    parser.add_argument("--harvest-batch-size", type=int, default=64)
    parser.add_argument("--buffer-tokens", type=int, default=65536)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    try:
        result = measure(asked)
    except InputError as e:
        raise SystemExit(f"harvest: {e}") from None
    text = json.dumps(result, indent=2)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n")
    ratio, share = result["time_ratio_to_bare_forward"], result["share_of_time"]
    print(
        f"{result['stream_tokens_per_second']['median']:,.0f} tokens/s through the stream, "
        f"{result['bare_forward_tokens_per_second']['median']:,.0f} through the bare forward pass: "
        f"time ratio {ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['greatest']:.3f}), "
        f"processor time ratio {result['cpu_time_ratio_to_bare_forward']['median']:.3f}; "
        f"buffer {share['buffer']:.1%} of the time.",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
