"""Synthetic activations with known features: no language model, the truth is in the generator.

Every generator is a frozen value with the true ``directions`` and ``sample(count, generator)``, which returns the
activations together with the true codes; ``activations = codes @ directions + bias + noise`` holds exactly.
"""

from saeworks.world.synthetic.absorption import Absorption, measure_absorption
from saeworks.world.synthetic.amplitudes import AmplitudeLaw, ClippedNormal, Exponential, Uniform
from saeworks.world.synthetic.compositional import CompositionalFeatures
from saeworks.world.synthetic.directions import near_orthogonal_rows, orthonormal_rows, rows_at_cosine, unit_rows
from saeworks.world.synthetic.features import IndependentFeatures, SyntheticBatch, SyntheticFeatures
from saeworks.world.synthetic.matching import (
    Matching,
    NearestFeature,
    Recovery,
    cosines,
    match_by_activity,
    match_features,
    nearest_feature,
    recovery,
)
from saeworks.world.synthetic.multiscale import MultiScaleFeatures, Scale
from saeworks.world.synthetic.paired import ConcatenatedPair, PairedBatch, PairedFeatures
from saeworks.world.synthetic.shrinkage import (
    error_ratio,
    norm_difference,
    reconstruction_ratio,
    shrinkage_threshold,
    shrunk_norms,
)
from saeworks.world.synthetic.tree import TreeFeatures

__all__ = [
    "Absorption",
    "AmplitudeLaw",
    "ClippedNormal",
    "CompositionalFeatures",
    "ConcatenatedPair",
    "Exponential",
    "IndependentFeatures",
    "Matching",
    "MultiScaleFeatures",
    "NearestFeature",
    "PairedBatch",
    "PairedFeatures",
    "Recovery",
    "Scale",
    "SyntheticBatch",
    "SyntheticFeatures",
    "TreeFeatures",
    "Uniform",
    "cosines",
    "error_ratio",
    "match_by_activity",
    "match_features",
    "measure_absorption",
    "near_orthogonal_rows",
    "nearest_feature",
    "norm_difference",
    "orthonormal_rows",
    "reconstruction_ratio",
    "recovery",
    "rows_at_cosine",
    "shrinkage_threshold",
    "shrunk_norms",
    "unit_rows",
]
