"""The tables and texts of a report, each function one section (an empty string when there is nothing to show)."""

from __future__ import annotations

import time
from typing import Any, cast

from saeworks.results.plots import style_of
from saeworks.results.report_data import Entry, Workspace
from saeworks.results.report_plots import CE, EV, L0
from saeworks.results.report_text import duration, esc, number, percent, whole

#: Column title → (eval, category, metric), digits, and whether the best value is marked (the largest one).
COLUMNS: dict[str, tuple[tuple[str, str, str], int, bool]] = {
    "L0": (L0, 1, False),
    "Explained variance": (EV, 3, True),
    "CE score": (CE, 3, True),
    "Alive": (("core", "misc_metrics", "frac_alive"), 3, False),
    "Probe, 1 latent": (("sparse_probing", "sae", "sae_top_1_test_accuracy"), 3, True),
    "Probe, 5 latents": (("sparse_probing", "sae", "sae_top_5_test_accuracy"), 3, True),
    "Best F1 per concept": (("latents", "concepts", "mean_best_latent_f1"), 3, True),
    "Hierarchy holes": (("latents", "hierarchy", "hole_rate"), 3, False),
}

DEFINITIONS = {
    "L0": "Mean number of latents that are not 0 on a token.",
    "Explained variance": "1 − Σ‖x − x̂‖² / Σ‖x − x̄‖² over all measured tokens; 1 is a perfect reconstruction, 0 is as "
    "good as always predicting the mean.",
    "CE score": "How much of the loss that zero ablation costs is recovered when the reconstruction replaces the "
    "activations: (loss under zero ablation − loss with dictionary) / (loss under zero ablation − loss of the "
    "untouched model).",
    "Alive": "Share of latents that fired at least once on the measured tokens; 1 minus the share of dead latents.",
    "Probe, k latents": "Test accuracy of a logistic probe on the k latents that differ most between the classes in "
    "training; means of latents over each text; balanced classes, so that 0.5 is chance.",
    "Dense probe": "The same probe on all coordinates of the raw activations: the ceiling for any dictionary.",
    "Best F1 per concept": "For every known concept the F1 of the latent that detects it best, averaged over concepts.",
    "Hierarchy holes": "Share of child concepts on whose tokens their parent's best latent fires less than half of the "
    "time. A hole is absorbed when another latent has taken over the child.",
    "Density": "Share of tokens on which a latent is above 0.",
    "Intervals": "The small numbers are 95 % bootstrap intervals: documents are drawn again with replacement (for "
    "the F1 per concept, concepts are), with the dictionary and the fitted probes as they are.",
}


def header(workspace: Workspace) -> str:
    """Title, facts of the run, and what came out in two sentences."""
    config, run = workspace.config, workspace.run
    model = str(config.get("model") or workspace.common("model_name") or "unknown")
    site = str(config.get("site") or workspace.common("site") or "unknown")
    data = config.get("data") or workspace.common("data")
    texts = ", ".join(map(str, cast("list[Any]", data))) if isinstance(data, list) else str(data or "–")
    seconds = run.get("seconds")
    total = sum(v for v in seconds.values() if isinstance(v, (int, float))) if isinstance(seconds, dict) else None
    when = run.get("finished") or run.get("started")
    facts = {
        "Language model": esc(model),
        "Site": esc(site),
        "Texts": esc(texts),
        "Training tokens": whole(config.get("tokens") or workspace.common("tokens") or "–"),
        "Dictionaries": str(len(workspace.entries)),
        "Computing time, last session": duration(total),
        "Finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(when)) if isinstance(when, (int, float)) else "–",
        "saeworks": esc(run.get("saeworks_version") or "–"),
    }
    rows = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts.items())
    return (
        f'<header class="top"><p class="kicker">saeworks report</p><h1>Sparse dictionaries of {esc(model)} '
        f'at {esc(site)}</h1><dl class="facts">{rows}</dl>{_summary(workspace)}</header>'
    )


