"""Reading answers out of what a judge writes: tagged values, of which the last one counts."""

from __future__ import annotations

import re

# Stands for an answer that is not there; no judge says it of itself.
MISSING = "_RIP_"


def last_tag(text: str, tag: str) -> str | None:
    """The content of the last ``<tag>…</tag>``, or None.

    A missing opening tag is forgiven: then the last line of what stands before the closing tag, and after any other
    tag, counts. A judge that reconsiders writes the tag again, so the last one is what it settled on.
    """
    name = re.escape(tag)
    pieces = re.findall(rf"<{name}>((?:(?!<{name}>).)*?)</{name}>", text, re.DOTALL | re.IGNORECASE)
    if pieces:
        return str(pieces[-1]).strip()
    closing = list(re.finditer(rf"</{name}>", text, re.IGNORECASE))
    if not closing:
        return None
    before = re.split(r"<[^<>\n]*>", text[: closing[-1].start()])[-1].strip()
    return before.splitlines()[-1].strip() if before else None


def section(text: str, tag: str) -> str | None:
    """Everything inside the last ``<tag>``, up to its end or, where it was never closed, up to the end of the text."""
    found = last_tag(text, tag) if re.search(rf"<{re.escape(tag)}>", text, re.IGNORECASE) else None
    if found is not None:
        return found
    opened = list(re.finditer(rf"<{re.escape(tag)}>", text, re.IGNORECASE))
    return text[opened[-1].end() :].strip() if opened else None


def yes_no(value: str | None) -> str:
    """``Y`` or ``N`` for the ways to write them (y, YES, true …), else :data:`MISSING`."""
    word = (value or "").strip().strip("*_.`'\"").upper()
    if word in ("Y", "YES", "TRUE"):
        return "Y"
    return "N" if word in ("N", "NO", "FALSE") else MISSING


def answer_string(text: str, questions: int) -> str:
    """The answers in the tags ``<answer_1>`` … as one string such as ``YNNNYNYN``; what is missing is ``_RIP_``."""
    return "".join(yes_no(last_tag(text, f"answer_{i}")) for i in range(1, questions + 1))


def readable(answers: str, questions: int) -> bool:
    """Whether a string has one answer to each question."""
    return len(answers) == questions and set(answers) <= {"Y", "N"}
