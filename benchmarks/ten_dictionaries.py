"""Ten dictionaries under core, sparse probing, SCR and TPP: one pass that shares everything against ten plain passes.

    OMP_NUM_THREADS=1 python benchmarks/ten_dictionaries.py
    python benchmarks/ten_dictionaries.py --json --width 4096 --dictionaries runs/first/dictionaries

The plain side (``ten_dictionaries_plain.py``) is SAEBench's algorithm with the same texts, draws and probes: each eval
of each dictionary harvests its texts anew into [text, position, d], encodes token by token, and ablates by decoding.
The sides run one after another in processes of their own, after the same model, texts and dictionaries were loaded;
``difference`` is the largest between any two scores. Seconds of the processor stand beside those of the clock, which
other work on the machine lengthens. Dictionaries are made of sampled activations unless trained ones are named: what
they cost does not depend on how good they are.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ten_dictionaries_plain import MEASURE

from saeworks.activations.texts import open_texts
from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.dictionaries.formats import load
from saeworks.evals import core, scr, sparse_probing, tpp
from saeworks.evals.runner import Data, run_evals
from saeworks.evals.shared.batches import document_batches
from saeworks.evals.shared.pooling import TextPool
from saeworks.models.language_model import LanguageModel, load_language_model
from saeworks.results.tables import markdown
from saeworks.runtime import generator
from saeworks.version import __version__
from saeworks.world import corpus

SITE = "layers.2.resid_post"
SIDES = ("shared", "plain")
CORE = {
    "model_performance_preservation": "ce_loss_score",
    "model_behavior_preservation": "kl_div_score",
    "reconstruction_quality": "explained_variance",
    "sparsity": "l0",
}


def main() -> None:
    """Make dictionaries, run both sides, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10, help="dictionaries")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dictionaries", type=Path, help="a folder of trained ones, instead")
    parser.add_argument("--context-length", type=int, default=32)
    parser.add_argument("--texts", type=int, default=60, help="test texts of SCR and TPP; the others follow")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print("ANSWER " + json.dumps(measured(args.side, args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.dictionaries is None:
            args.dictionaries = Path(folder)
            make_dictionaries(args.dictionaries, args.count, args.width)
        sides = {side: in_own_process(side, args) for side in SIDES}
    report = compared(sides) | {
        "config": {k: str(v) for k, v in vars(args).items() if k not in ("json", "side", "dictionaries")},
        "machine": {
            "cpu": cpu(),
            "threads": torch.get_num_threads(),
            "versions": {"saeworks": __version__, "torch": torch.__version__, "python": platform.python_version()},
        },
    }
    print(json.dumps(report, indent=2) if args.json else table(report))


def make_dictionaries(folder: Path, count: int, width: int) -> None:
    """TopK and JumpReLU dictionaries by turns; their directions are activations of tokens, less the mean."""
    model = load_language_model("world", "cpu")
    documents = corpus.documents(None, "train", count=2 * width)
    with torch.no_grad():
        x = torch.cat(
            [model.harvest(b.tokens, [SITE])[SITE][b.tokens.keep] for b in document_batches(model, documents, 64, 64)]
        )
    mean = x.mean(0)
    for number in range(count):
        k = (8, 16, 24, 32, 48)[number // 2 % 5]
        chosen = torch.randperm(len(x), generator=generator(number, "directions"))[:width]
        rows = torch.nn.functional.normalize(x[chosen] - mean, dim=-1)
        metadata = {"site": SITE, "model_name": "world", "seed": number}
        bias = torch.zeros(width)
        if number % 2 == 0:
            cfg = DictionaryConfig(architecture="topk", d_in=len(mean), d_sae=width, k=k, metadata=metadata)
            made = Dictionary(cfg, rows.T, rows, bias, mean)
        else:
            z = (x[:2000] - mean) @ rows.T
            level = float(z.flatten().kthvalue(z.numel() - k * len(z)).values)
            cfg = DictionaryConfig(architecture="jumprelu", d_in=len(mean), d_sae=width, metadata=metadata)
            made = Dictionary(cfg, rows.T, rows, bias, mean, torch.full((width,), level))
        # One factor on the latents, so that they rebuild the activations as well as that allows.
        rebuilt = made(x[:2000]) - mean
        factor = float((rebuilt * (x[:2000] - mean)).sum() / rebuilt.square().sum())
        threshold = None if made.threshold is None else made.threshold * factor
        made.replace(W_enc=rows.T * factor, threshold=threshold).save(folder / f"{cfg.architecture}_{number}")


def in_own_process(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """What one side measured."""
    given = {"--dictionaries": args.dictionaries, "--context-length": args.context_length, "--texts": args.texts}
    flags = [str(part) for pair in given.items() for part in pair]
    done = subprocess.run([sys.executable, __file__, "--side", side, *flags], stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("ANSWER "):
            return json.loads(line.removeprefix("ANSWER "))
    raise SystemExit(f"The {side} side broke; see above.")


def configs(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the evals; one seed, and SAEBench's numbers of latents."""
    length, texts = args.context_length, args.texts
    removal = {"train_set_size": texts, "test_set_size": texts, "seeds": (0,), "domains": ("biographies",)}
    removal |= {"context_length": length, "resamples": 50}
    return {
        "core": core.Config(tokens=16 * texts, behaviour_tokens=None, context_length=length, resamples=50),
        "sparse_probing": sparse_probing.Config(
            train_texts=4 * texts, test_texts=2 * texts, seeds=(0,), full_seeds=1, context_length=length, resamples=50
        ),
        "scr": scr.Config(**removal),
        "tpp": tpp.Config(**removal),
    }


def measured(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds by the clock and of the processor, eval by eval; peak memory; dictionary → scores."""
    model = load_language_model("world", "cpu")
    dictionaries = {path.name: load(path, "cpu") for path in sorted(args.dictionaries.iterdir())}
    settings = configs(args)
    probing = sparse_probing.world_sets(("biographies",), settings["sparse_probing"])
    data = {
        "core": open_texts(("world",), split="validation"),
        "sparse_probing": probing,
        "scr": scr.default_data(model, settings["scr"]),
        "tpp": tpp.default_data(model, settings["tpp"]),
    }
    for name in dictionaries:
        model.harvest(model.tokenize([name], 8), [SITE])  # whatever is made on first use
    loaded = forget_peak()
    measure = shared if side == "shared" else plain
    with torch.no_grad():
        seconds, scores = measure(model, dictionaries, data, settings)
    return {"seconds": seconds, "peak_mib": peak_mib(), "above_loaded_mib": peak_mib() - loaded, "scores": scores}


def forget_peak() -> float:
    """MiB of memory in use; where the system allows it, the peak is counted from now on."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_mib()


def peak_mib() -> float:
    """The most MiB of memory that this process held."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


Seconds = dict[str, tuple[float, float]]
Scores = dict[str, dict[str, float | None]]


class Stopwatch:
    """Seconds by the clock and of the processor, added up by name."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}
        self._since = self._now()

    def lap(self, name: str) -> None:
        """Add the time since the last lap, or the beginning."""
        now, (clock, processor) = self._now(), self.seconds.get(name, (0.0, 0.0))
        self.seconds[name] = (clock + now[0] - self._since[0], processor + now[1] - self._since[1])
        self._since = now

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def shared(
    model: LanguageModel, dictionaries: Mapping[str, Dictionary], data: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Seconds, Scores]:
    """All dictionaries through every eval, and what is pooled handed on from one to the next."""
    inputs = Data(data["core"], data["sparse_probing"], data)
    watch, pool = Stopwatch(), TextPool()
    scores: Scores = {name: {} for name in dictionaries}
    with tempfile.TemporaryDirectory() as folder:
        for eval_name in settings:
            done = run_evals([eval_name], dictionaries, model, inputs, Path(folder), settings, True, pool)[eval_name]
            watch.lap(eval_name)
            for name, result in done.items():
                metrics = result.eval_result_metrics
                found = {f"{c}.{f}": metrics[c][f] for c, f in CORE.items()} if eval_name == "core" else {}
                wanted = {"sparse_probing": ("llm", "sae"), "scr": ("scr_metrics",), "tpp": ("tpp_metrics",)}
                for category in wanted.get(eval_name, ()):
                    found |= {f"{category}.{field}": value for field, value in metrics[category].items()}
                scores[name] |= {f"{eval_name}.{key.partition('.')[2]}": value for key, value in found.items()}
    return watch.seconds, scores


def plain(
    model: LanguageModel, dictionaries: Mapping[str, Dictionary], data: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Seconds, Scores]:
    """One dictionary after another, one eval after another."""
    watch, scores = Stopwatch(), dict[str, dict[str, float | None]]()
    for name, dictionary in dictionaries.items():
        scores[name] = {}
        for eval_name, config in settings.items():
            found = MEASURE[eval_name](dictionary, model, data[eval_name], config)
            scores[name] |= {f"{eval_name}.{key}": value for key, value in found.items()}
            watch.lap(eval_name)
    return watch.seconds, scores


def compared(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One row per eval and one for all: seconds of both sides, their ratio, the largest difference of a score."""
    ours, theirs = (sides[side] for side in SIDES)
    rows = list[dict[str, Any]]()
    for name in [*ours["seconds"], "all"]:
        row: dict[str, Any] = {"eval": name}
        for side in SIDES:
            seconds = sides[side]["seconds"]
            picked = list(seconds.values()) if name == "all" else [seconds[name]]
            row[f"{side}_s"], row[f"{side}_cpu_s"] = (round(sum(p[i] for p in picked), 2) for i in (0, 1))
        row["faster"] = round(row["plain_s"] / row["shared_s"], 2)
        row["faster_cpu"] = round(row["plain_cpu_s"] / row["shared_cpu_s"], 2)
        pairs = [
            (ours["scores"][d][key], value)
            for d, found in theirs["scores"].items()
            for key, value in found.items()
            if name in ("all", key.partition(".")[0])
        ]
        row["scores"], row["difference"] = len(pairs), max(apart(a, b) for a, b in pairs)
        rows.append(row)
    memory = {side: {key: round(sides[side][key], 1) for key in ("peak_mib", "above_loaded_mib")} for side in SIDES}
    return {"dictionaries": list(theirs["scores"]), "rows": rows, "memory": memory}


def apart(a: float | None, b: float | None) -> float:
    """|a - b|; 0 where neither side has a score, infinite where one has."""
    missing = [value is None or math.isnan(value) for value in (a, b)]
    return (0.0 if all(missing) else math.inf) if any(missing) else abs(float(a or 0.0) - float(b or 0.0))


def table(report: Mapping[str, Any]) -> str:
    """The report for people."""
    memory = report["memory"]
    head = list(report["rows"][0])
    cells = [[f"{row[c]:.1e}" if c == "difference" else str(row[c]) for c in head] for row in report["rows"]]
    lines = [markdown(head, cells), ""]
    for side in SIDES:
        lines.append(f"{side}: peak {memory[side]['peak_mib']} MiB, {memory[side]['above_loaded_mib']} above loaded")
    return "\n".join([*lines, json.dumps(report["config"]), json.dumps(report["machine"])])


def cpu() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


if __name__ == "__main__":
    main()
