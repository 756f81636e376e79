"""Sparse latent activations as values and indices.

A dictionary of width 65,536 has some dozens of active latents per token. Everything after selection therefore
works on the nonzeros only, kept in compressed rows (CSR): one layout for a fixed number per token (TopK) and for
a varying one (BatchTopK, thresholds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saeworks.dictionaries.kernels.positions import positions


@dataclass(frozen=True)
class Codes:
    """Latent activations of some tokens.

    Attributes:
        values: ``[nonzero]`` activations, all > 0.
        indices: ``[nonzero]`` int64 latent of each value, ascending within a token.
        offsets: ``[token + 1]`` int64; token ``t`` owns the nonzeros ``offsets[t] : offsets[t + 1]``.
        width: number of latents of the dictionary.

    What follows from the support alone (:meth:`rows`, :meth:`by_latent`) is computed once for all codes that share it
    and must not be written to.
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor
    width: int
    _of_support: dict[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False, compare=False)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.offsets.numel() - 1

    def counts(self) -> Tensor:
        """``[token]`` number of active latents of each token (its L0)."""
        return self.offsets[1:] - self.offsets[:-1]

    def rows(self) -> Tensor:
        """``[nonzero]`` int64 token of each value."""
        return self._once("rows", lambda: bags_of(self.offsets, self.indices.numel()))

    def by_latent(self) -> tuple[Tensor, Tensor]:
        """The nonzeros grouped by latent: their order ``[nonzero]`` and offsets ``[width + 1]``."""
        order = self._once("order", lambda: self.indices.argsort(stable=True))
        counts = self._once("latent_offsets", lambda: offsets_of(torch.bincount(self.indices, minlength=self.width)))
        return order, counts

    def fired(self) -> Tensor:
        """``[width]`` bool: which latents are active on any token."""
        fired = torch.zeros(self.width, dtype=torch.bool, device=self.indices.device)
        fired[self.indices] = True
        return fired

    def dense(self) -> Tensor:
        """``[token, width]`` the same activations with their zeros."""
        out = self.values.new_zeros(self.tokens, self.width)
        return out.index_put_((self.rows(), self.indices), self.values)

    def with_values(self, values: Tensor) -> Codes:
        """The same support with other values (``[nonzero]``)."""
        return Codes(values, self.indices, self.offsets, self.width, self._of_support)

    def subset(self, mask: Tensor, values: Tensor) -> Codes:
        """The nonzeros where ``mask [nonzero]`` is true, with their entries of ``values [nonzero]``."""
        kept = positions(mask)
        before = torch.cat([kept.new_zeros(1), mask.cumsum(0)])
        return Codes(values[kept], self.indices[kept], before[self.offsets], self.width)

    @staticmethod
    def joined(parts: Sequence[Codes]) -> Codes:
        """Codes of consecutive tokens in one."""
        offsets = [parts[0].offsets[:1]]
        for part in parts:
            offsets.append(part.offsets[1:] + offsets[-1][-1])
        values, indices = torch.cat([c.values for c in parts]), torch.cat([c.indices for c in parts])
        return Codes(values, indices, torch.cat(offsets), parts[0].width)

    @staticmethod
    def from_mask(dense: Tensor, mask: Tensor) -> Codes:
        """Codes of ``dense [token, width]`` at the true entries of ``mask``."""
        return Codes.at(positions(mask), dense)

    @staticmethod
    def at(places: Tensor, dense: Tensor) -> Codes:
        """Codes of ``dense [token, width]`` at the ascending ``places [nonzero]`` of its flattened form."""
        return Codes.of_places(places, dense.flatten()[places], dense.shape[0], dense.shape[1])

    @staticmethod
    def of_places(places: Tensor, values: Tensor, tokens: int, width: int) -> Codes:
        """Codes of the given values at ascending places ``token * width + latent``."""
        starts = torch.arange(tokens + 1, device=places.device) * width
        offsets = torch.searchsorted(places, starts)
        rows = bags_of(offsets, places.numel())
        return Codes(values, places - rows * width, offsets, width, {"rows": rows})

    @staticmethod
    def from_dense(dense: Tensor) -> Codes:
        """Codes of the positive entries of ``dense [token, width]``."""
        return Codes.from_mask(dense, dense > 0)

    def _once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if name not in self._of_support:
            self._of_support[name] = compute()
        return self._of_support[name]


def offsets_of(counts: Tensor) -> Tensor:
    """``[bag + 1]`` offsets of bags that hold ``counts [bag]`` entries each."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def bags_of(offsets: Tensor, entries: int) -> Tensor:
    """``[entry]`` int64: which of the bags given by ``offsets [bag + 1]`` each of the entries belongs to."""
    bags = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(bags, offsets[1:] - offsets[:-1], output_size=entries)
