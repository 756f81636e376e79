"""One small case of every recipe: a number for its sparsity, rows of the shape it reads, a member to train."""

import torch

from saeworks.activations.batches import Layout
from saeworks.runtime import generator
from saeworks.training.member import Member, MemberConfig
from saeworks.training.recipes import RECIPES, recipe

D, SOURCES = 12, ("left", "right")
CPU = torch.device("cpu")


def sparsity(chosen, k=4):
    """k for the recipes that have one or aim at an L0, a published coefficient for the others."""
    return chosen.grid[len(chosen.grid) // 2] if chosen.sparsity == "coefficient" else k


def layout(chosen, d=D):
    if chosen.inputs == "sources":
        return Layout(2 * d, sources=SOURCES)
    return Layout(d, d_out=d + 3) if chosen.inputs == "target" else Layout(d)


def data(tokens=512, d=D, features=40, seed=0, offset=0.3):
    """Sparse sums of random directions in ``d`` dimensions, of mean square norm near 1."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(features, d, generator=draw), dim=1)
    codes = (torch.rand(tokens, features, generator=draw) < 0.05) * torch.rand(tokens, features, generator=draw)
    return codes @ directions + offset


def rows(chosen, tokens=512, d=D, seed=0):
    """Inputs and targets of the recipe: both are made from the same sparse codes."""
    place = layout(chosen, d)
    joint = data(tokens, place.d_in + (place.d_out or 0), seed=seed)
    return joint[:, : place.d_in], joint[:, place.d_in :] if place.d_out else None


def cell(chosen, width=64, k=4, seed=0, rate=3e-3):
    chosen = RECIPES.get(chosen) or recipe(chosen) if isinstance(chosen, str) else chosen
    return MemberConfig(chosen, width, sparsity(chosen, k), seed, rate)


def member(chosen, width=64, k=4, dead_after=10**9, rate=3e-3, d=D, initialised=True, **changes):
    chosen = recipe(chosen, **changes) if isinstance(chosen, str) else chosen
    m = Member(cell(chosen, width, k, rate=rate), layout(chosen, d), dead_after, CPU)
    if initialised:
        m.initialise(*rows(chosen, d=d))
    return m


def hard_rows(chosen, p, tokens, seed=0):
    """Rows in float64 on which selections have to choose: several times k of the ``p`` are above 0 on most tokens,
    dead ones among them. The first token has no active latent at all, and the last two tokens are equal."""
    place, draw = layout(chosen), generator(seed, "hard rows")
    x = 0.7 * torch.randn(tokens, place.d_in, generator=draw, dtype=torch.float64)
    y = torch.randn(tokens, place.d_out, generator=draw, dtype=torch.float64) if place.d_out else x
    with torch.no_grad():
        for name in {"b_enc", "b_gate"} & p.keys():
            p[name].copy_(-p[name].abs() - 0.2)
        x[0] = p["b_dec"] if chosen.pre_bias else 0  # its pre-activations are the biases
        x[-1] = x[-2]
    return x, y


def scrambled(m, seed=1):
    """The member's parameters in float64, moved away from their symmetric start."""
    draw = generator(seed, "scrambled")
    noise = {n: 0.3 * torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in m.parameters.items()}
    out = {n: p.detach().double() + noise[n] for n, p in m.parameters.items()}
    if "threshold" in out:
        out["threshold"] = out["threshold"].abs()
    return {n: p.requires_grad_() for n, p in out.items()}
