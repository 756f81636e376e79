"""Token batches: special tokens, the keep mask, offsets, padding, and mistakes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import TEXTS  # pyright: ignore

from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel

Tiny = Callable[..., LanguageModel]
LENGTHS = [len(text.split()) for text in TEXTS]


def test_bos_that_the_tokenizer_adds(tiny: Tiny) -> None:
    batch = tiny("llama").tokenize(TEXTS, 32)
    assert batch.token_ids[:, 0].tolist() == [1, 1, 1]
    assert batch.attention_mask.sum(1).tolist() == [n + 1 for n in LENGTHS]
    assert batch.keep.sum(1).tolist() == LENGTHS
    assert not bool(batch.keep[:, 0].any())
    assert bool((batch.token_ids[~batch.attention_mask] == 0).all())


def test_bos_that_the_tokenizer_has_but_does_not_add(tiny: Tiny) -> None:
    model = tiny("gpt2", style="gpt2")
    batch = model.tokenize(TEXTS, 32)
    assert batch.token_ids[:, 0].tolist() == [0, 0, 0]
    assert batch.keep.sum(1).tolist() == LENGTHS
    bare = model.tokenize(TEXTS, 32, prepend_bos=False)
    assert torch.equal(bare.token_ids[0, : LENGTHS[0]], batch.token_ids[0, 1 : LENGTHS[0] + 1])
    assert bare.keep.sum(1).tolist() == LENGTHS


def test_without_bos_nothing_is_dropped(tiny: Tiny) -> None:
    model = tiny("qwen2", style="plain")
    batch = model.tokenize(TEXTS, 32)
    assert torch.equal(batch.keep, batch.attention_mask)
    assert bool(batch.keep[:, 0].all())
    with pytest.raises(InputError, match="no BOS token"):
        model.tokenize(TEXTS, 32, prepend_bos=True)


def test_bos_can_be_taken_away(tiny: Tiny) -> None:
    model = tiny("llama")
    batch, bare = model.tokenize(TEXTS, 6), model.tokenize(TEXTS, 6, prepend_bos=False)
    assert bare.token_ids[0].tolist()[:5] == batch.token_ids[0].tolist()[1:]
    assert int(bare.attention_mask[0].sum()) == 6
    assert bool(bare.keep[0].all())


def test_encoders_get_cls_and_sep_but_no_bos(tiny: Tiny) -> None:
    batch = tiny("bert").tokenize(TEXTS, 32)
    assert batch.token_ids[:, 0].tolist() == [1, 1, 1]
    assert int(batch.token_ids[1, LENGTHS[1] + 1]) == 2
    assert batch.keep.sum(1).tolist() == LENGTHS
    assert not batch.is_causal


def test_special_tokens_inside_a_text_are_not_kept(tiny: Tiny) -> None:
    batch = tiny("llama").tokenize(["the dog </s> sings zebra"], 32)
    assert batch.keep[0].tolist() == [False, True, True, False, True, False]


def test_offsets_point_into_the_text(tiny: Tiny) -> None:
    for name, style in (("llama", None), ("gpt2", "gpt2"), ("bert", None)):
        batch = tiny(name, style=style).tokenize(TEXTS, 32) if style else tiny(name).tokenize(TEXTS, 32)
        assert batch.offsets is not None
        for text, spans, keep in zip(TEXTS, batch.offsets, batch.keep.tolist(), strict=True):
            assert len(spans) == len(keep)
            words = [text[a:b] for (a, b), kept in zip(spans, keep, strict=True) if kept]
            assert words == text.split()
            assert all(span == (0, 0) for span, kept in zip(spans, keep, strict=True) if not kept)


def test_cutting_counts_the_special_tokens(tiny: Tiny) -> None:
    for name, style in (("llama", "bos"), ("gpt2", "gpt2"), ("qwen2", "plain"), ("bert", "encoder")):
        batch = tiny(name, style=style).tokenize(TEXTS, 4)
        assert batch.token_ids.shape == (3, 4)
        assert batch.offsets is not None
        assert [len(spans) for spans in batch.offsets] == [4, 4, 4]
    assert int(tiny("bert").tokenize(TEXTS, 4).token_ids[0, 3]) == 2


def test_rows_of_ids(tiny: Tiny) -> None:
    model = tiny("llama")
    batch = model.batch_from_ids([[1, 5, 6], [7], []])
    assert batch.token_ids.tolist() == [[1, 5, 6], [7, 0, 0], [0, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert batch.keep.tolist() == [[False, True, True], [True, False, False], [False] * 3]
    again = model.tokenize(TEXTS, 32)
    rows = [ids[mask].tolist() for ids, mask in zip(again.token_ids, again.attention_mask, strict=True)]
    assert torch.equal(model.batch_from_ids(rows).token_ids, again.token_ids)


def test_mistakes_are_sentences(tiny: Tiny) -> None:
    model = tiny("llama")
    for call, words in (
        (lambda: model.tokenize("one text", 8), "put it in a list"),
        (lambda: model.tokenize([], 8), "no texts"),
        (lambda: model.tokenize(["a", None], 8), "Text 1 is of type NoneType"),  # pyright: ignore
        (lambda: model.tokenize(["a", "b \ud83d"], 8), "Text 1 holds half of a surrogate pair at character 2"),
        (lambda: model.tokenize(TEXTS, 0), "at least 1 token"),
        (lambda: model.tokenize(TEXTS, 65), "64 positions"),
        (lambda: model.tokenize(TEXTS, 1), "use 2 or more"),
        (lambda: tiny("bert").tokenize(TEXTS, 2), "use 3 or more"),
        (lambda: tiny("gpt2", style="gpt2").tokenize(TEXTS, 1), "use 2 or more"),
        (lambda: model.batch_from_ids([]), "at least one row"),
        (lambda: model.batch_from_ids([[1, 999]]), "Token id 999"),
        (lambda: model.batch_from_ids([[-1, 2]]), "Token id -1"),
        (lambda: model.batch_from_ids([["dog"]]), "must be integers"),  # pyright: ignore
        (lambda: model.batch_from_ids([[1] * 65]), "at most 64"),
        (lambda: model.batch_from_ids([[1, 2]], [[(0, 0)]]), "lengths differ"),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_roberta_counts_positions_after_its_padding(tiny: Tiny) -> None:
    model = tiny("roberta")
    assert model.max_context == 63
    batch = model.batch_from_ids([[5] * 63])
    assert torch.isfinite(model.harvest(batch, ["resid_post:0"])["resid_post:0"]).all()
