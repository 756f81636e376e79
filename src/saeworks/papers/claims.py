"""Claims: what a paper says, what was measured here, and the rule that decides whether it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saeworks.errors import InputError
from saeworks.files import atomic_write_text, write_json
from saeworks.results.envelope import provenance, without_nan
from saeworks.results.tables import markdown, spread, spread_of

VERDICTS = {True: "yes", False: "no", None: "not decided"}


@dataclass(frozen=True)
class Rule:
    """Every value lies above ``low`` and below ``high``; with ``share``, at least this share of each group's values.

    Raises:
        InputError: bounds between which nothing lies, none at all, or a share outside (0, 1].
    """

    low: float | None = None
    high: float | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise InputError("A rule without a bound would hold for any number; give low, high or both.")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise InputError(f"No number lies above {self.low:g} and below {self.high:g}; exchange the two bounds.")
        if not 0 < self.share <= 1:
            raise InputError(f"A rule was to hold for a share of {self.share:g} of the values; give one in (0, 1].")

    def allows(self, value: float) -> bool:
        """Whether one value lies between the bounds; NaN does not."""
        above = self.low is None or value > self.low
        return above and (self.high is None or value < self.high) and value == value

    def holds(self, groups: Mapping[str, Sequence[float]]) -> bool | None:
        """Whether the rule holds in every group; None when nothing was measured."""
        if not groups or not all(groups.values()):
            return None
        return all(sum(map(self.allows, values)) >= self.share * len(values) - 1e-9 for values in groups.values())

    def __str__(self) -> str:
        bounds = [f"above {self.low:g}"] if self.low is not None else []
        bounds += [f"below {self.high:g}"] if self.high is not None else []
        who = "every value" if self.share == 1 else f"at least {self.share:.0%} of the values"
        return f"{who} {' and '.join(bounds)}"


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper against what was measured.

    Attributes:
        sentence: what is claimed.
        paper: the paper's number; ``direction`` where it was measured on other models and only the sign is claimed.
        quantity: what the values are.
        values: one number per seed, by group (a sparsity, say); one group may be called "".
        rule: what decides.
        note: what else a reader has to know.
        digits: decimals that are shown.
    """

    sentence: str
    paper: str
    quantity: str
    values: Mapping[str, Sequence[float]]
    rule: Rule
    note: str = ""
    digits: int = 3

    @property
    def holds(self) -> bool | None:
        """Whether the rule holds; None when nothing was measured."""
        return self.rule.holds(self.values)

    @property
    def here(self) -> str:
        """The values: mean, least and greatest of every group."""
        shown = [
            f"{group}: {self._shown(values)}" if group else self._shown(values)
            for group, values in self.values.items()
            if values
        ]
        return "; ".join(shown) or "not measured"

    def _shown(self, values: Sequence[float]) -> str:
        undefined = sum(map(math.isnan, values))
        rest = f", undefined in {undefined} of {len(values)}" if undefined else ""
        return spread(spread_of(values), self.digits) + rest

    def row(self) -> dict[str, str]:
        """The claim as a row of the table that is printed."""
        return {
            "claim": self.sentence,
            "paper": self.paper,
            "here": f"{self.quantity}: {self.here}",
            "holds": VERDICTS[self.holds],
        }

    def as_json(self) -> dict[str, Any]:
        """Everything, with the verdict."""
        return {
            "claim": self.sentence,
            "paper": self.paper,
            "quantity": self.quantity,
            "values": {group: list(values) for group, values in self.values.items()},
            "here": self.here,
            "rule": str(self.rule),
            "holds": self.holds,
            "note": self.note,
        }


@dataclass(frozen=True)
class Table:
    """A table of measured values: rows of equal length, the first cells of which say what was measured."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Title and table."""
        return f"### {self.title}\n\n{markdown(self.head, self.rows)}"


@dataclass(frozen=True)
class Reproduction:
    """What running one paper gave.

    Attributes:
        name: of the module; title: of the paper; source: where it is found.
        claims: in the order of the paper. tables: the measurements behind them.
        settings: all that decides the numbers. seconds: by part of the work, of this call alone: what an earlier call
            left behind is read, not computed again.
        quick: whether shorter runs than the default gave these numbers.
        hashes: of the language model and the texts.
    """

    name: str
    title: str
    source: str
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]
    settings: Mapping[str, Any]
    seconds: Mapping[str, float]
    quick: bool = False
    hashes: Mapping[str, str] = field(default_factory=dict[str, str])

    def rows(self) -> list[dict[str, str]]:
        """One row per claim: claim, paper, here, holds."""
        return [claim.row() for claim in self.claims]

    def summary(self) -> str:
        """How many claims hold."""
        held = sum(claim.holds is True for claim in self.claims)
        open_ones = sum(claim.holds is None for claim in self.claims)
        undecided = f", {open_ones} not decided" if open_ones else ""
        return f"{held} of {len(self.claims)} claims hold{undecided}"

    def as_json(self) -> dict[str, Any]:
        """One JSON object; what is not finite becomes null."""
        value = {
            "paper": self.name,
            "title": self.title,
            "source": self.source,
            "quick": self.quick,
            "summary": self.summary(),
            "claims": [claim.as_json() for claim in self.claims],
            "tables": [{"title": t.title, "head": t.head, "rows": t.rows} for t in self.tables],
            "settings": dict(self.settings),
            "seconds": dict(self.seconds),
            "provenance": provenance(**self.hashes),
        }
        return without_nan(value)

    def markdown(self) -> str:
        """Claims, rules and notes, then the tables."""
        rows = [[c.sentence, c.paper, f"{c.quantity}: {c.here}", VERDICTS[c.holds]] for c in self.claims]
        rules = [f"{i}. {_rule_line(claim)}" for i, claim in enumerate(self.claims, 1)]
        parts = [
            f"## {self.title}",
            f"{self.source}. {self.summary()}{', in a quick run' if self.quick else ''}.",
            markdown(["claim", "paper", "here", "holds"], rows),
            "A claim holds when the values per seed obey its rule:\n\n" + "\n".join(rules),
            *(table.markdown() for table in self.tables),
        ]
        return "\n\n".join(parts) + "\n"

    def write(self, directory: Path) -> None:
        """Write ``claims.json`` and ``claims.md``."""
        write_json(directory / "claims.json", self.as_json())
        atomic_write_text(directory / "claims.md", self.markdown())


def _rule_line(claim: Claim) -> str:
    return f"{claim.rule}." + (f" {claim.note}" if claim.note else "")
