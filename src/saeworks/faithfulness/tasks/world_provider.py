"""The embedded models as a provider of Inspect, ``saeworks/world:chat`` and ``saeworks/world:base``: no network."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from saeworks.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

PREFIX = "saeworks"
NAMES = ("world:chat", "world:base", "world")
END_OF_TURN = "<|end|>"
# The answer gets at least this much of the context, or the question is refused as too long.
LEAST_ANSWER = 8
# The base model goes on with further sentences and questions of the kind; its answer is the first sentence.
SENTENCE_END = re.compile(r"\.(?=\s|\Z)|\n")
LONGEST_SENTENCE = 48  # tokens; the embedded corpus has no reasons that are longer


def register() -> None:
    """Make ``saeworks/…`` known to Inspect; importing this module has done it."""


@modelapi(name=PREFIX)
class WorldModel(ModelAPI):
    """Greedy at temperature 0, else drawn with the call's own seed: a draw does not depend on the calls beside it.

    ``top_p`` is not supported and ignored: the models draw from the whole softmax. The answer of the base model, which
    knows no end of a turn, is the first sentence of its continuation.

    Raises:
        InputError: there is no such embedded model.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if model_name not in NAMES:
            raise InputError(f"There is no model '{PREFIX}/{model_name}'.{did_you_mean(model_name, NAMES)}")
        self._model: LanguageModel | None = None
        self._lock = threading.Lock()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """One answer; a question too long for the model's context ends with the stop reason ``model_length``."""
        return await anyio.to_thread.run_sync(self._generate, input, config)

    def max_connections(self) -> int:
        """One call works at a time; a few more wait in line."""
        return 4

    def max_tokens(self) -> int:
        """The embedded models' context."""
        return 128

    def _generate(self, input: list[ChatMessage], config: GenerateConfig) -> ModelOutput:
        with self._lock:
            model = self._loaded()
            chat = self.model_name == "world:chat"
            prompt = _prompt(model, input, chat)
            read = len(model.tokenizer(prompt)["input_ids"])
            room = (model.max_context or 1 << 20) - read
            if room < LEAST_ANSWER:
                return _output(self.model_name, "", "model_length", read, 0)
            most = min(config.max_tokens or 64, room)
            temperature = 0.0 if config.temperature is None else config.temperature
            most = most if chat else min(most, LONGEST_SENTENCE)
            stop = (END_OF_TURN,) if chat else ()
            text = model.generate([prompt], most, (), temperature, config.seed or 0, stop)[0]
        written = len(model.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not chat and (end := SENTENCE_END.search(text.strip())) is not None:
            return _output(self.model_name, text.strip()[: end.end()].strip(), "stop", read, written)
        return _output(self.model_name, text.strip(), "max_tokens" if written >= most else "stop", read, written)

    def _loaded(self) -> LanguageModel:
        if self._model is None:
            from saeworks.models.language_model import load_language_model

            self._model = load_language_model(self.model_name, device="cpu")
        return self._model


def _prompt(model: LanguageModel, messages: list[ChatMessage], chat: bool) -> str:
    # Both models share a tokenizer with a template, but the base model never saw the marks of a conversation.
    if not chat:
        return "\n".join(message.text for message in messages)
    kept = [m for m in messages if isinstance(m, (ChatMessageUser, ChatMessageAssistant)) or m.role == "system"]
    return model.chat_prompt([{"role": message.role, "content": message.text} for message in kept])


def _output(model: str, text: str, stop: Any, read: int, written: int) -> ModelOutput:
    message = ChatMessageAssistant(content=text, model=model, source="generate")
    return ModelOutput(
        model=f"{PREFIX}/{model}",
        choices=[ChatCompletionChoice(message=message, stop_reason=stop)],
        usage=ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written),
    )
