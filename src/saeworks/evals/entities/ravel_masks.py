"""Which latents hold an attribute: a mask trained by patching, and how well patching by it works."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.evals.shared.batches import DictionaryLike, decode_rows, to_dictionary
from saeworks.models.tokens import TokenBatch
from saeworks.models.upper_layers import UpperLayers


@dataclass(frozen=True)
class Items:
    """Pairs ready to be patched, one row each.

    Attributes:
        tokens: the base prompt with the wanted answer behind it.
        hidden: activations of these rows at the cached site [row, position, d], on the CPU.
        base, source: activations at the site, at the entity of the base and of the source prompt [row, d].
        entity: [row] position of the base's entity.
        answer: for each row the positions of the answer's tokens.
        cause: [row] bool.
    """

    tokens: TokenBatch
    hidden: Tensor
    base: Tensor
    source: Tensor
    entity: Tensor
    answer: list[list[int]]
    cause: Tensor

    def __len__(self) -> int:
        return len(self.cause)

    def part(self, rows: Tensor) -> Items:
        """Some of the rows, cut to the longest of them."""
        mask = self.tokens.attention_mask[rows]
        length = int(mask.sum(-1).max())
        tokens = TokenBatch(self.tokens.token_ids[rows, :length], mask[:, :length], self.tokens.keep[rows, :length])
        return Items(
            tokens,
            self.hidden[rows, :length],
            self.base[rows],
            self.source[rows],
            self.entity[rows],
            [self.answer[i] for i in rows.tolist()],
            self.cause[rows],
        )


def exchanged(dictionary: DictionaryLike, base: Tensor, source: Tensor, gate: Tensor) -> Tensor:
    """``decode((1 - g) f(base) + g f(source))`` [row, d]: the reconstruction error of the base is not put back."""
    x_base, x_source = to_dictionary(base, dictionary), to_dictionary(source, dictionary)
    with torch.no_grad():
        f_base, f_source = dictionary.encode(x_base), dictionary.encode(x_source)
    g = gate.to(f_base)
    return decode_rows(dictionary, f_base + g * (f_source - f_base), x_base).to(base)


def patched_logits(upper: UpperLayers, items: Items, new: Tensor) -> Tensor:
    """Logits [row, position, vocabulary] with ``new`` [row, d] at the entities; gradients flow through it."""
    device = upper.model.device
    where = torch.zeros(items.tokens.token_ids.shape, dtype=torch.bool, device=device)
    where[torch.arange(len(items), device=device), items.entity.to(device)] = True
    wide = new.to(device)[:, None, :]

    def edit(x: Tensor) -> Tensor:
        return torch.where(where[..., None], wide.to(x.dtype), x)

    return upper.logits(items.hidden.to(device), items.tokens, edit)


def train_mask(
    dictionary: DictionaryLike,
    upper: UpperLayers,
    items: Items,
    epochs: int,
    batch_size: int,
    rate: float,
    order: torch.Generator,
    drop_incomplete: bool,
) -> Tensor:
    """The mask m [latent], float32: latents with m > 0 are exchanged.

    The gate of a latent is sigmoid(m / T), T falling from 1 to 1e-4 on a logarithmic scale over all steps; m starts at
    0 and is trained by Adam on the cross-entropy of the first token of the wanted answer.
    """
    device = upper.model.device
    mask = torch.zeros(int(dictionary.W_dec.shape[0]), device=device, requires_grad=True)
    optimizer = torch.optim.Adam([mask], lr=rate)
    batches = [
        rows
        for _ in range(epochs)
        for rows in torch.randperm(len(items), generator=order).split(batch_size)
        if len(rows) == batch_size or not drop_incomplete
    ]
    for step, rows in enumerate(batches):
        temperature = 10 ** (-4 * step / max(len(batches) - 1, 1))
        part = items.part(rows)
        with torch.enable_grad():
            new = exchanged(dictionary, part.base.to(device), part.source.to(device), (mask / temperature).sigmoid())
            logits = patched_logits(upper, part, new)
            first = torch.tensor([places[0] for places in part.answer], device=device)
            row = torch.arange(len(part), device=device)
            target = part.tokens.token_ids.to(device)[row, first]
            loss = torch.nn.functional.cross_entropy(logits[row, first - 1], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return mask.detach()


def answered(upper: UpperLayers, items: Items, new: Callable[[Items], Tensor], batch_size: int) -> Tensor:
    """[row] bool: the likeliest token is the wanted one at every token of the answer, with ``new(items)`` [row, d] at
    the entities. This is what greedy generation would write, found in one pass."""
    found: list[Tensor] = []
    with torch.no_grad():
        for rows in torch.arange(len(items)).split(batch_size):
            part = items.part(rows)
            logits = patched_logits(upper, part, new(part))
            found.append(greedy_matches(logits, part.tokens, part.answer))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)


def greedy_matches(logits: Tensor, tokens: TokenBatch, answer: Sequence[Sequence[int]]) -> Tensor:
    """[row] bool: every token of the answer is the likeliest after what stands before it."""
    best = logits.argmax(-1).cpu()
    ids = tokens.token_ids.cpu()
    good = [all(int(best[r, p - 1]) == int(ids[r, p]) for p in places) for r, places in enumerate(answer)]
    return torch.tensor(good, dtype=torch.bool)


def disentanglement(right: Tensor, cause: Tensor) -> tuple[float, float, float]:
    """Cause score, isolation score and their mean, from [item] bools; NaN where there is no item of a kind."""
    values = [float(right[kind].double().mean()) if bool(kind.any()) else math.nan for kind in (cause, ~cause)]
    return values[0], values[1], (values[0] + values[1]) / 2
