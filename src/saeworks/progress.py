"""The one progress bar. It writes to standard error, so that standard output stays free for results."""

from __future__ import annotations

import os
import sys
from typing import Any


def progress(total: int | None, description: str, unit: str = "it", **options: Any) -> Any:
    """A ``tqdm`` bar with rate and ETA; ``SAEWORKS_NO_PROGRESS=1`` turns it off."""
    from tqdm.auto import tqdm

    options.setdefault("disable", os.environ.get("SAEWORKS_NO_PROGRESS") == "1")
    options.setdefault("unit_scale", unit == "tok")
    options.setdefault("dynamic_ncols", True)
    return tqdm(total=total, desc=description, unit=unit, file=sys.stderr, **options)
