"""What a preset is, and how one enters the list of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import cleandoc
from typing import Any

from saeworks.training.recipes import Recipe


@dataclass(frozen=True)
class Preset:
    """A published configuration.

    Attributes:
        name: what ``--preset`` takes.
        recipes: what is trained.
        sources: where a setting comes from, by the name of the recipe's field or of the run's key.
        settings: further keys of ``saeworks.jobs.config.RunConfig``.
        about: what it reproduces, in a few sentences.
    """

    name: str
    recipes: tuple[Recipe, ...]
    sources: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    about: str = ""


PRESETS: dict[str, Preset] = {}


def published(make: Callable[[], Preset]) -> Callable[[], Preset]:
    """Enter what a function returns into :data:`PRESETS`, described by the function's docstring."""
    found = replace(make(), about=cleandoc(make.__doc__ or ""))
    PRESETS[found.name] = found
    return make


def stated(*given: tuple[str, str]) -> dict[str, str]:
    """``{setting: source}`` from pairs of a source and the settings that it states."""
    return {name: source for source, names in given for name in names.split()}
