"""One training step: the fast path, the dense path and other libraries, side by side on the same data.

    python benchmarks/train_step.py --config S --json
    python benchmarks/train_step.py --config L --peer saelens=peers/saelens/bin/python \
        --peer dictionary_learning=peers/dictionary_learning/bin/python --peer sparsify=peers/sparsify/bin/python

``sh benchmarks/peers.sh peers saelens dictionary_learning sparsify`` makes those environments. Every library runs in a
process of its own and starts from the same weights; the processes take turns, one step each, and medians are compared.
``encoder_products`` is the step's time over that of the bare product with the encoder by the fastest matrix library,
measured in the same turns. Against another library, ours computes exactly what it computes. ``loss_difference`` is the
largest relative difference of any step's loss, to the dense path and to every library with the same mathematics.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from saeworks.dictionaries.kernels.product import libraries, speeds
from saeworks.results.tables import markdown
from saeworks.training.recipes import RECIPES
from saeworks.version import __version__

CONFIGS = {
    "S": {"d": 512, "width": 8192, "k": 32, "batch": 2048},
    "L": {"d": 768, "width": 16384, "k": 64, "batch": 4096},
    "tiny": {"d": 24, "width": 320, "k": 4, "batch": 96},
}
BATCHES, WARM_UP = 4, 2
# Recipes that other libraries have as well.
SHARED = {
    "dictionary_learning": (
        "topk",
        "batch_topk",
        "matryoshka_batch_topk",
        "relu",
        "relu_april",
        "gated",
        "jumprelu",
        "p_anneal",
    ),
    "saelens": ("topk", "batch_topk", "matryoshka_batch_topk", "relu", "gated", "jumprelu"),
    "sparsify": ("topk", "groupmax"),
}
# It lets the reconstruction by the gate train the decoder, which the paper holds still: same cost, other losses.
DIFFERENT = {("saelens", "gated")}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", choices=list(CONFIGS), default="S")
    parser.add_argument("--batch", type=int, help="tokens per step, where memory is too short for those of --config")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-dense", action="store_true", help="leave out the dense path")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    peers = dict(text.split("=", 1) for text in args.peer)
    if unknown := peers.keys() - SHARED.keys():
        parser.error(f"--peer knows {', '.join(SHARED)}, not {', '.join(sorted(unknown))}")
    config = {**CONFIGS[args.config], **({"batch": args.batch} if args.batch else {})}
    before = load()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(first_state(config), Path(folder) / "start.pt")
        rows = [measured(recipe, Path(folder), peers, args) for recipe in args.recipes]
    torch.set_num_threads(args.threads)
    report = {
        "rows": [row for row, _ in rows],
        "config": {"name": args.config, **config, "rounds": args.rounds},
        "machine": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "threads": args.threads,
            "load": [before, load()],
            "gflops": {name: round(value) for name, value in speeds().items()},
            "matrix_libraries": libraries(),
            "python": platform.python_version(),
            "versions": {"saeworks": __version__, "torch": torch.__version__}
            | {k: v for _, found in rows for k, v in found.items()},
        },
    }
    print(json.dumps(report, indent=2) if args.json else table(report))


def first_state(config: dict[str, int]) -> dict[str, Any]:
    """What everyone starts from: sparse sums of fixed directions as activations, random unit rows as weights.

    ``level`` is what k pre-activations per token exceed, for the recipes without a k.
    """
    d, width, k, batch = config["d"], config["width"], config["k"], config["batch"]
    draw = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4 * d, d, generator=draw), dim=1)
    batches: list[torch.Tensor] = []
    for _ in range(BATCHES):
        chance = torch.rand(batch, 4 * d, generator=draw)
        x = (chance < 16 / (4 * d)) * torch.rand(batch, 4 * d, generator=draw) @ directions
        batches.append(x / x.square().sum(dim=1).mean().sqrt())
    encoder = torch.nn.functional.normalize(torch.randn(width, d, generator=draw), dim=1)
    b_dec = batches[0].mean(dim=0)
    some = batches[0][: max(2**22 // width, 1)]

    def level(rows: torch.Tensor) -> float:
        z = (rows @ encoder.T).flatten()
        return float(z.kthvalue(z.numel() - round(k * len(rows))).values)

    return {
        "config": config,
        "x": batches,
        "encoder": encoder,
        "b_dec": b_dec,
        "level": level(some - b_dec),
        "level_without_pre_bias": level(some),
    }


def measured(
    recipe: str, folder: Path, peers: dict[str, str], args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, str]]:
    """The row of a recipe, and the versions of the libraries it was compared with."""
    own, versions = [sys.executable, "ours"], {}
    sides = {"ours": own} if args.no_dense else {"ours": own, "dense": [sys.executable, "dense"]}
    with running(recipe, folder, args.threads, sides) as workers:
        times, losses = turns(workers, args.rounds, with_encoder=True)
        peaks = {name: worker.ask("peak")["peak_mb"] for name, worker in workers.items()}
        facts = workers["ours"].ask("some_dead")
        worker = workers["ours"]
        with_dead = [worker.ask("step")["seconds"] for _ in range(args.rounds)]
        facts |= worker.ask("facts")
    encoder = min(median(times[name]) for name in ("blas", "onednn") if name in times)
    ratios, differences = compare(times, losses, "ours", [name for name in sides if name != "ours"])
    for peer, python in peers.items():
        if recipe in SHARED[peer]:
            with running(recipe, folder, args.threads, {"ours": [*own, peer], peer: [python, peer]}) as workers:
                times_beside, losses = turns(workers, args.rounds)
                peaks[peer] = workers[peer].ask("peak")["peak_mb"]
                versions |= {workers[peer].about["library"]: workers[peer].about["version"]}
            ratio, difference = compare(times_beside, losses, "ours", [peer])
            ratios |= ratio
            differences |= difference if (peer, recipe) not in DIFFERENT else {peer: None}
    milliseconds = [1000 * t for t in times["ours"]]
    known = [value for value in differences.values() if value is not None]
    row = {
        "recipe": recipe,
        "encoder_products": median(times["ours"]) / encoder,
        "encoder_products_with_dead": median(with_dead) / encoder,
        "dense_products": facts["dense_products"],
        "density": facts["density"],
        "ms": median(milliseconds),
        "ms_range": [min(milliseconds), max(milliseconds)],
        "encoder_ms": 1000 * encoder,
        "peak_mb": peaks["ours"],
        "peaks_mb": peaks,
        "loss_difference": max(known) if known else None,
        "loss_differences": differences,
        "vs": ratios,
    }
    return row, versions


class Worker:
    """A library in a process of its own."""

    def __init__(self, command: Sequence[str], recipe: str, folder: Path, threads: int) -> None:
        python, library, *like = command
        here = Path(__file__).parent
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads)}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, str(here / "train_step_worker.py"), library, recipe, str(folder), str(threads), *like],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.about = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        """The answer to a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # libraries print as well
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        self._log.seek(0)
        raise SystemExit(f"A library could not be run ({' '.join(map(str, self._process.args))}):\n{self._log.read()}")


