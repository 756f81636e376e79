"""Is this dictionary what its file claims? Loading is proved, not assumed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.errors import InputError

# Realised L0 and explained variance move with the text; beyond these the site, the scale or the loading is wrong.
L0_FACTOR = 1.5
EXPLAINED_VARIANCE_DROP = 0.15
# A scale was lost when another one would explain so much more of the variance. Penalties shrink reconstructions, too:
# where they leave under 4 latents active, that was seen to cost 0.05.
SCALE_GAIN = 0.1


@torch.no_grad()
def measure(
    dictionary: Dictionary, activations: Tensor, targets: Tensor | None = None, batch: int = 4096
) -> dict[str, float]:
    """L0 and explained variance (``1 - sum |y - y_hat|^2 / sum |y - mean|^2``) on ``activations [token, d_in]``.

    ``y`` are the ``targets [token, d_out]`` of a transcoder, and otherwise the activations themselves. Sums run in
    float64 on the CPU, because Apple GPUs have none. The explained variance of activations that are all
    the same is NaN. A crosscoder also has ``explained_variance/SOURCE`` for each of its sources.
    """
    tokens = activations.shape[0]
    if tokens == 0:
        raise InputError("A dictionary was to be measured on no activations; give at least one row.")
    if (targets is None) != (dictionary.cfg.d_out is None):
        raise InputError(
            "A transcoder is measured on activations and targets; give both."
            if targets is None
            else "Targets were given for a dictionary that reconstructs its own input; leave them out."
        )
    activations = dictionary.flat(activations)
    wanted = activations if targets is None else targets
    y_sum, squares, residuals = (torch.zeros(wanted.shape[1], dtype=torch.float64) for _ in range(3))
    active = 0.0
    for start in range(0, tokens, batch):
        x = activations[start : start + batch].to(dictionary.device)
        codes = dictionary.encode_sparse(x)
        y = wanted[start : start + batch]
        residuals += (y.to(x) - dictionary.decode(codes, x)).to("cpu", torch.float64).square().sum(0)
        active += float(codes.counts().sum())
        exact = y.to("cpu", torch.float64)
        y_sum += exact.sum(0)
        squares += exact.square().sum(0)
    variances = squares - y_sum.square() / tokens
    found = {"l0": active / tokens, "explained_variance": _explained(residuals, variances), "tokens": float(tokens)}
    if dictionary.cfg.sources is not None:
        widths = list(dictionary.cfg.widths)
        for name, *parts in zip(dictionary.cfg.sources, residuals.split(widths), variances.split(widths), strict=True):
            found[f"explained_variance/{name}"] = _explained(*parts)
    return found


@torch.no_grad()
def better_scale(
    dictionary: Dictionary, activations: Tensor, targets: Tensor | None = None, batch: int = 4096
) -> tuple[float, float]:
    """The factor on what the latents write that explains most, and how much more of the variance that would be.

    By least squares: with the error ``e`` and ``r`` what the latents write, the factor is ``1 + <e, r> / |r|^2`` and
    the squared error falls by ``<e, r>^2 / |r|^2``. Without any active latent, ``(1, 0)``.
    """
    activations = dictionary.flat(activations)
    wanted = activations if targets is None else targets
    along = squares = 0.0
    for x, y in zip(activations.split(batch), wanted.split(batch), strict=True):
        x = x.to(dictionary.device)
        codes = dictionary.encode_sparse(x)
        found = dictionary.decode(codes, x)
        written = (found - dictionary.decode(codes.with_values(torch.zeros_like(codes.values)), x)).cpu().double()
        along += float(((y.to(x) - found).cpu().double() * written).sum())
        squares += float(written.square().sum())
    exact = wanted.to("cpu", torch.float64)
    variance = float((exact - exact.mean(dim=0)).square().sum())
    if squares == 0 or variance == 0:
        return 1.0, 0.0
    return 1 + along / squares, along**2 / squares / variance


def _explained(residuals: Tensor, variances: Tensor) -> float:
    """Explained variance of some coordinates, given their sums; NaN where nothing varies."""
    variance = float(variances.sum())
    return 1.0 - float(residuals.sum()) / variance if variance > 0 else float("nan")


def verify(dictionary: Dictionary, activations: Tensor | None = None, targets: Tensor | None = None) -> dict[str, Any]:
    """Check decoder norms and, given ``activations [token, d_in]``, L0 and explained variance against the record.

    A transcoder needs ``targets [token, d_out]`` as well.

    Returns ``{"ok", "problems": [sentence], "decoder_norm": {min, mean, max}, "measured", "recorded"}``;
    ``measured`` is None without activations, ``recorded`` None when the file carries no measured values.
    """
    norms = dictionary.W_dec.norm(dim=1)
    problems: list[str] = []
    if float(norms.min()) == 0:
        problems.append(f"{int((norms == 0).sum())} decoder rows are zero: these latents can never act.")
    recorded = dictionary.cfg.metadata.get("recorded")
    measured = None if activations is None else measure(dictionary, activations, targets)
    if measured is not None:
        if measured["l0"] == 0:
            problems.append("No latent is active on these activations: the scale or the site is wrong.")
        if measured["explained_variance"] < 0:
            problems.append(
                f"The explained variance is {measured['explained_variance']:.3f}, below what the mean alone reaches: "
                "the site, the model or the scale is not the one it was trained on."
            )
        assert activations is not None
        factor, gain = better_scale(dictionary, activations, targets)
        if gain > SCALE_GAIN:
            problems.append(
                f"What its latents write would explain {gain:.3f} more of the variance if it were multiplied by "
                f"{factor:.2f}: the scale of the decoder, a bias or a threshold is wrong."
            )
        if recorded:
            problems += _against_record(measured, recorded)
    return {
        "ok": not problems,
        "problems": problems,
        "decoder_norm": {"min": float(norms.min()), "mean": float(norms.mean()), "max": float(norms.max())},
        "measured": measured,
        "recorded": recorded,
    }


def _against_record(measured: dict[str, float], recorded: dict[str, float]) -> list[str]:
    problems: list[str] = []
    l0, expected = measured["l0"], recorded.get("l0")
    if expected is not None and not expected / L0_FACTOR <= l0 <= expected * L0_FACTOR:
        problems.append(f"The L0 is {l0:.1f}, but {expected:.1f} was recorded when the dictionary was saved.")
    ev, expected = measured["explained_variance"], recorded.get("explained_variance")
    if expected is not None and 0 <= ev < expected - EXPLAINED_VARIANCE_DROP:
        problems.append(
            f"The explained variance is {ev:.3f}, but {expected:.3f} was recorded when the dictionary was saved."
        )
    return problems
