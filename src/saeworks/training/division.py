"""How one training step is divided over ranks: each has some of the tokens, or some of the latents.

A loss is written once, with sums over tokens and sums over latents. Divided by tokens, the first are sums over ranks
as well and the second stay where they are; divided by latents it is the other way round. After such a sum every rank
holds the same number and computes the same loss from it, so the gradient of the sum goes back as it is to everyone's
own part: no communication runs in a backward pass. The gradients of parameters that all ranks hold are then parts of
one sum and are added up (:meth:`Division.add_gradients`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.training.ranks import ALONE, Ranks

# Parameters with one entry per latent along their first dimension.
PER_LATENT = ("encoder", "decoder", "b_enc", "b_gate", "r_mag", "threshold")
Parallel = Literal["data", "latents"]


class _Sum(torch.autograd.Function):
    """Sum over ranks whose result is used alike by all of them."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        return ranks.add(part.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


@dataclass(frozen=True, eq=False)
class Division:
    """What this process does of a step.

    Attributes:
        ranks: the processes of the run.
        by: ``tokens``: every rank holds the whole dictionary and an equal share of every batch. ``latents``: every rank
            holds whole batches and a range of latents. None: one process does everything.
    """

    ranks: Ranks = ALONE
    by: Literal["tokens", "latents"] | None = None

    @staticmethod
    def of(ranks: Ranks, parallel: Parallel) -> Division:
        """The division of a run's ranks."""
        if ranks.count == 1:
            return UNDIVIDED
        return Division(ranks, "tokens" if parallel == "data" else "latents")

    def over_tokens(self, part: Tensor) -> Tensor:
        """The sum over all tokens, given this rank's; with gradient."""
        return self._sum(part) if self.by == "tokens" else part

    def over_latents(self, part: Tensor) -> Tensor:
        """The sum over all latents, given this rank's; with gradient."""
        return self._sum(part) if self.by == "latents" else part

    def everywhere(self, part: Tensor) -> Tensor:
        """The sum over ranks of what is counted at one of them only; without gradient."""
        return self.ranks.add(part.clone())

    def count(self, here: int) -> int:
        """:meth:`everywhere` of a number."""
        return here if self.by is None else int(self.everywhere(torch.tensor(here)))

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all tokens, the first dimension of ``values``; with gradient."""
        own = values.mean(dim=0)
        return self.over_tokens(own) / self.ranks.count if self.by == "tokens" else own

    def tokens(self, here: int) -> int:
        """Tokens of the batch, given this rank's."""
        return here * self.ranks.count if self.by == "tokens" else here

    def share(self, tokens: int) -> slice:
        """Which tokens of a batch are this rank's."""
        if self.by != "tokens":
            return slice(0, tokens)
        if tokens % self.ranks.count:
            raise InputError(
                f"A batch of {tokens} tokens cannot be divided equally by {self.ranks.count} ranks; choose a multiple "
                "with --batch-size."
            )
        own = tokens // self.ranks.count
        return slice(self.ranks.rank * own, (self.ranks.rank + 1) * own)

    def rows(self, width: int, rank: int | None = None) -> slice:
        """Which of ``width`` latents are this rank's, or those of the given one."""
        if self.by != "latents":
            return slice(0, width)
        rank, count = self.ranks.rank if rank is None else rank, self.ranks.count
        return slice(width * rank // count, width * (rank + 1) // count)

    def own_sizes(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """How many latents of each of the consecutive groups of the given sizes are this rank's."""
        if self.by != "latents":
            return sizes
        rows = self.rows(sum(sizes))
        own: list[int] = []
        start = 0
        for size in sizes:
            own.append(max(0, min(start + size, rows.stop) - max(start, rows.start)))
            start += size
        return tuple(own)

    def once(self, parameter: Tensor, after: Literal["tokens", "latents"] = "latents") -> Tensor:
        """A parameter that all ranks hold, used after a sum over all latents or tokens: every rank does the same with
        it, so its gradient arises at one of them only."""
        return parameter.detach() if self.by == after and not self.ranks.lead else parameter

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's part of a tensor of the whole dictionary, by the name it has in a member's state."""
        if self.by != "latents" or not is_per_latent(name) or tensor.dim() == 0:
            return tensor
        return tensor[self.rows(tensor.shape[0])]

    def whole(self, name: str, tensor: Tensor, width: int) -> Tensor | None:
        """The inverse of :meth:`cut`, on the CPU of the first rank; None on the others."""
        if self.by != "latents" or not is_per_latent(name) or tensor.dim() == 0:
            return tensor if self.ranks.lead else None
        every = [self.rows(width, rank) for rank in range(self.ranks.count)]
        return self.ranks.rows_at_lead(tensor, [rows.stop - rows.start for rows in every])

    def everyones(self, name: str, tensor: Tensor, width: int) -> Tensor:
        """The inverse of :meth:`cut` on every rank, for ``[own latents]`` numbers."""
        if self.by != "latents" or not is_per_latent(name):
            return tensor
        rows = self.rows(width)
        out = torch.zeros(width, dtype=torch.float64 if tensor.is_floating_point() else torch.int64)
        out[rows] = tensor.to(out)
        return self.ranks.add(out).to(tensor)

    def all_tokens(self, own: Tensor) -> Tensor:
        """The rows of all tokens of the batch on every rank, given those of this rank's."""
        return self.ranks.gathered(own).flatten(0, 1) if self.by == "tokens" else own

    def add_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        """Complete the gradients of the parameters that all ranks hold."""
        if self.by is not None:
            shared = [p for name, p in parameters.items() if self.by == "tokens" or not is_per_latent(name)]
            for parameter in shared:  # some arise at one rank only, see once()
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.ranks.add_all([p.grad for p in shared if p.grad is not None])

    def gradient_norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Norm of the whole gradient, given complete ones of the parameters that this rank holds."""
        squares = {name: g.square().sum() for name, g in gradients.items()}
        if self.by == "latents":
            own = torch.stack([s for name, s in squares.items() if is_per_latent(name)]).sum()
            shared = [s for name, s in squares.items() if not is_per_latent(name)]
            return torch.stack([self.everywhere(own), *shared]).sum().sqrt()
        return torch.stack(list(squares.values())).sum().sqrt()

    def _sum(self, part: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(part, self.ranks)  # type: ignore[assignment]
        return total


UNDIVIDED = Division()


def is_per_latent(name: str) -> bool:
    """Whether an entry of a member's state has latents along its first dimension, as ``adam.exp_avg.encoder`` has."""
    last = name.rsplit(".", 1)[-1]
    return last in PER_LATENT or last in ("strengths", "tokens_since_fired")
