"""Windows cover every document exactly once, batches are padded little, and reading resumes anywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saeworks.activations.contexts import ContextBatch, ContextReader, Cursor, Frame, cut_windows, read_frame
from saeworks.activations.texts import ListTexts
from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel

Sentences = Callable[..., ListTexts]


@given(
    lengths=st.lists(st.integers(0, 60), max_size=12),
    before=st.integers(0, 2),
    behind=st.integers(0, 2),
    room=st.integers(1, 20),
)
def test_windows_hold_every_token_once_in_order(lengths: list[int], before: int, behind: int, room: int) -> None:
    frame = Frame((-1,) * before, (-2,) * behind)
    limit = room + before + behind
    for document, length in enumerate(lengths):
        windows = cut_windows(range(length), document, frame, limit)
        own = [window.token_ids[before : len(window.token_ids) - behind] for window in windows]
        assert [token for part in own for token in part] == list(range(length))
        assert [window.start for window in windows] == [sum(map(len, own[:i])) for i in range(len(own))]
        assert all(1 <= len(part) <= room for part in own)
        assert all(window.token_ids[:before] == [-1] * before for window in windows)
        assert all(window.token_ids[len(window.token_ids) - behind :] == [-2] * behind for window in windows)
        assert {window.document for window in windows} <= {document}


def one_pass(reader: ContextReader) -> list[ContextBatch]:
    return list(reader.batches(epochs=reader.cursor.epoch + 1))


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 70), rows=st.integers(1, 9), context=st.integers(2, 20), seed=st.integers(0, 3))
def test_a_pass_covers_every_token_of_every_document_once(
    tiny_model: LanguageModel, sentences: Sentences, count: int, rows: int, context: int, seed: int
) -> None:
    source = sentences(count, words=(1, 40), seed=seed)
    reader = ContextReader(tiny_model, source, context, rows, pool_batches=3, prefetch=False)
    found: dict[tuple[int, int], int] = {}
    for batch in one_pass(reader):
        tokens = batch.tokens
        assert tokens.token_ids.shape[0] <= rows
        assert tokens.token_ids.shape[1] <= context
        assert bool((tokens.token_ids[:, 0] == tiny_model.tokenizer.bos_token_id).all())
        for row in range(len(tokens)):
            for position in tokens.keep[row].nonzero()[:, 0].tolist():
                key = (int(batch.document_ids[row]), int(batch.starts[row]) + position - batch.prefix)
                assert key not in found
                found[key] = int(tokens.token_ids[row, position])
    expected = {
        (number, at): token
        for number, document in enumerate(source.documents())
        for at, token in enumerate(tiny_model.tokenizer(document.text, add_special_tokens=False)["input_ids"])
    }
    assert found == expected
    assert reader.cursor == Cursor(1, 0, 0)


def test_special_tokens_of_each_kind_of_tokenizer(tiny_model: LanguageModel) -> None:
    from tokenizers import processors

    tokenizer: Any = tiny_model.tokenizer
    assert read_frame(tokenizer, is_causal=True) == Frame(
        (1,), ()
    )  # has BOS but does not add it: a causal model gets it
    assert read_frame(tokenizer, is_causal=False) == Frame((), ())
    backend = tokenizer.backend_tokenizer
    before = backend.post_processor
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    try:
        assert read_frame(tokenizer, is_causal=True) == Frame((1,), (2,))
    finally:
        backend.post_processor = before or processors.TemplateProcessing(single="$A", special_tokens=[])


def test_batches_are_sorted_by_length_so_that_padding_is_small(tiny_model: LanguageModel, sentences: Sentences) -> None:
    source = sentences(1200, words=(1, 60))
    batches = one_pass(ContextReader(tiny_model, source, 64, 16))
    cells = sum(batch.tokens.attention_mask.numel() for batch in batches)
    padding = sum(int((~batch.tokens.attention_mask).sum()) for batch in batches)
    assert padding / cells < 0.06
    # Unsorted rows of these lengths would be padded to nearly twice their tokens.
    widths = [batch.tokens.token_ids.shape[1] for batch in batches]
    assert widths != sorted(widths)


@pytest.mark.parametrize("prefetch", [False, True])
def test_reading_resumes_at_every_batch(tiny_model: LanguageModel, sentences: Sentences, prefetch: bool) -> None:
    source = sentences(90, words=(1, 40))

    def reader() -> ContextReader:
        return ContextReader(tiny_model, source, 16, 5, pool_batches=4, seed=7, prefetch=prefetch)

    def show(batch: ContextBatch) -> tuple[Any, ...]:
        parts = (batch.tokens.token_ids, batch.tokens.keep, batch.document_ids, batch.starts)
        return (*(part.tolist() for part in parts), batch.after)

    count = 2 * len(one_pass(reader())) + 3
    stream = reader().batches()
    whole = [next(stream) for _ in range(count)]
    for stop in range(0, count, 3):
        again = reader()
        again.cursor = whole[stop - 1].after if stop else Cursor()
        following = again.batches()
        for expected in whole[stop : stop + 4]:
            assert show(next(following)) == show(expected)


def test_every_pass_has_another_order(tiny_model: LanguageModel, sentences: Sentences) -> None:
    reader = ContextReader(tiny_model, sentences(200), 32, 8)
    first, second = one_pass(reader), one_pass(reader)
    orders = [[batch.document_ids.tolist() for batch in batches] for batches in (first, second)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_documents_are_tokenised_in_batches(tiny_model: LanguageModel, sentences: Sentences) -> None:
    class Counting:
        bos_token_id = tiny_model.tokenizer.bos_token_id
        calls: list[int] = []  # noqa: RUF012

        def __call__(self, texts: Any, **options: Any) -> Any:
            if isinstance(texts, list):
                self.calls.append(len(texts))
            return tiny_model.tokenizer(texts, **options)

    class Model:
        tokenizer: Any = Counting()
        is_causal = True
        max_context = 64
        batch_from_ids = staticmethod(tiny_model.batch_from_ids)

    one_pass(ContextReader(Model(), sentences(100), 32, 25))
    assert sum(Counting.calls) == 100
    assert max(Counting.calls) == 25
    assert len(Counting.calls) == 4


def test_impossible_settings_and_texts_are_explained(tiny_model: LanguageModel, sentences: Sentences) -> None:
    with pytest.raises(InputError, match="64 positions"):
        ContextReader(tiny_model, sentences(3), 65, 4)
    with pytest.raises(InputError, match="no room"):
        ContextReader(tiny_model, sentences(3), 1, 4)
    with pytest.raises(InputError, match="0 rows"):
        ContextReader(tiny_model, sentences(3), 8, 0)

    class Blank(ListTexts):
        def documents(self, start: int = 0, limit: int | None = None) -> Any:
            return iter(())

    with pytest.raises(InputError, match="gave no token"):
        next(ContextReader(tiny_model, Blank(["x"]), 8, 4).batches())


def test_positions_count_tokens_of_the_document(tiny_model: LanguageModel) -> None:
    source = ListTexts([" ".join(["dog", "cat", "bird", "runs", "sings"] * 3)])
    batches = one_pass(ContextReader(tiny_model, source, 5, 8))
    starts = torch.cat([batch.starts for batch in batches])
    assert sorted(starts.tolist()) == [0, 4, 8, 12]
