"""Loading, encoding and reconstructing with a trained dictionary, side by side with other libraries.

    python benchmarks/inference.py --json
    python benchmarks/inference.py --peer saelens=peers/saelens/bin/python \
        --peer dictionary_learning=peers/dictionary_learning/bin/python --peer sparsify=peers/sparsify/bin/python

``sh benchmarks/peers.sh peers saelens dictionary_learning sparsify`` makes those environments. One dictionary is
written in every library's own format and read there with its own loader, so that all compute the same; the largest
relative difference of reconstructions is printed. Every library runs in a process of its own, the processes take turns,
and medians are compared. ``sparse`` is what ours returns as codes without a matrix of all latents.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from saeworks.dictionaries.config import DictionaryConfig
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.formats import save
from saeworks.results.tables import markdown

CONFIGS = {"S": (512, 8192, 32, 2048), "L": (768, 16384, 64, 4096), "tiny": (24, 320, 4, 96)}
#: Library → the architectures it has.
HAS = {
    "saelens": ("topk", "relu", "jumprelu"),
    "dictionary_learning": ("topk", "relu", "jumprelu"),
    "sparsify": ("topk",),
}
WHAT = ("load", "encode", "sparse", "forward")


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", choices=list(CONFIGS), default="S")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="may be repeated")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    peers = dict(text.split("=", 1) for text in args.peer)
    if unknown := peers.keys() - HAS.keys():
        parser.error(f"--peer knows {', '.join(HAS)}, not {', '.join(sorted(unknown))}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ("topk", "relu", "jumprelu"):
            rows.append(measured(architecture, Path(folder) / architecture, peers, args))
    report = {"rows": rows, "config": args.config, "threads": args.threads, "rounds": args.rounds}
    print(json.dumps(report, indent=2) if args.json else table(rows))


def dictionary(architecture: str, sizes: tuple[int, int, int, int]) -> tuple[Dictionary, torch.Tensor]:
    """A dictionary with unit rows, of whose latents about ``k`` are active per token, and tokens for it."""
    d, width, k, tokens = sizes
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, d, generator=draw)
    rows = torch.nn.functional.normalize(torch.randn(width, d, generator=draw), dim=1)
    z = (x[: max(2**22 // width, 1)] @ rows.T).flatten()
    level = float(z.kthvalue(round(z.numel() * (1 - k / width))).values)
    cfg = DictionaryConfig(architecture=architecture, d_in=d, d_sae=width, k=k if architecture == "topk" else None)
    values = {"W_enc": rows.T.contiguous(), "W_dec": rows, "b_enc": torch.zeros(width), "b_dec": torch.zeros(d)}
    if architecture == "relu":
        values["b_enc"] = values["b_enc"] - level
    if architecture == "jumprelu":
        values["threshold"] = torch.full((width,), level)
    return Dictionary(cfg, **values), x


def measured(architecture: str, folder: Path, peers: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """The row of one architecture."""
    made, x = dictionary(architecture, CONFIGS[args.config])
    folder.mkdir()
    made.save(folder / "ours")
    torch.save(x, folder / "x.pt")
    sides = {"ours": sys.executable}
    for peer, python in peers.items():
        if architecture in HAS[peer]:
            save(made, folder / peer, peer)
            sides[peer] = python
    workers = {name: Worker(python, name, folder, args.threads) for name, python in sides.items()}
    try:
        times: dict[str, dict[str, list[float]]] = {name: {} for name in workers}
        for turn in range(2 + args.rounds):
            for name, worker in workers.items():
                for what in WHAT:
                    seconds = worker.ask(what)
                    if seconds is not None and turn >= 2:
                        times[name].setdefault(what, []).append(seconds)
    finally:
        for worker in workers.values():
            worker.close()
    outputs = {name: torch.load(folder / f"{name}.out.pt", weights_only=True) for name in workers}
    scale = outputs["ours"].abs().max()
    return {
        "architecture": architecture,
        "ms": {name: {what: 1000 * median(v) for what, v in found.items()} for name, found in times.items()},
        "difference": {n: float((out - outputs["ours"]).abs().max() / scale) for n, out in outputs.items()},
    }


class Worker:
    """A library in a process of its own."""

    def __init__(self, python: str, library: str, folder: Path, threads: int) -> None:
        script = str(Path(__file__).parent / "inference_worker.py")
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads)}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, script, library, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def ask(self, what: str) -> float | None:
        """Seconds that it took; None where the library has no such thing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:  # libraries print as well
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        self._log.seek(0)
        raise SystemExit(f"A library could not be run ({' '.join(map(str, self._process.args))}):\n{self._log.read()}")

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of ours, and how many times as long the others take."""
    cells: list[list[str]] = []
    for row in rows:
        ours = row["ms"]["ours"]
        for what in WHAT:
            best = ours["sparse"] if what == "encode" else ours[what]
            others = {n: found[what] / best for n, found in row["ms"].items() if n != "ours" and what in found}
            cells.append(
                [
                    row["architecture"],
                    what,
                    f"{ours[what]:.2f}",
                    *(f"{others[n]:.1f}" if n in others else "–" for n in HAS),
                ]
            )
    differences = {f"{row['architecture']} {n}": v for row in rows for n, v in row["difference"].items() if n != "ours"}
    head = ["architecture", "what", "ours ms", *(f"{name} ÷ ours" for name in HAS)]
    return markdown(head, cells) + "\n\n" + json.dumps({k: f"{v:.0e}" for k, v in differences.items()})


if __name__ == "__main__":
    main()
