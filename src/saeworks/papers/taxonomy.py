"""Parents and children among the names of things in the embedded world's taxonomy.

The activations are those at the tokens that name a thing ("beagle", "wood cutter"), where a thing and all its ancestors
are active at once. Every parent of the tree is looked for on texts that were not trained on, by the best single latent
of the whole dictionary and of its first latents alone. Those of a nested dictionary are its inner prefixes; those of a
dictionary without order are the ones with the largest activation energy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from saeworks.activations.batches import ActivationBatch
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.errors import RunError
from saeworks.evals.shared.metrics import max_cosine
from saeworks.files import sha256_bytes
from saeworks.models.language_model import LanguageModel
from saeworks.runtime import generator
from saeworks.world import corpus
from saeworks.world.documents import Document

ROOT = "taxonomy"
# Ends of the first three prefixes of the recipe, as shares of the width.
PREFIXES = {"first 1/32": 1 / 32, "first 3/32": 3 / 32, "first 7/32": 7 / 32, "all": 1.0}
# A latent detects a concept from this F1 on; it covers a part of a parent with this precision and this recall.
DETECTS, PRECISE, COVERS = 0.5, 0.8, 0.05


@dataclass(frozen=True)
class Names:
    """Activations ``[name, d]`` at the last token of every name of a thing, and the concepts of each."""

    activations: Tensor
    concepts: list[frozenset[str]]

    def of(self, concept: str) -> Tensor:
        """``[name]`` bool: which names are of a thing below ``concept``."""
        return torch.tensor([concept in concepts for concepts in self.concepts])


def names_of(model: LanguageModel, site: str, split: str, documents: int) -> Names:
    """The names in the first ``documents`` texts of the taxonomy's domain."""
    return harvest(model, site, corpus.documents(ROOT, split, count=documents))


def harvest(model: LanguageModel, site: str, documents: Iterable[Document]) -> Names:
    """Activations and concepts of all names in the documents."""
    taken: list[Tensor] = []
    concepts: list[frozenset[str]] = []
    remaining = iter(documents)
    while batch := list(islice(remaining, 64)):
        tokens = model.tokenize([document.text for document in batch], 128)
        acts = model.harvest(tokens, [site])[site].float().cpu()
        if tokens.offsets is None:
            raise RunError("The tokenizer tells no character offsets, so names cannot be found among its tokens.")
        for row, document in enumerate(batch):
            spans: dict[tuple[int, int], set[str]] = defaultdict(set)
            for span in document.spans:
                if span.concept.startswith(ROOT + "/"):
                    spans[span.start, span.end].add(span.concept)
            offsets = enumerate(tokens.offsets[row])
            ends = {end: position for position, (_, end) in offsets if bool(tokens.keep[row, position])}
            for (_, end), found in spans.items():
                if end in ends:
                    taken.append(acts[row, ends[end]])
                    concepts.append(frozenset(found))
    if not taken:
        raise RunError(f"The texts of '{ROOT}' hold no name of a thing; read more of them.")
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
        """Digest of rows and seed."""
        return sha256_bytes(self.rows.numpy().tobytes(), str(self._seed).encode())

    @property
    def statistics(self) -> dict[str, int | float]:
        """Nothing is counted."""
        return {}


def parents_of(names: Names, fewest: int = 30) -> dict[str, list[str]]:
    """Parents with at least two children, and these children, counting concepts with at least ``fewest`` names.

    Raises:
        RunError: there is none.
    """
    counts: dict[str, int] = defaultdict(int)
    for concepts in names.concepts:
        for concept in concepts:
            counts[concept] += 1
    children: dict[str, list[str]] = defaultdict(list)
    for concept, count in counts.items():
        if count >= fewest:
            children[concept.rpartition("/")[0]].append(concept)
    found = {p: sorted(c) for p, c in sorted(children.items()) if len(c) >= 2 and p != ROOT}
    if not found:
        raise RunError(f"Among {len(names.concepts)} names no parent has two children; read more texts of '{ROOT}'.")
    return found


class Ranked:
    """Scores ``[name, column]``, sorted once, so that many concepts can be looked for in them."""

    def __init__(self, scores: Tensor) -> None:
        self.order = scores.argsort(dim=0, descending=True)
        # A silent latent detects nothing: only thresholds above 0 count.
        self.counts = scores.gather(0, self.order) > 0

    def best_f1(self, truth: Tensor) -> Tensor:
        """``[column]`` best F1 over thresholds of every column as a detector of ``truth [name]`` bool."""
        hits = truth[self.order].float().cumsum(0)
        f1 = 2 * hits / (torch.arange(1, len(truth) + 1)[:, None] + truth.sum())
        return torch.where(self.counts, f1, 0.0).amax(0)


@torch.no_grad()
def measure(dictionary: Dictionary, names: Names, parents: dict[str, list[str]]) -> dict[str, float]:
    """How the parents are represented in one dictionary.

    ``f1 …``: mean over parents of the best latent's F1, at its best threshold, among the first latents. ``silent``:
    share of children on more than half of whose names their parent's best latent is silent; ``absorbed``: such
    children that another latent detects instead. ``latents``: latents that cover a part of a parent, mean over parents.
    ``max_cosine``: mean over the latents that are ever active of the largest cosine of their row with another's.
    """
    x = names.activations.to(dictionary.device)
    f = dictionary.encode(x).cpu()
    width = f.shape[1]
    alive = (f > 0).any(dim=0)
    nested = len(dictionary.cfg.metadata.get("group_sizes") or ()) > 1
    f = f if nested else f[:, f.square().sum(0).argsort(descending=True)]
    active, ranked = f > 0, Ranked(f)
    out: dict[str, list[float]] = defaultdict(list)
    for parent, children in parents.items():
        truth = names.of(parent)
        f1 = ranked.best_f1(truth)
        for label, share in PREFIXES.items():
            out[f"f1 {label}"].append(float(f1[: max(int(share * width), 1)].max()))
        detector = int(f1.argmax())
        for child in children:
            own = names.of(child)
            silent = bool(active[own, detector].double().mean() < 0.5)
            others = ranked.best_f1(own)
            others[detector] = 0.0
            out["silent"].append(float(silent))
            out["absorbed"].append(float(silent and float(others.max()) >= DETECTS))
        both = (active & truth[:, None]).sum(0)
        precision, recall = both / active.sum(0).clamp_min(1), both / truth.sum()
        out["latents"].append(float(((precision >= PRECISE) & (recall >= COVERS)).sum()))
    values = {key: sum(v) / len(v) for key, v in out.items()}
    fidelity = dictionary.verify(x)["measured"]
    values |= {key: float(fidelity[key]) for key in ("l0", "explained_variance")}
    return values | {"max_cosine": float(max_cosine(dictionary.W_dec.cpu()[alive]).mean())}


def linear_f1(train: Names, test: Names, parents: dict[str, list[str]]) -> float:
    """Mean best F1 of a ridge regression on the raw activations: what a linear reader could reach."""
    mean = train.activations.mean(0)
    x = (train.activations - mean).double()
    y = torch.stack([train.of(p) for p in parents], dim=1).double()
    weights = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1], dtype=torch.float64), x.T @ (y - y.mean(0)))
    scores = (test.activations - mean).double() @ weights
    ranked = Ranked(scores - scores.min() + 1e-9)  # of latents only thresholds above 0 count
    return sum(float(ranked.best_f1(test.of(p))[i]) for i, p in enumerate(parents)) / len(parents)
