"""What the recipes find where the truth is known: independent features, and the toy tree of arXiv 2503.17547.

    python benchmarks/known_features.py --out runs/known_features

Synthetic activations, made of directions that are known, so that every latent can be compared with the truth.

* **Independent features**: 64 directions in 32 dimensions, each active in 4 % of the samples, which is 2.56 at a time;
  96 latents. Every recipe that reconstructs one site is trained: those with a k or an L0 to aim at with 3, the others
  with a coefficient that gives an L0 near 3 (published ones are for language models and leave many more latents
  active here). Latents and features are matched one to one (Hungarian assignment on cosines): mean cosine of the
  pairs, and the share of features whose latent points along with a cosine of at least 0.95.
* **Trees**: three parents with three exclusive children each, and eight leaves, 20 latents. Absorption is the share of
  samples with an active child in which its parent's latent is silent. ``--trees`` numbers the directions: every number
  is a tree of the same shape with other directions and norms. Matryoshka has groups of 3, 3, 5 and 9 latents; it is
  also trained without the auxiliary term for dead latents, and without gradient clipping.

A cell is one dictionary: features, recipe, seed of the weights. Each is trained on its own, on the same samples as its
neighbours, and writes one JSON file below ``--out``; a run that was stopped goes on with the cells that are missing,
and a cell whose recipe has changed is trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saeworks.activations.streams import SyntheticStream
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.files import read_json, sha256_json, write_json
from saeworks.results.tables import markdown, spread, summary
from saeworks.runtime import generator
from saeworks.training.member import MemberConfig
from saeworks.training.recipes import RECIPES, Recipe, recipe
from saeworks.training.trainer import Trainer, TrainerConfig
from saeworks.world.synthetic import (
    IndependentFeatures,
    TreeFeatures,
    match_by_activity,
    match_features,
    measure_absorption,
)

STREAM_SEED = 3
SAMPLE = 20_000
COEFFICIENTS = {"relu": 0.55, "relu_april": 0.5, "gated": 0.4, "p_anneal": 0.15}
TREE_GROUPS = (3 / 20, 3 / 20, 5 / 20, 9 / 20)


@dataclass(frozen=True)
class Cell:
    """One dictionary. ``features`` is ``independent`` or ``tree``; ``directions`` the seed of the directions.

    ``sparsity`` is what the recipe says it is: a k, a mean L0 to aim at, or a coefficient.
    """

    features: str
    directions: int
    recipe: str
    sparsity: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.features}{self.directions}_{self.recipe.replace(' ', '-')}_s{self.seed}_n{self.steps}"


def recipes_of(features: str) -> dict[str, Recipe]:
    """The recipes compared on one kind of features, by the name they have in the table."""
    if features == "independent":
        return {name: kind for name, kind in RECIPES.items() if kind.inputs == "same"}
    nested = "matryoshka_batch_topk"
    return {
        "batch_topk": recipe("batch_topk"),
        nested: recipe(nested, group_fractions=TREE_GROUPS),
        f"{nested} no AuxK": recipe(nested, group_fractions=TREE_GROUPS, aux_k=None),
        f"{nested} no clipping": recipe(nested, group_fractions=TREE_GROUPS, clip_norm=None),
    }


def cells_of(asked: argparse.Namespace) -> list[Cell]:
    """All cells, in the order in which they are trained."""
    grid = [("independent", number, asked.independent_steps) for number in range(asked.independent)]
    grid += [("tree", number, asked.tree_steps) for number in range(asked.trees)]
    return [
        Cell(features, number, name, sparsity_of(features, name, number), seed, steps)
        for features, number, steps in grid
        for name in recipes_of(features)
        for seed in range(asked.seeds)
    ]


def sparsity_of(features: str, name: str, directions: int) -> float:
    """What every recipe is given on one kind of features."""
    return TreeFeatures(seed=directions).expected_l0 if features == "tree" else COEFFICIENTS.get(name, 3)


def run(cell: Cell) -> dict[str, float]:
    """Train the dictionary of a cell and measure it."""
    kind = recipes_of(cell.features)[cell.recipe]
    if cell.features == "independent":
        features = IndependentFeatures(64, 32, probability=0.04, magnitude_spread=0.5, seed=cell.directions)
        member = MemberConfig(kind, 96, cell.sparsity, cell.seed, 1e-2)
        return measure_independent(features, train(features, member, 512, cell))
    tree = TreeFeatures(seed=cell.directions)
    return measure_tree(tree, train(tree, MemberConfig(kind, 20, cell.sparsity, cell.seed, 3e-3), 500, cell))


def train(
    features: IndependentFeatures | TreeFeatures, member: MemberConfig, batch_size: int, cell: Cell
) -> Dictionary:
    """One dictionary, in a directory that is thrown away."""
    config = TrainerConfig(batch_size * cell.steps, batch_size, checkpoint_seconds=1e9, log_every=1000)
    with tempfile.TemporaryDirectory() as directory:
        done = Trainer(SyntheticStream(features, STREAM_SEED), [member], config, Path(directory)).run()
        return done[member.name]


def measure_independent(features: IndependentFeatures, dictionary: Dictionary) -> dict[str, float]:
    """Cosines of the matching, and what the dictionary costs and explains."""
    matching = match_features(dictionary.W_dec, features.directions)
    activations = features.sample(SAMPLE, generator(9)).activations
    return {
        "mean cosine": matching.mean_cosine,
        "recovered": float((matching.cosines >= 0.95).double().mean()),
        **fidelity(dictionary, activations),
    }


def measure_tree(tree: TreeFeatures, dictionary: Dictionary) -> dict[str, float]:
    """Absorption and its controls."""
    sample = tree.sample(SAMPLE, generator(9))
    latents = dictionary.encode(sample.activations)
    matching = match_by_activity(latents, sample.codes, dictionary.W_dec, tree.directions)
    measured = measure_absorption(tree, latents, sample.codes, dictionary.W_dec, matching)
    parents = [float(matching.cosines[matching.features == parent]) for parent in tree.parents]
    return {
        "absorption": measured.absorption,
        "fires for parent alone": measured.alone,
        "parent in children": measured.parent_content,
        "parent cosine": sum(parents) / len(parents),
        **fidelity(dictionary, sample.activations),
    }


def fidelity(dictionary: Dictionary, activations: Any) -> dict[str, float]:
    """Mean latents per sample and explained variance on ``activations [sample, d]``."""
    measured = dictionary.verify(activations)["measured"]
    return {"L0": float(measured["l0"]), "explained variance": float(measured["explained_variance"])}


def table(cells: Sequence[Cell], measured: Sequence[dict[str, float]], features: str) -> str:
    """One row per recipe and set of directions, and for trees one over all of them."""
    groups: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for cell, values in zip(cells, measured, strict=True):
        if cell.features == features:
            groups[cell.recipe, str(cell.directions)].append(values)
            groups[cell.recipe, "all"].append(values)
    if not groups:
        return ""
    several = len({directions for _, directions in groups}) > 2
    columns = list(next(iter(groups.values()))[0])
    rows: list[list[str]] = []
    for name in recipes_of(features):
        # Of one set of directions a row over all sets would repeat what stands there.
        for directions in [d for n, d in groups if n == name and d != "all"] + ["all"] * several:
            values = groups[name, directions]
            spreads = summary(values)
            rows.append([name, directions, str(len(values)), *(spread(spreads[column]) for column in columns)])
    return markdown(["recipe", features, "dictionaries", *columns], rows)


def main() -> None:
    """Train and measure what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/known_features"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the weights")
    parser.add_argument("--independent", type=int, default=1, help="sets of independent directions")
    parser.add_argument("--trees", type=int, default=4)
    parser.add_argument("--independent-steps", type=int, default=1500)
    parser.add_argument("--tree-steps", type=int, default=4000)
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")
    asked = parser.parse_args()
    cells = cells_of(asked)
    measured: list[dict[str, float]] = []
    for number, cell in enumerate(cells, 1):
        file = asked.out / f"{cell.name}.json"
        done: dict[str, Any] = read_json(file) if file.is_file() else {}
        settings = sha256_json([asdict(cell), asdict(recipes_of(cell.features)[cell.recipe])])
        if done.get("settings") != settings:
            done = {"cell": asdict(cell), "settings": settings, "measured": run(cell)}
            write_json(file, done)
            print(f"{number} of {len(cells)}: {cell.name}", file=sys.stderr)
        measured.append(done["measured"])
    if asked.json:
        print(json.dumps([asdict(c) | m for c, m in zip(cells, measured, strict=True)], indent=2))
        return
    print("\n\n".join(filter(None, (table(cells, measured, kind) for kind in ("independent", "tree")))))


if __name__ == "__main__":
    main()
