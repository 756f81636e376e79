"""What every method of diffing takes and gives: paired activations in, findings with a score and evidence out."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol

from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing.model_pair import ModelPair
from saeworks.diffing.pairs import PairedSource
from saeworks.errors import InputError
from saeworks.results.envelope import without_nan

Numbers = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a method found.

    Attributes:
        name: of the token, direction or latent.
        score: how much it differs, by the method's own measure; larger is more.
        evidence: plain values that a reader can check.
    """

    name: str
    score: float
    evidence: Mapping[str, Any]


@dataclass(slots=True)
class Cost:
    """What a method took.

    Attributes:
        tokens: paired tokens that it read. trained_tokens: tokens that it trained on. forward_rows: rows of tokens that
            went through a model, counting each model. seconds: on this machine.
    """

    tokens: int = 0
    trained_tokens: int = 0
    forward_rows: int = 0
    seconds: float = 0.0

    @contextmanager
    def timed(self) -> Generator[None]:
        """Adds the seconds of the block."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - start


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What a method found, the same for all of them.

    Attributes:
        method: its name. settings: what it was run with.
        tokens, directions, latents: findings, best first; what a method does not look for is empty.
        numbers: measurements of the pair as a whole; None where there is none.
        cost: what it took.
        arrays: tensors behind the findings, such as directions ``[direction, d]``.
        dictionary: what was trained or read, where there is one.
    """

    method: str
    settings: Mapping[str, Any]
    cost: Cost
    tokens: tuple[Finding, ...] = ()
    directions: tuple[Finding, ...] = ()
    latents: tuple[Finding, ...] = ()
    numbers: Mapping[str, float | None] = field(default_factory=dict[str, "float | None"])
    arrays: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False)
    dictionary: Dictionary | None = field(default=None, repr=False)

    def plain(self) -> dict[str, Any]:
        """Everything but tensors and dictionary, as values that JSON can hold: what is not a number is None."""
        found = {kind: [asdict(one) for one in getattr(self, kind)] for kind in ("tokens", "directions", "latents")}
        values = {"settings": self.settings, **found, "numbers": self.numbers, "cost": asdict(self.cost)}
        return {"method": self.method, **without_nan(values)}


Needs = Literal["activations", "models"]


class Method(Protocol):
    """A method is a frozen value of its settings.

    Attributes:
        name: in the registry. needs: whether paired activations are enough or the models themselves are called for.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs: ...

    def run(self, source: PairedSource, tokens: int | None = None) -> MethodResult:
        """Compare the two models of ``source`` on at most ``tokens`` tokens of it."""
        ...


def models_of(source: PairedSource, method: str) -> ModelPair:
    """The source as a pair of models; ``InputError`` when it is activations only."""
    if not isinstance(source, ModelPair):
        raise InputError(
            f"'{method}' runs the models themselves, but the source has activations only; use a ModelPair."
        )
    return source


def one_width(source: PairedSource, method: str) -> int:
    """The width of both sources; ``InputError`` when they differ, since there is no difference then."""
    if len(set(source.widths)) != 1:
        raise InputError(
            f"'{method}' subtracts activations of the two models, whose widths are {list(source.widths)}; "
            "it is defined for models of one width."
        )
    return source.widths[0]


def settings_of(method: Any) -> dict[str, Any]:
    """The fields of a method that are plain values."""
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    return {
        name: value for name, value in values.items() if isinstance(value, (str, int, float, bool, tuple, type(None)))
    }
