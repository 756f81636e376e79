"""Whether the memory of a training run grows with its tokens: fifty million synthetic activations, several recipes.

    python benchmarks/long_run.py
    python benchmarks/long_run.py --tokens 100_000_000 --recipes batch_topk --json

Independent features (256 in 64 dimensions); every recipe trains 512 latents on the same stream, with checkpoints and a
log as in any run. The process's resident memory is read whenever another fiftieth of the tokens has passed.
``growth_mb`` is the median of the last ten readings minus the median of the ten after the first fifth of the run, by
which time every buffer has been filled once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from saeworks.activations.streams import SyntheticStream
from saeworks.results.tables import markdown
from saeworks.training.member import MemberConfig
from saeworks.training.recipes import recipe
from saeworks.training.trainer import Trainer, TrainerConfig
from saeworks.world.synthetic import IndependentFeatures

READINGS, BATCH, WIDTH = 50, 4096, 512
COEFFICIENT = 0.05


def main() -> None:
    """Train, read the memory, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--recipes", nargs="+", default=["batch_topk", "jumprelu"], metavar="RECIPE")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("resident memory is read from /proc, which this system lacks")
    report = measure(args.tokens, args.recipes)
    if args.json:
        print(json.dumps(report))
        return
    rows = [[f"{tokens / 1e6:.0f} M", f"{mb:.0f}"] for tokens, mb in report["readings"][:: READINGS // 10]]
    print(markdown(["tokens", "resident MiB"], rows))
    print(f"\n{report['tokens']:,} tokens in {report['seconds']:.0f} s; growth {report['growth_mb']:+.1f} MiB")


def measure(tokens: int, names: list[str]) -> dict[str, Any]:
    """The readings of one run of all the recipes, and what they come to."""
    features = IndependentFeatures(256, 64, probability=0.02, seed=0)
    members = []
    for name in names:
        chosen = recipe(name)
        sparsity = COEFFICIENT if chosen.sparsity == "coefficient" else 8
        members.append(MemberConfig(chosen, WIDTH, sparsity, 0, 1e-3))
    config = TrainerConfig(tokens, BATCH, log_every=100)
    readings: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(SyntheticStream(features, 0), members, config, Path(directory))
        step, every = trainer._step, max(config.steps // READINGS, 1)

        def read(batch: Any) -> Any:
            if trainer.state.step and trainer.state.step % every == 0:
                readings.append((trainer.state.step * BATCH, resident()))
                sys.stderr.write(f"{readings[-1][0]:,} tokens: {readings[-1][1]:.0f} MiB\n")
            return step(batch)

        trainer._step = read
        started = time.monotonic()
        trainer.run()
        seconds = time.monotonic() - started
    fifth = len(readings) // 5
    early, late = (median(mb for _, mb in part) for part in (readings[fifth : 2 * fifth], readings[-fifth:]))
    return {
        "recipes": names,
        "tokens": config.steps * BATCH,
        "seconds": round(seconds, 1),
        "readings": readings,
        "growth_mb": round(late - early, 2),
    }


def resident() -> float:
    """MiB of memory that the system has given to this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


if __name__ == "__main__":
    main()
