"""Sparse latent activations as values and indices.

A dictionary of width 65,536 has some dozens of active latents per token. Everything after selection therefore
works on the nonzeros only, kept in compressed rows (CSR): one layout for a fixed number per token (TopK) and for
a varying one (BatchTopK, thresholds).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """Latent activations of some tokens.

    Attributes:
        values: ``[nonzero]`` activations, all > 0.
        indices: ``[nonzero]`` int64 latent of each value, ascending within a token.
        offsets: ``[token + 1]`` int64; token ``t`` owns the nonzeros ``offsets[t] : offsets[t + 1]``.
        width: number of latents of the dictionary.
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor
    width: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.offsets.numel() - 1

    def counts(self) -> Tensor:
        """``[token]`` number of active latents of each token (its L0)."""
        return self.offsets[1:] - self.offsets[:-1]

    def rows(self) -> Tensor:
        """``[nonzero]`` int64 token of each value."""
        return bags_of(self.offsets, self.indices.numel())

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
        return Codes(values, self.indices, self.offsets, self.width)

    @staticmethod
    def from_mask(dense: Tensor, mask: Tensor) -> Codes:
        """Codes of ``dense [token, width]`` at the true entries of ``mask``."""
        flat = mask.flatten().nonzero().squeeze(1)
        width = dense.shape[1]
        return Codes(
            values=dense.flatten()[flat],
            indices=flat % width,
            offsets=offsets_of(mask.sum(dim=1)),
            width=width,
        )

    @staticmethod
    def from_dense(dense: Tensor) -> Codes:
        """Codes of the positive entries of ``dense [token, width]``."""
        return Codes.from_mask(dense, dense > 0)


def offsets_of(counts: Tensor) -> Tensor:
    """``[bag + 1]`` offsets of bags that hold ``counts [bag]`` entries each."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def bags_of(offsets: Tensor, entries: int) -> Tensor:
    """``[entry]`` int64: which of the bags given by ``offsets [bag + 1]`` each of the entries belongs to."""
    bags = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(bags, offsets[1:] - offsets[:-1], output_size=entries)
