"""A tiny loaded model and random sentences in its vocabulary."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from saeworks.activations.texts import ListTexts
from saeworks.models.language_model import LanguageModel, load_language_model


@pytest.fixture(scope="session")
def tiny_model(tiny_model_directory: Path) -> LanguageModel:
    """Two layers, width 16, 64 positions, BOS in front of every row."""
    return load_language_model(tiny_model_directory, device="cpu")


@pytest.fixture(scope="session")
def sentences(tiny_model: LanguageModel) -> Callable[..., ListTexts]:
    """``sentences(count, words=…, seed=…)`` → source; words is a number or a (least, most) pair."""

    vocabulary = sorted(word for word in tiny_model.tokenizer.get_vocab() if word.isalpha())

    def make(count: int, words: int | tuple[int, int] = (1, 30), seed: int = 0) -> ListTexts:
        draw = random.Random(seed)
        least, most = (words, words) if isinstance(words, int) else words
        texts = [" ".join(draw.choices(vocabulary, k=draw.randint(least, most))) for _ in range(count)]
        return ListTexts(texts, name="sentences")

    return make
