"""Matryoshka dictionaries keep parents whole where others absorb them into their children (arXiv 2503.17547).

Three parts. On the toy tree the truth is known, and every variant is trained on several trees. On the embedded world
Matryoshka BatchTopK stands against BatchTopK, with the same widths, sparsities, seeds and activations: once on the
tokens that name a thing, where parents and children are what there is to be found, and once on all tokens of the
mixture, where they are rare. The paper's numbers were measured on layer 12 of Gemma-2-2B with 65,536 latents; of those
only the direction can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.evals.shared.metrics import max_cosine
from saeworks.models.language_model import LanguageModel, load_language_model
from saeworks.papers import taxonomy, toy_tree, world_grid
from saeworks.papers.claims import Claim, Reproduction, Rule, Table
from saeworks.papers.index import PAPERS
from saeworks.results.envelope import Result
from saeworks.results.tables import spread, summary
from saeworks.training.cells import MemberConfig
from saeworks.training.recipes import recipe
from saeworks.training.trainer import Trainer, TrainerConfig

PLAIN, NESTED = "batch_topk", "matryoshka_batch_topk"
# (recipe, k) -> the measures of every seed.
Cells = Mapping[tuple[str, float], Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class Settings:
    """All that decides the numbers.

    Attributes:
        trees: toy trees. variants: of them. most_steps: bound on their steps.
        seeds: of the dictionaries on the world.
        k, width, steps, documents: of those on names; a fourth as many documents are held out.
        mixture, mixture_k: of those on all tokens.
    """

    trees: int = 4
    variants: tuple[str, ...] = tuple(toy_tree.VARIANTS)
    most_steps: int | None = None
    seeds: int = 3
    k: tuple[float, ...] = (4.0, 8.0)
    width: int = 512
    steps: int = 2000
    documents: int = 4000
    mixture: world_grid.Settings = field(default_factory=world_grid.Settings)
    mixture_k: tuple[float, ...] = (8.0,)


QUICK = Settings(
    trees=2,
    variants=toy_tree.ESSENTIAL,
    most_steps=toy_tree.SMOKE_STEPS,
    seeds=2,
    k=(8.0,),
    steps=800,
    documents=2000,
    mixture=world_grid.Settings(width=512, tokens=100_000, eval_tokens=16_384),
)


def run(out: Path, seeds: int | None = None, quick: bool = False) -> Reproduction:
    """Train, measure, and hold the claims against the numbers; see :func:`saeworks.papers.index.reproduce`."""
    settings = QUICK if quick else Settings()
    if seeds is not None:
        settings = replace(settings, trees=seeds, seeds=seeds)
    settings = replace(settings, mixture=replace(settings.mixture, seeds=settings.seeds))
    clock = [time.monotonic()]
    tree = toy_tree.run(out / "toy_tree", range(settings.trees), settings.variants, settings.most_steps)
    clock.append(time.monotonic())
    model = load_language_model("world")
    names, facts = on_names(model, settings, out / "names")
    clock.append(time.monotonic())
    mixture = on_mixture(model, settings, out / "mixture")
    clock.append(time.monotonic())
    paper = PAPERS["matryoshka"]
    shown = {"trees": settings.trees, "variants": settings.variants, "most_steps": settings.most_steps}
    shown |= {key: getattr(settings, key) for key in ("seeds", "k", "width", "steps", "documents", "mixture_k")}
    return Reproduction(
        name=paper.name,
        title=paper.title,
        source=paper.source,
        claims=(*toy_claims(tree), *world_claims(names, mixture)),
        tables=(
            toy_tree.table(tree),
            toy_tree.tree_table(tree),
            toy_tree.tree_table(tree, "decoder_cosine"),
            table(facts, names, NAME_COLUMNS),
            table("All tokens of the mixture", mixture, MIXTURE_COLUMNS),
        ),
        settings={**shown, "model": "world", "mixture": settings.mixture.as_json()},
        seconds={
            part: after - before
            for part, before, after in zip(("toy tree", "names", "mixture"), clock[:-1], clock[1:], strict=True)
        },
        quick=quick,
        hashes=world_grid.hashes(model),
    )


# --- the toy tree ---------------------------------------------------------------------------------------------------


def toy_claims(measured: toy_tree.Measured) -> tuple[Claim, ...]:
    """What the toy tree should show, against the measures of every variant and tree."""
    l1 = {"sampled and sorted": "Matryoshka L1, sampled and sorted", "fixed": "Matryoshka L1, fixed 3 6 10 15 20"}
    nested = {**l1, "BatchTopK": "Matryoshka BatchTopK, fixed 3 6 11 20"}
    coarse, plain = "Matryoshka BatchTopK, coarse 11 20", "BatchTopK"

    def of(measure: str, variants: Mapping[str, str]) -> dict[str, list[float]]:
        return {label: toy_tree.values(measured, name, measure) for label, name in variants.items()}

    figure = "shown as a figure"
    return (
        Claim(
            "Toy tree: without nesting a parent's latent is silent whenever a child is active",
            figure,
            "absorption",
            of("absorption", {"": "L1"}),
            Rule(low=0.95),
        ),
        Claim(
            "Toy tree: children's latents then point half-way to their parent",
            "0.707, the optimum",
            "cosine of children",
            of("child_cosine", {"": "L1"}),
            Rule(high=0.75),
        ),
        Claim(
            "Toy tree: with nested prefixes the parents stay whole",
            figure,
            "absorption",
            of("absorption", nested),
            Rule(high=0.05),
            "0.11 is one of nine children that takes its parent's place; see docs/papers.md for where that comes from.",
        ),
        Claim(
            "Toy tree: parents' latents point almost along their parents",
            "0.945, from fitting parents alone",
            "cosine of parents",
            of("parent_cosine", nested),
            Rule(low=0.93, high=0.97),
        ),
        Claim(
            "Toy tree: Matryoshka L1 recovers all features on at least half of the trees",
            figure,
            "mean decoder cosine",
            of("decoder_cosine", l1),
            Rule(low=0.95, share=0.5),
            "The rest is a local optimum in which one to three features have no latent, not absorption.",
        ),
        Claim(
            "Toy tree: BatchTopK without nesting absorbs, but not everything",
            "between the two",
            "absorption",
            of("absorption", {"": plain}),
            Rule(low=0.05, high=0.95),
        ),
        Claim(
            "Toy tree: with prefixes too coarse to separate the levels absorption returns",
            "direction",
            "absorption of 11 20 minus that of 3 6 11 20, mean over the trees",
            _mean_difference(measured, coarse, nested["BatchTopK"], "absorption"),
            Rule(low=0.0),
        ),
    )


def _mean_difference(measured: toy_tree.Measured, one: str, other: str, measure: str) -> dict[str, list[float]]:
    a, b = (toy_tree.values(measured, name, measure) for name in (one, other))
    return {"": [(sum(a) - sum(b)) / len(a)] if a and len(a) == len(b) else []}


# --- the world ------------------------------------------------------------------------------------------------------

NAME_COLUMNS = {
    "l0": "L0",
    "explained_variance": "explained variance",
    **{f"f1 {label}": f"parent F1, {label}" for label in taxonomy.PREFIXES},
    "silent": "silent on a child",
    "absorbed": "child absorbed",
    "latents": "latents per parent",
    "max_cosine": "largest cosine",
}
MIXTURE_COLUMNS = {
    "l0": "L0",
    "explained_variance": "explained variance",
    "ce_score": "CE score",
    "parent_f1": "parent F1",
    "inner_parents": "parents in inner half",
    "silent": "silent on a child",
    "absorbed": "child absorbed",
    "latents": "latents per parent",
    "max_cosine": "largest cosine",
}


def on_names(model: LanguageModel, settings: Settings, out: Path) -> tuple[Cells, str]:
    """Both recipes on the names of things: the measures by recipe and k, and a title that says what there was."""
    site = settings.mixture.site
    train = taxonomy.names_of(model, site, "train", settings.documents)
    test = taxonomy.names_of(model, site, "validation", settings.documents // 4)
    parents = taxonomy.parents_of(test)
    done: dict[str, Dictionary] = {}
    config = TrainerConfig(tokens=256 * settings.steps, batch_size=256)
    for seed in range(settings.seeds):
        members = [
            MemberConfig(recipe(name), settings.width, k, seed, 3e-3) for name in (PLAIN, NESTED) for k in settings.k
        ]
        stream = taxonomy.Rows(train.activations, seed)
        done |= Trainer(stream, members, config, out / f"seed{seed}", metadata={"site": site}).run(resume=True)
    found = world_grid.by_cell(done, lambda _, dictionary: taxonomy.measure(dictionary, test, parents))
    linear = taxonomy.linear_f1(train, test, parents)
    facts = f"{len(parents)} parents, {len(test.concepts)} held-out names, F1 of a linear probe {linear:.3f}"
    return found, f"Names of things: {facts}"


def on_mixture(model: LanguageModel, settings: Settings, out: Path) -> Cells:
    """Both recipes on all tokens of the world's texts: the measures by recipe and k."""
    cells = [(recipe(name), k) for name in (PLAIN, NESTED) for k in settings.mixture_k]
    done = world_grid.train(model, settings.mixture, cells, out)
    results = world_grid.measure(model, settings.mixture, done, out, "core", "latents")
    return world_grid.by_cell(
        done, lambda name, dictionary: _mixture(dictionary, results["core"][name], results["latents"][name])
    )


