"""SHIFT and TPP tell dictionaries apart, on the embedded world (arXiv 2411.18895).

The paper trained its dictionaries on Pythia-70m and Gemma-2-2B and removed spurious cues from classifiers of
biographies and product reviews; here the texts are the embedded world's biographies and reviews, and the judge who
reads latents is the world itself, which knows what every token is about. Only directions can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.evals import scr, shift, tpp
from saeworks.evals.controls import pca, permuted_decoder, random_directions
from saeworks.evals.oracle import oracle
from saeworks.evals.shared.batches import DictionaryLike
from saeworks.models.language_model import LanguageModel, load_language_model
from saeworks.papers import saebench_grid, world_grid
from saeworks.papers.claims import Claim, Reproduction, Rule, Table
from saeworks.papers.index import PAPERS
from saeworks.papers.saebench_grid import L0, REMOVED, WEIGHTS
from saeworks.results.dictionary_table import dictionary_rows
from saeworks.results.envelope import Result
from saeworks.results.headlines import headline_values
from saeworks.results.ranks import spearman
from saeworks.results.tables import spread, summary
from saeworks.training.recipes import Recipe, recipe

STANDARD = "relu_april"
RECIPES = (STANDARD, "topk", "jumprelu")
SCORES = ("scr_20", "shift_20", "tpp_20")
NAMES = {"scr_20": "SCR", "shift_20": "SHIFT with a judge", "tpp_20": "TPP"}
#: (recipe, tokens trained on, sparsity) -> the measures of every seed.
Cells = Mapping[tuple[str, int, float], Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class Settings:
    """All that decides the numbers.

    Attributes:
        grid: site, width, tokens and seeds.
        early: numbers of tokens of the shorter runs that show what training brings.
        l0: how many sparsities are trained.
    """

    grid: world_grid.Settings = field(default_factory=lambda: world_grid.Settings(tokens=400_000, seeds=2))
    early: tuple[int, ...] = (20_480, 102_400)
    l0: int = 3


QUICK = Settings(world_grid.Settings(width=512, tokens=102_400, seeds=2), (10_240,), 2)


def run(out: Path, seeds: int | None = None, quick: bool = False) -> Reproduction:
    """Train, measure, and hold the claims against the numbers; see :func:`saeworks.papers.index.reproduce`."""
    settings = QUICK if quick else Settings()
    if seeds is not None:
        settings = replace(settings, grid=replace(settings.grid, seeds=seeds))
    started = time.monotonic()
    model = load_language_model("world")
    dictionaries = train(model, settings, out)
    trained = time.monotonic()
    others = controls(model, settings, next(d for d in dictionaries.values() if d.cfg.architecture == "topk"))
    results = saebench_grid.measure(model, {**dictionaries, **others}, out, configs())
    found: dict[tuple[str, int, float], list[dict[str, float]]] = {}
    for name in dictionaries:
        row = dictionary_rows(results[name].values())[0]
        key = (row["architecture"], _tokens_of(name), float(row["setting"]))
        found.setdefault(key, []).append(_scores(results[name]))
    floor = {name: _scores(results[name]) for name in others}
    paper = PAPERS["shift_tpp"]
    return Reproduction(
        name=paper.name,
        title=paper.title,
        source=paper.source,
        claims=claims(found, floor),
        tables=(table(found), control_table(floor), removed_table(found, floor)),
        settings={**asdict(settings), "model": "world", "aimed_l0": L0[: settings.l0], "weights": WEIGHTS[STANDARD]},
        seconds={"training": trained - started, "measuring": time.monotonic() - trained},
        quick=quick,
        hashes=world_grid.hashes(model),
    )


def configs() -> dict[str, Any]:
    """The evals' configurations: their defaults."""
    return {"scr": scr.Config(), "tpp": tpp.Config(), "shift": shift.Config()}


