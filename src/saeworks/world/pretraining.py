"""How the base model is trained: on the mixture of all domains but chat, in two cycles.

The second, gentler cycle gives a part of every step to domains that have to be learnt by heart or in depth.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from saeworks.runtime import derive_seed
from saeworks.world.corpus import document
from saeworks.world.loop import cosine_cycle
from saeworks.world.tokenizer import CONTEXT_LENGTH

# Documents of a second-cycle step that come from one domain, with indices that the mixture never reaches.
REHEARSED = (
    ("biographies", 3),
    ("reviews", 4),
    ("taxonomy", 2),
    ("spelling", 9),
    ("facts", 3),
    ("ships", 6),
    ("craft", 3),
    ("questions", 12),
)
REHEARSED_FROM = 1 << 32


@dataclass(frozen=True, slots=True)
class PretrainingConfig:
    """What decides the weights.

    Attributes:
        steps: Optimiser steps of the first cycle.
        more_steps: Steps of a second, gentler cycle, which rehearses.
        more_learning_rate: Peak of the second cycle.
        documents_per_step: Documents of the mixture in one step (about 50 tokens each).
        learning_rate: Peak for weight matrices, reached after ``warmup_steps``, then a cosine to a hundredth of it.
        other_rate: Learning rate of embeddings and norms, as a share of the matrices'.
        weight_decay: On matrices that are not embeddings.
        d_model, n_layers, n_heads, d_mlp: Shape of the Llama model; embeddings are tied.
        seed: Seed of the initial weights and of the corpus.
        autocast: bfloat16 matrix products over float32 weights.
    """

    steps: int = 1400
    more_steps: int = 2000
    more_learning_rate: float = 4e-3
    documents_per_step: int = 72
    learning_rate: float = 8e-3
    other_rate: float = 0.4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    d_mlp: int = 640
    seed: int = 0
    autocast: bool = True

    @property
    def total_steps(self) -> int:
        """Steps of both cycles."""
        return self.steps + self.more_steps

    def learning_rate_at(self, step: int) -> float:
        """Two cycles, each a linear warm-up and then a cosine to one hundredth of its peak."""
        if step < self.steps:
            return cosine_cycle(step, self.steps, self.warmup_steps, self.learning_rate)
        return cosine_cycle(step - self.steps, self.more_steps, self.warmup_steps // 4, self.more_learning_rate)

    def texts(self, step: int) -> list[str]:
        """Documents ``[step·D, (step+1)·D)`` of the mixture; the second cycle replaces the last by rehearsed ones."""
        first = step * self.documents_per_step
        texts = [document(None, "train", first + i, self.seed).text for i in range(self.documents_per_step)]
        if step < self.steps:
            return texts
        rehearsed = rehearsal(REHEARSED, step, self.seed)
        return texts[: -len(rehearsed)] + rehearsed if len(rehearsed) < len(texts) else texts

    def learnt(self, step: int, text: str) -> None:
        """Everything."""

    def identity(self) -> dict[str, Any]:
        """The settings, what is rehearsed among them."""
        return asdict(self) | {"rehearsed": dict(REHEARSED)}


def rehearsal(shares: tuple[tuple[str, int], ...], step: int, seed: int) -> list[str]:
    """``count`` training documents of each domain in ``shares``, new ones at every step."""
    return [
        document(domain, "train", REHEARSED_FROM + step * count + i, seed).text
        for domain, count in shares
        for i in range(count)
    ]


def new_model(config: PretrainingConfig, vocabulary: int, bos: int, eos: int, pad: int) -> Any:
    """A ``LlamaForCausalLM`` with initial weights from the seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.d_model,
        intermediate_size=config.d_mlp,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_heads,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
        initializer_range=0.02,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "base model"))
        return LlamaForCausalLM(shape)