def _mixture(dictionary: Dictionary, by_core: Result, by_latents: Result) -> dict[str, float]:
    """``inner_parents``: share of the parents whose best latent is in the first half of the latents."""
    hierarchy = by_latents.eval_result_unstructured["hierarchy"]
    half, alive = dictionary.cfg.d_sae // 2, torch.from_numpy(by_core.arrays()["feature_density"]) > 0
    values = {
        "l0": by_core.metric("sparsity", "l0"),
        "explained_variance": by_core.metric("reconstruction_quality", "explained_variance"),
        "ce_score": by_core.metric("model_performance_preservation", "ce_loss_score"),
        "parent_f1": by_latents.metric("hierarchy", "mean_parent_f1"),
        "inner_parents": sum(row["latent"] < half for row in hierarchy) / max(len(hierarchy), 1),
        "silent": by_latents.metric("hierarchy", "hole_rate"),
        "absorbed": by_latents.metric("hierarchy", "absorbed_rate"),
        "latents": by_latents.metric("hierarchy", "mean_latents_per_parent"),
        "max_cosine": float(max_cosine(dictionary.W_dec.cpu()[alive]).mean()),
    }
    return {key: float("nan") if value is None else float(value) for key, value in values.items()}


def world_claims(names: Cells, mixture: Cells) -> tuple[Claim, ...]:
    """The paper's claims against the measures on names and on the mixture, place by place."""
    prefix = Claim(
        "Names of things: inner prefixes hold the parents",
        "direction",
        "F1 of the best of the first 3/32 latents, Matryoshka minus BatchTopK",
        differences(names, "f1 first 3/32"),
        Rule(low=0.0),
        "BatchTopK's latents are taken in order of their activation energy.",
    )
    on_names_, on_all = _place("Names of things", names), _place("All tokens", mixture)
    return (on_names_[0], prefix, *on_names_[1:], *on_all)


