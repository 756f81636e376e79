"""Twins: a chat-only and a base-only latent whose directions agree, the mark of one concept held twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.runtime import generator


@dataclass(frozen=True, slots=True)
class Twins:
    """Pairs of latents, best first.

    Attributes:
        chat, base: ``[pair]`` int64 latents. cosine: ``[pair]`` of the chat latent's chat decoder with the base
            latent's base decoder.
    """

    chat: Tensor
    base: Tensor
    cosine: Tensor

    def __len__(self) -> int:
        return self.chat.numel()


def find_twins(
    base_decoder: Tensor,
    chat_decoder: Tensor,
    base_only: Tensor | Sequence[int],
    chat_only: Tensor | Sequence[int],
    least: float = 0.9,
    chunk: int = 1024,
) -> Twins:
    """One-to-one pairs with a cosine above ``least``, chosen greedily from the largest cosine down.

    Args:
        base_decoder, chat_decoder: ``[latent, d]`` of the two sources, equally wide.
        base_only, chat_only: the latents to pair.
        chunk: chat-only latents compared at a time.

    Raises:
        InputError: decoders of different widths, whose directions cannot be compared.
    """
    if base_decoder.shape[1] != chat_decoder.shape[1]:
        raise InputError(
            f"Directions of width {base_decoder.shape[1]} and {chat_decoder.shape[1]} cannot be compared; "
            "twins are defined for two models of one width."
        )
    left, right = _indices(chat_only), _indices(base_only)
    normalize = torch.nn.functional.normalize
    base = normalize(base_decoder.detach().double().cpu()[right], dim=1)
    found: list[Tensor] = []  # rows of (cosine, chat, base)
    for part in left.split(chunk):  # the last chunk is shorter, and compared like the others
        cosine = normalize(chat_decoder.detach().double().cpu()[part], dim=1) @ base.T
        rows, columns = torch.nonzero(cosine > least, as_tuple=True)
        found.append(torch.stack([cosine[rows, columns], part[rows].double(), right[columns].double()], dim=1))
    pairs = torch.cat(found) if found else torch.zeros(0, 3, dtype=torch.float64)
    pairs = pairs[pairs[:, 0].argsort(descending=True, stable=True)]
    kept: list[int] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    for i, (_, chat, partner) in enumerate(pairs.tolist()):
        if chat not in taken[0] and partner not in taken[1]:
            taken[0].add(chat)
            taken[1].add(partner)
            kept.append(i)
    return Twins(pairs[kept, 1].long(), pairs[kept, 2].long(), pairs[kept, 0])


def false_twins(twins: Twins, chat_only: Tensor | Sequence[int], seed: int = 0) -> Twins:
    """The base latents of some twins, each with a chat-only latent that is not its own: what chance looks like.

    The cosine is not known and NaN. ``InputError`` with fewer than two chat-only latents.
    """
    pool = _indices(chat_only)
    if pool.numel() < 2 and len(twins):
        raise InputError("False twins need at least two chat-only latents, so that each can have another's partner.")
    draw = generator(seed, "false twins")
    others: list[int] = []
    for own in twins.chat.tolist():
        choice = pool[pool != own]
        others.append(int(choice[int(torch.randint(len(choice), (1,), generator=draw))]))
    return Twins(torch.tensor(others, dtype=torch.int64), twins.base, torch.full_like(twins.cosine, torch.nan))


def _indices(latents: Tensor | Sequence[int]) -> Tensor:
    if isinstance(latents, Tensor):
        if latents.dtype == torch.bool:
            return torch.nonzero(latents).flatten().cpu()
        return latents.long().cpu()
    return torch.tensor(list(latents), dtype=torch.int64)
