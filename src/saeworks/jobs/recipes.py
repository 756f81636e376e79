"""What can be trained: the recipes, the published presets, and where every setting comes from."""

from __future__ import annotations

from typing import Any

from saeworks.errors import InputError, did_you_mean


def recipes(name: str | None = None) -> dict[str, Any]:
    """All recipes and presets, or the settings of the one called ``name``.

    Returns:
        Without a name ``{"recipes": [{"recipe", "number", "latents", "loss", "source"}], "presets": [{"preset",
        "recipes", "model", "site"}]}``. With one ``{"name", "about", "recipes", "run", "settings"}``: ``run`` are the
        keys of a run that a preset sets, ``settings`` the fields of the recipe, both rows of setting, value, source.

    Raises:
        InputError: no recipe or preset has that name.
    """
    from saeworks.training.catalogue import NOTES, NUMBERS
    from saeworks.training.presets import PRESETS
    from saeworks.training.recipes import RECIPES

    if name is not None:
        return _one(name)
    return {
        "recipes": [
            {
                "recipe": chosen.name,
                "number": NUMBERS[chosen.sparsity],
                "latents": NOTES[chosen.name].latents,
                "loss": NOTES[chosen.name].loss,
                "source": NOTES[chosen.name].source,
            }
            for chosen in RECIPES.values()
        ],
        "presets": [
            {
                "preset": preset.name,
                "recipes": ", ".join(chosen.name for chosen in preset.recipes),
                "model": preset.settings.get("model"),
                "site": preset.settings.get("site"),
            }
            for preset in PRESETS.values()
        ],
    }


def _one(name: str) -> dict[str, Any]:
    from saeworks.training.catalogue import NOTES, preset_recipes, settings_of, shown
    from saeworks.training.presets import PRESETS
    from saeworks.training.recipes import RECIPES

    within = {**RECIPES, **preset_recipes()}
    preset = PRESETS.get(name)
    if preset is None and name not in within:
        raise InputError(f"There is no recipe or preset '{name}'.{did_you_mean(name, {**within, **PRESETS})}")
    settings = settings_of(name) if name in within else []
    if preset is None:
        note = NOTES.get(name)
        about = f"{note.latents}; {note.loss} ({note.source})" if note else ""
        return {"name": name, "about": about, "recipes": [name], "run": [], "settings": settings}
    run = [
        {"setting": key, "value": shown(value), "source": preset.sources[key]} for key, value in preset.settings.items()
    ]
    return {
        "name": name,
        "about": preset.about,
        "recipes": [chosen.name for chosen in preset.recipes],
        "run": run,
        "settings": settings,
    }
