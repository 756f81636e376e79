"""Are latents what makes the chat model behave as it does? Patch them into the base model's activations and see.

The chat model's upper layers read ``h_S = h_base + Σ_{j∈S} f_j (d_j^chat − d_j^base)`` in place of their own
``h_chat``; what is measured is ``KL(p_chat ‖ p_patched)`` where the assistant's words are predicted (arXiv 2504.02922,
section 4). Every condition is a sum of the same parts, and all of them are exact:

    h_chat = h_base + Σ_all f_j (d_j^chat − d_j^base) + (b^chat − b^base) + (e^chat − e^base)

so that a condition with everything has a divergence of 0. All conditions share what lies below the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from saeworks.dictionaries.kernels.sparse import decode_codes
from saeworks.diffing.block_sums import Sums, bootstrap
from saeworks.diffing.conversations import ConversationBatch, repeated
from saeworks.errors import InputError
from saeworks.models.scores import kl_divergence
from saeworks.models.upper_layers import UpperLayers
from saeworks.progress import progress
from saeworks.runtime import generator

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.models.language_model import LanguageModel

NONE, ALL, FULL = "none", "all", "full"
# Activations that go through the upper layers at a time, over all conditions stacked on top of each other.
STACKED_ROWS = 128


@dataclass(frozen=True, eq=False)
class Condition:
    """What is added to the base model's activations, and whose upper layers read the sum.

    Attributes:
        name: short; meaning: one sentence for readers.
        latents: ``[latent]`` int64, whose contributions are added; None for all of the dictionary.
        bias: whether ``b^chat − b^base`` is added. error: whether ``e^chat − e^base`` is.
        template_only: change the tokens of the template alone.
        into: whose upper layers follow.
    """

    name: str
    meaning: str
    latents: Tensor | None
    bias: bool = False
    error: bool = False
    template_only: bool = False
    into: Literal["chat", "base"] = "chat"


def nothing() -> Tensor:
    """No latents."""
    return torch.zeros(0, dtype=torch.int64)


def conditions(
    groups: Mapping[str, tuple[str, Tensor]], candidates: Tensor, size: int, random_groups: int = 5, seed: int = 0
) -> list[Condition]:
    """The conditions of the paper, with some groups of latents.

    Args:
        groups: name → (meaning, latents), such as the best and the worst half by some score.
        candidates: ``[latent]`` that random groups are drawn from. size: latents in each of them.
        random_groups: how many. seed: of the draws.
    """
    none, found = nothing(), list[Condition]()
    found.append(Condition(NONE, "The base model's activations as they are, read by the chat model.", none))
    found.append(Condition(ALL, "The contributions of all latents are added.", None))
    found.append(Condition("all and bias", "All latents and the difference of the decoder biases.", None, bias=True))
    found.append(Condition("bias", "The difference of the decoder biases alone.", none, bias=True))
    found.append(
        Condition("error", "What the dictionary does not rebuild, and the bias, without any latent.", none, True, True)
    )
    for name, (meaning, latents) in groups.items():
        found.append(Condition(name, meaning, latents))
    if len(candidates) and size:
        for i in range(random_groups):
            order = torch.randperm(len(candidates), generator=generator(seed, "random group", i))
            chosen = candidates[order[:size]].sort().values
            found.append(Condition(f"random {i + 1}", f"{len(chosen)} latents drawn at random.", chosen))
    found.append(
        Condition("template", "The chat model's own activations at the template's tokens.", None, True, True, True)
    )
    found.append(Condition(FULL, "All latents, bias and error: the chat model's own activations.", None, True, True))
    found.append(
        Condition("chat into base", "The chat model's activations, read by the base.", None, True, True, into="base")
    )
    found.append(Condition("base", "The base model alone.", none, into="base"))
    return found


@dataclass(frozen=True)
class PatchedKL:
    """Divergences, summed over the tokens of each conversation.

    Attributes:
        conditions: in the order of the second axis. groups: of tokens, in the order of the last axis: ``all``,
            ``first K`` for some K, and ``rest``, those behind the largest K.
        kl, nll: ``[conversation, condition, group]`` float64, sums of ``KL(p_chat ‖ p)`` and of the loss on the next
            token, in nats. tokens: ``[conversation, group]`` float64.
    """

    conditions: tuple[Condition, ...]
    groups: tuple[str, ...]
    kl: Tensor
    nll: Tensor
    tokens: Tensor

    def mean(self, condition: str, group: str = "all") -> float:
        """Mean divergence per token."""
        c, g = self._place(condition, group)
        return float(self.kl[:, c, g].sum() / self.tokens[:, g].sum())

    def table(self, resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
        """One row per condition and group, with 95 % intervals by drawing conversations.

        ``recovered`` is the share of the divergence of ``none`` that is gone; NaN where there is none.
        """
        kl, low, high = self._estimate(lambda s: s["kl"] / s["count"], resamples, seed)
        first = self._place(NONE, "all")[0]
        recovered, least, most = self._estimate(lambda s: 1 - s["kl"] / s["kl"][:, first : first + 1], resamples, seed)
        nll = self.nll.sum(dim=0) / self.tokens.sum(dim=0)
        rows: list[dict[str, Any]] = []
        for c, condition in enumerate(self.conditions):
            for g, group in enumerate(self.groups):
                rows.append(
                    {
                        "condition": condition.name,
                        "meaning": condition.meaning,
                        "latents": None if condition.latents is None else len(condition.latents),
                        "group": group,
                        "tokens": int(self.tokens[:, g].sum()),
                        "kl": float(kl[c, g]),
                        "kl_low": float(low[c, g]),
                        "kl_high": float(high[c, g]),
                        "recovered": float(recovered[c, g]),
                        "recovered_low": float(least[c, g]),
                        "recovered_high": float(most[c, g]),
                        "nll": float(nll[c, g]),
                    }
                )
        return rows

    def difference(
        self, one: str, other: str, group: str = "all", resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float, float]:
        """KL of ``one`` minus that of ``other``, with its 95 % interval: both on the same drawn conversations."""
        (a, g), (b, _) = self._place(one, group), self._place(other, group)
        value, low, high = self._estimate(lambda s: (s["kl"][:, a] - s["kl"][:, b]) / s["count"][:, 0], resamples, seed)
        return float(value[g]), float(low[g]), float(high[g])

    def _estimate(
        self, statistic: Callable[[Sums], Tensor], resamples: int, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums: Sums = {"tokens": self.tokens[:, 0], "kl": self.kl, "count": self.tokens[:, None]}
        value = statistic({name: part.sum(dim=0, keepdim=True) for name, part in sums.items()})[0]
        low, high = bootstrap(sums, statistic, resamples, seed)
        return value, low, high

    def _place(self, condition: str, group: str) -> tuple[int, int]:
        names = [c.name for c in self.conditions]
        if condition not in names or group not in self.groups:
            raise InputError(f"Nothing was patched as '{condition}' on '{group}'; there is: {', '.join(names)}.")
        return names.index(condition), self.groups.index(group)


@torch.no_grad()
def patch_kl(
    base: LanguageModel,
    chat: LanguageModel,
    dictionary: Dictionary,
    site: str,
    batches: Iterable[ConversationBatch],
    wanted: Sequence[Condition],
    first: Sequence[int] = (3, 9),
) -> PatchedKL:
    """Measure conditions on conversations.

    Args:
        base, chat: of one architecture, with one tokenizer.
        dictionary: a crosscoder over the two models, base first, in raw units.
        site: where it reads: the residual stream before or after a layer.
        batches: see :func:`saeworks.diffing.conversations.conversation_batches`.
        wanted: conditions; their names differ, and one of them is ``none``.
        first: groups of the first so many tokens of every answer.

    Raises:
        InputError: a dictionary of other sources or widths, a site inside a layer, or conditions without ``none``.
    """
    work = _Patching(base, chat, dictionary, site, tuple(wanted), tuple(first))
    with progress(None, "patching", unit="conversation") as bar:
        for batch in batches:
            work.add(batch)
            bar.update(len(batch))
    return work.result()


class _Patching:
    """Adds up divergences, batch after batch."""

    def __init__(
        self,
        base: LanguageModel,
        chat: LanguageModel,
        dictionary: Dictionary,
        site: str,
        wanted: tuple[Condition, ...],
        first: tuple[int, ...],
    ) -> None:
        names = [condition.name for condition in wanted]
        if NONE not in names or len(set(names)) != len(names):
            raise InputError(f"Conditions need different names, '{NONE}' among them, but got: {', '.join(names)}.")
        self.models = {"base": base, "chat": chat}
        self.upper = {name: UpperLayers(model, site) for name, model in self.models.items()}
        self.site = self.upper["chat"].cached_site
        if not self.upper["chat"].direct:
            raise InputError(f"Patching replaces the residual stream, but '{site}' lies inside a layer; name another.")
        widths = tuple(model.site(site).width for model in self.models.values())
        if len(dictionary.cfg.widths) != 2 or dictionary.cfg.widths != widths or widths[0] != widths[1]:
            raise InputError(
                f"A dictionary over sources of widths {list(dictionary.cfg.widths)} came to patch models of widths "
                f"{list(widths)}; give a crosscoder over these two models."
            )
        self.dictionary, self.wanted, self.first = dictionary, wanted, first
        _, decoder_base, bias_base = dictionary.source(0)
        _, decoder_chat, bias_chat = dictionary.source(1)
        self.difference = (decoder_chat - decoder_base).contiguous()
        self.bias = bias_chat - bias_base
        self.member = [_membership(condition, dictionary) for condition in wanted]
        self.groups = ("all", *(f"first {k}" for k in first), "rest")
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, batch: ConversationBatch) -> None:
        """One batch: both models up to the site, then every condition above it."""
        hidden = {m: model.harvest(batch.tokens, [self.site])[self.site].float() for m, model in self.models.items()}
        at = batch.answer_index >= 0
        reference = self.upper["chat"].logits(hidden["chat"], batch.tokens, at=at)
        targets = batch.tokens.token_ids.roll(-1, dims=1)[at].to(reference.device)
        members = self._members(batch)
        shape = (len(batch), len(self.wanted), len(self.groups))
        kl, nll = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        patched = self._patched(batch, hidden["base"], hidden["chat"])
        stack = max(1, STACKED_ROWS // len(batch))
        for into in ("chat", "base"):
            chosen = [c for c, condition in enumerate(self.wanted) if condition.into == into]
            for start in range(0, len(chosen), stack):
                part = chosen[start : start + stack]
                stacked = torch.cat([patched(c) for c in part])
                logits = self.upper[into].logits(stacked, repeated(batch, len(part)), at=at.repeat(len(part), 1))
                for c, own in zip(part, logits.chunk(len(part)), strict=True):
                    kl[:, c] = members(kl_divergence(reference, own))
                    nll[:, c] = members(cross_entropy(own, targets, reduction="none"))
        self._parts.append((kl, nll, members(torch.ones(len(targets)))))

    def result(self) -> PatchedKL:
        """Everything that was added."""
        if not self._parts:
            raise InputError("No conversation was given to patch; give at least one.")
        kl, nll, tokens = (torch.cat([part[i] for part in self._parts]) for i in range(3))
        return PatchedKL(self.wanted, self.groups, kl, nll, tokens)

    def _members(self, batch: ConversationBatch) -> Any:
        """From values at the answers' tokens to their sums ``[row, group]``."""
        where = batch.answer_index >= 0
        rows, index = where.nonzero()[:, 0], batch.answer_index[where]
        behind = max(self.first, default=0)
        masks = [torch.ones_like(index, dtype=torch.bool), *(index < k for k in self.first), index >= behind]
        stacked = torch.stack(masks, dim=1).double()

        def sums(values: Tensor) -> Tensor:
            out = torch.zeros(len(batch), len(masks), dtype=torch.float64)
            return out.index_add_(0, rows, stacked * values.double().cpu()[:, None])

        return sums

    def _patched(self, batch: ConversationBatch, base: Tensor, chat: Tensor) -> Any:
        """From the number of a condition to the activations ``[row, position, d]`` that it puts in place."""
        inside = batch.inside.to(base.device)
        codes = self.dictionary.encode_sparse(torch.cat([base[inside], chat[inside]], dim=1).to(self.dictionary.device))
        everything = decode_codes(codes, self.difference)
        template = batch.is_template.to(base.device)[..., None]

        def patched(c: int) -> Tensor:
            condition, member = self.wanted[c], self.member[c]
            own = everything
            if member is not None:
                own = decode_codes(codes.with_values(codes.values * member[codes.indices]), self.difference)
            change = torch.zeros_like(base)
            if condition.error:
                change = chat - base
                change[inside] -= (everything + self.bias).to(base)
            change[inside] += (own + self.bias * condition.bias).to(base)
            return base + (change * template if condition.template_only else change)

        return patched


def _membership(condition: Condition, dictionary: Dictionary) -> Tensor | None:
    """``[latent]`` 1 where a latent takes part; None for all."""
    if condition.latents is None:
        return None
    latents, width = condition.latents, dictionary.cfg.d_sae
    if len(latents) and not 0 <= int(latents.min()) <= int(latents.max()) < width:
        raise InputError(f"The condition '{condition.name}' names latents beyond the {width} of the dictionary.")
    member = torch.zeros(width, dtype=dictionary.dtype, device=dictionary.device)
    member[latents.to(dictionary.device)] = 1.0
    return member
