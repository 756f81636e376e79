"""What every stream hands out: activations with the token, document and position each row comes from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

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
        targets: ``[token, d_out]`` float32, what a transcoder is to predict from ``activations``; None without one.
    """

    activations: Tensor
    token_ids: Tensor
    document_ids: Tensor
    positions: Tensor
    targets: Tensor | None = None

    def __len__(self) -> int:
        return self.activations.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> ActivationBatch:
        """The chosen rows of all tensors."""
        return ActivationBatch(**{name: tensor[rows] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> ActivationBatch:
        """The same batch on another device."""
        return ActivationBatch(**{k: tensor.to(device, non_blocking=True) for k, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        found = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


@dataclass(frozen=True, slots=True)
class Layout:
    """What one row of a stream consists of.

    Attributes:
        d_in: floats of the input, all sources together.
        sources: names of the sites or models that lie side by side in a row; None for a single one.
        source_widths: width of every source; None when all are equally wide. Only then are activations
            ``[token, source, d]``, otherwise ``[token, d_in]``.
        d_out: width of the targets, all together; None for a stream without any.
        targets: names of several targets that lie side by side; None for a single one.
        target_widths: width of each of them.
    """

    d_in: int
    sources: tuple[str, ...] | None = None
    source_widths: tuple[int, ...] | None = None
    d_out: int | None = None
    targets: tuple[str, ...] | None = None
    target_widths: tuple[int, ...] | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of every source; ``(d_in,)`` for a single one."""
        if self.sources is None:
            return (self.d_in,)
        return self.source_widths or (self.d_in // len(self.sources),) * len(self.sources)

    def shaped(self, batch: ActivationBatch) -> ActivationBatch:
        """The batch with rows ``[token, d_in]`` as ``[token, source, d]``, where the sources are equally wide."""
        if self.sources is not None and self.source_widths is None:
            batch.activations = batch.activations.unflatten(1, (len(self.sources), -1))
        return batch


def layout_of(stream: Any) -> Layout:
    """The ``layout`` of a stream; one without the attribute has rows of ``width`` floats and nothing else."""
    found = getattr(stream, "layout", None)
    return found if isinstance(found, Layout) else Layout(int(stream.width))


def concatenate(batches: list[ActivationBatch]) -> ActivationBatch:
    """One batch from several, in order."""
    if len(batches) == 1:
        return batches[0]
    parts = [batch.tensors() for batch in batches]
    return ActivationBatch(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