def _summary(workspace: Workspace) -> str:
    sentences: list[str] = []
    faithful = _best(workspace.entries, CE) or _best(workspace.entries, EV)
    if faithful:
        ce, ev = faithful.metric(*CE), faithful.metric(*EV)
        kept = f"recovers {percent(ce)} of the loss that zero ablation costs and " if ce is not None else ""
        sentences.append(
            f"<b>{esc(faithful.label)}</b> is the most faithful dictionary: it {kept}explains {percent(ev)} of the "
            f"variance with {number(faithful.metric(*L0), 1)} active latents per token."
        )
    probed = _best(workspace.entries, COLUMNS["Probe, 1 latent"][0])
    if probed:
        one, dense = (
            probed.metric(*COLUMNS["Probe, 1 latent"][0]),
            probed.metric("sparse_probing", "llm", "llm_test_accuracy"),
        )
        against = f", against {percent(dense)} for all activations together" if dense is not None else ""
        sentences.append(
            f"A single latent of <b>{esc(probed.label)}</b> tells labelled concepts apart with {percent(one)} "
            f"accuracy{against}."
        )
    found = _best(workspace.entries, COLUMNS["Best F1 per concept"][0])
    if found:
        result = found.results["latents"]
        share = result.metric("concepts", "frac_found")
        sentences.append(
            f"<b>{esc(found.label)}</b> has latents for {percent(share, 0)} of the "
            f"{number(result.metric('concepts', 'n_concepts'), 0)} known concepts (F1 of at least 0.5)."
        )
    for part in ("skipped", "failures"):
        record = workspace.run.get(part)
        for name, why in record.items() if isinstance(record, dict) else ():
            what = "was not measured" if part == "skipped" else "could not be trained"
            sentences.append(f"<b>{esc(name)}</b> {what}: {esc(why)}")
    notes = workspace.run.get("notes")
    sentences += [esc(note) for note in notes] if isinstance(notes, list) else []
    return '<div class="summary">' + "".join(f"<p>{s}</p>" for s in sentences) + "</div>" if sentences else ""


def _best(entries: list[Entry], metric: tuple[str, str, str]) -> Entry | None:
    measured = [(value, e) for e in entries if (value := e.metric(*metric)) is not None]
    return max(measured, key=lambda pair: pair[0])[1] if measured else None


def table(workspace: Workspace) -> str:
    """One row per dictionary; the best value of a column is marked."""
    shown = {
        title: spec for title, spec in COLUMNS.items() if any(e.metric(*spec[0]) is not None for e in workspace.entries)
    }
    best = {title: _best(workspace.entries, spec[0]) for title, spec in shown.items() if spec[2]}
    head = "".join(f'<th scope="col">{esc(title)}</th>' for title in ["Latents", "k", *shown])
    body: list[str] = []
    for e in workspace.entries:
        cells = [f"<td>{whole(e.width) if e.width else '–'}</td><td>{number(e.k, 0)}</td>"]
        for title, (metric, digits, _) in shown.items():
            ends = e.interval(metric[0], ".".join(metric[1:]))
            small = f"<small>{number(ends[0], digits)} … {number(ends[1], digits)}</small>" if ends else ""
            mark = ' class="best"' if best.get(title) is e else ""
            cells.append(f"<td{mark}>{number(e.metric(*metric), digits)}{small}</td>")
        dot = f'<span class="dot" style="background:{style_of(e.recipe)[0]}"></span>'
        body.append(f'<tr><th scope="row">{dot}{esc(e.label).replace("_", "_<wbr>")}</th>{"".join(cells)}</tr>')
    return _scroll(
        "Summary of all dictionaries",
        f'<table><thead><tr><th scope="col">Dictionary</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>',
    )


def _scroll(label: str, content: str) -> str:
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{esc(label)}">{content}</div>'


