"""What a dictionary reads of a paired batch: both models side by side, one of them, or their difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing.pairs import PairedBatch
from saeworks.errors import InputError

Reads = Literal["sources", "difference"] | int


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a dictionary makes of a batch.

    Attributes:
        codes: of the tokens.
        errors, reconstructions: ``h − x̂`` and ``x̂`` of every source, ``[token, d_m]``; empty unless it is a crosscoder.
    """

    codes: Codes
    errors: tuple[Tensor, ...] = ()
    reconstructions: tuple[Tensor, ...] = ()


def encoded(dictionary: Dictionary, batch: PairedBatch, reads: Reads | None = None) -> Encoded:
    """Codes of a batch on the dictionary's device, and what a crosscoder makes of every source."""
    codes = dictionary.encode_sparse(read_by(dictionary, batch, reads))
    if how_it_reads(dictionary, reads) != "sources":
        return Encoded(codes)
    parts = dictionary.decode(codes).split(list(dictionary.cfg.widths), dim=1)
    return Encoded(codes, tuple(h - part for h, part in zip(batch.x, parts, strict=True)), parts)


def read_by(dictionary: Dictionary, batch: PairedBatch, reads: Reads | None = None) -> Tensor:
    """``[token, d_in]``: the part of a paired batch that a dictionary reads (see ``latent_scaling``)."""
    how = how_it_reads(dictionary, reads)
    if how == "sources":
        return batch.flat()
    return batch.x[-1] - batch.x[0] if how == "difference" else batch.x[how]


def how_it_reads(dictionary: Dictionary, reads: Reads | None) -> Reads:
    if reads is not None and (reads == "sources") != (dictionary.cfg.sources is not None):
        what = "a crosscoder" if dictionary.cfg.sources is not None else "no crosscoder"
        raise InputError(f"The dictionary is {what}, so it cannot read {reads!r}; leave 'reads' out or change it.")
    if reads is None and dictionary.cfg.sources is None:
        raise InputError(
            "A dictionary of one source can read either model or their difference; say which with reads=0, reads=1 or "
            'reads="difference".'
        )
    return "sources" if reads is None else reads
