"""The latents in a diff's report: cards with contexts, effects and steering; the table of the rejected; numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, cast

from saeworks.diffing.reasons import kind, reason
from saeworks.results.report_text import esc, number, percent, whole

CONTEXTS = 4
REJECTED_ROWS = 200
TAGS = {
    "genuine": "genuinely new",
    "shrinkage": "complete shrinkage",
    "decoupled": "decoupled",
    "both": "shrinkage and decoupling",
    "undecided": "undecided",
}
DEFINITIONS = {
    "Latent": "One unit of the crosscoder, with one activation for both models and one decoder row in each.",
    "Norm difference": "½ (1 + (chat norm − base norm) / larger norm): 1 when only the chat model has a decoder row, 0 "
    "when only the base has, 0.5 when both are equally long.",
    "ν of the error": "How much of the latent the base model's reconstruction error contains, over how much of it the "
    "chat model needs: near 0 for a concept that the base lacks, its share of the magnitude for one it holds weakly. "
    "In brackets, a 95 % interval: blocks of tokens drawn with replacement.",
    "ν of the reconstruction": "The same for what the base's other latents rebuild.",
    "Complete shrinkage": "A concept that the base holds weakly lost its base decoder to the sparsity penalty.",
    "Latent decoupling": "One concept is held by two latents, one per model.",
    "KL": "Kullback-Leibler divergence of the patched model's next-token distribution from the chat model's, in nats.",
    "Recovered": "Share of the divergence of the base's own activations (none) that a condition takes away.",
    "Reach": "How far each model's activation at the strongest token goes along the latent's direction, the "
    "decoder bias "
    "taken off.",
    "Logit effects": "What the latent's direction adds to the next token's logits through the final norm and the "
    "unembedding, above the mean of all tokens.",
    "Steering": "The latent's direction is added to the chat model at every token but the first, in multiples of the "
    "latent's largest activation.",
}


def rows_of(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the latent table, of latents that fire."""
    table = cast("dict[str, list[Any]]", measured["table"])
    alive = set(cast("list[int]", measured["alive"]))
    count = len(table["latent"])
    return [{name: column[i] for name, column in table.items()} for i in range(count) if i in alive]


def cards(stages: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], genuine: bool) -> str:
    """A card for every shown latent, genuine or rejected."""
    measured = stages["measure"]
    by_latent = {row["latent"]: row for row in rows}
    chosen = set(measured["genuine"])
    shown = [i for i in measured["shown"] if (i in chosen) == genuine and i in by_latent]
    made = "".join(_card(i, by_latent[i], stages) for i in shown)
    if not made:
        return "<p>None of the candidates is genuinely new.</p>" if genuine else ""
    left = len(chosen) - len(shown) if genuine else 0
    more = f'<p class="note">{whole(left)} more are in <code>latents.parquet</code>.</p>' if left > 0 else ""
    return f'<div class="latents">{made}</div>{more}'


def _card(latent: int, row: Mapping[str, Any], stages: Mapping[str, Any]) -> str:
    measured = stages["measure"]
    thresholds = measured["thresholds"]
    label = (stages.get("concepts") or {}).get(str(latent))
    verdict = kind(row, thresholds)
    tag = f'<span class="tag kind-{esc(verdict)}">{esc(TAGS.get(verdict, verdict))}</span>'
    concept = f'<span class="concept">{esc(label["concept"])}</span>' if label else ""
    facts = [
        f"norm difference {number(row['relative_decoder_norm'])}",
        f"ν of the error {_with_error(row, 'nu_error')}, of the reconstruction {_with_error(row, 'nu_reconstruction')}",
        f"fires on {percent(row['density'], 2)} of tokens",
        f"{percent(row.get('template_share'), 0)} of its firings on the template",
    ]
    if label:
        facts.insert(
            0,
            f"{esc(label['description'])} (F1 {number(label['f1'], 2)} over {esc(label['unit'])}s, known to "
            f"{esc(label['known_to'])})",
        )
    shares = cast("dict[str, float]", measured.get("template_tokens", {}).get(str(latent)) or {})
    template = {token: share for token, share in shares.items() if share >= 0.01}
    if template:
        facts.append(", ".join(f"<code>{esc(t)}</code> {percent(s, 0)}" for t, s in list(template.items())[:3]))
    contexts = cast("list[dict[str, Any]]", measured["contexts"].get(str(latent)) or [])[:CONTEXTS]
    largest = max([1e-9, *(max(c["activations"], default=0.0) for c in contexts)])
    lines = "".join(_context(c, largest) for c in contexts)
    reading = (stages.get("reading") or {}).get(str(latent)) or {}
    return (
        f'<article class="latent" id="latent-{int(latent)}"><h4>Latent {whole(latent)} {concept}{tag}</h4>'
        f'<p class="verdict">{esc(reason(row, thresholds))}</p><p class="facts">{" · ".join(facts)}</p>'
        f"{lines}{_reach(contexts)}{_effects(reading)}{_steering(reading)}</article>"
    )


