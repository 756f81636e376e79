"""Parents and children: Matryoshka against BatchTopK on the names of things in the embedded world's taxonomy.

    python benchmarks/taxonomy.py --out runs/taxonomy

The activations are those of the embedded model at the tokens that name a thing ("beagle", "wood cutter"), where a
thing and all its ancestors are active at once. Both recipes are trained on them with the same widths, sparsities and
seeds, and every parent of the tree is looked for on texts that were not trained on: by the best single latent of the
whole dictionary, and of its first latents alone. Matryoshka's first latents are its inner prefixes; those of
BatchTopK, which have no order, are the ones with the largest activation energy. A child is absorbed when the latent
that detects its parent best is silent on more than half of the child's tokens.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.activations.batches import ActivationBatch
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.models.language_model import LanguageModel, load_language_model
from saeworks.results.tables import markdown, spread, summary
from saeworks.runtime import generator
from saeworks.training.member import MemberConfig
from saeworks.training.recipes import recipe
from saeworks.training.trainer import Trainer, TrainerConfig
from saeworks.world import corpus
from saeworks.world.documents import Document

ROOT = "taxonomy"
RECIPES = ("batch_topk", "matryoshka_batch_topk")


@dataclass(frozen=True)
class Names:
    """Activations ``[name, d]`` at the last token of every name of a thing, and the concepts of each."""

    activations: Tensor
    concepts: list[frozenset[str]]


def main() -> None:
    """Harvest, train, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/taxonomy"))
    parser.add_argument("--site", default="layers.2.resid_post")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=float, nargs="+", default=[4, 8])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    args = parser.parse_args()
    model = load_language_model("world", device="cpu")
    train = harvest(model, args.site, corpus.documents(ROOT, "train", count=args.documents))
    test = harvest(model, args.site, corpus.documents(ROOT, "validation", count=args.documents // 4))
    parents = parents_of(test)
    if not parents:
        raise SystemExit("taxonomy: too few names on the held-out texts to look for a parent; raise --documents.")
    members = [
        MemberConfig(recipe(name), args.width, k, seed, 3e-3)
        for name in RECIPES
        for k in args.k
        for seed in range(args.seeds)
    ]
    config = TrainerConfig(tokens=256 * args.steps, batch_size=256, checkpoint_seconds=1e9)
    done = Trainer(Rows(train.activations), members, config, args.out).run()
    groups: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    for dictionary in done.values():
        metadata = dictionary.cfg.metadata
        groups[metadata["recipe"], metadata["k"]].append(measure(dictionary, test, parents))
    rows = [{"recipe": r, "k": k, "seeds": len(v)} | summary(v) for (r, k), v in groups.items()]
    report = {"names": len(test.concepts), "parents": len(parents), "linear_probe_f1": ceiling(train, test, parents)}
    report |= {"rows": rows, "settings": {key: str(value) for key, value in vars(args).items()}}
    (args.out / "taxonomy.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2) if args.json else table(report))


def harvest(model: LanguageModel, site: str, documents: Iterable[Document]) -> Names:
    """Activations and concepts of all names in the documents."""
    taken: list[Tensor] = []
    concepts: list[frozenset[str]] = []
    remaining = iter(documents)
    while batch := list(islice(remaining, 64)):
        tokens = model.tokenize([document.text for document in batch], 128)
        acts = model.harvest(tokens, [site])[site]
        assert tokens.offsets is not None
        for row, document in enumerate(batch):
            names: dict[tuple[int, int], set[str]] = defaultdict(set)
            for span in document.spans:
                if span.concept.startswith(ROOT + "/"):
                    names[span.start, span.end].add(span.concept)
            ends = {
                end: position for position, (_, end) in enumerate(tokens.offsets[row]) if tokens.keep[row, position]
            }
            for (_, end), found in names.items():
                if end in ends:
                    taken.append(acts[row, ends[end]])
                    concepts.append(frozenset(found))
    return Names(torch.stack(taken), concepts)


class Rows:
    """A stream over rows in memory, drawn at random with replacement."""

    site: str | None = None

    def __init__(self, rows: Tensor, seed: int = 0) -> None:
        self.rows, self.width = rows, rows.shape[1]
        self._generator, self._seed = generator(seed, "rows"), seed

    def next_batch(self, count: int) -> ActivationBatch:
        """``count`` rows."""
        chosen = torch.randint(len(self.rows), (count,), generator=self._generator)
        nothing = torch.full((count,), -1)
        return ActivationBatch(self.rows[chosen], nothing, chosen, torch.zeros_like(chosen))

    def state_dict(self) -> dict[str, Any]:
        """State of the generator."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._generator.set_state(state["generator"])

    def fingerprint(self) -> str:
        """Rows and seed, roughly."""
        return f"{tuple(self.rows.shape)} {float(self.rows.double().sum())} {self._seed}"

    @property
    def statistics(self) -> dict[str, int | float]:
        """Nothing is counted."""
        return {}


def parents_of(names: Names, fewest: int = 30) -> dict[str, list[str]]:
    """Parents with at least two children, and these children, counting concepts with enough names."""
    counts: dict[str, int] = defaultdict(int)
    for concepts in names.concepts:
        for concept in concepts:
            counts[concept] += 1
    children: dict[str, list[str]] = defaultdict(list)
    for concept, count in counts.items():
        if count >= fewest:
            children[concept.rpartition("/")[0]].append(concept)
    return {p: sorted(c) for p, c in sorted(children.items()) if len(c) >= 2 and p != ROOT}


def members_of(names: Names, concept: str) -> Tensor:
    """``[name]`` bool."""
    return torch.tensor([concept in concepts for concepts in names.concepts])


def best_f1(scores: Tensor, truth: Tensor) -> Tensor:
    """``[column]`` best F1 over thresholds of every column of ``scores [name, column]`` as a detector of ``truth``."""
    order = scores.argsort(dim=0, descending=True)
    hits = truth[order].double().cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(truth) + 1)[:, None] + truth.sum())
    # A silent latent detects nothing: only thresholds above 0 count.
    return torch.where(scores.gather(0, order) > 0, f1, 0.0).amax(0)


def measure(dictionary: Dictionary, names: Names, parents: dict[str, list[str]]) -> dict[str, float]:
    """How the parents are represented in one dictionary."""
    f = dictionary.encode(names.activations)
    width = dictionary.cfg.d_sae
    nested = len(dictionary.group_sizes) > 1
    order = torch.arange(width) if nested else f.square().sum(0).argsort(descending=True)
    f = f[:, order]
    ends = {"1/32": width // 32, "3/32": 3 * width // 32, "7/32": 7 * width // 32, "all": width}
    out: dict[str, list[float]] = defaultdict(list)
    for parent, children in parents.items():
        truth = members_of(names, parent)
        f1 = best_f1(f, truth)
        for label, end in ends.items():
            out[f"f1 {label}"].append(float(f1[:end].max()))
        fires = f[:, int(f1.argmax())] > 0
        out["absorbed"] += [float(fires[members_of(names, child)].double().mean() < 0.5) for child in children]
    values = {key: sum(v) / len(v) for key, v in out.items()}
    return values | {key: dictionary.verify(names.activations)["measured"][key] for key in ("l0", "explained_variance")}


def ceiling(train: Names, test: Names, parents: dict[str, list[str]]) -> float:
    """Mean best F1 of a ridge regression on the raw activations: what a linear reader could reach."""
    mean = train.activations.mean(0)
    x = (train.activations - mean).double()
    y = torch.stack([members_of(train, p) for p in parents], dim=1).double()
    weights = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1], dtype=torch.float64), x.T @ (y - y.mean(0)))
    scores = (test.activations - mean).double() @ weights
    truths = [members_of(test, p) for p in parents]
    return sum(
        float(best_f1((s - s.min() + 1e-9)[:, None], t)[0]) for s, t in zip(scores.T, truths, strict=True)
    ) / len(truths)


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    columns = [key for key in report["rows"][0] if key not in ("recipe", "k", "seeds")]
    cells = [[row["recipe"], f"{row['k']:g}", *(spread(row[column]) for column in columns)] for row in report["rows"]]
    counts = f"{report['parents']} parents, {report['names']} names; linear probe F1 {report['linear_probe_f1']:.3f}"
    return f"{markdown(['recipe', 'k', *columns], cells)}\n\n{counts}"


if __name__ == "__main__":
    main()
