"""The cards of the embedded models, and measuring again what they promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError, did_you_mean
from saeworks.files import read_json

DEFAULT_TOLERANCE = 0.02


def card(model: str = "base") -> dict[str, Any]:
    """The card of ``base``, ``chat`` or a model directory that ``saeworks world build`` wrote.

    Returns:
        ``{"model", "directory", "card", "abilities"}``: the text of its README.md, and what was measured (None when
        it was not).

    Raises:
        InputError: no such model or directory, or no card in it.
    """
    directory = card_directory(model)
    file = directory / "README.md"
    if not file.is_file():
        raise InputError(f"Directory '{directory}' has no card README.md; measure the model with --measure.")
    return {
        "model": _which(directory),
        "directory": str(directory),
        "card": file.read_text(encoding="utf-8"),
        "abilities": _abilities(directory),
    }


def measure_card(model: str = "base", device: str = "auto") -> dict[str, Any]:
    """Measure the model again and set the figures beside those of its card; minutes on a CPU.

    Returns:
        ``{"model", "directory", "table": [{"ability", "figure", "card", "measured", "reached", "missed"}],
        "missed"}``. ``missed`` lists the abilities whose figure the card reaches and the measurement misses by more
        than the card's tolerance.
    """
    from saeworks.runtime import resolve_device
    from saeworks.world.abilities import measure
    from saeworks.world.card import ability_rows

    directory = card_directory(model)
    which = _which(directory)
    where = resolve_device(device)
    shipped = _abilities(directory)
    try:
        before = {row[0]: row for row in ability_rows(which, shipped)} if shipped is not None else {}
    except (KeyError, TypeError) as e:
        raise InputError(
            f"'{directory / 'abilities.json'}' lacks what a card reports today ({e}); another version wrote it."
        ) from e
    table: list[dict[str, Any]] = []
    for name, figure, measured, reached in ability_rows(which, measure(which, directory, str(where), other=shipped)):
        old = before.get(name)
        missed = old is not None and old[3] and not reached and shortfall(figure, measured) > _tolerance(shipped, name)
        row = {"ability": name, "figure": figure, "card": old[2] if old else None, "measured": measured}
        table.append(row | {"reached": reached, "missed": missed})
    missed_rows = [row["ability"] for row in table if row["missed"]]
    return {"model": which, "directory": str(directory), "table": table, "missed": missed_rows}


def card_directory(model: str) -> Path:
    """The directory of ``base``, ``chat`` or of a model that lies elsewhere."""
    from saeworks.world.model_files import MODELS, model_path

    if model in MODELS:
        return model_path(model)
    directory = Path(model).expanduser()
    if (directory / "config.json").is_file():
        return directory
    if directory.is_dir():
        raise InputError(f"Directory '{model}' holds no model; give the one with config.json, such as OUT/base.")
    raise InputError(f"'{model}' is neither a model of the world nor a directory.{did_you_mean(model, MODELS)}")


def shortfall(figure: str, measured: str) -> float:
    """How far a measured value (``93.1%``, ``0.941``) lies on the wrong side of its figure (``≥ 95%``, ``≤ 1.15``).

    Shares, not percent; 0 when the figure is reached, infinite when one of the two holds no number.
    """
    wanted, got = _number(figure), _number(measured)
    if wanted is None or got is None:
        return float("inf")
    return max(got - wanted if figure.strip().startswith(("≤", "<")) else wanted - got, 0.0)


def _number(text: str) -> float | None:
    found = re.search(r"-?\d+(?:\.\d+)?", text)
    if found is None:
        return None
    value = float(found.group())
    return value / 100 if text[found.end() :].lstrip().startswith("%") else value


def _which(directory: Path) -> str:
    """Whose figures apply: the recipe of a chat model says what it replayed of the base model's texts."""
    recipe = directory / "recipe.json"
    if recipe.is_file():
        return "chat" if "replayed" in read_json(recipe) else "base"
    return "chat" if directory.name == "chat" else "base"


def _abilities(directory: Path) -> dict[str, Any] | None:
    file = directory / "abilities.json"
    return read_json(file) if file.is_file() else None


def _tolerance(abilities: dict[str, Any] | None, ability: str) -> float:
    """One number for all abilities, or one by ability."""
    stated: Any = (abilities or {}).get("tolerance", DEFAULT_TOLERANCE)
    if isinstance(stated, dict):
        stated = cast("dict[str, Any]", stated).get(ability, DEFAULT_TOLERANCE)
    return float(stated)