def _with_error(row: Mapping[str, Any], name: str) -> str:
    """A nu with its interval, as 0.12 (0.05–0.21); with its standard error where a result has no interval."""
    value, low, high = number(row.get(name), 2), row.get(f"{name}_low"), row.get(f"{name}_high")
    if _finite(low) and _finite(high):
        # A dash before a minus sign would be read as one.
        return f"{value} ({number(low, 2)}{'–' if low >= 0 else ' to '}{number(high, 2)})"
    error = row.get(f"{name}_se")
    return value + (f" ± {number(error, 2)}" if _finite(error) else "")


def _context(context: Mapping[str, Any], largest: float) -> str:
    out: list[str] = []
    for token, value in zip(context["tokens"], context["activations"], strict=False):
        text = esc(token)
        if value > 0:
            alpha = 0.12 + 0.68 * min(1.0, value / largest)
            # A token that only continues a character has no text of its own.
            text = f'<mark style="--a:{alpha:.2f}" title="{number(float(value), 2)}">{text or "·"}</mark>'
        out.append(text)
    return f'<p class="context" dir="auto">{"".join(out)}</p>'


def _reach(contexts: Sequence[Mapping[str, Any]]) -> str:
    """How far both models reach at the strongest token, the mean over the shown contexts."""
    pairs = [
        (c["reach_base"], c["reach_chat"]) for c in contexts if _finite(c["reach_base"]) and _finite(c["reach_chat"])
    ]
    if not pairs:
        return ""
    base, chat = (sum(p[i] for p in pairs) / len(pairs) for i in (0, 1))
    return f'<p class="says"><b>Reach at the strongest token</b> base {number(base, 1)}, chat {number(chat, 1)}</p>'


def _effects(reading: Mapping[str, Any]) -> str:
    out = ""
    for name in ("chat", "base"):
        effect = reading.get(name)
        if not effect or effect["weak"]:
            continue
        words = " ".join(f"<code>{esc(token)}</code>" for token, _ in effect["promoted"][:6])
        against = " ".join(f"<code>{esc(token)}</code>" for token, _ in effect["suppressed"][:3])
        out += f'<p class="says"><b>Speaks for ({name})</b> {words} <b>against</b> {against}</p>'
    return out


def _steering(reading: Mapping[str, Any]) -> str:
    """The request whose answer changes most while it stays a sentence."""
    examples = cast("list[dict[str, Any]]", reading.get("steering") or [])
    pairs = [(_distance(e["plain"], s["reply"]), -s["strength"], e, s) for e in examples for s in e["steered"]]
    if not pairs:
        return ""
    distance, _, example, steered = max(pairs, key=lambda pair: pair[:2])
    if distance == 0:
        return '<p class="says"><b>Steering</b> changed no answer.</p>'
    return (
        f'<dl class="steer"><dt>Asked</dt><dd>{esc(example["request"])}</dd>'
        f"<dt>The chat model</dt><dd>{esc(example['plain'] or '(nothing)')}</dd>"
        f"<dt>Pushed by {number(steered['strength'], 1)} of its largest activation</dt>"
        f"<dd>{esc(steered['reply'] or '(nothing)')}</dd></dl>"
    )


def _distance(one: str, other: str) -> float:
    """Share of words that two answers do not have in common, less where the other one repeats itself."""
    a, b = set(one.lower().split()), set(other.lower().split())
    changed = 1 - len(a & b) / len(a | b) if a | b else 0.0
    # A push that is too strong makes a model repeat itself, which shows nothing.
    return changed * len(b) / max(len(other.split()), 1)


