"""Which latents hold an attribute: a mask trained by patching, and how well patching by it works.

All training here has one form: a gate per coordinate of some code (a dictionary's latents, or the axes of a rotation)
says whether the coordinate is taken from the other prompt.
"""

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
        base, source: activations at the site, at the tokens of the entity of the base and of the source prompt
            [row, place, d]; place 0 is the entity's last token.
        entity: [row, place] position of that token in the base, -1 where nothing is patched.
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


#: What stands at the entities of some items after an exchange, [row, place, d].
Exchange = Callable[[Items], Tensor]


@dataclass(frozen=True)
class MaskTraining:
    """How a mask is trained: so many ``epochs`` of batches of ``batch_size`` pairs by Adam at ``rate``; incomplete
    batches are dropped in SAEBench."""

    epochs: int = 2
    batch_size: int = 8
    rate: float = 1e-3
    drop_incomplete: bool = False


def exchanged(dictionary: DictionaryLike, base: Tensor, source: Tensor, gate: Tensor) -> Tensor:
    """``decode((1 - g) f(base) + g f(source))`` [..., d]: the reconstruction error of the base is not put back."""
    x_base = to_dictionary(base.flatten(0, -2), dictionary)
    x_source = to_dictionary(source.flatten(0, -2), dictionary)
    with torch.no_grad():
        f_base, f_source = dictionary.encode(x_base), dictionary.encode(x_source)
    g = gate.to(f_base)
    return decode_rows(dictionary, f_base + g * (f_source - f_base), x_base).to(base).view_as(base)


def patched_logits(upper: UpperLayers, items: Items, new: Tensor) -> Tensor:
    """Logits [row, position, vocabulary] with ``new`` [row, place, d] at the entities; gradients flow through it."""
    device = upper.model.device
    positions = torch.arange(items.tokens.token_ids.shape[1], device=device)
    where = items.entity.to(device)[:, :, None] == positions  # [row, place, position]; nowhere at -1
    new = new.to(device)

    def edit(x: Tensor) -> Tensor:
        for place in range(new.shape[1]):
            x = torch.where(where[:, place, :, None], new[:, place, None, :].to(x.dtype), x)
        return x

    return upper.logits(items.hidden.to(device), items.tokens, edit)


def train_mask(
    dictionary: DictionaryLike, upper: UpperLayers, items: Items, training: MaskTraining, order: torch.Generator
) -> Tensor:
    """The mask m [latent], float32: latents with m > 0 are exchanged (see :func:`train_gate`)."""
    device = upper.model.device

    def new(part: Items, gate: Tensor) -> Tensor:
        return exchanged(dictionary, part.base.to(device), part.source.to(device), gate)

    return train_gate(new, int(dictionary.W_dec.shape[0]), upper, items, training, order)


def train_gate(
    new: Callable[[Items, Tensor], Tensor],
    width: int,
    upper: UpperLayers,
    items: Items,
    training: MaskTraining,
    order: torch.Generator,
    along: Sequence[Tensor] = (),
    after_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """A mask m [width], float32.

    The gate of a coordinate is sigmoid(m / T), T falling from 1 to 1e-4 on a logarithmic scale over all steps; m starts
    at 0 and is trained on the cross-entropy of the first token of the wanted answer.

    Args:
        new: (items, gate [width]) → what then stands at their entities [row, place, d].
        order: draws the order of the items. along: parameters that are trained along with the mask.
        after_step: called after every step, to constrain these.
    """
    device = upper.model.device
    mask = torch.zeros(width, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([mask, *along], lr=training.rate)
    batches = [
        rows
        for _ in range(training.epochs)
        for rows in torch.randperm(len(items), generator=order).split(training.batch_size)
        if len(rows) == training.batch_size or not training.drop_incomplete
    ]
    for step, rows in enumerate(batches):
        temperature = 10 ** (-4 * step / max(len(batches) - 1, 1))
        part = items.part(rows)
        with torch.enable_grad():
            logits = patched_logits(upper, part, new(part, (mask / temperature).sigmoid()))
            first = torch.tensor([places[0] for places in part.answer], device=device)
            row = torch.arange(len(part), device=device)
            target = part.tokens.token_ids.to(device)[row, first]
            loss = torch.nn.functional.cross_entropy(logits[row, first - 1], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after_step()
    return mask.detach()


def answered(upper: UpperLayers, items: Items, new: Exchange, batch_size: int) -> Tensor:
    """[row] bool: the likeliest token is the wanted one at every token of the answer, with ``new(items)`` at the
    entities. This is what greedy generation would write, found in one pass."""
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
