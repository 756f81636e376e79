"""Talking to the embedded models: a conversation that stays within the context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError, did_you_mean
from saeworks.jobs.world import at_least

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

END_OF_TURN = "<|end|>"


@dataclass(frozen=True)
class Exchange:
    """What was asked and answered; ``dropped`` counts the earlier exchanges that had to be forgotten for it."""

    text: str
    answer: str
    dropped: int = 0


def open_conversation(
    model: str = "chat", system: str | None = None, tokens: int = 48, temperature: float = 0.0, seed: int = 0
) -> Conversation:
    """A conversation with the embedded ``base`` or ``chat`` model; see :class:`Conversation`.

    Raises:
        InputError: an unknown model, a system text for the base model, or numbers out of range.
    """
    from saeworks.models.language_model import load_language_model
    from saeworks.world.model_files import MODELS

    if model not in MODELS:
        raise InputError(f"The world has no model '{model}'.{did_you_mean(model, MODELS)}")
    at_least(1, tokens=tokens)
    at_least(0, seed=seed)
    if temperature < 0:
        raise InputError(f"--temperature is {temperature}; it must be 0 (the likeliest token) or more.")
    # On the CPU: a model this small answers before a GPU has been set up.
    loaded = load_language_model(f"world:{model}", device="cpu")
    return Conversation(loaded, model == "chat", system, tokens, temperature, seed)


class Conversation:
    """Questions and answers, one after another.

    The chat model sees the exchanges before; the oldest of them are dropped where question and answer would not fit
    into the context with them. The base model continues every text by itself.

    Attributes:
        exchanges: everything asked so far, also what the model no longer sees.
    """

    def __init__(
        self, model: LanguageModel, chat: bool, system: str | None, tokens: int, temperature: float, seed: int
    ) -> None:
        if system is not None and not chat:
            raise InputError("The base model continues text and has no turns, so that --system means nothing to it.")
        if model.max_context is not None and tokens >= model.max_context:
            raise InputError(
                f"--tokens is {tokens}, but the model's context of {model.max_context} tokens must hold the question "
                "as well; give fewer."
            )
        self.exchanges: list[Exchange] = []
        self._model, self._chat, self._tokens, self._temperature, self._seed = model, chat, tokens, temperature, seed
        self._system = [{"role": "system", "content": system}] if system is not None else []
        self._remembered = 0

    def ask(self, text: str) -> Exchange:
        """The answer of the chat model, or the base model's continuation.

        Raises:
            InputError: the text is empty, or too long for the context even without the exchanges before.
        """
        if not text.strip():
            raise InputError("There is nothing to answer: the text is empty.")
        prompt, dropped = self._fitting(text) if self._chat else (text, 0)
        self._check_length(prompt)
        seed = self._seed + len(self.exchanges)
        stop = (END_OF_TURN,) if self._chat else ()
        answer = self._model.generate([prompt], self._tokens, (), self._temperature, seed, stop)[0]
        done = Exchange(text, answer.strip() if self._chat else answer, dropped)
        self.exchanges.append(done)
        self._remembered += 1 - dropped
        return done

    def _fitting(self, text: str) -> tuple[str, int]:
        """The prompt with as many earlier exchanges as fit, and how many of the remembered ones do not."""
        dropped = 0
        while dropped < self._remembered and not self._fits(self._prompt(text, self._remembered - dropped)):
            dropped += 1
        return self._prompt(text, self._remembered - dropped), dropped

    def _prompt(self, text: str, earlier: int) -> str:
        kept = self.exchanges[len(self.exchanges) - earlier :]
        return self._model.chat_prompt([*self._system, *_turns(kept), {"role": "user", "content": text}])

    def _fits(self, prompt: str) -> bool:
        limit = self._model.max_context
        return limit is None or self._length(prompt) + self._tokens <= limit

    def _check_length(self, prompt: str) -> None:
        if not self._fits(prompt):
            raise InputError(
                f"The text takes {self._length(prompt)} tokens and {self._tokens} are kept for the answer, but the "
                f"model's context is {self._model.max_context}; write less, or lower --tokens."
            )

    def _length(self, prompt: str) -> int:
        ids: list[int] = self._model.tokenizer(prompt)["input_ids"]
        return len(ids)


def _turns(exchanges: list[Exchange]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for one in exchanges:
        turns += [{"role": "user", "content": one.text}, {"role": "assistant", "content": one.answer}]
    return turns
