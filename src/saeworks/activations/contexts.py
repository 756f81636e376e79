"""From documents to batches of tokens: windows of one document each, batched by length so that little is padding.

A document longer than the context is cut into windows that follow each other without overlap; each window starts (and,
for tokenizers that end their texts, ends) with the special tokens. Two documents never share a row, so no token ever
attends to another document. Windows are collected into pools of several batches and sorted by length inside a pool.

A pool is a function of the document it starts with, so the place of a reader is two numbers: the first document of
the pool, and how many of its batches were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from saeworks.activations.texts import TextSource
from saeworks.errors import InputError
from saeworks.models.tokens import TokenBatch
from saeworks.runtime import generator

POOL_BATCHES = 16


class Tokenizing(Protocol):
    """The part of a ``LanguageModel`` that reading contexts needs."""

    tokenizer: Any
    is_causal: bool
    max_context: int | None

    def batch_from_ids(self, rows: Sequence[Sequence[int]]) -> TokenBatch:
        """Pad rows of token ids, special tokens included, to a batch."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of one document, special tokens included. ``start``: index of its first own token in the document."""

    token_ids: list[int]
    document: int
    start: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place of a reader: pass over the source, first document of the pool, batches of that pool already taken."""

    epoch: int = 0
    document: int = 0
    batch: int = 0


@dataclass(frozen=True, slots=True)
class ContextBatch:
    """One batch for the language model and where its rows come from.

    Attributes:
        tokens: rows of tokens, padded on the right.
        document_ids: ``[row]`` int64, index of the document in its source.
        starts: ``[row]`` int64, index in the document of the row's first own token.
        prefix: special tokens in front of each row; position ``prefix + i`` holds the document's token ``start + i``.
        after: the place of the reader once this batch was taken.
        windows: the rows as they were cut.
    """

    tokens: TokenBatch
    document_ids: Tensor
    starts: Tensor
    prefix: int
    after: Cursor
    windows: tuple[Window, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """Special tokens around every window."""

    before: tuple[int, ...]
    behind: tuple[int, ...]

    def room(self, context_length: int) -> int:
        """Own tokens of a document that fit into one window."""
        return context_length - len(self.before) - len(self.behind)


def read_frame(tokenizer: Any, is_causal: bool) -> Frame:
    """The special tokens a tokenizer puts around a text, with BOS in front of a causal model's text in any case."""
    bare: list[int] = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full: list[int] = list(tokenizer("a")["input_ids"])
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            before, behind = tuple(full[:at]), tuple(full[at + len(bare) :])
            break
    else:
        before, behind = (), ()
    bos: int | None = tokenizer.bos_token_id
    if bos is not None and is_causal and bos not in before:
        before = (bos, *before)
    return Frame(before, behind)


def cut_windows(token_ids: Sequence[int], document: int, frame: Frame, context_length: int) -> list[Window]:
    """Windows of at most ``context_length`` tokens that hold every token of the document exactly once, in order."""
    room = frame.room(context_length)
    return [
        Window([*frame.before, *token_ids[start : start + room], *frame.behind], document, start)
        for start in range(0, len(token_ids), room)
    ]


