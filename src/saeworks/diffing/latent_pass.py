"""One pass of a dictionary over paired activations that fills in all that can be summed of its latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from saeworks.activations.streams import Stream
from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing.latent_stats import LatentStatistics
from saeworks.diffing.paired_batches import cut, of_tensors
from saeworks.diffing.pairs import PairedBatch, PairedSource
from saeworks.diffing.reading import Reads, encoded, how_it_reads
from saeworks.diffing.scaling import LatentScaling
from saeworks.errors import InputError
from saeworks.progress import progress

Activations = PairedSource | Iterable[PairedBatch] | Stream | Sequence[Tensor] | Tensor
# Rows taken from a stream at a time.
STREAM_ROWS = 1024


@dataclass(frozen=True, slots=True)
class LatentPass:
    """What a pass gave."""

    scaling: LatentScaling
    statistics: LatentStatistics


@torch.no_grad()
def measure_latents(
    dictionary: Dictionary,
    source: PairedSource,
    tokens: int | None = None,
    reads: Reads | None = None,
    also: Callable[[PairedBatch, Codes], None] | None = None,
    **options: Any,
) -> LatentPass:
    """Latent Scaling and statistics of a dictionary in a single pass, encoding every token once.

    Args:
        source, tokens: what to read, and how much of it. reads: see ``saeworks.diffing.latent_scaling``.
        also: is given every batch with its codes, for whatever else is to be counted.
        options: of ``LatentScaling``.
    """
    whole = how_it_reads(dictionary, reads) == "sources"
    scaling = LatentScaling.of(dictionary, reads, len(source.widths), **options)
    statistics = LatentStatistics(dictionary.decoder_norms(), dictionary.cfg.widths if whole else ())
    with progress(tokens, "latents", unit="tok") as bar:
        for batch in source.batches(tokens):
            batch = batch.to(dictionary.device)
            found = encoded(dictionary, batch, reads)
            scaling.add_encoded(batch, found)
            statistics.add(batch, found.codes, found.errors)
            if also is not None:
                also(batch, found.codes)
            bar.update(len(batch))
    if not statistics.data_sets:
        raise InputError("There were no paired activations to measure; give at least one batch.")
    return LatentPass(scaling, statistics)


@torch.no_grad()
def latent_scaling(
    dictionary: Dictionary,
    activations: Activations,
    reads: Reads | None = None,
    tokens: int | None = None,
    **options: Any,
) -> LatentScaling:
    """Latent Scaling of a dictionary over paired activations, in one pass.

    Args:
        dictionary: a crosscoder, or an autoencoder of one source or of the difference of two.
        activations: a source of paired activations such as a ``ModelPair``; its batches, tokens in order; a stream such
            as ``PairedStream``, of which ``tokens`` are read; or the activations themselves, one ``[token, d_m]`` per
            model, the base first, or ``[token, model, d]``.
        reads: what the dictionary reads: ``"sources"`` side by side (a crosscoder; the default for one), the number of
            one source, or the ``"difference"`` of the last and the first.
        tokens: how many tokens to read; None for all.
        options: of :class:`LatentScaling`.

    Raises:
        InputError: an autoencoder without ``reads``, or activations that do not fit.
    """
    scaling: LatentScaling | None = None
    for batch in _batches(activations, tokens, dictionary):
        batch = batch.to(dictionary.device)
        if scaling is None:
            scaling = LatentScaling.of(dictionary, reads, len(batch.x), **options)
        scaling.add_encoded(batch, encoded(dictionary, batch, reads))
    if scaling is None:
        raise InputError("There were no paired activations to measure; give at least one batch.")
    return scaling


def _batches(activations: Activations, tokens: int | None, dictionary: Dictionary) -> Iterator[PairedBatch]:
    """Batches, whichever way the activations came."""
    if isinstance(activations, PairedSource):
        return activations.batches(tokens)
    if isinstance(activations, Stream):
        if tokens is None:
            raise InputError("A stream of activations never ends; say how many tokens are to be measured.")
        return cut(_of_stream(activations, dictionary), tokens)
    if isinstance(activations, Tensor):
        return cut(of_tensors(activations.unbind(1) if activations.dim() == 3 else [activations]), tokens)
    if isinstance(activations, (list, tuple)):
        items = cast("Sequence[object]", activations)
        if any(isinstance(item, Tensor) for item in items):
            return cut(of_tensors([item for item in items if isinstance(item, Tensor)]), tokens)
    return cut(cast("Iterator[PairedBatch]", iter(activations)), tokens)


def _of_stream(stream: Stream, dictionary: Dictionary) -> Iterator[PairedBatch]:
    """Batches of a stream whose rows hold both models."""
    while True:
        rows = stream.next_batch(STREAM_ROWS).activations.flatten(1)
        widths = list(dictionary.cfg.widths) if dictionary.cfg.sources is not None else [rows.shape[1] // 2] * 2
        if sum(widths) != rows.shape[1]:
            raise InputError(
                f"Rows of {rows.shape[1]} numbers came from the stream, for sources of the widths {widths}."
            )

        yield from of_tensors(rows.split(widths, dim=1))
