"""Tables of latents that were published beside crosscoders, brought to the orientation used here.

Their column ``dec_norm_diff`` is 0 for a latent of the fine-tuned model alone and 1 for one of the base alone, the
reverse of the paper that they belong to (arXiv 2504.02922). Here ``delta_norm`` is 1 for a latent of the chat model
alone, as in the paper.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from saeworks.errors import InputError, did_you_mean

REVERSED = "dec_norm_diff"


def read_latent_table(path: str | Path) -> dict[str, Tensor]:
    """The columns of numbers of a published CSV, one row per latent.

    Args:
        path: of the file. Its first column may be an index without a name; it is then called ``latent``.

    Returns:
        Columns by name, ``[latent]`` float64; empty cells are NaN, true and false 1 and 0, columns of text are left
        out. ``delta_norm`` takes the place of ``dec_norm_diff``.

    Raises:
        InputError: no such file, no rows, rows of another length, no column of norm differences, or norm differences
            outside [0, 1].
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"There is no table of latents '{path}'; give a CSV file.")
    with open(file, encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.reader(stream))
    if len(rows) < 2:
        raise InputError(f"'{path}' holds no row of a latent; give the CSV that was published with a crosscoder.")
    head = [name or "latent" for name in rows[0]]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(head):
            raise InputError(f"Row {number} of '{path}' has {len(row)} cells, but the head has {len(head)}.")
    if REVERSED not in head:
        raise InputError(f"'{path}' has no column '{REVERSED}'.{did_you_mean(REVERSED, head)}")
    found: dict[str, Tensor] = {}
    for name, cells in zip(head, zip(*rows[1:], strict=True), strict=True):
        numbers = [_number(cell) for cell in cells]
        values = [number for number in numbers if number is not None]
        if len(values) == len(numbers):
            found[name] = torch.tensor(values, dtype=torch.float64)
    if REVERSED not in found:
        raise InputError(f"The column '{REVERSED}' of '{path}' holds text; norm differences are numbers.")
    reverse = found.pop(REVERSED)
    if bool(((reverse < 0) | (reverse > 1)).any()):
        raise InputError(f"The column '{REVERSED}' of '{path}' has values outside [0, 1], so it is something else.")
    return {"delta_norm": 1 - reverse, **found}


def _number(cell: str) -> float | None:
    """The number in a cell; NaN where it is empty, None where it is text."""
    text = cell.strip().lower()
    if text in ("", "nan", "none", "null"):
        return float("nan")
    if text in ("true", "false"):
        return float(text == "true")
    try:
        return float(text)
    except ValueError:
        return None
