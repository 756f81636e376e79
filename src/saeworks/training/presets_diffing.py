"""Crosscoders of two models, as recipes: what fine-tuning changed is read off the norms of their decoder rows.

All begin with the same rows for every model and scale both by one number, so that a difference of norms is one of the
models. :mod:`saeworks.diffing` measures what they find.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from saeworks.training.initialisation import Initialisation
from saeworks.training.partitions import Across, Delta
from saeworks.training.penalties import L1, PreAct, Tanh
from saeworks.training.published import Preset, published, stated
from saeworks.training.recipes import AuxK, Jump, Recipe
from saeworks.training.schedules import KAnneal, Span, Timing

# Weights of the penalties for inputs of mean square norm 1; the published one belongs to raw activations.
GRID = (0.01, 0.02, 0.04)
COMMON: dict[str, Any] = {
    "inputs": "sources",
    "reconstruction": "squared",
    "normalization": "shared",
    "constraint": "free",
    "pre_bias": False,
    "timing": Timing(warm_up=Span(1000, 0.05), decay=0.0, sparsity_warm_up=Span(None, 0.05)),
}
PENALISED: dict[str, Any] = {
    **COMMON,
    "sparsity": "coefficient",
    "grid": GRID,
    "aux_k": None,
    "initialisation": Initialisation(weights="same", row_norm=0.1, scale="none", b_dec="mean"),
}
SELECTED: dict[str, Any] = {
    **COMMON,
    "norm_weighted": True,
    "aux_k": AuxK(),
    "k_anneal": KAnneal(times=5.0, over=Span(5000, 0.2)),
    "initialisation": Initialisation(weights="same", divided=True, scale="none"),
}


@published
def diffing() -> Preset:
    """Crosscoders of a base and a chat model: the objectives of arXiv 2504.02922 and what was proposed since.

    ``diffing-l1`` penalises the sum of the models' norms, which can empty one of them; ``diffing-l1_concatenated`` the
    norm over both, which cannot. ``diffing-batch_topk`` is the one to begin with; ``diffing-batch_topk_concatenated``
    selects by the norm over both. ``diffing-dedicated`` keeps latents for each model, ``diffing-tied`` ties half of
    them, ``diffing-difference`` weighs the difference of the models more than either. ``diffing-delta`` has a set of
    latents, with a k of its own, whose decoder rows have to explain the difference (Delta-Crosscoder).
    """
    l1 = Recipe("diffing-l1", "relu", penalties=(L1(norms="sum"),), **PENALISED)
    topk = Recipe("diffing-batch_topk", "batch_topk", **SELECTED)
    jump = Recipe(
        "diffing-jumprelu",
        "jumprelu",
        penalties=(Tanh(scale=4.0, norms="sum"), PreAct(coefficient=3e-6)),
        jump=Jump(bandwidth=2.0, threshold=0.1, everywhere=True),
        **PENALISED,
    )
    recipes = (
        l1,
        replace(l1, name="diffing-l1_concatenated", penalties=(L1(norms="joint"),)),
        topk,
        replace(topk, name="diffing-batch_topk_concatenated", score_norms="joint"),
        replace(topk, name="diffing-dedicated", across=Across(exclusive=0.05)),
        replace(l1, name="diffing-tied", across=Across(tied=0.5, discount=0.7)),
        replace(topk, name="diffing-difference", across=Across(cross=-0.5)),
        replace(topk, name="diffing-delta", across=Across(delta=Delta())),
        replace(jump, normalization="sqrt_d", timing=replace(jump.timing, decay=0.2, sparsity_warm_up=Span(None, 1.0))),
    )
    sources = stated(
        ("arXiv 2504.02922 and its code", "selection norm_weighted aux_k pre_bias constraint timing"),
        ("Lindsey et al. (2024)", "penalties reconstruction"),
        ("arXiv 2602.11729, 2603.04426, Mishra-Sharma et al. (2025); shares, budgets and weight are ours", "across"),
        ("arXiv 2602.11729", "k_anneal"),
        ("Anthropic, January 2025", "jump"),
        ("saeworks: sources stay comparable", "inputs normalization initialisation score_norms"),
        ("saeworks: inputs of mean square norm 1", "sparsity grid"),
    )
    return Preset("diffing", recipes, sources)
