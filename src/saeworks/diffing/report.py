"""The report of a diff: one HTML page made from ``result.json`` alone, readable anywhere and without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from saeworks.diffing import report_figures as figures
from saeworks.diffing import report_latents as latents
from saeworks.diffing.reasons import kind
from saeworks.errors import InputError
from saeworks.files import atomic_write_text, read_json
from saeworks.results.report_style import CSS
from saeworks.results.report_text import duration, esc, number, percent, whole

FILE = "report.html"
EXCLUSIVE = (
    "Exclusive means representation, not knowledge: a latent of the chat model alone has no direct linear analogue in "
    "the base model, which may know the same thing in another form."
)
OWN_CSS = """
.verdict { font-size:.9rem; margin:.3em 0 .5em; }
.says { margin:0; font-size:.88rem; } .says b { font-weight:600; color:var(--soft); }
.says code { background:rgba(128,128,128,.14); border-radius:3px; padding:0 3px; white-space:pre-wrap; }
.steer { border-top:1px solid var(--line); margin-top:.6em; padding-top:.5em; font-size:.88rem; }
.steer dt { color:var(--soft); font-size:.78rem; } .steer dd { margin:0 0 .3em; overflow-wrap:anywhere; }
.kind-genuine { color:var(--good); border-color:var(--good); }
.kind-shrinkage, .kind-decoupled, .kind-both { color:var(--bad); border-color:var(--bad); }
td.why { text-align:left; white-space:normal; min-width:min(60vw,420px); }
"""


def write_report(directory: Path) -> Path:
    """Write ``directory/report.html`` from ``directory/result.json`` and return its path.

    The page holds no scripts and loads nothing from anywhere. Everything read from the file is escaped.

    Raises:
        InputError: no result, or one of another kind.
    """
    result: object = read_json(Path(directory) / "result.json")
    if not isinstance(result, dict) or "definition" not in result or "config" not in result:
        raise InputError(f"'{Path(directory) / 'result.json'}' is no result of saeworks diff; run the diff again.")
    target = Path(directory) / FILE
    atomic_write_text(target, render(cast("dict[str, Any]", result)))
    return target


def render(result: Mapping[str, Any]) -> str:
    """The page as text."""
    content = [part for part in _content(result) if part[3]]
    toc = "".join(f'<li><a href="#{key}">{esc(title)}</a></li>' for key, title, _, _ in content)
    body = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{esc(title)}</h2>'
        f"{f'<p>{esc(lead)}</p>' if lead else ''}{html}</section>"
        for key, title, lead, html in content
    )
    config = result["config"]
    title = f"{config['chat']} against {config['base']}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{esc(title)}</title><style>{CSS}{OWN_CSS}</style></head><body>"
        '<a class="skip" href="#main">Skip to the content</a>'
        f'{_header(result)}<nav class="toc" aria-label="Contents"><ul>{toc}</ul></nav>'
        f'<main id="main">{body}</main>'
        "<footer>Made by saeworks from <code>result.json</code> alone; <code>latents.parquet</code> has every "
        "number of "
        "every latent.</footer></body></html>\n"
    )


def _content(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(anchor, title, introduction, HTML) of the sections that have something to show."""
    stages = cast("dict[str, Any]", result.get("stages") or {})
    measured = stages.get("measure")
    parts: list[tuple[str, str, str, str]] = []
    if measured is not None:
        rows = latents.rows_of(measured)
        parts += [
            (
                "norms",
                "What looks new",
                "A latent has one decoder row per model. Where the chat model's is long and the base's short, "
                "the latent "
                "looks new; Latent Scaling then asks how much of it the base holds after all, in what its "
                "reconstruction misses (error) or by other latents (reconstruction).",
                _plots([figures.norm_histogram(rows, measured), figures.scaling_scatter(rows, measured)]),
            ),
            (
                "patching",
                "What it does",
                "The base model's activations, with the contribution of some latents added, are read by the "
                "chat model's "
                "upper layers. The shorter the bar, the closer the predictions are to the chat model's own.",
                _patching(stages.get("patching")),
            ),
            (
                "genuine",
                "Genuinely new latents",
                "Strongest contexts, one per text; the stronger the colour, the larger the activation (hover for the "
                "value). Those the base holds least come first.",
                latents.cards(stages, rows, genuine=True),
            ),
            (
                "rejected",
                "Rejected latents",
                "Ordered by how new they look.",
                latents.rejected(rows, measured["thresholds"])
                + _details("Contexts of rejected latents", latents.cards(stages, rows, genuine=False)),
            ),
        ]
    parts.append(("methods", "Other methods", "", latents.methods(result.get("methods") or [])))
    parts.append(("definitions", "Definitions", "", latents.definitions()))
    parts.append(("provenance", "Provenance", "", _provenance(result)))
    return parts


def _header(result: Mapping[str, Any]) -> str:
    config = result["config"]
    seconds = result.get("seconds") or {}
    facts = {
        "Base model": esc(config["base"]),
        "Chat model": esc(config["chat"]),
        "Site": esc(result.get("site")),
        "Texts": esc(", ".join(map(str, config["data"]))),
        "Transcripts": esc(config.get("transcripts") or ("world" if str(config["chat"]).startswith("world") else "–")),
        "Crosscoder": esc(Path(str(result["dictionary"])).name) if result.get("dictionary") else "none",
        "Computing time, last session": duration(seconds.get("total")),
        "saeworks": esc(result.get("saeworks_version")),
    }
    rows = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts.items())
    sentences = "".join(f"<p>{s}</p>" for s in summary_sentences(result))
    return (
        f'<header class="top"><p class="kicker">saeworks diff</p><h1>What changed from {esc(config["base"])} to '
        f'{esc(config["chat"])}</h1><dl class="facts">{rows}</dl><div class="summary">{sentences}</div></header>'
    )


