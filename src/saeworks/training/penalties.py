"""Sparsity terms as frozen values. Each is called with the latents of a batch and returns a mean over its tokens.

A term's weight is ``coefficient``; None means the sparsity asked for in the grid. Both are warmed up by the schedule,
but for :class:`PreAct`, which makes nothing sparser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from saeworks.training.moment import Moment
from saeworks.training.straight_through import step

# How much of a latent's direction counts: nothing, the sum of its norms in every source, or its norm over all of them.
Norms = Literal["none", "sum", "joint"]


@dataclass(frozen=True)
class Latents:
    """What a forward pass shows to a penalty. Of tokens and latents divided over ranks, it shows this rank's.

    Attributes:
        z: ``[token, width]`` pre-activations.
        f: ``[token, width]`` latents; of a gated encoder, the positive part of its gate.
        threshold: ``[width]`` of a JumpReLU, otherwise None.
        norms: ``[source, width]`` norms of the decoder rows.
        joint: ``[width]`` norms of the decoder rows over all sources.
        shares: ``[width]`` share of the nested prefixes that hold each latent; 1 without nesting.
        everywhere: whether jumps send gradients to ``z`` as well.
        moment: what schedules and controllers say at this step.
    """

    z: Tensor
    f: Tensor
    threshold: Tensor | None
    norms: Tensor
    joint: Tensor
    shares: Tensor
    everywhere: bool
    moment: Moment

    def norm(self, norms: Norms) -> Tensor:
        """``[width]`` norm of every latent's direction, in the sense asked for."""
        if norms == "none":
            return torch.ones_like(self.shares)
        return self.norms.sum(dim=0) if norms == "sum" else self.joint

    def sums(self, terms: Tensor) -> Tensor:
        """``[token]`` sums over all latents of ``terms [token, width]``."""
        return self.moment.division.over_latents(terms.sum(dim=1))

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all tokens, the first dimension of ``values``."""
        return self.moment.division.mean(values)

    def active(self) -> Tensor:
        """``[token, width]`` ones where ``z`` is above its threshold, with the gradient of the jump."""
        threshold = torch.zeros_like(self.z[0]) if self.threshold is None else self.threshold
        return step(self.z, threshold, self.moment.bandwidth, self.everywhere)

    def rates(self) -> Tensor:
        """``[width]`` share of the tokens on which each latent is active."""
        return self.mean(self.active())

    def missing(self) -> Tensor:
        """``[width]`` mean over the tokens of how far ``z`` is below its threshold, 0 where it is above."""
        return self.mean(torch.relu((0.0 if self.threshold is None else self.threshold) - self.z))


class Penalty(Protocol):
    """A sparsity term."""

    @property
    def kind(self) -> str:
        """Its name in the log."""
        ...

    @property
    def coefficient(self) -> float | None:
        """Its weight; None for the sparsity of the grid."""
        ...

    def __call__(self, latents: Latents) -> Tensor: ...


@dataclass(frozen=True)
class L1:
    """``Σ_i f_i``, or ``Σ_i f_i |W_dec_i|`` (Anthropic, April 2024); of crosscoders, with the norms of all sources."""

    kind: Literal["l1"] = "l1"
    norms: Norms = "none"
    coefficient: float | None = None

    def __call__(self, latents: Latents) -> Tensor:
        return latents.mean(latents.sums(latents.f * latents.norm(self.norms) * latents.shares))


@dataclass(frozen=True)
class Lp:
    """``Σ_i f_i^p`` with p falling in steps (arXiv 2408.00113), or its p-th root, the norm of the latents.

    The derivative of ``f^p`` is infinite at 0, so ``(f + ε)^p - ε^p`` is used, which also is 0 at 0. Whenever p falls,
    the weight is multiplied by the ratio of the old to the new sum over the last ``queue`` batches: the penalty stays
    continuous.

    Attributes:
        start, end: first and last exponent. updates: number of times it falls.
        begin, finish: shares of the run between which it falls; after the last fall, one interval remains.
        queue: batches the ratio is averaged over. epsilon: see above.
        root: take the p-th root of every token's sum (the default of dictionary_learning; the paper does not).
    """

    kind: Literal["lp"] = "lp"
    start: float = 1.0
    end: float = 0.2
    begin: float = 0.05
    finish: float = 1.0
    updates: int = 10
    queue: int = 10
    epsilon: float = 1e-6
    root: bool = False
    coefficient: float | None = None

    def __call__(self, latents: Latents) -> Tensor:
        return self.at(latents, latents.moment.p)

    def at(self, latents: Latents, p: float) -> Tensor:
        """The sum with the exponent ``p``."""
        # Rounding takes the difference below 0 where f is 0, and a sum below 0 has no root.
        powers = ((latents.f + self.epsilon).pow(p) - self.epsilon**p).clamp_min(0)
        sums = latents.sums(powers * latents.shares)
        return latents.mean(sums.pow(1 / p) if self.root else sums)

    def falls(self, step: int, steps: int) -> int:
        """How often p has fallen at ``step`` of a run of ``steps``."""
        begin, finish = self.begin * steps, self.finish * steps
        if step < begin:
            return 0
        return min(int((step - begin) / (finish - begin) * self.updates + 1e-9) + 1, self.updates)

    def exponent(self, falls: int) -> float:
        """p after so many falls."""
        return self.start + (self.end - self.start) * min(falls, self.updates) / self.updates


@dataclass(frozen=True)
class L0:
    """``Σ_i 1[z_i > θ_i]`` (arXiv 2407.14435)."""

    kind: Literal["l0"] = "l0"
    coefficient: float | None = None

    def __call__(self, latents: Latents) -> Tensor:
        return latents.mean(latents.sums(latents.active() * latents.shares))


@dataclass(frozen=True)
class TargetL0:
    """Distance of the batch's mean L0 from the one asked for.

    ``relative``: ``(L0 / L0* - 1)²`` (dictionary_learning, SAEBench). ``quadratic``: ``(2 / L0*) (L0 - L0*)²``
    (Gemma Scope 2).
    """

    kind: Literal["l0_target"] = "l0_target"
    form: Literal["relative", "quadratic"] = "relative"
    coefficient: float | None = 1.0

    def __call__(self, latents: Latents) -> Tensor:
        l0, target = latents.mean(latents.sums(latents.active())), latents.moment.target
        if self.form == "relative":
            return (l0 / target - 1).square()
        return 2 / target * (l0 - target).square()


@dataclass(frozen=True)
class Tanh:
    """``Σ_i tanh(scale · f_i |W_dec_i|)`` (Anthropic, January 2025)."""

    kind: Literal["tanh"] = "tanh"
    scale: float = 4.0
    norms: Norms = "joint"
    coefficient: float | None = None

    def __call__(self, latents: Latents) -> Tensor:
        bounded = torch.tanh(self.scale * latents.f * latents.norm(self.norms))
        return latents.mean(latents.sums(bounded * latents.shares))


@dataclass(frozen=True)
class PreAct:
    """``Σ_i ReLU(θ_i - z_i) |W_dec_i|``: pulls latents that never reach their threshold towards it (Anthropic, 2025).

    Its weight is full from the first step on. ``only_dead`` restricts it to dead latents, as SAELens does.
    """

    kind: Literal["pre_act"] = "pre_act"
    only_dead: bool = False
    coefficient: float | None = 3e-6

    def __call__(self, latents: Latents) -> Tensor:
        division = latents.moment.division
        missing = latents.missing() * division.once(latents.joint, after="tokens")
        if self.only_dead:
            missing = missing[latents.moment.dead]
        return division.over_latents(missing.sum())


def weight(penalty: Penalty, moment: Moment) -> float:
    """What the term is multiplied by at this step."""
    if penalty.coefficient is None:
        return moment.penalty
    return penalty.coefficient * (1.0 if isinstance(penalty, PreAct) else moment.warm)


@dataclass(frozen=True)
class Frequency:
    """``Σ_i ReLU(rate_i - cap)`` for the share of tokens on which latent i is active: against latents that always fire.

    Gemma Scope 2 reports such a term without its formula; this is the plainest one.
    """

    kind: Literal["frequency"] = "frequency"
    cap: float = 0.1
    coefficient: float | None = 1.0

    def __call__(self, latents: Latents) -> Tensor:
        excess = torch.relu(latents.rates() - self.cap)
        return latents.moment.division.over_latents(excess.sum())
