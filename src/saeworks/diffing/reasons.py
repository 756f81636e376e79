"""Why a latent that looks new is or is not, as a sentence for readers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def reason(row: Mapping[str, Any], thresholds: Mapping[str, float]) -> str:
    """The verdict on one latent.

    Args:
        row: its row of the latent table. thresholds: ``gate``, ``nu_error``, ``nu_reconstruction``.
    """
    delta = row.get("relative_decoder_norm")
    if delta is None or not math.isfinite(delta):
        return "Nothing can be said: the latent has no decoder."
    if delta <= thresholds["gate"]:
        return f"Not a candidate: its decoders' norm difference is {delta:.2f}, not above {thresholds['gate']:g}."
    flags = {part for part in str(row.get("flags") or "").split(",") if part}
    error, other = row.get("nu_error"), row.get("nu_reconstruction")
    if "undefined" in flags or error is None or other is None:
        seen = row.get("active_tokens")
        return (
            "Looks new by norm, but the base's share of it cannot be measured: "
            f"the latent fired on {0 if seen is None else int(seen)} tokens, or the chat model's own share of "
            f"it is not "
            "certain."
        )
    held = {"error": _share(error), "reconstruction": _share(other)}
    if "complete_shrinkage" in flags and "decoupled" in flags:
        return (
            f"Looks new by norm; the base's error contains {held['error']} of it and the base's other latents "
            f"{held['reconstruction']}: complete shrinkage and latent decoupling at once."
        )
    if "complete_shrinkage" in flags:
        return f"Looks new by norm; the base's error contains {held['error']} of it: complete shrinkage."
    if "decoupled" in flags:
        twin = row.get("twin")
        who = f" (latent {int(twin)} is its twin)" if twin is not None and not _nan(twin) else ""
        return (
            f"Looks new by norm; other latents of the base's reconstruction contain {held['reconstruction']} of it"
            f"{who}: latent decoupling."
        )
    if "genuine" in flags:
        return (
            f"Genuinely new: of what the chat model writes along it, the base's error contains {held['error']} and the "
            f"base's other latents {held['reconstruction']}."
        )
    return (
        f"Looks new by norm; the base holds {held['error']} of it in its error and {held['reconstruction']} in its "
        "reconstruction, which is too close to the line to decide with this many tokens."
    )


def kind(row: Mapping[str, Any], thresholds: Mapping[str, float]) -> str:
    """``genuine``, ``both``, ``shrinkage``, ``decoupled``, ``undecided`` or ``shared`` (no candidate).

    ``both`` is shrinkage and decoupling at once, so that every latent is of one kind and their counts add up.
    """
    delta = row.get("relative_decoder_norm")
    if delta is None or not math.isfinite(delta) or delta <= thresholds["gate"]:
        return "shared"
    flags = set(str(row.get("flags") or "").split(","))
    if {"complete_shrinkage", "decoupled"} <= flags:
        return "both"
    for word, name in (("complete_shrinkage", "shrinkage"), ("decoupled", "decoupled"), ("genuine", "genuine")):
        if word in flags:
            return name
    return "undecided"


def _share(value: float) -> str:
    if value < 0:
        return f"{abs(100 * value):.0f} % of its opposite" if value <= -0.005 else "nothing"
    return f"{100 * value:.0f} %"


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