class ContextReader:
    """Reads a source as an endless sequence of ``ContextBatch``, resumable at any batch.

    Args:
        model: gives tokenizer and token rules.
        context_length: tokens per window at most, special tokens included.
        batch_rows: windows per batch.
        pool_batches: batches per pool at least. More means less padding and more memory.
        seed: order of the batches inside a pool; another one in every epoch.
        prefetch: prepare the next pool in a second thread while the caller works on this one.

    Raises:
        InputError: a context length that the model cannot read, or that leaves no room beside the special tokens.
    """

    def __init__(
        self,
        model: Tokenizing,
        source: TextSource,
        context_length: int,
        batch_rows: int,
        pool_batches: int = POOL_BATCHES,
        seed: int = 0,
        prefetch: bool = True,
    ) -> None:
        if model.max_context is not None and context_length > model.max_context:
            raise InputError(
                f"context_length is {context_length}, but the model has {model.max_context} positions; "
                f"use {model.max_context} or less."
            )
        if batch_rows < 1:
            raise InputError(f"A harvest batch of {batch_rows} rows was asked for; it needs at least 1.")
        self._model, self._source = model, source
        self._context_length, self._batch_rows, self._pool_rows = context_length, batch_rows, pool_batches * batch_rows
        self._seed, self._prefetch = seed, prefetch
        self._frame = read_frame(model.tokenizer, model.is_causal)
        if self._frame.room(context_length) < 1:
            special = len(self._frame.before) + len(self._frame.behind)
            raise InputError(
                f"context_length {context_length} leaves no room beside the {special} special tokens of each row; "
                f"use at least {special + 1}."
            )
        self.cursor = Cursor()

    def batches(self, epochs: int | None = None) -> Iterator[ContextBatch]:
        """Yield batches from ``self.cursor`` on, for ever or to the end of pass ``epochs``; the cursor follows.

        Raises:
            InputError: a whole pass over the source gave no token.
        """
        skip, tokens_in_pass = self.cursor.batch, self.cursor.document
        for epoch, first, following, windows in self._pools(Cursor(self.cursor.epoch, self.cursor.document), epochs):
            if first == 0:
                tokens_in_pass = 0
            groups = self._group(windows, epoch, first)
            tokens_in_pass += len(groups)
            ends = following == 0
            if ends and tokens_in_pass == 0:
                raise InputError(f"The text '{self._source.name}' gave no token to harvest; check that it holds text.")
            next_pool = Cursor(epoch + 1, 0) if ends else Cursor(epoch, following)
            for number in range(skip, len(groups)):
                last = number == len(groups) - 1
                after = next_pool if last else Cursor(epoch, first, number + 1)
                batch = self._batch(groups[number], after)
                self.cursor = after
                yield batch
            if not groups:
                self.cursor = next_pool
            skip = 0

    def _pools(self, cursor: Cursor, epochs: int | None) -> Iterator[tuple[int, int, int, list[Window]]]:
        """Yield ``(epoch, first document, first document of the next pool or 0 at the end, windows)``."""
        read = self._open()
        if not self._prefetch:
            while epochs is None or cursor.epoch < epochs:
                following, windows = read(cursor.document)
                yield cursor.epoch, cursor.document, following, windows
                cursor = Cursor(cursor.epoch, following) if following else Cursor(cursor.epoch + 1)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="saeworks-read") as worker:
            pending: Future[tuple[int, list[Window]]] = worker.submit(read, cursor.document)
            while epochs is None or cursor.epoch < epochs:
                following, windows = pending.result()
                after = Cursor(cursor.epoch, following) if following else Cursor(cursor.epoch + 1)
                if epochs is None or after.epoch < epochs:
                    pending = worker.submit(read, after.document)
                yield cursor.epoch, cursor.document, following, windows
                cursor = after

    def _open(self) -> Callable[[int], tuple[int, list[Window]]]:
        """A function from a first document to its pool that keeps the source open between consecutive pools."""
        documents: Iterator[Any] = iter(())
        at = -1

        def read(first: int) -> tuple[int, list[Window]]:
            nonlocal documents, at
            if first != at or first == 0:
                documents, at = self._source.documents(first), first
            windows: list[Window] = []
            while len(windows) < self._pool_rows:
                texts: list[str] = []
                for found in documents:
                    texts.append(found.text)
                    if len(texts) == self._batch_rows:
                        break
                windows += self.windows(texts, at)
                at += len(texts)
                if len(texts) < self._batch_rows:
                    at = 0
                    break
            return at, windows

        return read

    def windows(self, texts: list[str], first: int) -> list[Window]:
        """The windows of documents ``first``, ``first + 1``, …; what a reader of another kind of text replaces."""
        if not texts:
            return []
        encoded = self._model.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        rows: list[list[int]] = encoded["input_ids"]
        return [
            window
            for number, ids in enumerate(rows)
            for window in cut_windows(ids, first + number, self._frame, self._context_length)
        ]

    def _group(self, windows: list[Window], epoch: int, first: int) -> list[list[Window]]:
        """Batches of windows of similar length, in an order of their own for every epoch and pool."""
        ordered = sorted(windows, key=lambda window: len(window.token_ids))
        rows = self._batch_rows
        groups = [ordered[at : at + rows] for at in range(0, len(ordered), rows)]
        order = torch.randperm(len(groups), generator=generator(self._seed, "pool", epoch, first)).tolist()
        return [groups[i] for i in order]

    def _batch(self, windows: list[Window], after: Cursor) -> ContextBatch:
        return ContextBatch(
            tokens=self._model.batch_from_ids([window.token_ids for window in windows]),
            document_ids=torch.tensor([window.document for window in windows], dtype=torch.int64),
            starts=torch.tensor([window.start for window in windows], dtype=torch.int64),
            prefix=len(self._frame.before),
            after=after,
            windows=tuple(windows),
        )
