"""The frame of every page: it holds no scripts, loads nothing from anywhere, and reads in light, dark and print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from saeworks.results.report_style import CSS
from saeworks.results.report_text import esc


class Section(NamedTuple):
    """One section: its anchor, title and introduction as text, and its content as HTML."""

    anchor: str
    title: str
    lead: str
    html: str


def page(title: str, header: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page; sections without content are left out. ``header`` and ``footer`` are HTML, ``title`` is text."""
    shown = [section for section in sections if section.html]
    toc = "".join(f'<li><a href="#{s.anchor}">{esc(s.title)}</a></li>' for s in shown)
    body = "".join(
        f'<section aria-labelledby="{s.anchor}"><h2 id="{s.anchor}">{esc(s.title)}</h2>'
        f"{f'<p>{esc(s.lead)}</p>' if s.lead else ''}{s.html}</section>"
        for s in shown
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{esc(title)}</title><style>{CSS}</style></head><body>"
        '<a class="skip" href="#main">Skip to the content</a>'
        f'{header}<nav class="toc" aria-label="Contents"><ul>{toc}</ul></nav>'
        f'<main id="main">{body}</main><footer>{footer}</footer></body></html>\n'
    )


def plots(figures: Sequence[str]) -> str:
    """Figures side by side; nothing without any."""
    return f'<div class="plots">{"".join(figures)}</div>' if any(figures) else ""