def train(model: LanguageModel, settings: Settings, out: Path) -> dict[str, Dictionary]:
    """Every dictionary by name; the name says how many tokens it was trained on."""
    cells: list[tuple[Recipe, float]] = []
    for name in RECIPES:
        values = WEIGHTS[name] if name == STANDARD else L0
        cells += [(recipe(name), value) for value in values[: settings.l0]]
    done: dict[str, Dictionary] = {}
    for tokens in (*settings.early, settings.grid.tokens):
        grid = replace(settings.grid, tokens=tokens)
        made = world_grid.train(model, grid, cells, out / f"tokens{tokens}")
        done |= {f"{name}_t{tokens}": dictionary for name, dictionary in made.items()}
    return done


def _tokens_of(name: str) -> int:
    return int(name.rsplit("_t", 1)[1])


def controls(model: LanguageModel, settings: Settings, trained: Dictionary) -> dict[str, DictionaryLike]:
    """Dictionaries that show what the scores mean: three floors and, of true concepts, a ceiling."""
    rows = world_grid.held_out_rows(model, settings.grid)
    site = settings.grid.site
    return {
        "control_pca": pca(rows, site=site),
        "control_random_directions": random_directions(rows, trained.cfg.d_sae, int(trained.cfg.k or 8), site=site),
        "control_permuted_decoder": permuted_decoder(trained),
        "control_oracle": oracle(model, site, labels=True),
    }


def _scores(results: Mapping[str, Result]) -> dict[str, float]:
    found = {column: value for column, value in headline_values(results.values()).items() if column in SCORES}
    found |= saebench_grid.by_removed(results["scr"])
    for part in ("intended", "unintended"):
        found[part] = results["tpp"].metric("tpp_metrics", f"tpp_threshold_20_{part}_diff_only")
    return {column: float(value) for column, value in found.items() if value is not None}


def claims(cells: Cells, floor: Mapping[str, Mapping[str, float]]) -> tuple[Claim, ...]:
    """The paper's findings against the scores."""
    last = max(tokens for _, tokens, _ in cells)
    return (
        *(
            Claim(
                f"{NAMES[score]} tells TopK and JumpReLU from the standard ReLU dictionaries, which do worse",
                "direction",
                f"{NAMES[score]} with 20 latents, mean over sparsities, minus that of ReLU",
                {name: against_standard(cells, last, name, score) for name in RECIPES if name != STANDARD},
                Rule(low=0.0),
            )
            for score in SCORES
        ),
        *(
            Claim(
                f"{NAMES[score]} rises while a dictionary is trained",
                "direction",
                f"score after {last:,} tokens − after {min(t for _, t, _ in cells):,}, mean over sparsities",
                {name: gained(cells, name, score) for name in RECIPES},
                Rule(low=0.0),
                "Shorter runs with a schedule of their own, not checkpoints of one run.",
            )
            for score in SCORES
        ),
        Claim(
            "Choosing latents by attribution alone agrees with choosing by a judge",
            "strong correlation",
            "Spearman's correlation of SCR and SHIFT over all dictionaries",
            {"": agreement(cells)},
            Rule(low=0.5),
            "One value per seed.",
            digits=2,
        ),
        *(
            Claim(
                f"By {NAMES[score]} trained dictionaries beat PCA, random directions and a permuted decoder",
                "PCA 0.038 against 0.2 to 0.38 (SCR), 0.016 against 0.1 to 0.37 (TPP), on Gemma-2-2B",
                "mean of TopK's dictionaries − the best of the three",
                {"topk": above_floor(cells, last, floor, score)},
                Rule(low=0.0),
            )
            for score in SCORES
        ),
        Claim(
            "Removing a class's latents harms its own probe more than the others'",
            "direction",
            "TPP: intended − unintended drop of accuracy",
            {
                name: [
                    m["intended"] - m["unintended"]
                    for (r, t, _), seeds in cells.items()
                    if (r, t) == (name, last)
                    for m in seeds
                ]
                for name in RECIPES
            },
            Rule(low=0.0),
        ),
        Claim(
            "Scores differ between dictionaries by more than between seeds",
            "stated; no number",
            "standard deviation over recipes, sparsities and lengths / over seeds",
            {NAMES[score]: _some(discrimination(cells, score)) for score in SCORES},
            Rule(low=2.0),
            digits=1,
        ),
    )