def probing_table(workspace: Workspace) -> str:
    """Accuracy with one and with five latents per dataset and label."""
    measured = [e for e in workspace.entries if "sparse_probing" in e.results]
    if not measured:
        return ""
    names: dict[str, dict[str, float | None]] = {}
    for e in measured:
        for row in e.results["sparse_probing"].eval_result_details:
            if "dataset_name" in row:
                title = (
                    f"{row.get('dataset', '')} / {row.get('label', '')}" if row.get("label") else row["dataset_name"]
                )
                record = names.setdefault(str(title), {})
                record[e.name] = row.get("sae_top_1_test_accuracy")
                record.setdefault("dense", row.get("llm_test_accuracy"))
    head = "".join(f'<th scope="col">{esc(e.label)}</th>' for e in measured)
    body = "".join(
        f'<tr><th scope="row">{esc(name)}</th>'
        + "".join(f"<td>{number(record.get(e.name))}</td>" for e in measured)
        + f"<td>{number(record.get('dense'))}</td></tr>"
        for name, record in names.items()
    )
    content = (
        f'<table><thead><tr><th scope="col">Dataset / label</th>{head}<th scope="col">Dense probe</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )
    return (
        "<details><summary>Accuracy of one latent, label by label</summary>"
        + _scroll("Probing by label", content)
        + "</details>"
    )


def hierarchy(workspace: Workspace) -> str:
    """For every parent concept its best latent and its recall on each child, per dictionary."""
    parts: list[str] = []
    for e in workspace.entries:
        rows = _unstructured(e, "hierarchy")
        if not rows:
            continue
        body = "".join(_hierarchy_row(row) for row in rows[:60])
        content = (
            '<table><thead><tr><th scope="col">Parent concept</th><th scope="col">Tokens</th>'
            '<th scope="col">Latent</th><th scope="col">F1</th><th scope="col">Latents that share it</th>'
            f'<th scope="col" class="left">Recall on each child</th></tr></thead><tbody>{body}</tbody></table>'
        )
        holes = e.metric("latents", "hierarchy", "hole_rate")
        opened = " open" if not parts else ""
        parts.append(
            f"<details{opened}><summary>{esc(e.label)}: {percent(holes, 0)} holes</summary>"
            + _scroll(f"Hierarchy of {e.label}", content)
            + "</details>"
        )
    return "".join(parts)


def _hierarchy_row(row: dict[str, Any]) -> str:
    children: list[str] = []
    for child in cast("list[dict[str, Any]]", row.get("children", [])):
        name = str(child.get("child", "")).rpartition("/")[2]
        recall = number(child.get("recall"), 2)
        if child.get("hole"):
            taken = f", absorbed by latent {child.get('own_latent')}" if child.get("absorbed") else ""
            children.append(
                f'<span class="hole" title="hole{esc(taken)}">{esc(name)} {recall}{"*" if taken else ""}</span>'
            )
        else:
            children.append(f"{esc(name)} {recall}")
    return (
        f'<tr><th scope="row">{esc(row.get("parent"))}</th><td>{whole(row.get("tokens"))}</td>'
        f"<td>{whole(row.get('latent'))}</td><td>{number(row.get('f1'), 2)}</td><td>{whole(row.get('latents'))}</td>"
        f'<td class="children">{" · ".join(children)}</td></tr>'
    )


def _unstructured(e: Entry, key: str) -> list[dict[str, Any]]:
    result = e.results.get("latents")
    extra = result.eval_result_unstructured if result else None
    value = cast("dict[str, Any]", extra).get(key) if isinstance(extra, dict) else None
    return [row for row in cast("list[Any]", value) if isinstance(row, dict)] if isinstance(value, list) else []


def latents(workspace: Workspace) -> str:
    """The shown latents of every dictionary; the one that finds most concepts comes first and open."""
    measured = [e for e in workspace.entries if _unstructured(e, "shown")]
    key = COLUMNS["Best F1 per concept"][0]
    measured.sort(key=lambda e: -(e.metric(*key) or 0.0))
    parts: list[str] = []
    for number_, e in enumerate(measured):
        examples = 6 if number_ == 0 else 3
        cards = "".join(_latent(row, examples) for row in _unstructured(e, "shown"))
        opened = " open" if number_ == 0 else ""
        parts.append(f'<details{opened}><summary>{esc(e.label)}</summary><div class="latents">{cards}</div></details>')
    return "".join(parts)


def _latent(row: dict[str, Any], examples: int) -> str:
    facts = [
        f"fires on {percent(row.get('density'), 2)} of tokens",
        f"largest activation {number(row.get('max_activation'), 2)}",
    ]
    concept = ""
    if row.get("concept"):
        concept = f'<span class="concept">{esc(row["concept"])}</span>'
        facts.append(
            f"F1 {number(row.get('f1'), 2)} (precision {number(row.get('precision'), 2)}, "
            f"recall {number(row.get('recall'), 2)}), AUC {number(row.get('auc'), 2)}"
        )
    contexts = cast("list[dict[str, Any]]", row.get("contexts") or [])[:examples]
    largest = max((float(row.get("max_activation") or 0.0), 1e-9))
    lines = "".join(_context(c, largest) for c in contexts)
    tag = '<span class="tag">random</span>' if "random" in str(row.get("why", "")) else ""
    return (
        f'<article class="latent"><h4>Latent {whole(row.get("latent"))} {concept}{tag}</h4>'
        f'<p class="facts">{" · ".join(facts)}</p>{lines}</article>'
    )


def _context(context: dict[str, Any], largest: float) -> str:
    out: list[str] = []
    for token, value in zip(context.get("tokens") or [], context.get("activations") or [], strict=False):
        text = esc(token)
        if isinstance(value, (int, float)) and value > 0:
            alpha = 0.12 + 0.68 * min(1.0, value / largest)
            # A token that only continues a character has no text of its own.
            text = f'<mark style="--a:{alpha:.2f}" title="{number(float(value), 2)}">{text or "·"}</mark>'
        out.append(text)
    return f'<p class="context" dir="auto">{"".join(out)}</p>'


def definitions() -> str:
    """What every number means."""
    return (
        '<dl class="defs">' + "".join(f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in DEFINITIONS.items()) + "</dl>"
    )


def provenance(workspace: Workspace) -> str:
    """Content hashes of all inputs, versions, settings, and the command that repeats the run."""
    rows: list[str] = []
    versions: dict[str, Any] = {}
    for e in workspace.entries:
        for name, result in sorted(e.results.items()):
            hashes = cast("dict[str, Any]", result.provenance.get("hashes") or {})
            versions |= cast("dict[str, Any]", result.provenance.get("versions") or {})
            data = " ".join(str(v)[:16] for k, v in sorted(hashes.items()) if k.startswith("data"))
            cells = [
                e.label,
                name,
                result.definition_id,
                str(hashes.get("dictionary", "–"))[:16],
                str(hashes.get("model", "–"))[:16],
                data or "–",
                str(result.seed),
                str(result.n),
            ]
            first, *rest = cells
            rows.append(
                f'<tr><th scope="row">{esc(first)}</th>'
                + "".join(f'<td class="left"><code>{esc(c)}</code></td>' for c in rest)
                + "</tr>"
            )
    head = "".join(
        f'<th scope="col" class="left">{t}</th>'
        for t in ("Eval", "Definition", "Dictionary", "Model", "Data", "Seed", "Measured units")
    )
    content = f'<table><thead><tr><th scope="col">Result</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    used = ", ".join(f"{esc(k)} {esc(v)}" for k, v in sorted(versions.items()))
    settings = "\n".join(f"{k}: {v}" for k, v in workspace.config.items())
    settings = "\n".join(esc(line) for line in settings.split("\n"))
    return (
        "<p>The workspace holds <code>run.yaml</code>, the complete settings of this run. This repeats it:</p>"
        "<pre><code>saeworks run --config run.yaml --out runs/again</code></pre>"
        + (f"<p class='note'>Computed with {used}.</p>" if used else "")
        + (f"<details><summary>Settings</summary><pre>{settings}</pre></details>" if settings else "")
        + (
            "<details><summary>Content hashes of every result (first 16 digits)</summary>"
            + _scroll("Content hashes", content)
            + "</details>"
            if rows
            else ""
        )
    )
