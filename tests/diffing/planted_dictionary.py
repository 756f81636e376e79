"""A crosscoder that knows the features of a synthetic pair, without training."""

from __future__ import annotations

import torch

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.world.synthetic.paired import PairedFeatures


def planted(features: PairedFeatures) -> Dictionary:
    """The dictionary of a pair's features, one latent each, with both models' decoders and a weak threshold."""
    n, d = features.n_features, features.d
    base, chat = (features.scales[m][:, None] * features.directions[m] for m in range(2))
    decoder = torch.cat([base, chat], dim=1)
    # Least squares reads the coefficients off almost exactly where the features are few and nearly orthogonal.
    encoder = torch.linalg.pinv(decoder)
    bias = features.means.flatten()
    cfg = DictionaryConfig(architecture="jumprelu", d_in=2 * d, d_sae=n, sources=("base", "chat"))
    return Dictionary(cfg, encoder, decoder, torch.zeros(n), bias, threshold=torch.full((n,), 0.5))
