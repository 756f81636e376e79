"""One call to a model: within the budget, never made twice, and told apart by how it ended.

A provider that fails, refuses or falls silent has not said NO. Every call therefore ends in one of the outcomes of
:data:`saeworks.faithfulness.records.Outcome`, or was not made because the budget was spent.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import anyio
from inspect_ai.model import (
    ChatMessage,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Model,
    ModelOutput,
)

from saeworks.faithfulness.records import FAILED_CALLS, Outcome
from saeworks.faithfulness.tasks.budget import Budget, Price, Spending, price_of, worst_case
from saeworks.faithfulness.tasks.journal import Journal, call_key
from saeworks.runtime import derive_seed

CallOutcome = Outcome | Literal["not_asked"]
# Reasoning that a local model writes into its visible text. A chain that never ends is all reasoning.
_THOUGHT = re.compile(r"<think(?:ing)?>(.*?)(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_OPENED = re.compile(r"<think", re.IGNORECASE)
_CLOSED = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
OWN_PROVIDER = "saeworks/"
#: Of samples: nothing can be said about them. "None" is a sample that broke off before it was asked.
NO_ANSWER = (*FAILED_CALLS, "not_asked", "None")
LONGEST_WAIT = 60.0  # seconds between two attempts


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that came to an end.

    Attributes:
        outcome: how. text: what is visible of the answer. reasoning: what the model thought, None where it is not told.
        error: a sentence on what went wrong, "" where nothing did. output: Inspect's record, None for failed calls.
    """

    outcome: CallOutcome
    text: str = ""
    reasoning: str | None = None
    error: str = ""
    output: ModelOutput | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no answer of the model at all, so that nothing can be said about it."""
        return self.outcome in NO_ANSWER


@dataclass
class Caller:
    """Makes the calls of one run; all its calls share the journal and the budget.

    Attributes:
        journal: what was asked before. budget: what may be spent. prices: by model name, for a budget in dollars.
        seed: of the draws of models that are seeded call by call.
        retries: further attempts at a call that failed for a reason that may pass. Every attempt is made here and not
            inside Inspect, so that each is set aside in the budget and written into the journal.
        wait: seconds before the second attempt; doubled each time.
    """

    journal: Journal = field(default_factory=Journal)
    budget: Budget = field(default_factory=Budget)
    prices: Mapping[str, Price] = field(default_factory=dict[str, Price])
    need_prices: bool = False
    seed: int = 0
    retries: int = 5
    wait: float = 3.0

    async def ask(
        self,
        role: str,
        model: Model,
        messages: list[ChatMessage] | str,
        config: GenerateConfig,
        sample: str,
        epoch: int,
    ) -> Asked:
        """Ask, or return what was answered when the same was asked before.

        Args:
            role: who is asked, "subject" or "grader" say; part of what makes two calls different.
            config: settings of this call; ``max_tokens`` must be among them or among the model's own.
            sample, epoch: for which draw of which sample; two draws are two calls even if they ask the same.
        """
        name = str(model)
        written: list[ChatMessage] = [ChatMessageUser(content=messages)] if isinstance(messages, str) else messages
        texts = [message.text for message in written]
        settings = model.config.merge(config)
        kept = settings.model_dump(
            include={"temperature", "top_p", "max_tokens", "reasoning_tokens"}, exclude_none=True
        )
        key = call_key(role, name, texts, kept, sample, epoch)
        if (known := self.journal.find(key)) is not None:
            return _from_entry(known)
        most = (settings.max_tokens or model.api.max_tokens() or 2048) + (settings.reasoning_tokens or 0)
        price = price_of(name, self.prices, self.need_prices)
        worst = worst_case(texts, most, price)
        if name.startswith(OWN_PROVIDER):
            config = config.merge(GenerateConfig(seed=derive_seed(self.seed, role, sample, str(epoch)) % (1 << 31)))
        asked = Asked("not_asked", error="The budget is spent.")
        for attempt in range(self.retries + 1):
            if not await self.budget.reserve(worst):
                break
            spent = worst  # what a call cost that never came back is not known
            try:
                self.journal.begin(key, worst)
                asked, passing = await _call(model, written, config)
                spent = _spent(asked, worst, price)
                self.journal.add(key, _entry(asked, spent, role, name, sample, epoch))
            finally:
                await self.budget.settle(worst, spent)
            if not passing or attempt == self.retries:
                break
            # Not all at the same moment, or they are turned away together again.
            await anyio.sleep(min(LONGEST_WAIT, self.wait * 2**attempt) * random.uniform(0.5, 1.0))
        return asked


async def _call(model: Model, messages: list[ChatMessage], config: GenerateConfig) -> tuple[Asked, bool]:
    """One attempt, and whether another one may succeed."""
    try:
        output = await model.generate(messages, config=config)
    except Exception as e:
        outcome, sentence = failure(e)
        return Asked(outcome, error=sentence), any(model.should_retry(one) for one in _causes(e))
    return read_output(output), False


def _spent(asked: Asked, worst: Spending, price: Price) -> Spending:
    usage = asked.output.usage if asked.output else None
    if usage is not None:
        total = max(usage.total_tokens, usage.input_tokens + usage.output_tokens)
        return Spending(total, price.of(total - usage.output_tokens, usage.output_tokens))
    # A request that was turned away is not charged; what any other call took is not known.
    return Spending() if asked.outcome == "rate_limited" else worst


def read_output(output: ModelOutput) -> Asked:
    """The outcome, the visible text and the reasoning of a model's output."""
    if output.empty:
        return Asked("empty", error=output.error or "The provider returned no choice.", output=output)
    message = output.choices[0].message
    text, reasoning = message.text, None
    refusal = False
    if not isinstance(message.content, str):
        thoughts = [part.reasoning for part in message.content if isinstance(part, ContentReasoning) and part.reasoning]
        reasoning = "\n".join(thoughts) or None
        refusal = any(isinstance(part, ContentText) and part.refusal for part in message.content)
    text, inline = split_reasoning(text)
    reasoning = "\n".join(part for part in (reasoning, inline) if part) or None
    details = output.choices[0].stop_details
    refusal = refusal or (details is not None and details.type == "refusal")
    stopped = output.stop_reason
    if refusal:
        return Asked("refused", text, reasoning, output=output)
    if stopped == "content_filter":
        return Asked("content_filter", text, reasoning, "The provider's filter stopped the answer.", output)
    if stopped in ("max_tokens", "model_length"):
        return Asked("truncated", text, reasoning, "The answer was cut off at the most tokens.", output)
    if not text.strip():
        return Asked("empty", "", reasoning, "The answer has no visible text.", output)
    return Asked("answered", text, reasoning, output=output)


