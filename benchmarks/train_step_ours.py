"""This package's side of benchmarks/train_step.py: the fast path, its dense reference, and both made like others."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train_step_worker import L1, RATE, STEPS, Commands, Step

from saeworks.activations.batches import Layout
from saeworks.dictionaries.kernels import product
from saeworks.runtime import reuse_freed_memory
from saeworks.training import sparse
from saeworks.training.initialisation import Initialisation
from saeworks.training.member import Member, MemberConfig
from saeworks.training.penalties import L0
from saeworks.training.penalties import L1 as L1Penalty
from saeworks.training.recipes import Jump, Recipe, recipe
from saeworks.training.schedules import Span, Timing

NEVER_DEAD = 10**9
CONSTANT = Timing(warm_up=Span(0, 0.0), decay=0.0, sparsity_warm_up=Span(0, 0.0))
PLAIN = Initialisation(scale="none", b_dec="zero")
SQUARED = {"reconstruction": "squared"}
BY_NORM = {"norm_weighted": True, "constraint": "free", **SQUARED}
UNCLIPPED: dict[str, Any] = {"clip_norm": None, "resampling": None}
SIGNUM = {"optimizer": "signum", "clip_norm": None, "aux_k": None}
# What a recipe must change to compute what another library does.
LIKE: dict[str, dict[str, dict[str, Any]]] = {
    "dictionary_learning": {
        "topk": SQUARED,
        "batch_topk": SQUARED,
        "matryoshka_batch_topk": SQUARED,
        "relu": UNCLIPPED,
        "relu_april": {"pre_bias": True, "penalties": (L1Penalty(norms="joint"),)},
        "p_anneal": UNCLIPPED,
        "gated": UNCLIPPED,
        "jumprelu": {"pre_bias": False},
    },
    "saelens": {
        "topk": BY_NORM,
        "batch_topk": BY_NORM,
        "matryoshka_batch_topk": {**BY_NORM, "prefix_sum": True},
        "relu": {"constraint": "free", "resampling": None, "penalties": (L1Penalty(norms="joint"),)},
        "gated": {"constraint": "free", "betas": (0.9, 0.999), "penalties": (L1Penalty(norms="joint"),)},
        "jumprelu": {
            "constraint": "free",
            "betas": (0.9, 0.999),
            "penalties": (L0(),),
            "sparsity": "coefficient",
            "jump": Jump(bandwidth=0.05),
        },
    },
    "sparsify": {"topk": SIGNUM, "groupmax": SIGNUM},
}


def make(library: str, name: str, start: dict[str, Any], like: str | None) -> tuple[Step, Commands]:
    """A member with the common first weights; as ``dense``, on dense matrices whatever the density."""
    reuse_freed_memory()
    changes = LIKE[like][name] if like else {}
    chosen = recipe(name, **{"timing": CONSTANT, "initialisation": PLAIN, **changes})
    config = start["config"]
    if library == "dense":
        sparse.covers = lambda recipe: False
    member = first_member(chosen, start)
    schedule, count = chosen.schedule(STEPS), iter(range(1, STEPS))
    dead = 0

    def targets(x: Tensor) -> Tensor | None:
        return x if chosen.inputs == "target" else None

    def step(x: Tensor) -> float:
        if dead:
            member.tokens_since_fired[:dead] = NEVER_DEAD
        return float(member.step(x, schedule, next(count), targets(x))["total"])

    def some_dead() -> dict[str, Any]:
        """From now on a tenth of the latents counts as dead before every step."""
        nonlocal dead
        dead = config["width"] // 10
        return {"dead": dead}

    def encoder() -> dict[str, Any]:
        """Seconds of the bare product by each library."""
        found: dict[str, Any] = {}
        with torch.no_grad():
            for name in product.libraries():
                started = time.perf_counter()
                product.product(start["x"][0], member.encoder, member.b_enc, name)
                found[name] = time.perf_counter() - started
        return found

    def facts() -> dict[str, Any]:
        """Counted in one loss and its gradient: products of the encoder's size, and the share of active latents."""
        x = start["x"][0]
        product.decide("blas")  # whose operators the counter knows
        with FlopCounterMode(display=False) as flops:
            losses, codes = member.losses(x, targets(x))
            losses["total"].backward()
        member.optimizer.zero_grad(set_to_none=True)
        return {
            "dense_products": flops.get_total_flops() / (2 * x.numel() * config["width"]),
            "density": codes.values.numel() / (codes.tokens * codes.width),
        }

    return step, {"encoder": encoder, "some_dead": some_dead, "facts": facts}


def first_member(chosen: Recipe, start: dict[str, Any]) -> Member:
    """A member that begins where all libraries begin."""
    config = start["config"]
    d = config["d"]
    layout = Layout(d, d_out=d) if chosen.inputs == "target" else Layout(d)
    layout = Layout(d, sources=("first", "second")) if chosen.inputs == "sources" else layout
    number = L1 if chosen.sparsity == "coefficient" else config["k"]
    member = Member(MemberConfig(chosen, config["width"], number, 0, RATE), layout, NEVER_DEAD, torch.device("cpu"))
    p, level = member.parameters, start["level" if chosen.pre_bias else "level_without_pre_bias"]
    with torch.no_grad():
        p["encoder"].copy_(start["encoder"])
        p["decoder"].copy_(start["encoder"])
        p["b_dec"].copy_(start["b_dec"])
        if "threshold" in p:
            p["threshold"].fill_(level)
        elif chosen.selection in ("relu", "gated"):
            p["b_gate" if "b_gate" in p else "b_enc"].fill_(-level)
    return member