def rejected(rows: Sequence[Mapping[str, Any]], thresholds: Mapping[str, float]) -> str:
    """A table of the candidates that are not genuinely new, with the reason."""
    chosen = [row for row in rows if kind(row, thresholds) not in ("genuine", "shared")]
    chosen.sort(key=lambda row: -float(row["relative_decoder_norm"]))
    if not chosen:
        return "<p>Every latent that looks new is genuinely new.</p>"
    body = "".join(
        f'<tr><th scope="row">{whole(row["latent"])}</th><td>{number(row["relative_decoder_norm"])}</td>'
        f"<td>{number(row.get('nu_error'), 2)}</td><td>{number(row.get('nu_reconstruction'), 2)}</td>"
        f'<td class="why">{esc(reason(row, thresholds))}</td></tr>'
        for row in chosen[:REJECTED_ROWS]
    )
    head = "".join(f'<th scope="col">{t}</th>' for t in ("Latent", "Norm difference", "ν error", "ν reconstruction"))
    left = len(chosen) - REJECTED_ROWS
    more = f'<p class="note">{whole(left)} more are in <code>latents.parquet</code>.</p>' if left > 0 else ""
    title = '<th scope="col" class="left">Why not</th>'
    table = f"<table><thead><tr>{head}{title}</tr></thead><tbody>{body}</tbody></table>"
    return _scroll("Rejected latents", table) + more


def kl_table(rows: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> str:
    """Every condition and group of tokens in numbers."""
    head = "".join(f'<th scope="col">{esc(g)}: KL</th><th scope="col">recovered</th>' for g in groups)
    names = list(dict.fromkeys(row["condition"] for row in rows))
    found = {(row["condition"], row["group"]): row for row in rows}
    body = ""
    for name in names:
        cells = ""
        for group in groups:
            row = found[name, group]
            ends = f"<small>{number(row['kl_low'])} … {number(row['kl_high'])}</small>"
            cells += f"<td>{number(row['kl'])}{ends}</td><td>{percent(row['recovered'], 0)}</td>"
        meaning = found[name, groups[0]]["meaning"]
        body += f'<tr><th scope="row">{esc(name)}</th>{cells}<td class="why">{esc(meaning)}</td></tr>'
    return _scroll(
        "KL of every condition",
        f'<table><thead><tr><th scope="col">Condition</th>{head}<th scope="col" class="left">What is added</th></tr>'
        f"</thead><tbody>{body}</tbody></table>",
    )


def methods(found: Sequence[Mapping[str, Any]]) -> str:
    """What every method found first, and its numbers."""
    parts: list[str] = []
    for one in found:
        numbers = "".join(
            f"<div><dt>{esc(k.replace('_', ' '))}</dt><dd>{number(v)}</dd></div>" for k, v in one["numbers"].items()
        )
        lists = ""
        for what in ("tokens", "directions", "latents"):
            items = cast("list[dict[str, Any]]", one.get(what) or [])[:12]
            if items:
                listed = "".join(
                    f"<li><code>{esc(item['name'])}</code> {number(item['score'])}{_evidence(item)}</li>"
                    for item in items
                )
                lists += f"<h4>{esc(what.capitalize())}</h4><ol>{listed}</ol>"
        cost = one["cost"]
        parts.append(
            f'<h3>{esc(one["method"])}</h3><dl class="facts">{numbers}</dl>{lists}<p class="note">'
            f"{whole(cost['tokens'])} tokens, {number(cost['seconds'], 1)} s.</p>"
        )
    return "".join(parts)


def _evidence(item: Mapping[str, Any]) -> str:
    """The first evidence that is a word or a list of words."""
    for name, value in cast("dict[str, Any]", item.get("evidence") or {}).items():
        if isinstance(value, str) and value:
            return f' <span class="soft">{esc(name)}: {esc(value[:160])}</span>'
        if isinstance(value, list) and value and all(isinstance(v, str) for v in cast("list[Any]", value)):
            words = " ".join(f"<code>{esc(v)}</code>" for v in cast("list[str]", value)[:8])
            return f' <span class="soft">{esc(name)}:</span> {words}'
    return ""


def definitions() -> str:
    """What every number means."""
    return (
        '<dl class="defs">' + "".join(f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in DEFINITIONS.items()) + "</dl>"
    )


def _scroll(label: str, content: str) -> str:
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{esc(label)}">{content}</div>'


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)
