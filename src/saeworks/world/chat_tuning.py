"""How the chat model is made from the base model.

It reads transcripts, and texts of the base model's own so that it forgets nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from saeworks.world.corpus import document
from saeworks.world.loop import cosine_cycle
from saeworks.world.pretraining import rehearsal

# Documents of a step that come from the base model's domains.
REPLAYED = (
    ("biographies", 4),
    ("reviews", 3),
    ("taxonomy", 2),
    ("spelling", 4),
    ("facts", 3),
    ("ships", 2),
    ("questions", 4),
)


@dataclass(frozen=True, slots=True)
class ChatTuningConfig:
    """What decides the chat model's weights, given the base model's.

    Attributes:
        steps: Optimiser steps.
        transcripts_per_step: Chat documents in one step; as many again as ``REPLAYED`` says are not chat.
        mixture_per_step: Documents of the base model's mixture in one step.
        learning_rate: Peak, reached after ``warmup_steps``, then a cosine down to a hundredth of it.
        other_rate: Learning rate of embeddings and norms, as a share of the matrices'.
        weight_decay: On matrices that are not embeddings.
        seed: Seed of the corpus.
        autocast: bfloat16 matrix products over float32 weights.
        base: Hash of the base model's weights; filled in by the build.
    """

    steps: int = 1000
    transcripts_per_step: int = 48
    mixture_per_step: int = 8
    learning_rate: float = 4e-3
    other_rate: float = 0.5
    warmup_steps: int = 50
    weight_decay: float = 0.05
    seed: int = 0
    autocast: bool = True
    base: str = ""

    @property
    def total_steps(self) -> int:
        """Steps of the one cycle."""
        return self.steps

    def learning_rate_at(self, step: int) -> float:
        """A linear warm-up and a cosine."""
        return cosine_cycle(step, self.steps, self.warmup_steps, self.learning_rate)

    def texts(self, step: int) -> list[str]:
        """Transcripts, mixture and replay; all of them with indices that depend on the step alone."""
        chat = rehearsal((("chat", self.transcripts_per_step),), step, self.seed)
        # The mixture is read where the base model's course never was.
        first = (1 << 33) + step * self.mixture_per_step
        mixed = [document(None, "train", first + i, self.seed).text for i in range(self.mixture_per_step)]
        return chat + mixed + rehearsal(REPLAYED, (1 << 24) + step, self.seed)

    def identity(self) -> dict[str, Any]:
        """The settings, what is replayed among them."""
        return asdict(self) | {"replayed": dict(REPLAYED)}