def _some(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _by_seed(cells: Cells, name: str, tokens: int, score: str) -> list[float]:
    """The mean over sparsities of one score, per seed."""
    groups = [seeds for (r, t, _), seeds in cells.items() if (r, t) == (name, tokens)]
    return [mean(m[score] for m in of_seed) for of_seed in zip(*groups, strict=True)]


def against_standard(cells: Cells, tokens: int, name: str, score: str) -> list[float]:
    """One difference to the standard dictionaries per seed."""
    pairs = zip(_by_seed(cells, name, tokens, score), _by_seed(cells, STANDARD, tokens, score), strict=True)
    return [ours - theirs for ours, theirs in pairs]


def gained(cells: Cells, name: str, score: str) -> list[float]:
    """What the longest training adds to the shortest, per seed."""
    lengths = sorted({tokens for _, tokens, _ in cells})
    pairs = zip(_by_seed(cells, name, lengths[-1], score), _by_seed(cells, name, lengths[0], score), strict=True)
    return [last - first for last, first in pairs]


def agreement(cells: Cells) -> list[float]:
    """Rank correlation of SCR and SHIFT over the cells, per seed."""
    return [
        spearman([m["scr_20"] for m in of_seed], [m["shift_20"] for m in of_seed])
        for of_seed in zip(*cells.values(), strict=True)
    ]


def above_floor(cells: Cells, tokens: int, floor: Mapping[str, Mapping[str, float]], score: str) -> list[float]:
    """TopK's mean score above the best control that is not the oracle, per seed."""
    best = max(values[score] for name, values in floor.items() if name != "control_oracle")
    return [value - best for value in _by_seed(cells, "topk", tokens, score)]


def discrimination(cells: Cells, score: str) -> float | None:
    """Standard deviation of the cells' means over the mean standard deviation within cells; None of a single seed."""
    values = [[m[score] for m in seeds] for seeds in cells.values()]
    if min(len(v) for v in values) < 2:
        return None
    within = (mean(stdev(v) ** 2 for v in values)) ** 0.5
    return stdev(mean(v) for v in values) / within if within else None


def table(cells: Cells) -> Table:
    """One row per recipe, length and sparsity."""
    columns = (*SCORES, "intended", "unintended")
    rows: list[tuple[str, ...]] = []
    for (name, tokens, sparsity), seeds in cells.items():
        spreads = summary(seeds)
        rows.append((name, f"{tokens:,}", f"{sparsity:g}", *(spread(spreads[c]) for c in columns)))
    return Table("Scores with 20 latents removed", ("recipe", "tokens", "k or weight", *columns), tuple(rows))


def control_table(floor: Mapping[str, Mapping[str, float]]) -> Table:
    """The controls' scores."""
    columns = (*SCORES, "intended", "unintended")
    rows = tuple((name, *(f"{values[c]:.3f}" for c in columns)) for name, values in floor.items())
    return Table("Controls", ("control", *columns), rows)


def removed_table(cells: Cells, floor: Mapping[str, Mapping[str, float]]) -> Table:
    """SCR by the number of latents removed: the longest trained, mean over sparsities and seeds, and the controls."""
    last = max(tokens for _, tokens, _ in cells)
    means = {name: [mean(_by_seed(cells, name, last, f"scr_{removed}")) for removed in REMOVED] for name in RECIPES}
    means |= {name: [values[f"scr_{removed}"] for removed in REMOVED] for name, values in floor.items()}
    rows = tuple((name, *(f"{value:.3f}" for value in values)) for name, values in means.items())
    return Table("SCR by the number of latents removed", ("", *map(str, REMOVED)), rows)