def summary_sentences(result: Mapping[str, Any]) -> list[str]:
    """The numbers that matter, one sentence each, as HTML."""
    counts = result.get("counts")
    out: list[str] = []
    if counts:
        explained = counts["variance_explained"]
        out.append(
            f"The crosscoder has {whole(counts['latents'])} latents, of which {whole(counts['alive'])} fire; it "
            f"explains "
            f"{percent(explained['base'])} of the variance of the base model and {percent(explained['chat'])} of the "
            f"chat model's, with {number(counts['l0'], 1)} active latents per token."
        )
        measured = result["stages"]["measure"]
        thresholds = measured["thresholds"]
        kinds = [kind(row, thresholds) for row in latents.rows_of(measured)]
        both, error, other = (whole(kinds.count(name)) for name in ("both", "shrinkage", "decoupled"))
        out.append(
            f"<b>{whole(counts['candidates'])}</b> latents look new by their norms (difference above "
            f"{thresholds['gate']:g}); <b>{whole(counts['genuine'])}</b> are genuinely new. The base holds the others "
            f"after all: {error} in its error (complete shrinkage), {other} by other latents (decoupling), {both} in "
            f"both ways; {whole(kinds.count('undecided'))} cannot be decided."
        )
        out += _named(result)
        out += _kl_sentences(result)
        named = [g for g in result.get("genuine") or [] if g.get("concept")]
        if named:
            chat = sum(g.get("known_to") == "chat" for g in named)
            out.append(
                f"Of the genuinely new latents, {whole(chat)} of {whole(len(named))} match best with a concept of the "
                "embedded world that only the chat model is expected to know."
            )
    elif result.get("methods"):
        out.append("No crosscoder was trained: the methods below compare the models without one.")
    out += [esc(note) for note in result.get("notes") or []]
    out.append(esc(EXCLUSIVE))
    return out


def _named(result: Mapping[str, Any]) -> list[str]:
    """The genuinely new latents that have a card, by name where one is known."""
    shown = set(result["stages"]["measure"]["shown"])
    found = [g for g in result.get("genuine") or [] if g["latent"] in shown]
    listed = ", ".join(
        f'<a href="#latent-{int(g["latent"])}">{esc(g.get("concept") or "latent")} {whole(g["latent"])}</a>'
        for g in found
    )
    left = len(result.get("genuine") or []) - len(found)
    more = f", and {whole(left)} more" if left else ""
    return [f"Genuinely new latents, those the base holds least first: {listed}{more}."] if found else []


def _kl_sentences(result: Mapping[str, Any]) -> list[str]:
    rows = {(r["condition"], r["group"]): r for r in result.get("kl") or []}
    none, every = rows.get(("none", "all")), rows.get(("all", "all"))
    if none is None or every is None:
        return []
    out = [
        f"Read by the chat model's upper layers, the base model's activations cost {number(none['kl'])} nats "
        f"per token of "
        f"the answer; adding all latents takes away {percent(every['recovered'], 0)} of that"
        + (
            f", adding the genuinely new ones alone {percent(rows['genuine', 'all']['recovered'], 0)}"
            if ("genuine", "all") in rows
            else ""
        )
        + "."
    ]
    for d in result.get("differences") or []:
        if (d["one"], d["other"], d["group"]) == ("best half by scaling", "worst half by scaling", "all"):
            verdict = "recovers more than" if d["high"] is not None and d["high"] < 0 else "cannot be told from"
            if d["low"] is not None and d["low"] > 0:
                verdict = "recovers less than"
            out.append(
                f"The half of the candidates that the base holds least {verdict} the other half (its divergence less "
                f"the other's: {number(d['difference'])} nats per token, 95 % interval {number(d['low'])} to "
                f"{number(d['high'])})."
            )
    return out


def _patching(found: Mapping[str, Any] | None) -> str:
    if not found or "table" not in found:
        return ""
    groups = cast("list[str]", found["groups"])
    plots = [figures.kl_bars(found["table"], group) for group in groups[:2]]
    table = latents.kl_table(found["table"], groups)
    return (
        _plots(plots)
        + f'<p class="note">{whole(found["conversations"])} conversations, answered by the chat model itself; 95 % '
        "intervals by drawing conversations with replacement.</p>" + _details("Every condition in numbers", table)
    )


def _details(title: str, html: str) -> str:
    return f"<details><summary>{esc(title)}</summary>{html}</details>" if html else ""


def _plots(found: list[str]) -> str:
    return f'<div class="plots">{"".join(found)}</div>' if any(found) else ""


def _provenance(result: Mapping[str, Any]) -> str:
    settings = "\n".join(esc(f"{k}: {v}") for k, v in cast("dict[str, Any]", result["config"]).items())
    hashes = cast("dict[str, Any]", (result.get("provenance") or {}).get("hashes") or {})
    versions = cast("dict[str, Any]", (result.get("provenance") or {}).get("versions") or {})
    listed = "".join(f"<li>{esc(k)}: <code>{esc(str(v)[:16])}</code></li>" for k, v in hashes.items())
    used = ", ".join(f"{esc(k)} {esc(v)}" for k, v in versions.items())
    return f"<ul>{listed}</ul><p class='note'>Computed with {used}.</p>" + _details(
        "Settings", f"<pre>{settings}</pre>"
    )
