"""What SAEBench found about architectures, widths and sparsities, on the embedded world (arXiv 2503.09532).

The paper trained seven architectures on Pythia-160m and Gemma-2-2B with up to 65,536 latents; of its results only the
directions can be compared. Scores are compared at the same L0: all dictionaries of one architecture, width and seed
are a sweep, interpolated in log L0 (:mod:`saeworks.results.comparison`), and two sweeps are compared over the L0 that
both cover.

RAVEL is left out: at the site of the grid the embedded model no longer reads the entity that the eval exchanges. So is
unlearning, which takes a minute per dictionary and told no architectures apart in the paper.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from saeworks.evals import absorption, autointerp, core, scr, sparse_probing, tpp
from saeworks.models.language_model import load_language_model
from saeworks.papers import saebench_grid, world_grid
from saeworks.papers.claims import Claim, Reproduction, Rule, Table
from saeworks.papers.index import PAPERS
from saeworks.papers.saebench_grid import REMOVED
from saeworks.results.comparison import Sweep, common_range, sweeps
from saeworks.results.dictionary_table import Row, dictionary_rows
from saeworks.results.headlines import headline
from saeworks.results.ranks import spearman
from saeworks.results.tables import spread, spread_of

NESTED, PLAIN = "matryoshka_batch_topk", "batch_topk"
#: The variants that differ in how they reconstruct (direction 1 of the paper), and the one with an L1 penalty.
SIMILAR = ("topk", "batch_topk", "jumprelu", "gated", "p_anneal")
STANDARD = "relu_april"
DOWNSTREAM = ("probe_k1", "scr_20", "tpp_20", "absorption", "autointerp")
SHOWN = ("l0", "explained_variance", "ce_loss_score", "frac_alive", *DOWNSTREAM)
#: (architecture, width, seed) -> metric -> its sweep.
Sweeps = Mapping[tuple[str, int, int], Mapping[str, Sweep]]


def configs(tokens: int) -> dict[str, Any]:
    """The evals' configurations: their defaults, with the held-out ``tokens`` of the grid for core."""
    return {
        "core": core.Config(tokens=tokens, behaviour_tokens=None),
        "sparse_probing": sparse_probing.Config(full_seeds=1),
        "scr": scr.Config(),
        "tpp": tpp.Config(),
        "absorption": absorption.Config(),
        "autointerp": autointerp.Config(n_latents=100),
    }


def run(out: Path, seeds: int | None = None, quick: bool = False) -> Reproduction:
    """Train, measure, and hold the claims against the numbers; see :func:`saeworks.papers.index.reproduce`."""
    settings = saebench_grid.QUICK if quick else saebench_grid.Settings()
    if seeds is not None:
        settings = replace(settings, grid=replace(settings.grid, seeds=seeds))
    started = time.monotonic()
    model = load_language_model("world")
    dictionaries = saebench_grid.train(model, settings, out)
    trained = time.monotonic()
    chosen = configs(settings.grid.eval_tokens)
    found = saebench_grid.measure(model, dictionaries, out, chosen)
    rows = [
        dictionary_rows(results.values())[0] | saebench_grid.by_removed(results["scr"]) for results in found.values()
    ]
    paper = PAPERS["saebench"]
    return Reproduction(
        name=paper.name,
        title=paper.title,
        source=paper.source,
        claims=claims(by_sweep(rows)),
        tables=(table(rows), removed_table(by_sweep(rows)), proxies_table(by_sweep(rows))),
        settings={**settings.as_json(), "model": "world"},
        seconds={"training": trained - started, "measuring": time.monotonic() - trained},
        quick=quick,
        hashes=world_grid.hashes(model),
    )


def by_sweep(rows: Sequence[Row]) -> Sweeps:
    """The sweeps along L0 of every architecture, width and seed."""
    kinds: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row["architecture"], row["width"], row["seed"]), []).append(row)
    return {
        kind: {
            column: made[0]
            for column in (*SHOWN, *(f"scr_{removed}" for removed in REMOVED))
            if column != "l0" and any(column in row for row in group)
            if (made := sweeps(group, column, ("architecture", "width", "seed")))
        }
        for kind, group in kinds.items()
    }


def good(column: str, value: float) -> float:
    """A score turned so that more is better (1 − absorption)."""
    return 1 - value if column in SHOWN and headline(column).better < 0 else value


def over_common_l0(first: Sweep, *others: Sweep) -> list[float] | None:
    """The means of sweeps over log L0 on the range that all cover; None where there is none."""
    covered = common_range([first, *others])
    if covered is None:
        return None
    values = [sweep.mean(*covered) for sweep in (first, *others)]
    return [v for v in values if v is not None] if None not in values else None