def _place(place: str, cells: Cells) -> list[Claim]:
    """The claims that can be made in both places."""

    def claim(sentence: str, paper: str, quantity: str, measure: str, rule: Rule, note: str = "") -> Claim:
        found = differences(cells, measure)
        return Claim(f"{place}: {sentence}", paper, f"{quantity}, Matryoshka minus BatchTopK", found, rule, note)

    return [
        claim(
            "explained variance is slightly lower than that of BatchTopK",
            "0.70 against 0.72",
            "explained variance",
            "explained_variance",
            Rule(low=-0.1, high=0.0),
        ),
        claim(
            "fewer children are absorbed",
            "0.05 against 0.49, first letters",
            "share of children",
            "absorbed",
            Rule(high=0.0),
            "A child is absorbed when its parent's best latent is silent on more than half of its tokens and another "
            "latent detects it.",
        ),
        claim(
            "fewer latents per concept",
            "1 against 3, first letters",
            "latents that cover a part of a parent",
            "latents",
            Rule(high=0.0),
        ),
        claim(
            "latents are less alike",
            "direction",
            "mean over latents of the largest decoder cosine with another",
            "max_cosine",
            Rule(high=0.0),
        ),
    ]


def differences(cells: Cells, measure: str) -> dict[str, list[float]]:
    """By k, one difference per seed: Matryoshka minus BatchTopK."""
    return {
        f"k = {k:g}": [a[measure] - b[measure] for a, b in zip(ours, cells[PLAIN, k], strict=True)]
        for (name, k), ours in cells.items()
        if name == NESTED
    }


def table(title: str, cells: Cells, columns: Mapping[str, str]) -> Table:
    """One row per recipe and k: mean over the seeds, least and greatest."""
    rows: list[tuple[str, ...]] = []
    for (name, k), seeds in cells.items():
        spreads = summary(seeds)
        rows.append((name, f"{k:g}", *(spread(spreads[column]) for column in columns)))
    return Table(title, ("recipe", "k", *columns.values()), tuple(rows))
