"""Text that is safe to put into a page: escaped, with control and direction characters made visible."""

from __future__ import annotations

import html
import math

# Characters that reorder or hide what follows them: a page must show them, not obey them.
_DIRECTION = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF, 0x200B}


def visible(text: object) -> str:
    """``text`` with control characters as their pictures and direction marks as ⟨U+…⟩; lone surrogates as �."""
    out: list[str] = []
    for character in str(text):
        code = ord(character)
        if character in "\n\t":
            out.append("↵" if character == "\n" else "⇥")
        elif code < 0x20:
            out.append(chr(0x2400 + code))
        elif 0x7F <= code < 0xA0 or code in _DIRECTION:
            out.append(f"⟨U+{code:04X}⟩")
        elif 0xD800 <= code < 0xE000:
            out.append("�")
        else:
            out.append(character)
    return "".join(out)


def esc(text: object) -> str:
    """:func:`visible` text, escaped for element content and for attribute values in double quotes."""
    return html.escape(visible(text), quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """A number for reading: fixed digits, thousands separated, "–" where nothing was measured."""
    if value is None or not math.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) >= 1000:
        return f"{int(value):,}".replace(",", " ")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.{digits}f}"


def whole(value: object) -> str:
    """A count with thin spaces between thousands; anything else as text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return f"{int(value):,}".replace(",", " ")
    return esc(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
