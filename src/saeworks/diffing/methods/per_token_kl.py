"""Where do the two models predict differently? The divergence of their next-token distributions at every token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from saeworks.diffing.block_sums import BlockSums, jackknife
from saeworks.diffing.latent_stats import GROUPS, groups_of
from saeworks.diffing.methods.interface import Cost, MethodResult, Needs, Numbers, models_of, settings_of
from saeworks.diffing.methods.top_tokens import TopTokens
from saeworks.diffing.model_pair import PairedContext
from saeworks.diffing.pairs import PairedBatch, PairedSource
from saeworks.models.tokens import TokenBatch
from saeworks.progress import progress

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

# Logits of one model at a time: 2^27 entries are 0.5 GB.
ENTRIES = 2**27
Rows = tuple[TokenBatch, TokenBatch, Tensor]
MEASURES = ("kl_chat_base", "kl_base_chat", "js")


@dataclass(frozen=True, slots=True)
class PerTokenKL:
    """KL in both directions and the Jensen–Shannon divergence, in nats, at every token that counts.

    Findings are tokens by ``KL(chat ‖ base)`` of what follows them, with the likeliest next token of both models.

    Args:
        top: tokens to report. chunk: entries of the vocabulary that are compared at a time.
    """

    top: int = 20
    chunk: int = 16384
    name: ClassVar[str] = "per_token_kl"
    needs: ClassVar[Needs] = "models"

    @torch.no_grad()
    def run(self, source: PairedSource, tokens: int | None = None) -> MethodResult:
        """Run both models over the source's rows of tokens."""
        pair, cost = models_of(source, self.name), Cost()
        base, chat = pair.models
        best, sums = TopTokens(self.top, chat.tokenizer), BlockSums(block_tokens=256)
        with cost.timed(), progress(tokens, "per-token KL", unit="tok") as bar:
            for context in pair.contexts(tokens):
                left = None if tokens is None else tokens - cost.tokens
                batch = _batch_of(context)[slice(0, left)]
                parts = [self._compared(base, chat, part) for part in _in_parts(context, chat.tokenizer)]
                found, following = (torch.cat(p, dim=1)[:, :left].cpu() for p in zip(*parts, strict=True))
                evidence = dict(zip(MEASURES[1:], found[1:], strict=True))
                best.add(batch, found[0], evidence | {"chat_next": following[0], "base_next": following[1]})
                sums.add(_sums(batch, found))
                cost.tokens += len(batch)
                cost.forward_rows += 2 * len(context.tokens)
                bar.update(len(batch))
        found = best.findings(words=("chat_next", "base_next"))
        return MethodResult(self.name, settings_of(self), cost, found, numbers=_numbers(sums))

    def _compared(self, base: LanguageModel, chat: LanguageModel, rows: Rows) -> tuple[Tensor, Tensor]:
        """Divergences ``[3, token]`` and likeliest next tokens of both ``[2, token]`` where ``keep`` is."""
        chat_tokens, base_tokens, keep = rows
        chat_logits = chat.logits(chat_tokens)[keep.to(chat.device)]
        base_logits = base.logits(base_tokens)[keep.to(base.device)].to(chat.device)
        following = torch.stack([chat_logits.argmax(dim=1), base_logits.argmax(dim=1)])
        return divergences(chat_logits, base_logits, self.chunk), following


def divergences(chat: Tensor, base: Tensor, chunk: int = 16384) -> Tensor:
    """``[3, token]`` float64 nats: KL(chat ‖ base), KL(base ‖ chat) and the Jensen–Shannon divergence.

    Args:
        chat, base: logits ``[token, vocabulary]``. Where one model has tokens that the other lacks, both are compared
            on those that they share.
        chunk: entries of the vocabulary at a time, so that no further ``[token, vocabulary]`` is made.
    """
    shared = min(chat.shape[1], base.shape[1])
    chat, base = chat[:, :shared], base[:, :shared]
    total = (chat.logsumexp(dim=1, keepdim=True), base.logsumexp(dim=1, keepdim=True))
    out = torch.zeros(3, len(chat), dtype=torch.float64, device=chat.device)
    for start in range(0, shared, chunk):
        part = slice(start, start + chunk)
        log_p, log_q = (chat[:, part] - total[0]).double(), (base[:, part] - total[1]).double()
        p, q = log_p.exp(), log_q.exp()
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        # Where a model forbids a token its term is 0 by continuity.
        out[0] += torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=1)
        out[1] += torch.where(q > 0, q * (log_q - log_p), 0.0).sum(dim=1)
        out[2] += torch.where(p > 0, p * (log_p - log_m), 0.0).sum(dim=1) / 2
        out[2] += torch.where(q > 0, q * (log_q - log_m), 0.0).sum(dim=1) / 2
    return out


def _in_parts(context: PairedContext, tokenizer: Any) -> Iterator[Rows]:
    """The rows of a context, so many at a time that their logits stay below :data:`ENTRIES`."""
    count, positions = context.keep.shape
    size = max(1, ENTRIES // (positions * max(len(tokenizer), 1)))
    for start in range(0, count, size):
        part = slice(start, start + size)
        chat, base = (
            TokenBatch(t.token_ids[part], t.attention_mask[part], t.keep[part], None, t.is_causal)
            for t in (context.tokens, context.base_tokens)
        )
        yield chat, base, context.keep[part]


def _batch_of(context: PairedContext) -> PairedBatch:
    """What has to be known of the tokens that count, without activations."""
    keep = context.keep
    row, position = keep.nonzero(as_tuple=True)
    return PairedBatch(
        (),
        context.tokens.token_ids[keep],
        context.sequence_ids[row],
        position,
        context.is_template[keep],
        context.answer_index[keep],
        context.data_set,
    )


def _sums(batch: PairedBatch, found: Tensor) -> dict[str, Tensor]:
    """Sums by group of tokens; the data set goes into the name."""
    group = groups_of(batch)
    found = found.cpu()
    counts = torch.bincount(group, minlength=len(GROUPS)).double()
    values = torch.stack([torch.bincount(group, weights=row, minlength=len(GROUPS)) for row in found])
    return {"tokens": counts.sum(), "count": counts, "sum": values}


def _numbers(sums: BlockSums) -> Numbers:
    """Means with standard errors, over all tokens and by group."""
    numbers: Numbers = {}
    stacked = sums.stacked()
    mean, error = jackknife(stacked, lambda s: s["sum"].sum(dim=-1) / s["tokens"][:, None])
    of_group, error_of_group = jackknife(stacked, lambda s: s["sum"] / s["count"][:, None])
    for i, measure in enumerate(MEASURES):
        numbers |= {measure: float(mean[i]), f"{measure}_se": _known(error[i])}
        for g, group in enumerate(GROUPS):
            numbers |= {
                f"{measure}_{group}": _known(of_group[i, g]),
                f"{measure}_{group}_se": _known(error_of_group[i, g]),
            }
    return numbers


def _known(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)
