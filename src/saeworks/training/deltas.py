"""The loss of a set of latents that explains how two sources differ (Delta-Crosscoder, arXiv 2603.04426)."""

from __future__ import annotations

from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.kernels.sparse import decode_codes
from saeworks.training.moment import Moment
from saeworks.training.recipes import Recipe

Terms = dict[str, tuple[float, Tensor]]


def delta_terms(recipe: Recipe, decoder: Tensor, y: Tensor, f: Tensor | Codes, moment: Moment) -> Terms:
    """The term ``delta`` with its weight: mean over tokens of ``|f_Δ (W_1 − W_0) − (y_1 − y_0)|²``; empty without one.

    Args:
        decoder: ``[width, 2 d]``; y: ``[token, 2 d]``, both sources side by side.
        f: latents ``[token, width]``, or those that are active.
    """
    if recipe.across is None or recipe.across.delta is None:
        return {}
    first, d = moment.sets[-1][0].start, y.shape[1] // 2
    changes = decoder[first:, d:] - decoder[first:, :d]
    written = decode_codes(_from(f, first), changes) if isinstance(f, Codes) else f[:, first:] @ changes
    missing = written - (y[:, d:] - y[:, :d])
    return {"delta": (recipe.across.delta.weight, moment.division.mean(missing.square().sum(dim=1)))}


def _from(codes: Codes, first: int) -> Codes:
    """The codes of the latents from ``first`` on, counted from there; with gradient."""
    part = codes.subset(codes.indices >= first, codes.values)
    return Codes(part.values, part.indices - first, part.offsets, codes.width - first)
