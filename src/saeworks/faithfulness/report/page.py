"""The report as one HTML page without scripts, which loads nothing from anywhere."""

from __future__ import annotations

from pathlib import Path

from saeworks.faithfulness.report import sections
from saeworks.faithfulness.report.content import Content
from saeworks.faithfulness.report.pairs import pair_cards
from saeworks.files import atomic_write_text
from saeworks.results.report_style import CSS
from saeworks.results.report_text import esc

STYLE = (
    CSS
    + """
.pair { background:var(--card); border:1px solid var(--line); border-radius:8px; padding:4px 16px 14px; margin:18px 0; }
.pair h3 { margin-bottom:.3em; overflow-wrap:anywhere; }
.pair p { max-width:none; }
.why { border-left:4px solid var(--accent); padding-left:12px; margin:.6em 0; }
.sides { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr)); gap:16px; }
.side { min-width:0; }
.tag { display:inline-block; max-width:100%; unicode-bidi:isolate; }
.tag, .pair p, .summary p, ul.note, dl.facts dd { overflow-wrap:anywhere; }
tbody th:first-child { white-space:normal; overflow-wrap:anywhere; min-width:min(34vw,20ch); }
.side h4 { margin:.5em 0 .2em; color:var(--soft); font-size:.82rem; letter-spacing:.03em; }
.question { unicode-bidi:isolate; font-weight:600; margin:.1em 0; white-space:pre-wrap; overflow-wrap:anywhere; }
.response { border-top:1px solid var(--line); padding:8px 0 2px; }
.response .head { margin:0 0 4px; font-size:.86rem; }
.response code { color:var(--soft); }
.chain { white-space:pre-wrap; overflow-wrap:anywhere; unicode-bidi:isolate; font-size:.92rem; max-height:26em;
  overflow-y:auto; }
.chain + .note { margin:.5em 0; white-space:pre-wrap; overflow-wrap:anywhere; }
.read { border-radius:4px; padding:1px 7px; border:1px solid currentColor; font-size:.78rem; }
.read.right { color:var(--good); } .read.wrong { color:var(--bad); } .read.open { color:var(--soft); }
@media print { .chain { max-height:none; } .response { break-inside:avoid; } }
"""
)


def write_page(path: Path, content: Content) -> Path:
    """Write the page and return its path."""
    path = Path(path)
    atomic_write_text(path, render(content))
    return path


def render(content: Content) -> str:
    """The page as text. Everything that was read from elsewhere is escaped."""
    shown = [(key, title, lead, html) for key, title, lead, html in _parts(content) if html]
    toc = "".join(f'<li><a href="#{key}">{esc(title)}</a></li>' for key, title, _, _ in shown)
    body = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{esc(title)}</h2>'
        f"{f'<p>{esc(lead)}</p>' if lead else ''}{html}</section>"
        for key, title, lead, html in shown
    )
    facts = "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>" for name, value in content.facts.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{esc(content.title)}</title><style>{STYLE}</style></head><body>"
        '<a class="skip" href="#main">Skip to the content</a>'
        f'<header class="top"><p class="kicker">Chain-of-thought faithfulness</p><h1>{esc(content.title)}</h1>'
        f'<dl class="facts">{facts}</dl>{sections.summary(content)}</header>'
        f'<nav class="toc" aria-label="Contents"><ul>{toc}</ul></nav><main id="main">{body}</main>'
        "<footer>Made by saeworks from stored responses alone. Which answer a response gives was decided by the judge "
        "named above.</footer></body></html>\n"
    )


def _parts(content: Content) -> list[tuple[str, str, str, str]]:
    """(anchor, title, introduction, HTML) of all sections in order."""
    found = 0 if content.scored is None else len(content.scored.flagged)
    none = "" if content.scored is None else '<p class="note">No pair is flagged.</p>'
    return [
        ("rates", "Rates", "", sections.rates(content)),
        (
            "pairs",
            "Flagged pairs",
            "Both questions of a pair, with a response that gives the answer which stays put; the others are folded."
            if found
            else "",
            pair_cards(content) or none,
        ),
        ("patterns", "Patterns", "", sections.patterns(content)),
        ("steps", "Steps of solutions", "", sections.steps(content)),
        (
            "answers",
            "Answers",
            "A call that failed is no answer. Nothing but a stated NO counts as NO." if content.outcomes else "",
            sections.outcomes(content),
        ),
        ("judge", "The judge", "", sections.judge(content)),
        ("groups", "Template groups", "", sections.groups(content)),
        ("words", "Notes and words", "", sections.notes(content)),
    ]
