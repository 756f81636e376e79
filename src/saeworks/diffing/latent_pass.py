"""One pass of a dictionary over paired activations that fills in all that can be summed of its latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing.latent_scaling import LatentScaling
from saeworks.diffing.latent_stats import LatentStatistics
from saeworks.diffing.pairs import PairedBatch, PairedSource
from saeworks.diffing.reading import Reads, encoded, how_it_reads
from saeworks.errors import InputError
from saeworks.progress import progress


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
        source, tokens: what to read, and how much of it. reads: see ``saeworks.diffing.latent_scaling.latent_scaling``.
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
