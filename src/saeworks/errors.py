"""The errors a person meets. Every message is a sentence: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave cannot be used. The command line prints the message alone and exits with code 2."""


class RunError(RuntimeError):
    """The input was fine, but the work could not be finished (a full disk, say). Exit code 1."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` when something known is close to what was given, else the known names.

    The result starts with a space, so that it can be appended to a sentence.
    """
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f" Known: {shown}." if names else ""
