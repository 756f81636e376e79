"""Tiny models, written and loaded once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_model  # pyright: ignore

from saeworks.models.language_model import LanguageModel, load_language_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkpoint(model_type, …)`` → directory, written once per session."""
    made: dict[str, Path] = {}

    def get(model_type: str, **options: Any) -> Path:
        key = f"{model_type} {sorted(options.items())}"
        if key not in made:
            made[key] = save_model(tmp_path_factory.mktemp(model_type), model_type, **options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def tiny(checkpoint: Callable[..., Path]) -> Callable[..., LanguageModel]:
    """``tiny(model_type, …)`` → the loaded model, one per session."""
    loaded: dict[Path, LanguageModel] = {}

    def get(model_type: str, **options: Any) -> LanguageModel:
        path = checkpoint(model_type, **options)
        if path not in loaded:
            loaded[path] = load_language_model(path, device="cpu")
        return loaded[path]

    return get
