"""What may be spent on a run. Before a call its worst case is set aside, so that no call can exceed the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio

from saeworks.errors import InputError, did_you_mean

# What the wrapping of one message in a chat format may take, in tokens.
MESSAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens, read and written."""

    input: float
    output: float

    def of(self, read: int, written: int) -> float:
        """What so many tokens cost."""
        return (read * self.input + written * self.output) / 1e6


def read_prices(path: Path) -> dict[str, Price]:
    """Prices from a YAML or JSON file: ``{model: {input: dollars, output: dollars}}`` for a million tokens each.

    Raises:
        InputError: the file is missing, no mapping, or a price is no number of zero or more.
    """
    import yaml

    try:
        found: object = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise InputError(f"The file of prices '{path}' does not exist; check --prices.") from e
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise InputError(f"The file of prices '{path}' cannot be read ({' '.join(str(e).split())}).") from e
    if not isinstance(found, dict):
        raise InputError(f"'{path}' has no prices; write 'MODEL: {{input: 3.0, output: 15.0}}', dollars per million.")
    prices: dict[str, Price] = {}
    for model, entry in cast("dict[object, object]", found).items():
        values: Mapping[str, Any] = cast("Mapping[str, Any]", entry) if isinstance(entry, dict) else {}
        pair = (values.get("input"), values.get("output"))
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and v >= 0 for v in pair):
            raise InputError(f"The price of '{model}' in '{path}' is {entry!r}; give {{input: 3.0, output: 15.0}}.")
        prices[str(model)] = Price(float(cast(float, pair[0])), float(cast(float, pair[1])))
    return prices


def price_of(model: str, prices: Mapping[str, Price], needed: bool) -> Price:
    """The price of a model; nothing where prices do not matter.

    Raises:
        InputError: a budget in dollars needs the price, and it is not known.
    """
    if model in prices:
        return prices[model]
    if needed and not model.startswith(("mockllm/", "saeworks/")):
        raise InputError(f"A budget in dollars needs the price of '{model}' in --prices.{did_you_mean(model, prices)}")
    return Price(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Spending:
    """Tokens and dollars, spent or set aside."""

    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Spending) -> Spending:
        return Spending(self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: Spending) -> Spending:
        return Spending(self.tokens - other.tokens, self.cost - other.cost)


def worst_case(texts: list[str], max_tokens: int, price: Price) -> Spending:
    """The most that a call can take: no tokenizer makes more tokens of a text than it has bytes."""
    read = sum(len(text.encode("utf-8", "replace")) + MESSAGE_TOKENS for text in texts)
    return Spending(read + max_tokens, price.of(read, max_tokens))


class Budget:
    """Tokens and dollars that all calls of a run share.

    Attributes:
        spent: by calls that have ended, earlier runs that are continued included. stopped: whether a call was refused.
    """

    def __init__(self, tokens: int | None = None, cost: float | None = None, spent: Spending | None = None) -> None:
        if tokens is not None and tokens < 1:
            raise InputError(f"--budget is {tokens} tokens; give at least 1, or leave it out for no limit.")
        if cost is not None and not cost > 0:
            raise InputError(f"--budget-cost is {cost} dollars; give more than 0, or leave it out for no limit.")
        self._tokens, self._cost = tokens, cost
        self.spent = spent or Spending()
        self.stopped = False
        self._aside = Spending()
        self._running = 0
        self._settled = anyio.Condition()

    def _fits(self, worst: Spending) -> bool:
        total = self.spent + self._aside + worst
        return (self._tokens is None or total.tokens <= self._tokens) and (
            self._cost is None or total.cost <= self._cost + 1e-12
        )

    async def reserve(self, worst: Spending) -> bool:
        """Set the worst case of a call aside; False when it does not fit, also after all running calls have ended."""
        async with self._settled:
            while not self._fits(worst):
                if self._running == 0:
                    self.stopped = True
                    return False
                await self._settled.wait()
            self._aside += worst
            self._running += 1
            return True

    async def settle(self, worst: Spending, spent: Spending) -> None:
        """The call for which ``worst`` was set aside took ``spent``."""
        with anyio.CancelScope(shield=True):
            async with self._settled:
                self._aside -= worst
                self.spent += spent
                self._running -= 1
                self._settled.notify_all()
