"""saeworks: the workshop for sparse dictionaries of language models.

Nothing heavy is imported here: the names below load their room on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saeworks.version import __version__

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.dictionaries.formats import load
    from saeworks.models.language_model import load_language_model

_LAZY = {
    "load": "saeworks.dictionaries.formats",
    "Dictionary": "saeworks.dictionaries.dictionary",
    "load_language_model": "saeworks.models.language_model",
}
__all__ = ["Dictionary", "__version__", "load", "load_language_model"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'saeworks' has no attribute '{name}'")
