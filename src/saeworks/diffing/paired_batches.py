"""Paired activations: the same tokens seen by a base model (source 0) and a fine-tuned chat model (source 1).

Whoever measures a pair reads a :class:`PairedSource`: finite, in a fixed order, the same at every pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from saeworks.errors import InputError

SOURCES = ("base", "chat")
#: Data sets of a pair of language models: plain texts, and transcripts in the chat model's template.
TEXTS, CHAT = "texts", "chat"


@dataclass(frozen=True, slots=True)
class PairedBatch:
    """Activations of several models at the same tokens.

    Attributes:
        x: one ``[token, d_m]`` float32 per source in the raw units of the model; 0 is the base, 1 the chat model. Row i
            is the same token in all of them.
        token_ids: ``[token]`` int64; −1 where there is no token (synthetic activations).
        sequence_ids: ``[token]`` int64, the text or transcript, unique over all data sets of a source.
        positions: ``[token]`` int64, index in the row that the models read.
        is_template: ``[token]`` bool, tokens of the chat template.
        answer_index: ``[token]`` int64: k at the token that predicts the k-th token of an assistant's turn, from 0;
            −1 elsewhere.
        data_set: which data set of the mix.
    """

    x: tuple[Tensor, ...]
    token_ids: Tensor
    sequence_ids: Tensor
    positions: Tensor
    is_template: Tensor
    answer_index: Tensor
    data_set: str

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> PairedBatch:
        """The chosen rows of everything."""
        return PairedBatch(
            tuple(part[rows] for part in self.x),
            self.token_ids[rows],
            self.sequence_ids[rows],
            self.positions[rows],
            self.is_template[rows],
            self.answer_index[rows],
            self.data_set,
        )

    def flat(self) -> Tensor:
        """``[token, Σ d_m]``: the sources side by side, as a crosscoder reads them."""
        return torch.cat(self.x, dim=1)

    def to(self, device: torch.device | str) -> PairedBatch:
        """The same batch with its activations on another device; what tells of the tokens stays where it is."""
        return PairedBatch(
            tuple(part.to(device) for part in self.x),
            self.token_ids,
            self.sequence_ids,
            self.positions,
            self.is_template,
            self.answer_index,
            self.data_set,
        )


@runtime_checkable
class PairedSource(Protocol):
    """A finite sequence of paired batches.

    Attributes:
        widths: width of every source.
    """

    widths: tuple[int, ...]

    def batches(self, tokens: int | None = None) -> Iterator[PairedBatch]:
        """One pass in a fixed order, the same every time, cut to ``tokens`` rows; None for all."""
        ...


def cut(batches: Iterator[PairedBatch], tokens: int | None) -> Iterator[PairedBatch]:
    """The first ``tokens`` rows of some batches; all of them for None."""
    if tokens is not None and tokens < 1:
        raise InputError(f"{tokens} tokens of paired activations were asked for; give at least 1.")
    left = tokens
    for batch in batches:
        if left is not None and len(batch) >= left:
            yield batch[:left]
            return
        yield batch
        left = None if left is None else left - len(batch)


def of_tensors(x: Sequence[Tensor], size: int = 4096) -> Iterator[PairedBatch]:
    """Activations that are at hand, ``[token, d_m]`` per source, in batches; nothing is known of their tokens."""
    if len(x) < 2 or any(part.dim() != 2 or len(part) != len(x[0]) for part in x):
        shapes = ", ".join(str(tuple(part.shape)) for part in x)
        raise InputError(f"One [token, width] tensor per model over the same tokens is expected, but {shapes} came.")
    for start in range(0, len(x[0]), size):
        part = tuple(rows[start : start + size].float() for rows in x)
        numbers = torch.arange(start, start + len(part[0]))
        unknown = torch.full_like(numbers, -1)
        yield PairedBatch(part, unknown, numbers, numbers, torch.zeros_like(numbers).bool(), unknown, "tensors")


def check_alignment(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str = "the chat model") -> None:
    """Refuse rows of two sources that are not of the same tokens.

    Args:
        expected, found: what tells of the rows of either source by name, such as ``token_ids [token]``.
        where: the second source, for the message.

    Raises:
        InputError: another number of rows, or the first row at which they differ.
    """
    for name, tensor in expected.items():
        other = found[name]
        if tensor.shape != other.shape:
            raise InputError(
                f"The sources do not hold the same tokens: {len(tensor)} rows came from the base and {len(other)} from "
                f"{where}; harvest both over the same text with the same settings."
            )
        differ = (tensor != other.to(tensor.device)).nonzero()
        if len(differ):
            row = int(differ[0, 0])
            raise InputError(
                f"The sources part at row {row}: {name} is {tensor[row].tolist()} in the base and "
                f"{other[row].tolist()} in {where}; harvest both over the same text with the same settings."
            )
