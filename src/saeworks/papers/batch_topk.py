"""BatchTopK against TopK at equal k, and against JumpReLU at matched L0, on the embedded world (arXiv 2412.06410).

The paper trained 12,288 latents on GPT-2 small and on Gemma-2-2B and shows its results as figures, so what can be
compared is their direction.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.models.language_model import load_language_model
from saeworks.papers import world_grid
from saeworks.papers.claims import Claim, Reproduction, Rule, Table
from saeworks.papers.index import PAPERS
from saeworks.results.envelope import Result
from saeworks.results.tables import spread, summary
from saeworks.training.recipes import recipe

SETTINGS = world_grid.Settings()
QUICK = world_grid.Settings(width=512, tokens=200_000, seeds=2, eval_tokens=8192)
K = (4.0, 8.0, 16.0)
# L0 that JumpReLU aims at: with room on both sides, so that every k lies between two that were reached.
TARGETS = (3.0, 6.0, 12.0, 24.0)
QUICK_K, QUICK_TARGETS = (4.0, 12.0), (3.0, 8.0, 20.0)

COLUMNS = {
    "l0": "L0",
    "nmse": "NMSE",
    "ce": "CE degradation",
    "alive": "alive",
    "p1": "1 %",
    "p50": "median",
    "p99": "99 %",
    "most": "most",
    "l0_average": "L0 by moving average",
}
# (recipe, sparsity asked for) -> the measures of every seed, in the order of the seeds.
Cells = Mapping[tuple[str, float], Sequence[Mapping[str, float]]]


def run(out: Path, seeds: int | None = None, quick: bool = False) -> Reproduction:
    """Train, measure, and hold the claims against the numbers; see :func:`saeworks.papers.index.reproduce`."""
    settings = QUICK if quick else SETTINGS
    settings = replace(settings, seeds=seeds or settings.seeds)
    ks, targets = (QUICK_K, QUICK_TARGETS) if quick else (K, TARGETS)
    started = time.monotonic()
    model = load_language_model("world")
    cells = [(recipe(name), k) for name in ("topk", "batch_topk") for k in ks]
    cells += [(recipe("jumprelu"), target) for target in targets]
    dictionaries = world_grid.train(model, settings, cells, out)
    trained = time.monotonic()
    by_core = world_grid.measure(model, settings, dictionaries, out, "core")["core"]
    rows = world_grid.held_out_rows(model, settings)
    found = world_grid.by_cell(dictionaries, lambda name, d: measures(d, by_core[name], rows))
    paper = PAPERS["batch_topk"]
    return Reproduction(
        name=paper.name,
        title=paper.title,
        source=paper.source,
        claims=claims(found),
        tables=(table(found), matched_table(found)),
        settings={**settings.as_json(), "model": "world", "k": ks, "jumprelu_targets": targets},
        seconds={"training": trained - started, "measuring": time.monotonic() - trained},
        quick=quick,
        hashes=world_grid.hashes(model),
    )


def measures(dictionary: Dictionary, result: Result, rows: Tensor) -> dict[str, float]:
    """What one dictionary scores; counts of active latents per token are those of ``rows [token, d]``.

    ``l0_average`` is the L0 with the moving average of training as threshold, for the dictionaries that have one.
    """
    loss = "model_performance_preservation"
    values = {
        "l0": result.metric("sparsity", "l0"),
        "nmse": result.metric("reconstruction_quality", "normalised_mse"),
        "ce": _difference(result.metric(loss, "ce_loss_with_sae"), result.metric(loss, "ce_loss_without_sae")),
        "alive": result.metric("misc_metrics", "frac_alive"),
    }
    counts = active_counts(dictionary, rows).double()
    p1, p50, p99 = counts.quantile(torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)).tolist()
    values |= {"p1": p1, "p50": p50, "p99": p99, "most": float(counts.max())}
    average = dictionary.cfg.metadata.get("threshold_moving_average")
    if average is not None:
        other = dictionary.replace(threshold=torch.full_like(dictionary.b_enc, float(average)))
        values["l0_average"] = float(active_counts(other, rows).double().mean())
    return {key: math.nan if value is None else float(value) for key, value in values.items()}


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


@torch.no_grad()
def active_counts(dictionary: Dictionary, rows: Tensor, batch: int = 4096) -> Tensor:
    """``[token]`` number of active latents of ``rows [token, d]``."""
    parts = [dictionary.encode_sparse(part.to(dictionary.device)).counts().cpu() for part in rows.split(batch)]
    return torch.cat(parts)


def claims(cells: Cells) -> tuple[Claim, ...]:
    """The paper's claims against the measures of every cell."""
    return (
        Claim(
            "Lower NMSE than TopK at every k",
            "direction, at k 16, 32, 64 and four widths",
            "NMSE over that of TopK",
            ratios(cells, "topk", "nmse"),
            Rule(high=1.0),
            "Same seed, same activations in the same order, same held-out tokens.",
        ),
        Claim(
            "Lower CE degradation than TopK at every k",
            "direction",
            "CE degradation over that of TopK",
            ratios(cells, "topk", "ce"),
            Rule(high=1.0),
        ),
        *(_against_jumprelu(cells, measure, name) for measure, name in (("nmse", "NMSE"), ("ce", "CE degradation"))),
        Claim(
            "The number of active latents differs widely between tokens",
            "1 to over 80 at k = 32: 2.5 k",
            "(99th − 1st percentile) / k",
            each(cells, lambda k, m: (m["p99"] - m["p1"]) / k),
            Rule(low=1.0),
            "Of TopK it is 0. Percentiles instead of the extremes, which grow with the number of tokens.",
            digits=2,
        ),
        Claim(
            "The threshold measured after training keeps the mean L0 at k on held-out tokens",
            "direction",
            "L0 / k",
            each(cells, lambda k, m: m["l0"] / k),
            Rule(low=0.98, high=1.02),
            "Measured on training texts; the L0 is that of texts not trained on.",
        ),
        Claim(
            "So does the mean over batches of the smallest selected activation, the paper's estimate",
            "direction",
            "L0 / k",
            each(cells, lambda k, m: m["l0_average"] / k),
            Rule(low=0.95, high=1.05),
            "Here a moving average over the last hundred or so batches of training.",
        ),
    )


