"""What the recipes find where the truth is known: independent synthetic features.

    python benchmarks/known_features.py --out runs/known_features

64 directions in 32 dimensions, each active in 4 % of the samples, which is 2.56 at a time; 96 latents. Every recipe
that reconstructs one site is trained: those with a k or an L0 to aim at with 3, the others with a coefficient that
gives an L0 near 3 (published ones are for language models and leave many more latents active here). Latents and
features are matched one to one (Hungarian assignment on cosines): mean cosine of the pairs, and the share of features
whose latent points along with a cosine of at least 0.95. The toy tree is a paper of its own: ``saeworks papers
matryoshka``.

Each dictionary is trained on its own, on the same samples as all others, and writes one JSON file below ``--out``; a
run that was stopped goes on with those that are missing, and one whose recipe has changed is trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saeworks.activations.streams import SyntheticStream
from saeworks.files import read_json, sha256_json, write_json
from saeworks.results.tables import markdown, spread, summary
from saeworks.runtime import generator
from saeworks.training.member import MemberConfig
from saeworks.training.recipes import RECIPES, Recipe
from saeworks.training.trainer import Trainer, TrainerConfig
from saeworks.world.synthetic import IndependentFeatures, match_features

STREAM_SEED = 3
SAMPLE = 20_000
BATCH = 512
FEATURES = IndependentFeatures(64, 32, probability=0.04, magnitude_spread=0.5, seed=0)
COEFFICIENTS = {"relu": 0.55, "relu_april": 0.5, "gated": 0.4, "p_anneal": 0.15}
COMPARED: dict[str, Recipe] = {name: kind for name, kind in RECIPES.items() if kind.inputs == "same"}


@dataclass(frozen=True)
class Cell:
    """One dictionary. ``sparsity`` is what the recipe says it is: a k, a mean L0 to aim at, or a coefficient."""

    recipe: str
    sparsity: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.recipe}_s{self.seed}_n{self.steps}"


def run(cell: Cell) -> dict[str, float]:
    """Train the dictionary of a cell, in a directory that is thrown away, and measure it."""
    member = MemberConfig(COMPARED[cell.recipe], 96, cell.sparsity, cell.seed, 1e-2)
    config = TrainerConfig(BATCH * cell.steps, BATCH, checkpoint_seconds=1e9, log_every=1000)
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(SyntheticStream(FEATURES, STREAM_SEED), [member], config, Path(directory))
        dictionary = trainer.run()[member.name]
    matching = match_features(dictionary.W_dec, FEATURES.directions)
    measured = dictionary.verify(FEATURES.sample(SAMPLE, generator(9)).activations)["measured"]
    return {
        "mean cosine": matching.mean_cosine,
        "recovered": float((matching.cosines >= 0.95).double().mean()),
        "L0": float(measured["l0"]),
        "explained variance": float(measured["explained_variance"]),
    }


def main() -> None:
    """Train and measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/known_features"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the weights")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--json", action="store_true", help="print the dictionaries as JSON")
    asked = parser.parse_args()
    cells = [
        Cell(name, COEFFICIENTS.get(name, 3), seed, asked.steps) for name in COMPARED for seed in range(asked.seeds)
    ]
    measured: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number, cell in enumerate(cells, 1):
        file = asked.out / f"{cell.name}.json"
        done: dict[str, Any] = read_json(file) if file.is_file() else {}
        settings = sha256_json([asdict(cell), asdict(COMPARED[cell.recipe]), asdict(FEATURES)])
        if done.get("settings") != settings:
            done = {"cell": asdict(cell), "settings": settings, "measured": run(cell)}
            write_json(file, done)
            print(f"{number} of {len(cells)}: {cell.name}", file=sys.stderr)
        measured[cell.recipe].append(done["measured"])
    if asked.json:
        print(json.dumps(measured, indent=2))
        return
    columns = list(next(iter(measured.values()))[0])
    rows: list[list[str]] = []
    for name, values in measured.items():
        spreads = summary(values)
        rows.append([name, *(spread(spreads[column]) for column in columns)])
    print(markdown(["recipe", *columns], rows))


if __name__ == "__main__":
    main()
