"""The board of a bench: every eval of every dictionary is a cell; what became of each, and how long the rest takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from saeworks.jobs.plan import duration

if TYPE_CHECKING:
    from saeworks.results.envelope import Result

State = Literal["waiting", "measured", "kept", "skipped", "failed"]


@dataclass
class Cell:
    """One eval of one dictionary of ``width`` latents.

    ``kept`` was measured by an earlier call, ``skipped`` cannot be measured, ``failed`` broke; ``sentence`` says why.
    ``seconds`` is its share of the time of those that were measured together, by this call or an earlier one.
    ``control`` is the kind of a control.
    """

    eval: str
    dictionary: str
    width: int
    state: State = "waiting"
    seconds: float | None = None
    sentence: str | None = None
    result: Result | None = None
    control: str | None = None

    def plain(self) -> dict[str, Any]:
        """The cell as JSON values."""
        path = self.result.path if self.result else None
        return {
            "eval": self.eval,
            "dictionary": self.dictionary,
            "control": self.control,
            "state": self.state,
            "seconds": self.seconds,
            "sentence": self.sentence,
            "file": None if path is None else str(path),
        }


class Board:
    """All cells, in the order of dictionaries and evals; a line on standard error for each that is done."""

    def __init__(
        self,
        widths: Mapping[str, int],
        evals: Sequence[str],
        say: Callable[[str], None] | None = None,
        controls: Mapping[str, str] | None = None,
    ) -> None:
        kinds = controls or {}
        self.cells = {(e, d): Cell(e, d, width, control=kinds.get(d)) for d, width in widths.items() for e in evals}
        self._say = say or _to_stderr

    def waiting(self, dictionaries: Iterable[str] | None = None, eval_name: str | None = None) -> list[Cell]:
        """The cells that are still to be measured, of these dictionaries and this eval where they are named."""
        chosen = None if dictionaries is None else set(dictionaries)
        return [
            cell
            for cell in self.cells.values()
            if cell.state == "waiting"
            and (chosen is None or cell.dictionary in chosen)
            and (eval_name is None or cell.eval == eval_name)
        ]

    def of(self, dictionary: str) -> list[Cell]:
        """The cells of one dictionary."""
        return [cell for cell in self.cells.values() if cell.dictionary == dictionary]

    def recall(self, cells: Iterable[Mapping[str, Any]]) -> None:
        """Take over how long an earlier call took for its cells, given as :meth:`Cell.plain` makes them."""
        for earlier in cells:
            cell = self.cells.get((str(earlier.get("eval")), str(earlier.get("dictionary"))))
            seconds = earlier.get("seconds")
            if cell and isinstance(seconds, (int, float)):
                cell.seconds = float(seconds)

    def keep(self, eval_name: str, results: Mapping[str, Result]) -> None:
        """Results of an earlier call stand; nothing is said of each."""
        for name, result in results.items():
            cell = self.cells[eval_name, name]
            cell.state, cell.result = "kept", _light(result)

    def measured(self, eval_name: str, results: Mapping[str, Result], seconds: float) -> None:
        """``results`` were measured together in ``seconds``."""
        share = seconds / max(len(results), 1)
        for name, result in results.items():
            cell = self.cells[eval_name, name]
            cell.state, cell.result, cell.seconds = "measured", _light(result), round(share, 3)
            self._done(cell, duration(share))

    def fell(self, state: Literal["skipped", "failed"], cells: Iterable[Cell], sentence: str) -> None:
        """These cells get no result, for this reason."""
        for cell in cells:
            cell.state, cell.sentence, cell.seconds = state, sentence, None
            self._done(cell, f"{state}: {sentence}")

    def start(self) -> None:
        """Say how much there is to do."""
        kept = sum(cell.state == "kept" for cell in self.cells.values())
        before = f", {kept} of them measured before" if kept else ""
        self._say(f"{len(self.cells)} cells (eval × dictionary){before}.")

    def remaining(self, eval_name: str | None = None) -> tuple[float | None, list[str]]:
        """Seconds that the waiting cells (of one eval) will take, and the evals among them that nothing is known of.

        A cell is taken to last as long as it did in an earlier call, else as the measured ones of its eval on
        dictionaries of its width do on average, else on those of any width. None when nothing is known of any.
        """
        known: dict[tuple[str, int | None], list[float]] = {}
        for cell in self.cells.values():
            if cell.seconds is not None:
                known.setdefault((cell.eval, cell.width), []).append(cell.seconds)
                known.setdefault((cell.eval, None), []).append(cell.seconds)
        total, unknown = None, list[str]()
        for cell in self.waiting(eval_name=eval_name):
            own = None if cell.seconds is None else [cell.seconds]
            seconds = own or known.get((cell.eval, cell.width)) or known.get((cell.eval, None))
            if seconds is None:
                unknown.append(cell.eval)
            else:
                total = (total or 0.0) + sum(seconds) / len(seconds)
        return total, list(dict.fromkeys(unknown))

    def _done(self, cell: Cell, what: str) -> None:
        done = sum(cell.state != "waiting" for cell in self.cells.values())
        line = f"[{done}/{len(self.cells)}] {cell.eval} · {cell.dictionary}: {what}"
        left, unknown = self.remaining()
        if left is not None:
            line += f"; about {duration(left)} left"
            line += f", not counting {', '.join(unknown)} (not timed yet)" if unknown else ""
        self._say(line)


def _light(result: Result) -> Result:
    """The result without what grows with the number of latents: a board holds hundreds."""
    return result.model_copy(update={"eval_result_details": [], "eval_result_unstructured": None}).attach({})


def _to_stderr(line: str) -> None:
    if os.environ.get("SAEWORKS_NO_PROGRESS") != "1":
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
