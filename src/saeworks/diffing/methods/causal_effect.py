"""Does the mean difference matter? Give the chat model the base's part along it and see what its predictions lose.

Along a unit direction u the chat model's activations become ``h_chat + ⟨h_base − h_chat, u⟩ u``. The change of the
next-token loss is compared with that along random directions, and along differences of single random tokens
(arXiv 2510.13900, appendix on causal effects).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from saeworks.models.tokens import TokenBatch
from saeworks.models.upper_layers import UpperLayers
from saeworks.runtime import generator

if TYPE_CHECKING:
    from saeworks.diffing.model_pair import ModelPair


@dataclass(frozen=True, slots=True)
class CausalEffect:
    """Changes of the chat model's loss in nats per token, each along another direction.

    Attributes:
        mean_difference: along the mean difference. random: ``[vector]`` along random directions.
        token_differences: ``[vector]`` along the differences at single tokens.
        tokens: predictions that were measured. data_set: of which data set.
        rows: rows of tokens that went through a model or its upper part.
    """

    mean_difference: float
    random: Tensor
    token_differences: Tensor
    tokens: int
    data_set: str
    rows: int

    def rank(self, which: str = "random") -> float:
        """Share of the control directions whose effect is smaller than the mean difference's."""
        others: Tensor = getattr(self, which)
        return float((others < self.mean_difference).double().mean())


@torch.no_grad()
def causal_effects(
    pair: ModelPair, direction: Tensor, tokens: int, *, controls: int = 64, after: int = 20, seed: int = 0
) -> list[CausalEffect]:
    """The effect of taking a direction from the base, for every data set of the pair.

    Args:
        direction: ``[d]``, the mean difference; any length. tokens: positions of the pair to read.
        controls: directions of either kind. after: only tokens past this position of a row count.
        seed: of the random directions and the choice of tokens.
    """
    upper = UpperLayers(pair.models[1], pair.sites[1])
    draw = generator(seed, "causal effect")
    random = torch.randn(controls, len(direction), generator=draw)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    rows: dict[str, int] = {}
    tokens_of: Tensor | None = None
    for context in pair.contexts(tokens):
        site, name = upper.name, context.data_set
        base = pair.models[0].harvest(context.base_tokens, [pair.sites[0]])[pair.sites[0]].float()
        caches = list({upper.cached_site, site})
        harvested = pair.models[1].harvest(context.tokens, caches)
        hidden, chat = harvested[upper.cached_site].float(), harvested[site].float()
        base = base.to(chat.device)
        if tokens_of is None:
            differences = (chat - base)[context.keep.to(chat.device)]
            chosen = torch.randint(len(differences), (controls,), generator=draw)
            tokens_of = differences[chosen.to(chat.device)].cpu()
        units = torch.cat([direction[None].cpu().float(), random, tokens_of])
        units = functional.normalize(units, dim=1).to(chat.device)
        mask = _measured(context.tokens, context.keep, after).to(chat.device)
        if not bool(mask.any()):
            continue
        untouched = _losses(upper.logits(hidden, context.tokens), context.tokens, mask)
        changes: list[Tensor] = []
        for u in units:
            edited = upper.logits(hidden, context.tokens, _from_base(base, u))
            changes.append(_losses(edited, context.tokens, mask) - untouched)
        sums[name] = sums.get(name, torch.zeros(len(units), dtype=torch.float64)) + torch.stack(changes).cpu()
        counts[name] = counts.get(name, 0) + int(mask.sum())
        rows[name] = rows.get(name, 0) + len(context.tokens) * (3 + len(units))
    found: list[CausalEffect] = []
    for name, total in sums.items():
        effect = total / counts[name]
        part = effect[1:].split(controls)
        found.append(CausalEffect(float(effect[0]), part[0], part[1], counts[name], name, rows[name]))
    return found


def _from_base(base: Tensor, unit: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x + ((base - x) @ unit)[..., None] * unit


def _measured(tokens: TokenBatch, keep: Tensor, after: int) -> Tensor:
    """``[row, position − 1]`` bool: positions that count, past the first ones, which predict a real token."""
    mask = keep[:, :-1] & tokens.attention_mask[:, 1:]
    mask[:, :after] = False
    return mask


def _losses(logits: Tensor, tokens: TokenBatch, mask: Tensor) -> Tensor:
    """Sum of the next-token losses where ``mask`` is, float64."""
    targets = tokens.token_ids[:, 1:].to(logits.device)[mask]
    return functional.cross_entropy(logits[:, :-1][mask], targets, reduction="sum").double()
