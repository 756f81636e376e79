"""What a change at a site does to the language model's predictions: next-token loss and KL divergence, per document."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.evals.compat.core_compat import kl_of_softmaxes
from saeworks.evals.shared.batches import DocumentBatch

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel


class Behaviour:
    """Next-token loss and KL divergence of the clean, ablated and spliced model, summed per document.

    ``reason`` says why behaviour cannot be measured (None when it can); nothing is computed then. ``compat`` takes the
    KL divergence as SAEBench does, from softmaxes in the model's own number type.
    """

    def __init__(
        self,
        model: LanguageModel,
        sites: list[str],
        documents: int,
        exclude_special_tokens: bool,
        compat: bool = False,
    ) -> None:
        self.model, self.sites, self.documents = model, sites, documents
        self.exclude_special_tokens, self.compat = exclude_special_tokens, compat
        self.reason = _why_no_behaviour(model)
        self.means: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}

    def begin(self, batch: DocumentBatch, first: int) -> None:
        """Logits of the clean model and of both ablations at every site."""
        if self.reason is not None:
            return
        from saeworks.models.interventions import Splice, ZeroAblate

        ids, attention = batch.tokens.token_ids, batch.tokens.attention_mask
        rows, positions = batch.kept(self.exclude_special_tokens).nonzero().unbind(1)
        next_position = (positions + 1).clamp_max(ids.shape[1] - 1)
        # Dropped by the current token, as SAEBench does; the last token of a row has nothing to predict.
        self._predicts = (positions + 1 < ids.shape[1]) & attention[rows, next_position]
        self._next = ids[rows, next_position]
        self._batch, self._rows, self._positions, self._document = batch, rows, positions, rows.cpu() + first
        logits = self._logits(())
        self._clean = logits.log_softmax(-1)
        self._p = self._softmax(logits) if self.compat else self._clean.exp()
        self._add("ce_clean", self._cross_entropy(self._clean))
        self._add("ce_tokens", self._predicts.double())
        self._add("kl_tokens", torch.ones(len(rows), dtype=torch.float64))
        for site in self.sites:
            mean = self.means[site]
            self._measure(f"zero@{site}", (ZeroAblate(site, where="all"),))
            self._measure(f"mean@{site}", (Splice(site, _constant(mean), where="all"),))

    def splice(self, name: str, site: str, x_hat: Tensor) -> None:
        """Logits with the reconstruction [row, position, d] in place of the activations."""
        if self.reason is not None:
            return
        from saeworks.models.interventions import Splice

        where = "keep" if self.exclude_special_tokens else "all"
        self._measure(f"sae@{name}", (Splice(site, _constant(x_hat), where=where),))

    def _measure(self, name: str, interventions: tuple[Any, ...]) -> None:
        logits = self._logits(interventions)
        # log_softmax in float32: softmax followed by log turns a probability of 0 into NaN in half precision.
        changed = logits.log_softmax(-1)
        self._add(f"ce_{name}", self._cross_entropy(changed))
        apart = (self._p * (self._clean - changed)).sum(-1) if not self.compat else self._compat_divergence(logits)
        self._add(f"kl_{name}", apart)

    def _compat_divergence(self, logits: Tensor) -> Tensor:
        return kl_of_softmaxes(self._p, self._softmax(logits))

    def _softmax(self, logits: Tensor) -> Tensor:
        return logits.to(self.model.dtype).softmax(-1)

    def _logits(self, interventions: tuple[Any, ...]) -> Tensor:
        """[token, vocabulary] float32 of the measured tokens."""
        logits = self.model.logits(self._batch.tokens, interventions)
        device = logits.device
        return logits[self._rows.to(device), self._positions.to(device)].float()

    def _cross_entropy(self, log_probabilities: Tensor) -> Tensor:
        picked = log_probabilities.gather(1, self._next.to(log_probabilities.device)[:, None]).squeeze(1)
        return torch.where(self._predicts.to(picked.device), -picked, 0.0)

    def _add(self, name: str, per_token: Tensor) -> None:
        total = self.sums.setdefault(name, torch.zeros(self.documents, dtype=torch.float64))
        total.index_add_(0, self._document, per_token.cpu().double())


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: value.to(device=x.device, dtype=x.dtype).expand_as(x)


def check_predicts(model: LanguageModel, eval_name: str) -> None:
    """``InputError`` unless ``model`` predicts the next token, which the eval needs."""
    if _why_no_behaviour(model) is not None:
        raise InputError(
            f"Model '{model.name}' does not predict the next token, so it cannot answer questions; leave the eval "
            f"'{eval_name}' out."
        )


def _why_no_behaviour(model: LanguageModel) -> str | None:
    head = getattr(model.module, "get_output_embeddings", None)
    if head is not None and head() is None:
        return f"Model '{model.name}' has no language-model head, so loss and KL divergence do not exist for it."
    if not model.is_causal:
        return f"Model '{model.name}' is not causal: it predicts no next token, so these scores are undefined."
    return None
