"""Crosscoders find what chat-tuning changed, once artifacts are taken out (arXiv 2504.02922).

Two parts. On a synthetic pair of models the truth is known, and the measures are held against it. On the embedded base
and chat model the world says which concepts the chat model learned. The paper's numbers were measured on Gemma-2-2B
with 73,728 latents; of those only the direction can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from saeworks.papers import diffing_named as named
from saeworks.papers import diffing_world as world
from saeworks.papers.claims import Claim, Reproduction, Rule, Table
from saeworks.papers.diffing_bench import STEPS, bench
from saeworks.papers.diffing_targets import Measured, measure
from saeworks.papers.index import PAPERS
from saeworks.results.tables import spread, summary

SETTINGS, QUICK = world.Settings(), world.QUICK
QUICK_STEPS = 1500
L1, TOPK = "l1", "batch_topk"
BENCH = ("l1_sum", "batch_topk")
#: Named concept, what pushes are the share of, what is claimed, and a note.
PUSHES = (
    ("refusal trigger", "refused", "refusal latent makes the chat model refuse harmless requests", ""),
    (
        "false information",
        "turned",
        "false-information latent makes the chat model correct true statements",
        "The answer without the push confirms them; with it, the first judgement that it gives is the opposite one.",
    ),
    (
        "personal question",
        "answered so",
        "personal-question latent makes the chat model speak of itself",
        "It answers harmless requests as it answers those about itself and personal ones.",
    ),
)
#: Named concept, and what the chat model does because of it.
REMOVALS = (
    ("refusal trigger", "refuses"),
    ("false information", "corrects"),
    ("personal question", "speaks of itself"),
)
# By seed, configuration → measures.
Bench = Sequence[Mapping[str, Measured]]
Pairs = Sequence[Mapping[str, Mapping[str, float]]]


def run(out: Path, seeds: int | None = None, quick: bool = False) -> Reproduction:
    """Train, measure, and hold the claims against the numbers; see :func:`saeworks.papers.index.reproduce`."""
    settings = QUICK if quick else SETTINGS
    settings = replace(settings, seeds=seeds or settings.seeds)
    steps = QUICK_STEPS if quick else STEPS
    clock = [time.monotonic()]
    synthetic = [_bench(seed, steps) for seed in range(settings.seeds)]
    clock.append(time.monotonic())
    pair = world.open_pair()
    found = [
        plain | {named.WIDE: wide}
        for plain, wide in zip(world.run(pair, settings, out), named.run(pair, settings, out), strict=True)
    ]
    clock.append(time.monotonic())
    paper = PAPERS["diffing"]
    return Reproduction(
        name=paper.name,
        title=paper.title,
        source=paper.source,
        claims=(*bench_claims(synthetic), *world_claims(found)),
        tables=(
            bench_table(synthetic),
            world_table(found, "What is found", FOUND),
            world_table(found, "Causes", CAUSES),
            named_table(found),
        ),
        settings={**settings.as_json(), "bench_steps": steps, **named.as_json(), "models": ["world", "world:chat"]},
        seconds={"bench": clock[1] - clock[0], "world": clock[2] - clock[1]},
        quick=quick,
        hashes={"base": pair.base.fingerprint(), "chat": pair.chat.fingerprint()},
    )


def _bench(seed: int, steps: int) -> dict[str, Measured]:
    made = bench(BENCH, seed, steps)
    return {name: measure(made, name) for name in BENCH}


def bench_claims(found: Bench) -> tuple[Claim, ...]:
    """What holds where the truth is known."""

    def of(name: str, quantity: str) -> dict[str, list[float]]:
        return {"": [float(getattr(seed[name], quantity)) for seed in found]}

    return (
        Claim(
            "Synthetic pair: many latents that an L1 crosscoder calls chat-only are artifacts",
            "most of 3,176 on Gemma-2-2B",
            "share of artifacts",
            of("l1_sum", "artifacts"),
            Rule(low=0.3),
            "An artifact follows a concept that the base holds too.",
        ),
        Claim(
            "Synthetic pair: of those that a BatchTopK crosscoder calls chat-only, few are",
            "direction",
            "share of artifacts",
            of("batch_topk", "artifacts"),
            Rule(high=0.2),
        ),
        Claim(
            "Synthetic pair: Latent Scaling finds the artifacts",
            "direction",
            "share of artifacts flagged",
            of("l1_sum", "flag_recall"),
            Rule(low=0.9),
        ),
        Claim(
            "Synthetic pair: and what it keeps is new",
            "direction",
            "share of kept latents that are new",
            of("l1_sum", "kept_precision"),
            Rule(low=0.9),
        ),
        Claim(
            "Synthetic pair: L1 splits concepts into twins, one latent per model",
            "109 pairs; none with BatchTopK",
            "twins of L1 minus those of BatchTopK",
            {"": [float(seed["l1_sum"].twins - seed["batch_topk"].twins) for seed in found]},
            Rule(low=0.0),
        ),
    )


def world_claims(found: Pairs) -> tuple[Claim, ...]:
    """What holds on the embedded models."""

    def of(quantity: str, *names: str) -> dict[str, list[float]]:
        return {name: [seed[name][quantity] for seed in found] for name in names}

    standing = tuple(
        Claim(
            f"Embedded pair: a genuine latent stands for a {name}",
            "latents for refusal, false information, personal questions, read off contexts",
            "best F1 among genuine latents",
            of(f"best_f1_{name}", named.WIDE),
            Rule(low=world.FOUND),
            f"Concepts: {', '.join(names)}. Among all latents, genuine or not: "
            + " ".join(f"{seed[named.WIDE][f'any_f1_{name}']:.2f}" for seed in found)
            + ".",
        )
        for name, names in named.NAMED.items()
    )
    return (
        Claim(
            "Embedded pair: L1 calls more latents chat-only by norm than BatchTopK",
            "3,176 against 134",
            "latents with a norm difference above 0.9, L1 minus BatchTopK",
            {"": [seed[L1]["chat_only"] - seed[TOPK]["chat_only"] for seed in found]},
            Rule(low=0.0),
        ),
        Claim(
            "Embedded pair: most of the latents that Latent Scaling keeps are of the chat model's own concepts",
            "not measured: no ground truth",
            "precision of genuine latents",
            of("precision_genuine", TOPK),
            Rule(low=0.75),
            "A latent stands for the concept with the best F1, over tokens or exchanges.",
        ),
        Claim(
            "Embedded pair: Latent Scaling makes the selection by norm more precise",
            "direction",
            "precision of genuine latents minus that of candidates",
            _gain(found, "precision_genuine", "precision_candidates", TOPK, L1),
            Rule(low=0.0),
            f"Candidates have a norm difference above {SETTINGS.gate:g}.",
        ),
        *standing,
        *_causes(found),
    )


def _causes(found: Pairs) -> tuple[Claim, ...]:
    """What latents do when they are patched in or pushed."""

    return (
        Claim(
            "Embedded pair: the half of the candidates that the base holds least recovers more than the other",
            "0.230 against 0.267 nats by norm, BatchTopK",
            "KL of the worst half minus that of the best, over that of none",
            {TOPK: [seed[TOPK]["best_over_worst_scaling"] for seed in found]},
            Rule(low=0.0),
        ),
        Claim(
            "Embedded pair: with L1, Latent Scaling orders the candidates better than norms do",
            "0.619 and 0.740 in wrong order by norm, first 9 tokens",
            "gain of the best half, by scaling minus by norm, first 3 tokens",
            _gain(found, "best_over_worst_scaling_first", "best_over_worst_norm_first", L1),
            Rule(low=0.0),
        ),
        Claim(
            "Embedded pair: None > best half > All > 0",
            "0.482, 0.230, 0.198",
            "smallest of the three gaps, over the KL of none",
            {TOPK: [_smallest_gap(seed[TOPK]) for seed in found]},
            Rule(low=0.0),
        ),
        Claim(
            "Embedded pair: all latents together take away much of the divergence",
            "59 %",
            "share taken away",
            {TOPK: [1 - seed[TOPK]["kl_all"] / seed[TOPK]["kl_none"] for seed in found]},
            Rule(low=0.3),
        ),
        Claim(
            "Embedded pair: the template's tokens alone carry much of the first words",
            "0.507 of 1.69 nats left, first 9 tokens",
            "share taken away, first 3 tokens",
            {TOPK: [1 - seed[TOPK]["kl_template_first"] / seed[TOPK]["kl_none_first"] for seed in found]},
            Rule(low=0.3),
            "Answers of the embedded model are short: its first 3 tokens stand for the paper's first 9.",
        ),
        *(
            Claim(
                f"Embedded pair: pushing a {latent}",
                "shown by example",
                f"largest share {what} of {named.PUSHED} candidates at most, minus that of as many others as long",
                _gain(found, f"pushed_{name}", f"other_{name}", named.WIDE),
                Rule(low=0.2),
                note,
            )
            for name, what, latent, note in PUSHES
        ),
        *(
            Claim(
                f"Embedded pair: without {name} latents, {named.PUSHED} at most, the chat model {what} less",
                "not measured",
                "share of such answers lost without its candidates, minus that without as many others",
                _gain(found, f"removed_{name}", f"kept_{name}", named.WIDE),
                Rule(low=0.2),
                f"The others are active where these replies begin; the largest share of {named.DRAWS} draws.",
            )
            for name, what in REMOVALS
        ),
    )


def _gain(found: Pairs, a: str, b: str, *names: str) -> dict[str, list[float]]:
    return {name: [seed[name][a] - seed[name][b] for seed in found] for name in names}


def _smallest_gap(measures: Mapping[str, float]) -> float:
    steps = [measures["kl_none"], measures["kl_best"], measures["kl_all"], 0.0]
    return min(a - b for a, b in pairwise(steps)) / measures["kl_none"]


def bench_table(found: Bench) -> Table:
    """One row per configuration: mean over the seeds, least and greatest."""
    columns = {
        "looks_chat_only": "look chat-only",
        "artifacts": "artifacts",
        "flag_precision": "flag precision",
        "flag_recall": "flag recall",
        "kept_precision": "kept precision",
        "recall": "recall",
        "twins": "twins",
    }
    rows: list[tuple[str, ...]] = []
    for name in BENCH:
        measured = [{c: float(getattr(seed[name], c)) for c in columns} for seed in found]
        spreads = summary(measured)
        rows.append((name, *(spread(spreads[c], 2) for c in columns)))
    return Table("Synthetic pair", ("configuration", *columns.values()), tuple(rows))


FOUND = {
    "fve_base": "FVE base",
    "fve_chat": "FVE chat",
    "l0": "L0",
    "chat_only": "Δ > 0.9",
    "candidates": "candidates",
    "genuine": "genuine",
    "precision_all": "precision, all latents",
    "precision_candidates": "precision, candidates",
    "precision_genuine": "precision, genuine",
    "recall_candidates": "recall, candidates",
    "recall_genuine": "recall, genuine",
}
CAUSES = {
    "kl_none": "KL none",
    "kl_best": "best half",
    "kl_all": "all",
    "kl_genuine": "genuine",
    "kl_template": "template",
    "kl_error": "error",
    "best_over_worst_scaling": "best − worst by scaling",
    "best_over_worst_norm": "by norm",
    "best_over_worst_scaling_first": "first 3: by scaling",
    "best_over_worst_norm_first": "first 3: by norm",
}


def named_table(found: Pairs) -> Table:
    """The latent of the wide dictionary that matches each named concept best, and what pushing its candidates does."""
    columns = {
        "any_f1": "F1",
        "best_f1": "F1, genuine",
        "relative": "norm difference",
        "nu_error": "nu of the error",
        "nu_reconstruction": "nu of the reconstruction",
        "pushed": "pushed",
        "other": "other pushes",
        "removed": "lost without them",
        "kept": "lost without others",
    }
    rows: list[tuple[str, ...]] = []
    for name in named.NAMED:
        spreads = summary([{c: seed[named.WIDE][f"{c}_{name}"] for c in columns} for seed in found])
        rows.append((name, *(spread(spreads[c], 2) for c in columns)))
    return Table("Embedded pair: the best latents of the named concepts", ("concept", *columns.values()), tuple(rows))


def world_table(found: Pairs, title: str, columns: Mapping[str, str]) -> Table:
    """One row per recipe: mean over the seeds, least and greatest."""
    rows: list[tuple[str, ...]] = []
    for name in (TOPK, L1):
        spreads = summary([{c: seed[name][c] for c in columns} for seed in found])
        rows.append(
            (name, *(spread(spreads[c], 0 if c in ("chat_only", "candidates", "genuine") else 2) for c in columns))
        )
    return Table(f"Embedded pair: {title.lower()}", ("recipe", *columns.values()), tuple(rows))
