"""Paired activations, in one place: what a batch is, and where batches come from."""

from saeworks.diffing.model_pair import ModelPair, PairedContext
from saeworks.diffing.paired_batches import SOURCES, PairedBatch, PairedSource, check_alignment
from saeworks.diffing.synthetic_pairs import SyntheticPairs, synthetic_source

__all__ = [
    "SOURCES",
    "ModelPair",
    "PairedBatch",
    "PairedContext",
    "PairedSource",
    "SyntheticPairs",
    "check_alignment",
    "synthetic_source",
]
