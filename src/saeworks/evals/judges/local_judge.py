"""A judge on this machine: a causal language model from a directory or the hub, asked greedily, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saeworks.errors import InputError
from saeworks.evals.judges.protocol import Answer, Question

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel


class LocalJudge:
    """Questions go through the tokenizer's chat template where it has one, else as plain text that ends in "Answer:".

    Raises ``InputError`` for a model that does not generate text, and later for a question longer than its context.
    """

    workers = 1
    lasting = True

    def __init__(self, model: LanguageModel) -> None:
        if not model.is_causal:
            raise InputError(f"Model '{model.name}' does not predict the next token, so it cannot be a judge.")
        self._model = model
        self._asked = 0
        self._tokens = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    def identity(self) -> dict[str, str]:
        """The model's fingerprint and number type: another machine with the same weights may use the answers."""
        return {"kind": "local", "model": self._model.fingerprint(), "dtype": str(self._model.dtype)}

    def room(self) -> int | None:
        """Any number: nothing is paid."""
        return None

    def usage(self) -> dict[str, int | float]:
        """Questions answered and tokens read and written."""
        return {"requests": self._asked, "tokens": self._tokens}

    def close(self) -> None:
        """Nothing to give back: the model goes with the judge."""

    def answer(self, question: Question) -> Answer:
        """The greedy continuation. It counts as cut off when it has as many tokens as it may have."""
        prompt = self._prompt(question)
        try:
            text = self._model.generate([prompt], max_new_tokens=question.max_tokens)[0]
        except InputError as e:
            raise InputError(f"The judge '{self.name}' cannot be asked: {e}") from e
        prompt_tokens, answer_tokens = self._count(prompt), self._count(text)
        self._asked += 1
        self._tokens += prompt_tokens + answer_tokens
        text = text.strip()
        if answer_tokens >= question.max_tokens:
            return Answer(text, "cut_off", "the answer reached the limit of tokens", prompt_tokens, answer_tokens)
        if not text:
            return Answer("", "malformed", "the answer has no text", prompt_tokens, answer_tokens)
        return Answer(text, "answered", "", prompt_tokens, answer_tokens)

    def _prompt(self, question: Question) -> str:
        if not getattr(self._model.tokenizer, "chat_template", None):
            return f"{question.system}\n\n{question.user}\n\nAnswer:"
        user = {"role": "user", "content": question.user}
        try:
            return self._model.chat_prompt([{"role": "system", "content": question.system}, user])
        except Exception:  # some templates refuse a system message, each with an error of its own
            return self._model.chat_prompt([{"role": "user", "content": f"{question.system}\n\n{question.user}"}])

    def _count(self, text: str) -> int:
        return len(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])
