"""What every stream hands out: activations with the token, document and position each row comes from."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(slots=True)
class ActivationBatch:
    """A batch of activation rows.

    Attributes:
        activations: ``[token, d]`` float32 (``[token, sites, d]`` for a stream over several sites).
        token_ids: ``[token]`` int64; −1 where there is no token (synthetic activations).
        document_ids: ``[token]`` int64, index of the document in its source.
        positions: ``[token]`` int64, index of the token in its document, special tokens not counted.
    """

    activations: Tensor
    token_ids: Tensor
    document_ids: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return self.activations.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> ActivationBatch:
        """The chosen rows of all four tensors."""
        return ActivationBatch(*(getattr(self, part.name)[rows] for part in fields(self)))

    def to(self, device: torch.device | str) -> ActivationBatch:
        """The same batch on another device."""
        return ActivationBatch(*(getattr(self, part.name).to(device, non_blocking=True) for part in fields(self)))


def concatenate(batches: list[ActivationBatch]) -> ActivationBatch:
    """One batch from several, in order."""
    if len(batches) == 1:
        return batches[0]
    names = [part.name for part in fields(ActivationBatch)]
    return ActivationBatch(*(torch.cat([getattr(batch, name) for batch in batches]) for name in names))