def differences(found: Sweeps, first: str, second: str, column: str) -> dict[int, list[float]]:
    """Width → one difference per seed: ``first`` minus ``second``, turned so that more is better."""
    out: dict[int, list[float]] = {}
    for (architecture, width, seed), lines in sorted(found.items()):
        other = found.get((second, width, seed), {})
        if architecture == first and column in lines and column in other:
            pair = over_common_l0(lines[column], other[column])
            if pair is not None:
                out.setdefault(width, []).append(good(column, pair[0]) - good(column, pair[1]))
    return out


def claims(found: Sweeps) -> tuple[Claim, ...]:
    """The paper's findings against the sweeps."""
    note = "Mean over log L0 on the range that both cover, same seed and activations."
    against = [
        ("Matryoshka reconstructs slightly worse than BatchTopK", "explained_variance", "below", "explained variance"),
        ("It preserves the model's loss slightly worse", "ce_loss_score", "below", "CE loss score"),
        ("Matryoshka absorbs less", "absorption", "above", "1 − absorption fraction"),
        ("It isolates unwanted cues better (SCR)", "scr_20", "above", "SCR with 20 latents"),
        ("It disentangles classes better (TPP)", "tpp_20", "above", "TPP with 20 latents"),
        ("Its single latents are better probes", "probe_k1", "above", "accuracy of one latent"),
    ]
    compared = [
        Claim(
            sentence,
            "direction, L0 20 to 200; clearest at 65,536 latents",
            f"{what}, Matryoshka − BatchTopK",
            _by_width(differences(found, NESTED, PLAIN, column)),
            Rule(high=0.0) if side == "below" else Rule(low=0.0),
            note,
        )
        for sentence, column, side, what in against
    ]
    return (*compared, *_wider(found), *_sparsity(found), _standard(found), _proxies(found), _similar(found))


def _wider(found: Sweeps) -> list[Claim]:
    widths = sorted({width for _, width, _ in found})
    if len(widths) < 2:
        return []
    low, high = widths[0], widths[-1]
    grown: dict[str, list[float]] = {}
    for column in ("absorption", "scr_20"):
        by_width = differences(found, NESTED, PLAIN, column)
        pairs = zip(by_width.get(low, []), by_width.get(high, []), strict=False)
        grown[column] = [b - a for a, b in pairs]
    worse = {
        architecture: values
        for architecture in sorted({a for a, _, _ in found if a != NESTED})
        if (values := _change_with_width(found, architecture, "absorption", low, high))
    }
    return [
        Claim(
            "Matryoshka's advantage grows with the width",
            "direction, 4,096 to 65,536 latents",
            f"advantage with {high:,} latents − with {low:,}",
            grown,
            Rule(low=0.0),
        ),
        Claim(
            "All others absorb more when they are wider",
            "BatchTopK 0.013, 0.14, 0.28 at 4,096, 16,384 and 65,536; ReLU 0.053, 0.285, 0.497",
            f"absorption fraction with {high:,} latents − with {low:,}",
            worse,
            Rule(low=0.0),
        ),
    ]


def _change_with_width(found: Sweeps, architecture: str, column: str, low: int, high: int) -> list[float]:
    out: list[float] = []
    for seed in sorted({s for a, _, s in found if a == architecture}):
        lines = [found.get((architecture, width, seed), {}).get(column) for width in (low, high)]
        if lines[0] is not None and lines[1] is not None and (pair := over_common_l0(lines[0], lines[1])):
            out.append(pair[1] - pair[0])
    return out


def _sparsity(found: Sweeps) -> list[Claim]:
    def ends(column: str) -> dict[str, list[float]]:
        out: dict[str, list[float]] = {}
        for (architecture, _, _), lines in sorted(found.items()):
            if column in lines and len(lines[column].y) > 1:
                y = lines[column].y
                out.setdefault(architecture, []).append(good(column, y[-1]) - good(column, y[0]))
        return out

    return [
        Claim(
            "More active latents preserve the loss better",
            "direction, all architectures",
            "CE loss score at the largest L0 − at the smallest",
            ends("ce_loss_score"),
            Rule(low=0.0),
        ),
        Claim(
            "Absorption falls with L0",
            "direction",
            "1 − absorption fraction at the largest L0 − at the smallest",
            ends("absorption"),
            Rule(low=0.0),
        ),
        Claim(
            "TPP rises with L0",
            "direction",
            "TPP with 20 latents at the largest L0 − at the smallest",
            ends("tpp_20"),
            Rule(low=0.0),
        ),
        Claim(
            "Interpretability prefers few active latents",
            "direction",
            "autointerp score at the largest L0 − at the smallest",
            ends("autointerp"),
            Rule(high=0.0),
        ),
    ]


def _standard(found: Sweeps) -> Claim:
    others = sorted({a for a, _, _ in found} - {STANDARD, "relu"})
    values = {
        other: [v for by_seed in differences(found, other, STANDARD, "absorption").values() for v in by_seed]
        for other in others
    }
    return Claim(
        "ReLU with an L1 penalty (April update) absorbs most",
        "direction",
        "1 − absorption fraction, minus that of ReLU",
        {k: v for k, v in values.items() if v},
        Rule(low=0.0),
    )


