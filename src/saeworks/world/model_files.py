"""Where the shipped language models lie, and what they are called."""

from __future__ import annotations

from pathlib import Path

from saeworks.errors import InputError, RunError, did_you_mean

SHIPPED = Path(__file__).parent
MODELS = ("base", "chat")
#: The names under which the models are loaded → which of them is meant.
NAMES = {"world": "base", "world:base": "base", "world:chat": "chat"}


def model_path(which: str = "base") -> Path:
    """The directory of a shipped model: config.json, model.safetensors, tokenizer.json, abilities.json, README.md.

    Args:
        which: ``base`` or ``chat``.

    Raises:
        InputError: There is no such model.
        RunError: The package was installed without its model files.
    """
    if which not in MODELS:
        raise InputError(f"The world has no model '{which}'.{did_you_mean(which, MODELS)}")
    directory = SHIPPED / which
    if not (directory / "model.safetensors").is_file():
        raise RunError(
            f"The embedded {which} model is missing at '{directory}'; install saeworks again, "
            "or make it with: saeworks world build --out DIR."
        )
    return directory
