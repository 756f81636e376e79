"""Which latent of a dictionary stands for which true feature, and how many of the features were recovered."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saeworks.errors import InputError


@dataclass(frozen=True, slots=True)
class Matching:
    """Which latent stands for which feature, one to one.

    Attributes:
        latents: Matched latents ``[min(n, m)]``, int64.
        features: Their features ``[min(n, m)]``, int64, ascending.
        cosines: Cosine of each pair ``[min(n, m)]``.
        unmatched_latents, unmatched_features: What is left over, int64.
        mean_max_cosine: Mean over all features of the largest cosine with any latent, matched or not.
        mean_cosine: Mean cosine over the features under the matching; an unmatched feature counts 0.
    """

    latents: Tensor
    features: Tensor
    cosines: Tensor
    unmatched_latents: Tensor
    unmatched_features: Tensor
    mean_max_cosine: float
    mean_cosine: float

    def latent_of(self, feature: int) -> int | None:
        """The latent matched with the feature, or None."""
        at = (self.features == feature).nonzero()
        return int(self.latents[at[0, 0]]) if len(at) else None


def _assign(score: Tensor) -> tuple[Tensor, Tensor]:
    """Hungarian assignment that maximises the total score ``[latent, feature]``; features ascending."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(score.double().cpu().numpy(), maximize=True)
    latents, features = torch.as_tensor(rows), torch.as_tensor(columns)
    order = features.argsort()
    return latents[order].long(), features[order].long()


def _matching(cosine: Tensor, score: Tensor) -> Matching:
    latents, features = _assign(score)
    n, m = cosine.shape
    cosines = cosine[latents, features]
    left = torch.ones(n, dtype=torch.bool).index_fill(0, latents, False)
    missed = torch.ones(m, dtype=torch.bool).index_fill(0, features, False)
    return Matching(
        latents=latents,
        features=features,
        cosines=cosines,
        unmatched_latents=left.nonzero().flatten(),
        unmatched_features=missed.nonzero().flatten(),
        mean_max_cosine=float(cosine.max(dim=0).values.mean()),
        mean_cosine=float(cosines.sum() / m),
    )


def cosines(rows: Tensor, directions: Tensor) -> Tensor:
    """Cosine of every row ``[n, d]`` with every direction ``[m, d]``; a zero row has cosine 0."""
    if rows.shape[1] != directions.shape[1]:
        raise InputError(
            f"Decoder rows have width {rows.shape[1]}, the true directions {directions.shape[1]}; they must agree."
        )
    a = torch.nn.functional.normalize(rows.detach().cpu().double(), dim=1)
    b = torch.nn.functional.normalize(directions.detach().cpu().double(), dim=1)
    return (a @ b.T).float()


def match_features(W_dec: Tensor, directions: Tensor) -> Matching:
    """Match decoder rows ``[n, d]`` with true directions ``[m, d]`` by the Hungarian assignment on cosines."""
    cosine = cosines(W_dec, directions)
    return _matching(cosine, cosine)


def match_by_activity(latents: Tensor, codes: Tensor, W_dec: Tensor, directions: Tensor) -> Matching:
    """Match by when latents and features are active instead of where they point.

    Latents are weighted by their decoder norms and features by theirs, every column is scaled to a maximum of 1, and
    the un-centred inner product over tokens is the score that the assignment maximises.

    Args:
        latents: Latent activations ``[token, n]``.
        codes: True codes ``[token, m]`` of the same tokens.
        W_dec: Decoder rows ``[n, d]``.
        directions: True directions ``[m, d]``.
    """
    found = latents.detach().cpu().float() * W_dec.detach().cpu().norm(dim=1)
    truth = codes.cpu().float() * directions.cpu().norm(dim=1)
    found = found / found.amax(dim=0).clamp_min(1e-12)
    truth = truth / truth.amax(dim=0).clamp_min(1e-12)
    return _matching(cosines(W_dec, directions), found.T @ truth)


@dataclass(frozen=True, slots=True)
class NearestFeature:
    """The feature that each latent follows most closely, several latents to one feature if need be.

    Attributes:
        features: ``[latent]`` int64; -1 where none is close enough.
        cosines: Un-centred cosine over tokens with the closest feature ``[latent]``, whether or not it is enough.
    """

    features: Tensor
    cosines: Tensor


def nearest_feature(latents: Tensor, codes: Tensor, threshold: float = 0.5) -> NearestFeature:
    """Name for each latent the feature whose codes it resembles over tokens, by un-centred cosine.

    Args:
        latents: Latent activations ``[token, n]``.
        codes: True codes ``[token, m]``, or ``[token, model, m]`` of which the closest model counts.
        threshold: Cosine that a name takes.
    """
    found = torch.nn.functional.normalize(latents.detach().cpu().float(), dim=0)
    truth = torch.nn.functional.normalize(codes.cpu().float(), dim=0)
    truth = truth[:, None] if truth.ndim == 2 else truth
    cosine = torch.einsum("tn,tkm->nkm", found, truth).amax(dim=1)
    best, feature = cosine.max(dim=1)
    return NearestFeature(torch.where(best > threshold, feature, -1), best)


@dataclass(frozen=True, slots=True)
class Recovery:
    """How much of the truth a dictionary found, and how much of the dictionary is true.

    Attributes:
        precision: Share of the latents that stand for a feature, one to one.
        recall: Share of the features that a latent stands for, one to one.
        mean_max_cosine: Mean over features of the largest cosine with any latent.
        matching: The assignment behind it; indices count all latents.
        threshold: Cosine that a pair takes to count.
    """

    precision: float
    recall: float
    mean_max_cosine: float
    matching: Matching
    threshold: float


def recovery(W_dec: Tensor, directions: Tensor, threshold: float = 0.9, latents: Tensor | None = None) -> Recovery:
    """Precision and recall of a dictionary's directions under the Hungarian assignment on cosines.

    Args:
        W_dec: Decoder rows ``[n, d]``.
        directions: True directions ``[m, d]``.
        threshold: Cosine from which on an assigned pair counts as found.
        latents: Latent activations ``[token, n]``; with them, latents that are never above 0 are left out.

    Raises:
        InputError: No latent that is ever active, or widths that differ.
    """
    alive = torch.arange(len(W_dec))
    if latents is not None:
        alive = (latents.detach().cpu() > 0).any(dim=0).nonzero().flatten()
    if not len(alive) or not len(directions):
        raise InputError("There is no active latent or no true feature to compare; give at least one of each.")
    inside = match_features(W_dec.detach().cpu()[alive], directions)
    matching = replace(inside, latents=alive[inside.latents], unmatched_latents=alive[inside.unmatched_latents])
    hits = int((inside.cosines >= threshold).sum())
    return Recovery(hits / len(alive), hits / len(directions), inside.mean_max_cosine, matching, threshold)
