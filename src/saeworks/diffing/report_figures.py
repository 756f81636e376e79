"""The figures of a diff's report: which numbers go into which plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from saeworks.diffing.reasons import kind
from saeworks.results.plots import Cloud, histogram_plot, interval_plot, scatter_plot
from saeworks.results.report_text import esc, visible

# Kind of a latent → its name in legends and the number of its colour.
KINDS = {
    "genuine": ("genuinely new", 2),
    "shrinkage": ("held by the base's error", 1),
    "decoupled": ("held by other latents of the base", 4),
    "both": ("held by both", 6),
    "undecided": ("not decided", 3),
    "shared": ("other latents", 0),
}
BINS = 40
SCATTER_RANGE = (-0.25, 1.5)
# Latents that are no candidates are the calibration of the scatter; this many of them are drawn.
DRAWN = 300


def figure(title: str, svg: str, caption: str = "") -> str:
    """A titled figure."""
    below = f"<figcaption>{esc(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{esc(title)}</h3>{svg}{below}</figure>"


def norm_histogram(rows: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> str:
    """How many latents have which norm difference, by kind."""
    thresholds = measured["thresholds"]
    edges = [i / BINS for i in range(BINS + 1)]
    counts = {name: [0] * BINS for name in KINDS}
    for row in rows:
        value = row.get("relative_decoder_norm")
        if value is not None and math.isfinite(value):
            counts[kind(row, thresholds)][min(int(value * BINS), BINS - 1)] += 1
    parts = [(KINDS[k][0], counts[k], KINDS[k][1]) for k in ("shared", *list(KINDS)[:-1]) if any(counts[k])]
    if not parts:
        return ""
    svg = histogram_plot(
        edges,
        parts,
        "Norm difference: 0 base only, 0.5 equal, 1 chat only",
        "Latents (logarithmic)",
        "Histogram of the difference of decoder norms over the latents that fire",
        identifier="norms",
        x_lines=(thresholds["gate"],),
    )
    return figure("Decoder norms", svg, "The line is the gate: right of it a latent looks new.")


def scaling_scatter(rows: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> str:
    """Share of each latent in the base's error against that in its reconstruction."""
    thresholds = measured["thresholds"]
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
    for row in rows:
        x, y = row.get("nu_error"), row.get("nu_reconstruction")
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y):
            points[kind(row, thresholds)].append((float(x), float(y)))
    every = len(points["shared"])
    points["shared"] = points["shared"][:: max(1, every // DRAWN)]
    order = ("shared", "undecided", "both", "decoupled", "shrinkage", "genuine")
    clouds = [
        Cloud(
            KINDS[name][0],
            [p[0] for p in points[name]],
            [p[1] for p in points[name]],
            KINDS[name][1],
            marker=order.index(name),
            ring=name == "shared",
        )
        for name in order
        if points[name]
    ]
    if not clouds:
        return ""
    svg = scatter_plot(
        clouds,
        "ν of the error: share left over in the base",
        "ν of the reconstruction",
        "How much of each latent the base model holds, in its error and in its reconstruction",
        identifier="scaling",
        x_range=SCATTER_RANGE,
        y_range=SCATTER_RANGE,
        x_lines=(thresholds["nu_error"],),
        y_lines=(thresholds["nu_reconstruction"],),
    )
    return figure(
        "Latent Scaling",
        svg,
        "Bottom left is new. Above or right of the lines the base holds the latent after all. Latents that are no "
        "candidates show what shared ones look like; points beyond the frame lie on its edge.",
    )


def kl_bars(rows: Sequence[Mapping[str, Any]], group: str) -> str:
    """One bar per condition for a group of tokens."""
    chosen = [row for row in rows if row["group"] == group and row["condition"] not in ("base", "chat into base")]
    order = ["none", "bias", "template", "genuine", "candidates"]
    order += ["best half by scaling", "worst half by scaling", "best half by norm", "worst half by norm"]
    names = [row["condition"] for row in chosen]
    order += [n for n in names if n.startswith("random ")] + ["all", "all and bias", "error", "full"]
    by_name = {row["condition"]: row for row in chosen}
    colours = {"genuine": 2, "best half by scaling": 2, "best half by norm": 2, "none": 7}
    colours |= {"worst half by scaling": 1, "worst half by norm": 1, "candidates": 4, "template": 3}
    bars = [
        (
            visible(_label(by_name[name])),
            float(by_name[name]["kl"]),
            by_name[name]["kl_low"],
            by_name[name]["kl_high"],
            5 if name.startswith("random ") else colours.get(name, 0),
        )
        for name in order
        if name in by_name and by_name[name]["kl"] is not None
    ]
    if not bars:
        return ""
    svg = interval_plot(
        bars,
        "KL(chat ‖ patched) per token, nats",
        f"Divergence from the chat model for every condition, {group} tokens of the answers",
        identifier="kl-" + group.replace(" ", "-"),
    )
    title = "All tokens of the answers" if group == "all" else f"The {group} tokens of the answers"
    return figure(title, svg, "Lines: 95 % intervals. In brackets the number of latents that were added.")


def _label(row: Mapping[str, Any]) -> str:
    latents = row.get("latents")
    return f"{row['condition']} ({latents})" if latents else str(row["condition"])
