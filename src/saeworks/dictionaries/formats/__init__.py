"""Reading and writing dictionaries. ``load`` finds out which format a path holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saeworks.errors import InputError

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary


def load(path: str | Path, device: str = "cpu") -> Dictionary:
    """Load a dictionary from the directory ``path`` (``cfg.json`` and ``weights.safetensors``).

    Raises:
        InputError: the path does not exist, is not a dictionary, or is damaged; the sentence says which.
    """
    from saeworks.dictionaries.formats import native
    from saeworks.runtime import resolve_device

    path = Path(path)
    if not path.exists():
        raise InputError(f"'{path}' does not exist; give the directory of a saved dictionary.")
    if not path.is_dir():
        raise InputError(f"'{path}' is a file; give the directory that holds cfg.json and weights.safetensors.")
    return native.load(path).to(resolve_device(device))
