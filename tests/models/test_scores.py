"""Losses against written-out formulas in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny_models import TEXTS  # pyright: ignore

from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel
from saeworks.models.scores import kl_divergence, next_token_loss, next_token_mask

Tiny = Callable[..., LanguageModel]


def test_loss_is_the_negative_log_probability_of_the_next_token(tiny: Tiny) -> None:
    model = tiny("llama")
    batch = model.tokenize(TEXTS, 32)
    logits = model.logits(batch)
    loss = next_token_loss(logits, batch)
    assert loss.shape == (3, batch.token_ids.shape[1] - 1)
    assert loss.dtype == torch.float32
    for row in range(3):
        length = int(batch.attention_mask[row].sum())
        for t in range(loss.shape[1]):
            expected = 0.0
            if t + 1 < length:
                scores = [float(v) for v in logits[row, t].double()]
                total = math.log(sum(math.exp(v) for v in scores))
                expected = total - scores[int(batch.token_ids[row, t + 1])]
            assert float(loss[row, t]) == pytest.approx(expected, abs=1e-5)
    assert next_token_mask(batch).sum().item() == int(batch.attention_mask.sum()) - 3


def test_kl_divergence() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25, 0.0]), torch.tensor([0.25, 0.25, 0.25, 0.25])
    kl = kl_divergence(p.log()[None, None] + 3.0, q.log()[None, None])
    assert float(kl) == pytest.approx(0.5 * math.log(2), abs=1e-6)
    x = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    assert float(kl_divergence(x, x).abs().max()) == 0.0
    assert bool((kl_divergence(x, x.flip(-1)) > 0).all())


def test_mistakes_are_sentences(tiny: Tiny) -> None:
    masked = tiny("bert")
    batch = masked.tokenize(TEXTS, 32)
    with pytest.raises(InputError, match="not defined for a masked language model"):
        next_token_loss(masked.logits(batch), batch)
    model = tiny("llama")
    with pytest.raises(InputError, match="do not belong"):
        next_token_loss(model.logits(model.tokenize(TEXTS, 4)), model.tokenize(TEXTS, 5))
    with pytest.raises(InputError, match="equal shape"):
        kl_divergence(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
