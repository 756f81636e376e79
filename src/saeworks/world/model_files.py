"""Where the shipped language models lie."""

from __future__ import annotations

from pathlib import Path

from saeworks.errors import RunError


def model_path() -> Path:
    """The directory of the base model inside the package: config.json, model.safetensors, tokenizer.json, README.md.

    Raises:
        RunError: The package was installed without its model files.
    """
    directory = Path(__file__).parent / "base"
    if not (directory / "model.safetensors").is_file():
        raise RunError(
            f"The embedded model is missing at '{directory}'; install saeworks again, "
            "or rebuild it with python -m saeworks.world.build."
        )
    return directory
