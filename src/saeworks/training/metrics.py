"""What a line of the log says of one dictionary, with the metric names of SAELens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from saeworks.training.member import Member


def metrics(member: Member, stats: Mapping[str, Tensor], scale: float) -> dict[str, float]:
    """Losses and counts of a step, in raw units; every rank takes part and gets the same numbers.

    Args:
        stats: what the member's step returned. scale: of what it reconstructs.
    """
    dead = member.dead_count()
    found = {
        "losses/overall_loss": float(stats["total"]),
        "losses/mse_loss": float(stats["mse"]) / scale**2,
        "losses/auxiliary_reconstruction_loss": float(stats["aux"]) if "aux" in stats else 0.0,
        "metrics/l0": float(stats["l0"]),
        "metrics/explained_variance": 1.0 - float(stats["full"]),
        "sparsity/dead_features": float(dead),
        "sparsity/dead_fraction": dead / member.config.width,
        "details/grad_norm": float(stats["grad_norm"]),
        "details/threshold": member.threshold / scale,
    }
    if len(member.smallest) > 1:
        found["details/threshold_delta"] = member.smallest[1].value / scale
    for term in (*(p.kind for p in member.config.recipe.penalties), "gate", "multi", "delta"):
        if term in stats:
            found[f"losses/{term}"] = float(stats[term])
    if "in_window" in stats:
        found["details/in_window"] = float(stats["in_window"])
    found |= member.report()
    if len(member.group_sizes) > 1:
        prefix = 0
        for size, error in zip(member.group_sizes, stats["prefixes"].tolist(), strict=True):
            prefix += size
            found[f"metrics/explained_variance_prefix_{prefix}"] = 1.0 - error
    return found


def report(member: Member) -> dict[str, float]:
    """The state of a member's controllers and thresholds."""
    moment, recipe = member.moment(), member.config.recipe
    out: dict[str, float] = {}
    if any(penalty.coefficient is None for penalty in recipe.penalties):
        out["details/penalty"] = moment.penalty
    if recipe.lp is not None:
        out["details/p"] = moment.p
    if "threshold" in member.parameters:
        own = member.parameters["threshold"].detach()
        t = member.division.everyones("threshold", own, member.config.width)
        out |= {
            "details/threshold_mean": float(t.mean()),
            "details/threshold_min": float(t.min()),
            "details/threshold_median": float(t.median()),
            "details/threshold_max": float(t.max()),
            "details/threshold_at_zero": float((t <= 0).float().mean()),
        }
    return out