def split_reasoning(text: str) -> tuple[str, str | None]:
    """The visible text, and what stands in ``<think>`` tags (None where there is none)."""
    opened, closed = _OPENED.search(text), _CLOSED.search(text)
    if closed and not (opened and opened.start() < closed.start()):
        # Some templates open the thought in the prompt, so that the text has the closing tag alone.
        return text[closed.end() :].strip(), text[: closed.start()].strip() or None
    thoughts = [match.strip() for match in cast("list[str]", _THOUGHT.findall(text))]
    if not thoughts:
        return text, None
    return _THOUGHT.sub("", text).strip(), "\n".join(thoughts) or None


def failure(error: BaseException) -> tuple[Literal["rate_limited", "timeout", "error"], str]:
    """What a failed call failed of, and a sentence on it. The last attempt counts when several were made."""
    chain = _causes(error)
    names = " ".join(type(one).__name__ for one in chain)
    codes = {code for one in chain if isinstance(code := getattr(one, "status_code", None), int)}
    said = " ".join(str(chain[-1]).split())[:300] or type(error).__name__
    if 429 in codes or "RateLimit" in names:
        return "rate_limited", f"The provider turned the request away for its rate: {said}"
    if codes & {408, 504} or "Timeout" in names or "timed out" in said.lower():
        return "timeout", f"The provider did not answer in time: {said}"
    return "error", f"The call failed ({type(chain[-1]).__name__}): {said}"


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from; of a library that retries, what its last attempt failed of."""
    attempt: Any = getattr(error, "last_attempt", None)
    if attempt is not None and attempt.exception() is not None:
        return _causes(attempt.exception())
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    return chain


def _entry(asked: Asked, spent: Spending, role: str, model: str, sample: str, epoch: int) -> dict[str, Any]:
    return {
        "role": role,
        "model": model,
        "sample": sample,
        "epoch": epoch,
        "outcome": asked.outcome,
        "text": asked.text,
        "reasoning": asked.reasoning,
        "error": asked.error,
        "tokens": spent.tokens,
        "cost": spent.cost,
        "output": None if asked.output is None else asked.output.model_dump(mode="json", exclude_none=True),
    }


def _from_entry(entry: Mapping[str, Any]) -> Asked:
    output = entry["output"]
    return Asked(
        entry["outcome"],
        entry["text"],
        entry["reasoning"],
        entry["error"],
        None if output is None else ModelOutput.model_validate(output),
    )
