"""Text to token batches, with the mask that says which positions count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saeworks.errors import InputError

Offsets = list[list[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded rows of tokens.

    Attributes:
        token_ids: ``[row, position]`` int64.
        attention_mask: ``[row, position]`` bool, False at padding.
        keep: ``[row, position]`` bool, False at padding and at every special token (BOS, EOS, CLS, SEP, unknown, chat
            markers). Nothing else is dropped: without a BOS token the first position counts like any other.
        offsets: for each row and position the character span ``(start, end)`` in its text; ``(0, 0)`` at special
            tokens and padding. ``None`` when the tokenizer cannot tell.
        is_causal: whether the batch was made for a model that predicts the next token.
    """

    token_ids: Tensor
    attention_mask: Tensor
    keep: Tensor
    offsets: Offsets | None = None
    is_causal: bool = True

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device (itself when it is there already)."""
        if self.token_ids.device == torch.device(device):
            return self
        parts = (self.token_ids, self.attention_mask, self.keep)
        ids, mask, keep = (part.to(device, non_blocking=True) for part in parts)
        return TokenBatch(ids, mask, keep, self.offsets, self.is_causal)


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What has to be known of a tokenizer to make batches; computed once per model by :func:`read_rules`."""

    pad_id: int
    bos_id: int | None
    adds_bos: bool
    added_tokens: int
    special_ids: frozenset[int]
    vocabulary: int
    max_context: int | None
    is_causal: bool

    def keep(self, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``[row, position]`` bool: real tokens that are not special."""
        special = torch.tensor(sorted(self.special_ids), dtype=torch.int64, device=token_ids.device)
        return attention_mask.bool() & ~torch.isin(token_ids, special)


def read_rules(tokenizer: Any, vocabulary: int, max_context: int | None, is_causal: bool) -> TokenRules:
    """Ask a Hugging Face tokenizer for its special tokens and habits.

    Tokenizers without a padding token pad with the end token, else with id 0; the attention mask hides it either way.
    """
    special = {int(i) for i in tokenizer.all_special_ids}
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    special |= {int(i) for i, token in added.items() if getattr(token, "special", False)}
    bos: int | None = tokenizer.bos_token_id
    alone: list[int] = list(tokenizer("")["input_ids"])
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id
    return TokenRules(
        pad_id=int(pad) if pad is not None else 0,
        bos_id=bos,
        adds_bos=bos is not None and alone[:1] == [bos],
        added_tokens=len(alone),
        special_ids=frozenset(special),
        vocabulary=vocabulary,
        max_context=max_context,
        is_causal=is_causal,
    )


def tokenize(
    tokenizer: Any,
    rules: TokenRules,
    texts: Sequence[str],
    context_length: int,
    prepend_bos: bool | None = None,
) -> TokenBatch:
    """Tokenize texts, one row each, cut to ``context_length`` tokens (special tokens included).

    The special tokens that the tokenizer adds by itself are added. A causal tokenizer that has a BOS token but does
    not add it (GPT-2) gets it in front, because such models treat the first position as a sink whatever stands there.

    Args:
        prepend_bos: ``None`` as above; ``True`` makes sure that BOS stands in front; ``False`` takes it away.

    Raises:
        InputError: no texts, a bare string, entries that are not strings, a context length that cannot hold a token or
            exceeds the model, ``prepend_bos=True`` without a BOS token.
    """
    _check_texts(texts)
    check_context_length(context_length, rules)
    if prepend_bos and rules.bos_id is None:
        raise InputError("prepend_bos=True was asked for, but the tokenizer has no BOS token; leave it out.")
    wanted = (rules.is_causal or rules.adds_bos) if prepend_bos is None else prepend_bos
    insert = wanted and rules.bos_id is not None and not rules.adds_bos
    strip = not wanted and rules.adds_bos
    room = context_length - int(insert) + int(strip)
    if room <= rules.added_tokens:
        raise InputError(
            f"context_length {context_length} leaves no room for text beside the special tokens; "
            f"use {context_length + rules.added_tokens - room + 1} or more."
        )
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(list(texts), truncation=True, max_length=room, return_offsets_mapping=fast)
    rows: list[list[int]] = [list(ids) for ids in encoded["input_ids"]]
    offsets: Offsets | None = [list(spans) for spans in encoded["offset_mapping"]] if fast else None
    if insert:
        assert rules.bos_id is not None
        rows = [[rules.bos_id, *ids] for ids in rows]
        offsets = [[(0, 0), *spans] for spans in offsets] if offsets is not None else None
    if strip:
        rows = [ids[1:] for ids in rows]
        offsets = [spans[1:] for spans in offsets] if offsets is not None else None
    return batch_from_ids(rules, rows, offsets)


def batch_from_ids(rules: TokenRules, rows: Sequence[Sequence[int]], offsets: Offsets | None = None) -> TokenBatch:
    """Pad rows of token ids to a batch. Nothing is added: special tokens must be in the rows already.

    Raises:
        InputError: no rows, ids outside the model's vocabulary, rows longer than the model can read.
    """
    if len(rows) == 0:
        raise InputError("A batch needs at least one row of token ids, but none was given.")
    lengths = [len(row) for row in rows]
    longest = max(1, *lengths)
    if rules.max_context is not None and longest > rules.max_context:
        raise InputError(
            f"A row has {longest} tokens, but the model reads at most {rules.max_context}; cut it into windows."
        )
    try:
        flat = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    except (TypeError, ValueError) as e:
        raise InputError("Token ids must be integers; give text to tokenize() instead.") from e
    outside = flat[(flat < 0) | (flat >= rules.vocabulary)]
    if outside.numel():
        raise InputError(
            f"Token id {int(outside[0])} is outside the model's vocabulary of {rules.vocabulary}; "
            "the tokens come from another tokenizer."
        )
    attention_mask = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    token_ids = torch.full((len(rows), longest), rules.pad_id, dtype=torch.int64)
    token_ids[attention_mask] = flat
    if offsets is not None:
        if [len(spans) for spans in offsets] != lengths:
            raise InputError("Offsets were given for other rows: their lengths differ from those of the token ids.")
        offsets = _clean_offsets(rules, rows, offsets, longest)
    keep = rules.keep(token_ids, attention_mask)
    return TokenBatch(token_ids, attention_mask, keep, offsets, rules.is_causal)


def check_context_length(context_length: int, rules: TokenRules) -> None:
    """``InputError`` unless ``1 <= context_length <= rules.max_context``."""
    if context_length < 1:
        raise InputError(f"context_length is {context_length}; it must be at least 1 token.")
    if rules.max_context is not None and context_length > rules.max_context:
        raise InputError(
            f"context_length is {context_length}, but the model has {rules.max_context} positions; "
            f"use {rules.max_context} or less."
        )


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InputError("tokenize() takes a list of texts, but got one string; put it in a list.")
    if len(texts) == 0:
        raise InputError("tokenize() got no texts; give at least one.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"Text {i} is of type {type(text).__name__}, not a string; convert it first.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as e:
            raise InputError(
                f"Text {i} holds half of a surrogate pair at character {e.start}, which is no Unicode text; "
                "remove or replace it."
            ) from e


def _clean_offsets(rules: TokenRules, rows: Sequence[Sequence[int]], offsets: Offsets, width: int) -> Offsets:
    """Spans as plain tuples, (0, 0) at special tokens (some tokenizers give those a place), padded to ``width``."""
    clean: Offsets = []
    for ids, spans in zip(rows, offsets, strict=True):
        row = [
            (0, 0) if token in rules.special_ids else (int(span[0]), int(span[1]))
            for token, span in zip(ids, spans, strict=True)
        ]
        clean.append(row + [(0, 0)] * (width - len(row)))
    return clean
