"""Texts as rows of tokens that can be read in windows: which token, which characters, which concepts.

``document_rows`` puts one text into each row. ``packed_rows`` joins all texts and cuts the stream into equal rows, as
SAEBench's autointerp does; a row then begins and ends anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.evals.shared.batches import DocumentBatch
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel


Concepts = frozenset[str]


@dataclass(frozen=True)
class TokenRows:
    """Rows of one length. All tensors are [row, position]; ``offsets`` is [row, position, 2].

    ``valid`` is False at special tokens and padding. ``document`` is the number of the text that a token comes from,
    -1 where there is none; ``offsets`` are the token's characters in it, (0, 0) where the tokenizer cannot tell.
    ``lengths`` [row] counts tokens without padding.
    """

    documents: Sequence[Document]
    token_ids: Tensor
    valid: Tensor
    document: Tensor
    offsets: Tensor
    lengths: Tensor
    tokenizer: Any
    _sets: dict[Concepts, Concepts] = field(default_factory=dict[Concepts, Concepts], repr=False)

    @property
    def columns(self) -> int:
        """Tokens in a row, padding included."""
        return self.token_ids.shape[1]

    def extent(self, row: int) -> tuple[int, int]:
        """First valid position of a row, and the one behind the last."""
        places = self.valid[row].nonzero().squeeze(1)
        return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)

    def words(self, row: int, start: int, stop: int) -> tuple[str, ...]:
        """The text of each token in a window. Characters between two tokens belong to the later one."""
        out: list[str] = []
        ids = self.token_ids[row, start:stop].tolist()
        number = self.document[row, start:stop].tolist()
        spans = self.offsets[row, start:stop].tolist()
        for i, (token, n, (first, last)) in enumerate(zip(ids, number, spans, strict=True)):
            if n < 0 or first == last:
                out.append(str(self.tokenizer.decode([token])))
                continue
            before = spans[i - 1][1] if i and number[i - 1] == n else first
            out.append(self.documents[n].text[before or first : last])
        return tuple(out)

    def concepts(self, row: int, start: int, stop: int) -> tuple[Concepts, ...]:
        """The concepts of each token in a window, from the spans it touches, with the concepts above them."""
        number = self.document[row, start:stop].tolist()
        spans = self.offsets[row, start:stop].tolist()
        return tuple(self._concepts_at(n, first, last) for n, (first, last) in zip(number, spans, strict=True))

    def _concepts_at(self, number: int, first: int, last: int) -> Concepts:
        found: set[str] = set()
        if number >= 0:
            for span in self.documents[number].spans:
                if span.start < last and first < span.end:
                    path = span.concept
                    while path and path not in found:
                        found.add(path)
                        path = path.rpartition("/")[0]
        # Few sets are different, and every token that is looked at keeps one.
        return self._sets.setdefault(frozenset(found), frozenset(found))

    def batches(self, model: LanguageModel, batch_size: int) -> Iterator[tuple[DocumentBatch, Tensor, Tensor]]:
        """Batches for the model, rows of similar length together: (batch, rows [batch], valid [batch, position])."""
        for chosen in self.lengths.argsort(stable=True).split(batch_size):
            longest = max(1, int(self.lengths[chosen].max()))
            ids = [self.token_ids[r, : int(self.lengths[r])].tolist() for r in chosen.tolist()]
            numbers = self.document[chosen].amax(1).tolist()
            documents = [self.documents[n] if n >= 0 else Document("") for n in numbers]
            yield DocumentBatch(model.batch_from_ids(ids), documents, numbers), chosen, self.valid[chosen, :longest]


def document_rows(model: LanguageModel, documents: Sequence[Document], context_length: int) -> TokenRows:
    """One row per text with a valid token, cut at ``context_length`` tokens (or the model's limit)."""
    tokens = _tokenized(model, documents, _length(model, context_length))
    rows = [row for row in tokens if any(row[1])]
    if not rows:
        raise InputError("The data hold no text with a token to measure; check --data and --text-column.")
    columns = max(len(row[0]) for row in rows)
    shape = (len(rows), columns)
    ids = torch.zeros(shape, dtype=torch.int64)
    valid = torch.zeros(shape, dtype=torch.bool)
    number = torch.full(shape, -1, dtype=torch.int32)
    spans = torch.zeros((*shape, 2), dtype=torch.int32)
    for r, (row_ids, keep, n, offsets) in enumerate(rows):
        length = len(row_ids)
        ids[r, :length] = torch.tensor(row_ids)
        valid[r, :length] = torch.tensor(keep)
        number[r, :length] = n
        spans[r, :length] = torch.tensor(offsets, dtype=torch.int32)
    number[~valid] = -1
    lengths = torch.tensor([len(row[0]) for row in rows])
    return TokenRows(documents, ids, valid, number, spans, lengths, model.tokenizer)


def packed_rows(
    model: LanguageModel, documents: Sequence[Document], context_length: int, total_tokens: int
) -> TokenRows:
    """All texts in one stream, the end token between them, cut into rows whose first token is overwritten by BOS.

    Where the padding token is the end token, the separators vanish with the padding, as they do in SAEBench.
    """
    length = _length(model, context_length)
    tokenizer: Any = model.tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    separator = [] if end is None or end == pad else [int(end)]
    ids, number = list[int](), list[int]()
    spans = list[tuple[int, int]]()
    for row_ids, keep, n, offsets in _tokenized(model, documents, length, whole=True):
        for token, kept, span in zip(row_ids, keep, offsets, strict=True):
            if kept:
                ids.append(token)
                number.append(n)
                spans.append(span)
        ids += separator
        number += [-1] * len(separator)
        spans += [(0, 0)] * len(separator)
        if len(ids) >= total_tokens + length + 1:
            break
    count = min(len(ids), total_tokens + length + 1) // length
    if not count:
        raise InputError(f"The data hold {len(ids)} tokens, fewer than one row of {length}; give more texts.")
    kept = count * length
    rows = torch.tensor(ids[:kept]).view(count, length)
    document = torch.tensor(number[:kept], dtype=torch.int32).view(count, length)
    offsets = torch.tensor(spans[:kept], dtype=torch.int32).view(count, length, 2)
    if tokenizer.bos_token_id is not None:
        rows[:, 0] = tokenizer.bos_token_id
        document[:, 0] = -1
    lengths = torch.full((count,), length)
    return TokenRows(documents, rows, document >= 0, document, offsets, lengths, tokenizer)


_Row = tuple[list[int], list[bool], int, list[tuple[int, int]]]


def _length(model: LanguageModel, context_length: int) -> int:
    return min(context_length, model.max_context) if model.max_context else context_length


def _tokenized(model: LanguageModel, documents: Sequence[Document], length: int, whole: bool = False) -> Iterator[_Row]:
    """(ids, keep, number, offsets) of each text, cut at ``length`` tokens unless ``whole``."""
    numbered = iter(enumerate(documents))
    while window := list(islice(numbered, 256)):
        if whole:
            for n, document in window:
                yield _whole(model, document, n)
            continue
        batch = model.tokenize([d.text for _, d in window], length)
        counts = batch.attention_mask.sum(1).tolist()
        for r, (n, _) in enumerate(window):
            count = int(counts[r])
            offsets = [(0, 0)] * count if batch.offsets is None else list(batch.offsets[r][:count])
            yield batch.token_ids[r, :count].tolist(), batch.keep[r, :count].tolist(), n, offsets


def _whole(model: LanguageModel, document: Document, n: int) -> _Row:
    """A text of any length, without the special tokens that a tokenizer adds."""
    fast = bool(getattr(model.tokenizer, "is_fast", False))
    encoded = model.tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    ids = [int(i) for i in encoded["input_ids"]]
    offsets = [(int(a), int(b)) for a, b in encoded["offset_mapping"]] if fast else [(0, 0)] * len(ids)
    special = set(model.tokenizer.all_special_ids)
    return ids, [i not in special for i in ids], n, offsets