@contextmanager
def running(recipe: str, folder: Path, threads: int, sides: dict[str, list[str]]) -> Generator[dict[str, Worker]]:
    """The workers of one comparison."""
    workers: dict[str, Worker] = {}
    try:
        for name, command in sides.items():
            workers[name] = Worker(command, recipe, folder, threads)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def turns(
    workers: dict[str, Worker], rounds: int, with_encoder: bool = False
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and losses of every worker's steps, taken in turns; losses include the steps of the warm-up."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    losses: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(WARM_UP + rounds):
        for name, worker in workers.items():
            done = worker.ask("step")
            losses[name].append(done["loss"])
            if turn >= WARM_UP:
                times[name].append(done["seconds"])
        if with_encoder:
            for library, seconds in workers["ours"].ask("encoder").items():
                if turn >= WARM_UP:
                    times.setdefault(library, []).append(seconds)
    return times, losses


def compare(
    times: dict[str, list[float]], losses: dict[str, list[float]], own: str, others: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """How many times as long each of the others takes, and the largest relative difference of the losses."""
    ratios = {name: median(times[name]) / median(times[own]) for name in others}
    pairs = {name: list(zip(losses[name], losses[own], strict=True)) for name in others}
    return ratios, {name: max(abs(a - b) / abs(a) for a, b in both) for name, both in pairs.items()}


def cpu() -> str:
    """The processor's name."""
    try:
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor()


def load() -> float | None:
    """Mean number of processes that wanted a core in the last minute."""
    try:
        return round(os.getloadavg()[0], 1)
    except OSError:
        return None


def table(report: dict[str, Any]) -> str:
    """The rows as Markdown."""
    others = sorted({name for row in report["rows"] for name in row["vs"]})
    head = [
        "recipe",
        "ms",
        "encoder products",
        "with dead",
        "peak MB",
        "loss difference",
        *(f"{n} ÷ ours" for n in others),
    ]
    cells = [
        [
            row["recipe"],
            f"{row['ms']:.0f} ({row['ms_range'][0]:.0f}–{row['ms_range'][1]:.0f})",
            f"{row['encoder_products']:.2f}",
            f"{row['encoder_products_with_dead']:.2f}",
            f"{row['peak_mb']:.0f}",
            f"{row['loss_difference']:.0e}" if row["loss_difference"] is not None else "–",
            *(f"{row['vs'][name]:.1f}" if name in row["vs"] else "–" for name in others),
        ]
        for row in report["rows"]
    ]
    facts = {key: value for key, value in report.items() if key != "rows"}
    return markdown(head, cells) + "\n\n" + json.dumps(facts)


if __name__ == "__main__":
    main()