def _proxies(found: Sweeps) -> Claim:
    return Claim(
        "Proxy metrics do not predict the rest",
        "stated; no number",
        "rank correlation of explained variance with a score, over architectures at the same L0",
        {column: list(proxy_correlations(found, column).values()) for column in DOWNSTREAM},
        Rule(high=0.5, share=0.5),
        "One value per width and seed. A proxy that predicted a score would rank the architectures as the score does.",
        digits=2,
    )


def proxy_correlations(found: Sweeps, column: str) -> dict[tuple[int, int], float]:
    """(width, seed) → Spearman's correlation of explained variance and the score over architectures at one L0.

    The L0 is the middle, in logarithms, of the range that all architectures cover.
    """
    out: dict[tuple[int, int], float] = {}
    for width, seed in sorted({(w, s) for _, w, s in found}):
        lines = [v for (_, w, s), v in found.items() if (w, s) == (width, seed) and column in v]
        covered = common_range([v["explained_variance"] for v in lines])
        if covered is None or len(lines) < 4:
            continue
        at = math.sqrt(covered[0] * covered[1])
        pairs = [(v["explained_variance"].at(at), v[column].at(at)) for v in lines]
        known = [(a, good(column, b)) for a, b in pairs if a is not None and b is not None]
        if len(known) > 3:
            out[width, seed] = spearman([a for a, _ in known], [b for _, b in known])
    return out


def _similar(found: Sweeps) -> Claim:
    """The spread among the reconstruction-oriented variants against Matryoshka's distance from their mean."""
    values: dict[str, list[float]] = {}
    for column in ("scr_20", "tpp_20", "absorption"):
        for width, seed in sorted({(w, s) for _, w, s in found}):
            lines = {a: found.get((a, width, seed), {}).get(column) for a in (NESTED, *SIMILAR)}
            present = [line for line in lines.values() if line is not None]
            if len(present) == len(lines) and (means := over_common_l0(*present)):
                turned = [good(column, v) for v in means]
                apart = abs(turned[0] - mean(turned[1:]))
                values.setdefault(column, []).append((max(turned[1:]) - min(turned[1:])) / apart if apart else math.inf)
    return Claim(
        "Variants made for reconstruction are hard to tell apart on what follows from it",
        "stated; no number",
        "range over TopK, BatchTopK, JumpReLU, gated and p-annealing, over the distance of Matryoshka from their mean",
        values,
        Rule(high=1.0),
        digits=2,
    )


def _by_width(values: Mapping[int, list[float]]) -> dict[str, list[float]]:
    return {f"{width:,} latents": v for width, v in values.items()}


def table(rows: Sequence[Row]) -> Table:
    """Mean over the seeds with least and greatest, one row per architecture, width and sparsity."""
    groups: dict[tuple[str, int, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["architecture"], row["width"], row["setting"]), []).append(row)
    lines: list[tuple[str, ...]] = []
    for (architecture, width, setting), group in sorted(groups.items()):
        cells = [_cell([row.get(c) for row in group], 1 if c == "l0" else 3) for c in SHOWN]
        lines.append((architecture, f"{width:,}", f"{setting:g}", *cells))
    return Table("The grid", ("architecture", "width", "k or weight", *SHOWN), tuple(lines))


def _cell(values: Sequence[float | None], digits: int) -> str:
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return "–"
    return spread(spread_of(known), digits) if len(known) > 1 else f"{known[0]:.{digits}f}"


def removed_table(found: Sweeps) -> Table:
    """SCR of Matryoshka minus that of BatchTopK by the number of latents removed."""
    columns = [f"scr_{removed}" for removed in REMOVED]
    widths = sorted({width for _, width, _ in found})
    rows: list[tuple[str, ...]] = []
    for width in widths:
        values = [differences(found, NESTED, PLAIN, column).get(width, []) for column in columns]
        rows.append((f"{width:,}", *(_cell(one, 3) for one in values)))
    return Table("SCR by the number of latents removed, Matryoshka − BatchTopK", ("width", *columns), tuple(rows))


def proxies_table(found: Sweeps) -> Table:
    """Rank correlation of explained variance with every score, by width and seed."""
    by_column = {column: proxy_correlations(found, column) for column in DOWNSTREAM}
    kinds = sorted({kind for values in by_column.values() for kind in values})
    rows = tuple(
        (column, *(f"{values[k]:.2f}" if k in values else "–" for k in kinds)) for column, values in by_column.items()
    )
    head = ("score", *(f"{width:,} latents, seed {seed}" for width, seed in kinds))
    return Table("Explained variance against the scores, over architectures at the same L0", head, rows)
