"""The three recipes side by side on the embedded world: every seed of every recipe on one stream, in one run.

    python benchmarks/recipes.py --out runs/recipes

Trains ``recipes × k × seeds`` dictionaries in one pass, measures them on held-out texts, and prints one row per recipe
and k: mean over the seeds and, in brackets, the smallest and largest value. What it shows: BatchTopK against TopK at
equal L0 (arXiv 2412.06410), and Matryoshka against BatchTopK on the taxonomy, whose parents and children are known
(arXiv 2503.17547).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from saeworks.activations.streams import LiveStream
from saeworks.activations.texts import open_texts
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.evals import core, latents
from saeworks.models.language_model import load_language_model
from saeworks.results.envelope import Result
from saeworks.results.tables import markdown, spread, summary
from saeworks.training.member import MemberConfig
from saeworks.training.recipes import recipe
from saeworks.training.schedules import default_learning_rate
from saeworks.training.trainer import Trainer, TrainerConfig
from saeworks.version import __version__

NAMES = ("topk", "batch_topk", "matryoshka_batch_topk")
COLUMNS = {
    "l0": "L0",
    "explained_variance": "explained variance",
    "ce_loss_score": "CE score",
    "parent_f1": "parent F1",
    "inner_parents": "parents in inner half",
    "child_recall": "child recall",
    "holes": "holes",
    "absorbed": "absorbed",
    "latents_per_parent": "latents per parent",
}


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--site", default="layers.2.resid_post")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, help="default: that of the width and the number of steps")
    parser.add_argument("--eval-tokens", type=int, default=65_536)
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    args = parser.parse_args()
    started = time.monotonic()
    model = load_language_model("world", device="cpu")
    dictionaries = train(args, model)
    trained = time.monotonic()
    source = open_texts(["world"], split="validation")
    by_core = core.run(dictionaries, model, source, core.Config(tokens=args.eval_tokens, site=args.site))
    config = latents.Config(tokens=args.eval_tokens, site=args.site, show=0)
    by_latents = latents.run(dictionaries, model, source, config)
    groups: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    for name, dictionary in dictionaries.items():
        metadata = dictionary.cfg.metadata
        groups[metadata["recipe"], metadata["k"]].append(measures(dictionary, by_core[name], by_latents[name]))
    rows = [{"recipe": r, "k": k, "seeds": len(values)} | summary(values) for (r, k), values in groups.items()]
    report = {
        "rows": rows,
        "settings": {key: str(value) for key, value in vars(args).items()},
        "seconds": {"training": round(trained - started, 1), "measuring": round(time.monotonic() - trained, 1)},
        "machine": {
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "saeworks": __version__,
    }
    (args.out / "recipes.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2) if args.json else table(rows))


def train(args: argparse.Namespace, model: Any) -> dict[str, Dictionary]:
    """All dictionaries of the grid in one pass over the world's training texts."""
    stream = LiveStream(model, open_texts(["world"]), args.site, buffer_tokens=64 * args.batch_size)
    config = TrainerConfig(tokens=args.tokens, batch_size=args.batch_size)
    rate = args.learning_rate or default_learning_rate(args.width, config.steps)
    members = [
        MemberConfig(recipe(name), args.width, k, seed, rate)
        for name in NAMES
        for k in args.k
        for seed in range(args.seeds)
    ]
    return Trainer(stream, members, config, args.out).run(resume=True)


def measures(dictionary: Dictionary, by_core: Result, by_latents: Result) -> dict[str, float]:
    """What one dictionary scores. ``inner_parents``: share of taxonomy parents whose best latent lies in the first
    half of the latents (for a nested dictionary: in an inner prefix)."""
    hierarchy = by_latents.eval_result_unstructured["hierarchy"]
    half = dictionary.cfg.d_sae // 2
    values = {
        "l0": by_core.metric("sparsity", "l0"),
        "explained_variance": by_core.metric("reconstruction_quality", "explained_variance"),
        "ce_loss_score": by_core.metric("model_performance_preservation", "ce_loss_score"),
        "parent_f1": by_latents.metric("hierarchy", "mean_parent_f1"),
        "inner_parents": sum(row["latent"] < half for row in hierarchy) / len(hierarchy),
        "child_recall": by_latents.metric("hierarchy", "mean_child_recall"),
        "holes": by_latents.metric("hierarchy", "hole_rate"),
        "absorbed": by_latents.metric("hierarchy", "absorbed_rate"),
        "latents_per_parent": by_latents.metric("hierarchy", "mean_latents_per_parent"),
    }
    return {key: float(value) for key, value in values.items() if value is not None}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    cells = [[row["recipe"], f"{row['k']:g}", *(spread(row[column]) for column in COLUMNS)] for row in rows]
    return markdown(["recipe", "k", *COLUMNS.values()], cells)


if __name__ == "__main__":
    main()
