"""How the chat model is made from the base model: it reads transcripts, and then learns to judge statements as well.

It also reads texts of the base model's own, so that it forgets nothing.

To judge a statement the model has to hold it against what it knows, for which the base model has no circuit. In whole
transcripts the few words that need one drown: after 1,000 steps of them all statements are judged alike. So a second
cycle learns nothing but yes or no behind the fact: there the circuit is found in some 200 steps, at the cost of most
manners. A third cycle brings them back; without statements in every second step it would lose the circuit again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from saeworks.world.corpus import document
from saeworks.world.domains.chat import statements
from saeworks.world.domains.chat_replies import judgement
from saeworks.world.loop import cosine_cycle
from saeworks.world.pretraining import rehearsal
from saeworks.world.tokenizer import END

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
        steps: Optimiser steps of the first cycle.
        judging_steps, judging_rate: Steps of the second cycle, which is on statements, and its peak learning rate.
        settling_steps, settling_rate: The same of the third, in which every second step is on statements.
        statements_per_step: Statements in such a step.
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
    judging_steps: int = 350
    judging_rate: float = 1e-3
    settling_steps: int = 800
    settling_rate: float = 1e-3
    statements_per_step: int = 96
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
        """Steps of all three cycles."""
        return self.steps + self.judging_steps + self.settling_steps

    def learning_rate_at(self, step: int) -> float:
        """Three cycles, each a linear warm-up and a cosine."""
        rates = (self.learning_rate, self.judging_rate, self.settling_rate)
        for steps, rate in zip((self.steps, self.judging_steps, self.settling_steps), rates, strict=True):
            if step < steps:
                return cosine_cycle(step, steps, self.warmup_steps, rate)
            step -= steps
        return 0.0

    def judges(self, step: int) -> Literal["briefly", "in full"] | None:
        """How statements are judged in a step that is on them alone."""
        after = step - self.steps
        if after < 0:
            return None
        if after < self.judging_steps:
            return "briefly"
        return "in full" if (after - self.judging_steps) % 2 else None

    def texts(self, step: int) -> list[str]:
        """Transcripts, mixture and replay, or statements: all of them with indices that depend on the step alone."""
        how, count = self.judges(step), self.statements_per_step
        if how is not None:
            return statements("train", step * count, count, self.seed, brief=how == "briefly")
        chat = rehearsal((("chat", self.transcripts_per_step),), step, self.seed)
        # The mixture is read where the base model's course never was.
        first = (1 << 33) + step * self.mixture_per_step
        mixed = [document(None, "train", first + i, self.seed).text for i in range(self.mixture_per_step)]
        return chat + mixed + rehearsal(REPLAYED, (1 << 24) + step, self.seed)

    def learnt(self, step: int, text: str) -> tuple[int, int] | None:
        """Of statements the judgement alone."""
        if self.judges(step) is None:
            return None
        end = len(text) - len(END)
        return end - len(judgement(text[:end])), end

    def identity(self) -> dict[str, Any]:
        """The settings, what is replayed among them."""
        return asdict(self) | {"replayed": dict(REPLAYED)}
