"""How well logits predict: per-token loss and the divergence between two sets of logits, both in nats."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from saeworks.errors import InputError
from saeworks.models.tokens import TokenBatch


def next_token_mask(batch: TokenBatch) -> Tensor:
    """``[row, position − 1]`` bool: True where a real token predicts a real token."""
    return batch.attention_mask[:, :-1] & batch.attention_mask[:, 1:]


def next_token_loss(logits: Tensor, batch: TokenBatch) -> Tensor:
    """Cross-entropy in nats of each next token.

    Args:
        logits: ``[row, position, vocabulary]``.
        batch: the tokens that the logits were computed from.

    Returns:
        ``[row, position − 1]`` float32; entry ``t`` is the loss of predicting token ``t + 1`` from tokens up to ``t``.
        Entries outside :func:`next_token_mask` are 0 and must not be averaged.

    Raises:
        InputError: the batch belongs to a masked language model, or the shapes do not match.
    """
    if not batch.is_causal:
        raise InputError(
            "The next-token loss is not defined for a masked language model, which sees the token it would predict; "
            "use a causal model."
        )
    if logits.shape[:2] != batch.token_ids.shape:
        raise InputError(
            f"Logits of shape {tuple(logits.shape)} do not belong to a batch of shape {tuple(batch.token_ids.shape)}."
        )
    targets = batch.token_ids[:, 1:].to(logits.device)
    mask = next_token_mask(batch).to(logits.device)
    scores = logits[:, :-1].float().transpose(1, 2)
    return functional.cross_entropy(scores, targets, reduction="none").masked_fill(~mask, 0.0)


def kl_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(p ‖ q) in nats at each position, summed over the vocabulary.

    Args:
        logits_p, logits_q: ``[row, position, vocabulary]``; p is the reference (the unchanged model).

    Returns:
        ``[row, position]`` float32.

    Raises:
        InputError: the shapes differ.
    """
    if logits_p.shape != logits_q.shape:
        raise InputError(
            f"KL divergence compares logits of equal shape, but got {tuple(logits_p.shape)} and "
            f"{tuple(logits_q.shape)}."
        )
    log_p = torch.log_softmax(logits_p.float(), dim=-1)
    log_q = torch.log_softmax(logits_q.float(), dim=-1)
    p = log_p.exp()
    # Where p is 0 the term is 0 by continuity, also when a model forbids a token with a logit of −∞.
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
