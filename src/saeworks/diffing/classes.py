"""Which latents look new by their decoder norms, and which of them Latent Scaling says are.

The norm difference is that of arXiv 2504.02922: 1 for a latent that only the chat model's decoder has, 0 for one that
only the base's has, 0.5 for equal norms. Norms alone are fooled twice: a concept that the base holds weakly can lose
its base decoder altogether (complete shrinkage), and one concept can be held by two latents, one per model (latent
decoupling). The first leaves the concept in the base's error, the second in the base's reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.diffing.scaling_estimates import Ratio
from saeworks.errors import InputError

CLASSES = ("base_only", "shared", "chat_only", "other")
# Below this ratio of the smaller to the larger norm, the smaller decoder's direction is noise.
COMPARABLE = 0.05


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where the lines are drawn.

    Attributes:
        chat_only, base_only: norm differences above and below which a latent is of one model only.
        shared: norm differences between which it is of both.
        gate: norm difference above which a latent is a candidate for being new. The class's own line, or, relaxed,
            0.5: rare concepts keep some spurious base norm.
        nu_error, nu_reconstruction: from these on a candidate is an artifact.
        standard_errors: a nu counts as above its line only when it is by so many standard errors.
    """

    chat_only: float = 0.9
    base_only: float = 0.1
    shared: tuple[float, float] = (0.4, 0.6)
    gate: float = 0.9
    nu_error: float = 0.2
    nu_reconstruction: float = 0.5
    standard_errors: float = 1.64

    def __post_init__(self) -> None:
        low, high = self.shared
        if not 0 <= self.base_only <= low <= high <= self.chat_only <= 1:
            raise InputError(
                f"The class thresholds {self.base_only}, {low}, {high}, {self.chat_only} must rise from 0 to 1."
            )


PAPER = Thresholds()
RELAXED = Thresholds(gate=0.5)


@dataclass(frozen=True, slots=True)
class Flags:
    """Verdicts on the latents, ``[latent]`` bool each; all False for a latent that is no candidate.

    Attributes:
        candidate: the norm difference passes the gate.
        undefined: a candidate of which nu is not known.
        complete_shrinkage: the other model's error holds it.
        decoupled: the other model's reconstruction holds it, by other latents.
        genuine: both nu are known and small. A candidate may be none of the four, where an error bar crosses a line.
    """

    candidate: Tensor
    undefined: Tensor
    complete_shrinkage: Tensor
    decoupled: Tensor
    genuine: Tensor

    def words(self) -> list[str]:
        """For every latent the names of its flags, joined by commas."""
        names = ("undefined", "complete_shrinkage", "decoupled", "genuine")
        columns = [getattr(self, name).tolist() for name in names]
        return [
            ",".join(name for name, is_set in zip(names, row, strict=True) if is_set)
            for row in zip(*columns, strict=True)
        ]


def relative_norm(norms: Tensor) -> Tensor:
    """``[latent]`` norm difference ``½ (1 + (r_chat − r_base) / max)`` of ``norms [2, latent]``, float64.

    Not a number for a latent without any decoder.
    """
    if norms.shape[0] != 2:
        raise InputError(f"The norm difference is that of two sources, but {norms.shape[0]} came; see source_shares().")
    base, chat = norms.double()
    most = torch.maximum(base, chat)
    return torch.where(most > 0, (1 + (chat - base) / most) / 2, torch.nan)


def source_shares(norms: Tensor) -> Tensor:
    """``[source, latent]``: the norm difference of each of several sources against all others together.

    ``½ (1 + (2 r_m − S) / max(r_m, S − r_m))`` with ``S = Σ r``; above 0.9 the latent is of source m alone. For two
    sources the last row is :func:`relative_norm`.
    """
    r = norms.double()
    rest = r.sum(dim=0) - r
    most = torch.maximum(r, rest)
    return torch.where(most > 0, (1 + (r - rest) / most) / 2, torch.nan)


def decoder_cosine(base: Tensor, chat: Tensor) -> Tensor:
    """``[latent]`` cosine of the two decoders' rows ``[latent, d]``, float64.

    Not a number where one norm is less than 0.05 of the other, or the widths differ.
    """
    if base.shape != chat.shape:
        return torch.full((base.shape[0],), torch.nan, dtype=torch.float64)
    norms = torch.stack([base.norm(dim=1), chat.norm(dim=1)]).double()
    low, high = norms.aminmax(dim=0)
    cosine = (base.double() * chat.double()).sum(dim=1) / norms.prod(dim=0)
    return torch.where((low >= COMPARABLE * high) & (low > 0), cosine, torch.nan)


def classes(relative: Tensor, thresholds: Thresholds = PAPER) -> Tensor:
    """``[latent]`` int64 index into :data:`CLASSES` by the norm difference; NaN gives ``other``."""
    low, high = thresholds.shared
    found = torch.full(relative.shape, CLASSES.index("other"))
    found[(relative > low).cpu() & (relative < high).cpu()] = CLASSES.index("shared")
    found[(relative > thresholds.chat_only).cpu()] = CLASSES.index("chat_only")
    found[(relative < thresholds.base_only).cpu()] = CLASSES.index("base_only")
    return found


def flags(relative: Tensor, nu_error: Ratio, nu_reconstruction: Ratio, thresholds: Thresholds = PAPER) -> Flags:
    """Verdicts on latents that look chat-only.

    For those that look base-only, give ``1 − relative`` and the ratios along the base's probe, chat over base.
    """
    candidate = relative > thresholds.gate
    defined = nu_error.defined & nu_reconstruction.defined
    known = candidate & defined
    shrunk = known & _above(nu_error, thresholds.nu_error, thresholds.standard_errors)
    decoupled = known & _above(nu_reconstruction, thresholds.nu_reconstruction, thresholds.standard_errors)
    small = nu_error.value.abs() < thresholds.nu_error
    small &= nu_reconstruction.value.abs() < thresholds.nu_reconstruction
    return Flags(candidate, candidate & ~defined, shrunk, decoupled, known & small)


def _above(nu: Ratio, line: float, standard_errors: float) -> Tensor:
    """Whether a nu lies above a line by its error; an error that is not known counts as 0."""
    return nu.value - standard_errors * nu.standard_error.nan_to_num(0.0) >= line
