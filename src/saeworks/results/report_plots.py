"""The figures of a report: which numbers go into which plot."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

from saeworks.results.plots import Series, line_plot
from saeworks.results.report_data import Entry, Workspace, thinned
from saeworks.results.report_text import esc, visible

EV = ("core", "reconstruction_quality", "explained_variance")
CE = ("core", "model_performance_preservation", "ce_loss_score")
L0 = ("core", "sparsity", "l0")


def figure(title: str, svg: str, caption: str = "") -> str:
    """A titled figure."""
    below = f"<figcaption>{esc(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{esc(title)}</h3>{svg}{below}</figure>"


def fidelity_figures(workspace: Workspace) -> list[str]:
    """L0 against explained variance and against the CE score; one line per recipe and width."""
    out: list[str] = []
    for metric, title, key in ((EV, "Explained variance", "ev"), (CE, "CE loss score", "ce")):
        series: list[Series] = []
        for number, (name, entries) in enumerate(_by_recipe_and_width(workspace.entries).items()):
            points = sorted(
                ((e.metric(*L0), e.metric(*metric), e.interval(metric[0], ".".join(metric[1:]))) for e in entries),
                key=lambda p: p[0] or 0.0,
            )
            usable = [(x, y, ends) for x, y, ends in points if x is not None and y is not None]
            if usable:
                series.append(
                    Series(
                        visible(name),
                        [p[0] for p in usable],
                        [p[1] for p in usable],
                        recipe=entries[0].recipe,
                        line=number // 7,
                        low=[p[2][0] if p[2] else None for p in usable],
                        high=[p[2][1] if p[2] else None for p in usable],
                    )
                )
        if series:
            ticks = _round_ticks([x for s in series for x in s.x])
            svg = line_plot(
                series,
                "L0: active latents per token",
                title,
                f"{title} against L0 for every recipe",
                identifier=f"fidelity-{key}",
                log_x=True,
                x_ticks=ticks,
            )
            out.append(figure(f"{title} against L0", svg, "Up and to the left is better. Bars: 95 % intervals."))
    return out


def _round_ticks(xs: list[float]) -> list[float]:
    low, high = min(xs) * 0.9, max(xs) * 1.1
    steps = [m * 10**e for e in range(-1, 6) for m in (1, 2, 5)]
    inside = [s for s in steps if low <= s <= high]
    return inside if len(inside) >= 2 else sorted({round(x, 1) for x in xs})


def probing_figure(workspace: Workspace) -> list[str]:
    """Number of latents against probe accuracy, with the probe on raw activations as a baseline."""
    series: list[Series] = []
    ks: set[int] = set()
    dense: float | None = None
    seen: dict[str, int] = {}
    for e in workspace.entries:
        result = e.results.get("sparse_probing")
        if result is None:
            continue
        points: list[tuple[int, float]] = []
        for key, value in result.eval_result_metrics.get("sae", {}).items():
            if key.startswith("sae_top_") and key.endswith("_test_accuracy") and value is not None:
                points.append((int(key.split("_")[2]), float(value)))
        points.sort()
        ks |= {k for k, _ in points}
        dense = dense if dense is not None else result.metric("llm", "llm_test_accuracy")
        line = seen.get(e.recipe, 0)
        seen[e.recipe] = line + 1
        xs, ys = [float(k) for k, _ in points], [v for _, v in points]
        series.append(Series(visible(e.label), xs, ys, recipe=e.recipe, line=line))
    if not series or not ks:
        return []
    if dense is not None:
        xs = [float(min(ks)), float(max(ks))]
        series.append(Series("all activations (dense probe)", xs, [dense, dense], line=1, baseline=True))
    svg = line_plot(
        series,
        "number of latents the probe may use",
        "test accuracy",
        "Probe accuracy against the number of latents",
        identifier="probing",
        log_x=True,
        x_ticks=sorted(ks),
    )
    return [figure("Sparse probing", svg, "Mean over datasets, classes and seeds; balanced classes, chance is 0.5.")]


def training_figures(workspace: Workspace) -> list[str]:
    """Explained variance and dead latents over the tokens of training."""
    out: list[str] = []
    for key, title in (
        ("metrics/explained_variance", "Explained variance in training"),
        ("sparsity/dead_features", "Dead latents in training"),
    ):
        series: list[Series] = []
        seen: dict[str, int] = {}
        for e in workspace.entries:
            records = [r for r in workspace.log.get(e.name, []) if _is_number(r.get(key))]
            if not records:
                continue
            records = thinned(records)
            xs = [float(r.get("tokens", r.get("step", 0))) for r in records]
            line = seen.get(e.recipe, 0)
            seen[e.recipe] = line + 1
            ys = [float(r[key]) for r in records]
            series.append(Series(visible(e.label), xs, ys, recipe=e.recipe, line=line, markers=False))
        if series:
            svg = line_plot(
                series,
                "tokens seen",
                title.removesuffix(" in training").lower(),
                f"{title} for every dictionary",
                identifier="training-" + key.rpartition("/")[2],
            )
            out.append(figure(title, svg))
    return out


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def density_figure(workspace: Workspace) -> list[str]:
    """Histogram of log10 firing density per dictionary."""
    series: list[Series] = []
    seen: dict[str, int] = {}
    for e in workspace.entries:
        result = e.results.get("core")
        extra = result.eval_result_unstructured if result else None
        histogram = cast("dict[str, Any]", extra).get("density_histogram") if isinstance(extra, dict) else None
        if not histogram:
            continue
        edges, counts = histogram["log10_edges"], histogram["counts"]
        total = max(sum(counts) + histogram.get("dead", 0), 1)
        middles = [(a + b) / 2 for a, b in pairwise(edges)]
        line = seen.get(e.recipe, 0)
        seen[e.recipe] = line + 1
        shares = [c / total for c in counts]
        series.append(Series(visible(e.label), middles, shares, recipe=e.recipe, line=line, markers=False))
    if not series:
        return []
    svg = line_plot(
        series,
        "log₁₀ of the share of tokens on which a latent fires",
        "share of latents",
        "Histogram of firing densities of every dictionary",
        identifier="density",
        steps=True,
    )
    return [figure("How often latents fire", svg, "Latents that never fired on the measured tokens are left out.")]


def prefix_figure(workspace: Workspace) -> list[str]:
    """Explained variance of the nested prefixes of matryoshka dictionaries."""
    series: list[Series] = []
    seen: dict[str, int] = {}
    for e in workspace.entries:
        result = e.results.get("core")
        record = result.eval_result_metrics.get("prefix", {}) if result else {}
        points = sorted(
            (float(key.rpartition("_")[2]), float(value)) for key, value in record.items() if value is not None
        )
        if points:
            line = seen.get(e.recipe, 0)
            seen[e.recipe] = line + 1
            xs, ys = [p[0] for p in points], [p[1] for p in points]
            series.append(Series(visible(e.label), xs, ys, recipe=e.recipe, line=line))
    if not series:
        return []
    ticks = sorted({x for s in series for x in s.x})
    svg = line_plot(
        series,
        "first latents used",
        "explained variance",
        "Explained variance of nested prefixes",
        identifier="prefix",
        log_x=True,
        x_ticks=ticks if len(ticks) <= 8 else None,
    )
    return [figure("Fidelity of nested prefixes", svg, "A matryoshka dictionary also works when cut short.")]


def _by_recipe_and_width(entries: list[Entry]) -> dict[str, list[Entry]]:
    several = len({e.width for e in entries}) > 1
    out: dict[str, list[Entry]] = {}
    for e in entries:
        name = f"{e.recipe}, {e.width} latents" if several else e.recipe
        out.setdefault(name, []).append(e)
    return out