def _against_jumprelu(cells: Cells, measure: str, name: str) -> Claim:
    found = matched(cells, measure)
    left_out = sorted(k for k, values in found.items() if len(values) < len(cells["batch_topk", k]))
    reached = [m["l0"] for (kind, _), seeds in cells.items() if kind == "jumprelu" for m in seeds]
    note = "JumpReLU's value at the L0 of BatchTopK: log-log interpolation between its own dictionaries of that seed."
    if left_out:
        span = f"{min(reached):.1f} to {max(reached):.1f}" if reached else "nothing"
        note += (
            f" No claim at k = {', '.join(f'{k:g}' for k in left_out)}: JumpReLU reached L0 {span}, and for at least "
            "one seed its value there would have to be extrapolated."
        )
    return Claim(
        f"Lower {name} than JumpReLU at the same L0",
        "direction, on GPT-2" + (" and Gemma-2-2B" if measure == "nmse" else "; on Gemma-2-2B only at k = 16"),
        f"{name} over that of JumpReLU",
        {_k(k): values for k, values in found.items() if k not in left_out},
        Rule(high=1.0),
        note,
    )


def matched(cells: Cells, measure: str) -> dict[float, list[float]]:
    """k → one ratio per seed: BatchTopK over JumpReLU at the same realised L0; seeds that need extrapolation miss."""
    jump = [seeds for (kind, _), seeds in cells.items() if kind == "jumprelu"]
    out: dict[float, list[float]] = {}
    for (kind, k), seeds in cells.items():
        if kind != "batch_topk":
            continue
        out[k] = []
        for seed, ours in enumerate(seeds):
            points = [(found[seed]["l0"], found[seed][measure]) for found in jump]
            theirs = interpolated(points, ours["l0"])
            if theirs is not None:
                out[k].append(ours[measure] / theirs)
    return out


def interpolated(points: Sequence[tuple[float, float]], at: float) -> float | None:
    """Value at ``at``, linear in the logarithms between the two neighbouring points ``(L0, value)``.

    None where ``at`` lies outside the points, or where a neighbour has no logarithm.
    """
    for (low, first), (high, second) in pairwise(sorted(points)):
        if low <= at <= high and min(low, first, second) > 0:
            share = 0.0 if high == low else math.log(at / low) / math.log(high / low)
            return math.exp((1 - share) * math.log(first) + share * math.log(second))
    return None


def ratios(cells: Cells, other: str, measure: str) -> dict[str, list[float]]:
    """By k, one ratio per seed: BatchTopK over ``other``."""
    return {
        _k(k): [a[measure] / b[measure] for a, b in zip(ours, cells[other, k], strict=True)]
        for (kind, k), ours in cells.items()
        if kind == "batch_topk"
    }


def each(cells: Cells, value: Callable[[float, Mapping[str, float]], float]) -> dict[str, list[float]]:
    """By k, ``value(k, measures)`` of every BatchTopK dictionary."""
    return {_k(k): [value(k, m) for m in seeds] for (kind, k), seeds in cells.items() if kind == "batch_topk"}


def _k(k: float) -> str:
    return f"k = {k:g}"


def table(cells: Cells) -> Table:
    """One row per recipe and sparsity: mean over the seeds, least and greatest."""
    rows: list[tuple[str, ...]] = []
    for (kind, sparsity), seeds in cells.items():
        spreads = summary(seeds)
        digits = {"l0": 2, "ce": 4, "nmse": 4, "p1": 0, "p50": 0, "p99": 0, "most": 0, "l0_average": 2}
        shown = (spread(spreads[c], digits.get(c, 3)) if c in spreads else "–" for c in COLUMNS)
        rows.append((kind, f"{sparsity:g}", *shown))
    return Table("BatchTopK, TopK and JumpReLU", ("recipe", "k or L0 asked for", *COLUMNS.values()), tuple(rows))


def matched_table(cells: Cells) -> Table:
    """The comparison with JumpReLU, one row per k."""
    by_measure = {measure: matched(cells, measure) for measure in ("nmse", "ce")}
    rows: list[tuple[str, ...]] = []
    for (kind, k), seeds in cells.items():
        if kind == "batch_topk":
            found = [by_measure[measure][k] for measure in by_measure]
            shown = (" ".join(f"{v:.3f}" for v in values) or "needs extrapolation" for values in found)
            rows.append((f"{k:g}", " ".join(f"{m['l0']:.2f}" for m in seeds), *shown))
    head = ("k", "L0 by seed", "NMSE over JumpReLU's", "CE degradation over JumpReLU's")
    return Table("BatchTopK over JumpReLU at the same L0, by seed", head, tuple(rows))
