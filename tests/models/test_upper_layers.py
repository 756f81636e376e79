"""Logits of chosen positions alone are those of all positions, at those places."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from saeworks.models.language_model import LanguageModel
from saeworks.models.upper_layers import UpperLayers


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_logits_at_chosen_positions(tiny: Callable[..., LanguageModel], architecture: str) -> None:
    model = tiny(architecture)
    upper = UpperLayers(model, "layers.1.resid_post")
    batch = model.tokenize(["the dog saw the cat", "a red bird sings the songs"], 16)
    hidden = model.harvest(batch, [upper.cached_site])[upper.cached_site]
    at = batch.keep.clone()
    at[0, 1] = False
    with torch.no_grad():
        every = model.logits(batch)
        assert torch.allclose(upper.logits(hidden, batch, at=at), every[at], atol=1e-5)
        assert torch.equal(upper.logits(hidden, batch), every)  # nothing of the choice stays behind
