"""From sums to the numbers of Latent Scaling: betas, their ratios nu, standard errors and what may not be trusted.

For a latent with code f and a probe direction u, the beta of a target Y is the coefficient of a least-squares line,
``argmin_β Σ_i ‖Y_i − β f_i u‖²`` (arXiv 2504.02922, section on Latent Scaling). Three targets of a source m:

- ``error``: ``h^m − (x̂^m − f_j d_j^m)``, what m still needs once the latent's own part is taken out of its
  reconstruction; its own part goes back in along the source's own decoder ``d_j^m``, whatever the probe.
- ``reconstruction``: ``x̂^m``.
- ``activation``: ``h^m``, for any dictionary.

Three estimators:

- ``centered``: with a free intercept vector, that is, covariances in place of sums. Codes are never negative, so
  without it a mean of the activations enters every beta and pushes nu towards 1.
- ``no_bias``: sums, after the decoder's bias is taken out of reconstruction and activation.
- ``paper``: plain sums, as in published numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saeworks.diffing.block_sums import Sums

Target = Literal["error", "reconstruction", "activation"]
Estimator = Literal["centered", "no_bias", "paper"]
TARGETS: tuple[Target, ...] = ("error", "reconstruction", "activation")
ESTIMATORS: tuple[Estimator, ...] = ("centered", "no_bias", "paper")
# A latent seen on fewer tokens than this has no nu that counts.
LEAST_TOKENS = 100
# A denominator that is not this many standard errors from 0 makes no ratio.
CERTAIN = 3.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Values with their jackknife standard errors, both float64; not a number where there is no value."""

    value: Tensor
    standard_error: Tensor

    def __getitem__(self, index: int | tuple[int, ...]) -> Estimate:
        """The part of both at an index."""
        return Estimate(self.value[index], self.standard_error[index])


@dataclass(frozen=True, slots=True)
class Ratio:
    """A nu per latent.

    Attributes:
        value: ``[latent]`` float64; not a number where the latent is silent or the denominator is no good.
        standard_error: ``[latent]``, jackknife over blocks of tokens.
        silent: ``[latent]`` bool: no token activates the latent, or the probe has no length.
        rare: fewer than :data:`LEAST_TOKENS` tokens do; the value is there and should not be used.
        denominator: the beta below the line is not positive, or less than :data:`CERTAIN` standard errors from 0.
    """

    value: Tensor
    standard_error: Tensor
    silent: Tensor
    rare: Tensor
    denominator: Tensor

    @property
    def defined(self) -> Tensor:
        """``[latent]`` bool: whether the value may be used."""
        return ~(self.silent | self.rare | self.denominator)

    def cpu(self) -> Ratio:
        """The same on the CPU."""
        parts = (self.value, self.standard_error, self.silent, self.rare, self.denominator)
        value, error, silent, rare, denominator = (part.cpu() for part in parts)
        return Ratio(value, error, silent, rare, denominator)


@dataclass(frozen=True, slots=True)
class Fixed:
    """What the formulas need beside sums, all float64.

    Attributes:
        squares: ``[probe, source, latent]`` squared norms of the probe as it stands in each source.
        own: ``[probe, source, latent]`` products of the source's own decoder with the probe; None without decoders.
        bias: ``[probe, source, latent]`` products of the source's decoder bias with the probe; None without biases.
    """

    squares: Tensor
    own: Tensor | None
    bias: Tensor | None

    def latents(self, part: slice) -> Fixed:
        """The same for some of the latents."""
        own = None if self.own is None else self.own[..., part]
        return Fixed(self.squares[..., part], own, None if self.bias is None else self.bias[..., part])

    def of(self, probe: int, sources: Sequence[int]) -> Fixed:
        """The same for one probe and some of the sources, in the order given."""
        parts = (None if one is None else one[[probe]][:, sources] for one in (self.squares, self.own, self.bias))
        squares, own, bias = parts
        assert squares is not None
        return Fixed(squares, own, bias)


def betas(sums: Sums, parts: tuple[Target, ...], fixed: Fixed, target: Target, estimator: Estimator) -> Tensor:
    """``[many, probe, source, latent]`` betas of sums ``[many, ...]``.

    Args:
        sums: ``tokens [many]``, ``f``, ``ff`` and ``count [many, latent]``, ``dots`` and ``means [many, part, probe,
            source, latent]``: the sums of ``f ⟨Y, u⟩`` and of ``⟨Y, u⟩``.
        parts: what the parts are: ``("error", "reconstruction")``, where error is ``h − x̂``, or ``("activation",)``.
        fixed: see :class:`Fixed`.
    """
    f, ff = sums["f"][:, None, None], sums["ff"][:, None, None]
    wanted = parts if target == "activation" else (target,)
    chosen = [parts.index(part) for part in wanted]
    numerator = sums["dots"][:, chosen].sum(dim=1)
    if estimator == "centered":
        tokens = sums["tokens"].reshape(-1, 1, 1, 1)
        numerator = numerator - f * sums["means"][:, chosen].sum(dim=1) / tokens
        ff = ff - f.square() / tokens
    elif estimator == "no_bias" and target != "error":
        assert fixed.bias is not None
        numerator = numerator - f * fixed.bias
    if target == "error":
        assert fixed.own is not None
        numerator = numerator + fixed.own * ff
    known = (ff > 0) & (fixed.squares > 0) & (sums["count"][:, None, None] > 0)
    return torch.where(known, numerator / (fixed.squares * ff), torch.nan)


def ratio(numerator: Estimate, denominator: Estimate, both: Estimate, count: Tensor) -> Ratio:
    """The flags of a ratio of two betas.

    Args:
        numerator, denominator: the betas ``[latent]``. both: their ratio with the error of the ratio.
        count: ``[latent]`` tokens on which the latent is active.
    """
    below = denominator.value
    silent = (count == 0) | below.isnan() | numerator.value.isnan()
    # Without an error (all of the latent's tokens in one of several blocks) nothing is certain; with a single block
    # no error is known of any latent, and only the sign can be tested.
    error = denominator.standard_error
    error = torch.zeros_like(error) if bool(error.isnan().all()) else error
    weak = ~silent & ~((below > 0) & (below >= CERTAIN * error))
    unknown = silent | weak
    return Ratio(
        value=both.value.masked_fill(unknown, torch.nan),
        standard_error=both.standard_error.masked_fill(unknown, torch.nan),
        silent=silent,
        rare=~silent & (count < LEAST_TOKENS),
        denominator=weak,
    )
