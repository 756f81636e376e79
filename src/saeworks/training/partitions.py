"""What a crosscoder asks of its sources: latents that belong to one of them, latents they share, how errors mix.

Latents stand in this order: those exclusive to the first source, to the second, …; those with one direction for all
sources; the rest, of which the last may be a set of their own that explains how two sources differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saeworks.errors import InputError

TIED = "tied"


@dataclass(frozen=True)
class Delta:
    """Latents that have to explain how the second source differs from the first (arXiv 2603.04426).

    Each of the two sets, these latents and all others, is selected from by itself.

    Attributes:
        latents: share of the latents that are in the set.
        k: share of the selected latents that come from it.
        weight: λ of the mean over tokens of ``|f_Δ (W_1 − W_0) − (x_1 − x_0)|²``, where ``f_Δ`` are the latents of the
            set and ``W_s`` their decoder rows in either source; decoder biases have no part in it.
    """

    latents: float = 0.25
    k: float = 0.25
    weight: float = 1.0


@dataclass(frozen=True)
class Across:
    """How latents are divided among the sources, and what their errors have to do with each other.

    Attributes:
        exclusive: share of the latents that write to one source alone, for each source (dedicated features, arXiv
            2602.11729). Their other decoder rows are zero and stay so; all of them read every source.
        tied: share of the latents that have one decoder row for all sources (designated shared features,
            Mishra-Sharma et al. 2025): one parameter, used as often as there are sources.
        discount: factor on the sparsity penalties of tied latents.
        cross: γ in ``Σ_s |e_s|² + 2 γ e_0 · e_1`` of the errors of two sources. 0 is the plain loss; at −1 only the
            difference of the sources is reconstructed.
        delta: a set of latents for the difference of two sources; None for none.
    """

    exclusive: float = 0.0
    tied: float = 0.0
    discount: float = 1.0
    cross: float = 0.0
    delta: Delta | None = None


@dataclass(frozen=True)
class Partitions:
    """The numbers of latents that :class:`Across` gives at one width.

    Attributes:
        width: latents. widths: of the sources.
        exclusive: latents of every single source. tied: latents with one direction for all.
        delta: the last latents, a set of their own. delta_k: share of the selected latents that come from it.
    """

    width: int
    widths: tuple[int, ...]
    exclusive: int = 0
    tied: int = 0
    delta: int = 0
    delta_k: float = 0.0

    @staticmethod
    def of(across: Across | None, width: int, widths: tuple[int, ...]) -> Partitions:
        """The partitions of ``width`` latents; ``InputError`` when they do not fit or cannot be."""
        if across is None:
            return Partitions(width, widths)
        found = Partitions(width, widths, round(across.exclusive * width), round(across.tied * width))
        if across.delta is not None:
            found = replace(found, delta=round(across.delta.latents * width), delta_k=across.delta.k)
        if across.tied and len(set(widths)) > 1:
            raise InputError(
                f"Tied latents have one direction for all sources, and these are of the widths {list(widths)}; leave "
                "tied at 0."
            )
        if across.cross and (len(widths) != 2 or widths[0] != widths[1]):
            raise InputError(
                f"The product of errors is defined for two sources of one width, not {list(widths)}; leave cross at 0."
            )
        if across.delta is not None and (len(widths) != 2 or widths[0] != widths[1]):
            raise InputError(
                f"Latents for the difference of the sources need two of one width, not {list(widths)}; leave delta out."
            )
        if found.free < found.delta:
            also = f" and {found.delta} for their difference" if found.delta else ""
            raise InputError(
                f"{found.exclusive} latents for each of {len(widths)} sources and {found.tied} tied ones{also} are "
                f"more than the width {width}; lower exclusive, tied or delta."
            )
        return found

    @property
    def first_tied(self) -> int:
        """Latents before the tied ones."""
        return self.exclusive * len(self.widths)

    @property
    def free(self) -> int:
        """Latents without a rule for their decoder rows."""
        return self.width - self.first_tied - self.tied

    @property
    def budgets(self) -> tuple[tuple[int, float], ...]:
        """``(latents, share of k)`` of the sets that are selected from by themselves; empty when all are one set."""
        if not self.delta:
            return ()
        return (self.width - self.delta, 1 - self.delta_k), (self.delta, self.delta_k)

    def clear_(self, rows: Tensor) -> Tensor:
        """Set rows of a decoder or its gradient to zero where latents of one source write to others.

        Args:
            rows: ``[width, d_out]``, with or without the tied ones.
        """
        end = 0
        for number, width in enumerate(self.widths if self.exclusive else ()):
            start, end = end, end + width
            own = rows[number * self.exclusive : (number + 1) * self.exclusive]
            own[:, :start] = 0
            own[:, end:] = 0
        return rows

    def split(self, decoder: Tensor) -> dict[str, Tensor]:
        """``decoder [width, d_out]`` as trained tensors: ``decoder`` without the tied rows, ``tied [tied, d]``."""
        decoder = self.clear_(decoder.clone())
        if not self.tied:
            return {"decoder": decoder}
        first, last = self.first_tied, self.first_tied + self.tied
        rest = torch.cat([decoder[:first], decoder[last:]])
        return {"decoder": rest, TIED: decoder[first:last, : self.widths[0]].clone()}

    def joined(self, p: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors as losses and dictionaries know them, ``decoder [width, d_out]`` whole; with gradients."""
        if TIED not in p:
            return p
        shared, rest = p[TIED].repeat(1, len(self.widths)), p["decoder"]
        decoder = torch.cat([rest[: self.first_tied], shared, rest[self.first_tied :]])
        return {**{name: tensor for name, tensor in p.items() if name != TIED}, "decoder": decoder}

    def discounts(self, discount: float) -> Tensor | None:
        """``[width]`` factors on the penalties of the latents; None when all are 1."""
        if not self.tied or discount == 1.0:
            return None
        found = torch.ones(self.width)
        found[self.first_tied : self.first_tied + self.tied] = discount
        return found

    def described(self) -> dict[str, int]:
        """For ``cfg.json``: the sizes that are not zero."""
        sizes = {"exclusive": self.exclusive, "tied": self.tied, "delta": self.delta}
        return {name: size for name, size in sizes.items() if size}
