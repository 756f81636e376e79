"""Batches of similar length are still a fair sample of the texts, whole and in part."""

import pytest

from saeworks.evals.shared.batches import document_batches


def words(batches):
    lengths = [len(d.text.split()) for b in batches for d in b.documents]
    return sum(lengths) / len(lengths)


@pytest.mark.parametrize("tokens", [40, 500, 3000])
def test_the_sample_is_the_first_documents_that_hold_so_many_tokens(model, make_sentences, tokens):
    documents = make_sentences(1000)
    batches = list(document_batches(model, documents, 32, 16, tokens))
    count = len({i for b in batches for i in b.index})
    lengths = [len(d.text.split()) for d in documents]
    assert sorted(i for b in batches for i in b.index) == list(range(count))
    assert sum(lengths[: count - 1]) < tokens <= sum(lengths[:count])
    assert all(documents[i] is d for b in batches for i, d in zip(b.index, b.documents, strict=True))


def test_every_eighth_batch_is_no_choice_of_lengths(model, make_sentences):
    batches = list(document_batches(model, make_sentences(16 * 8 * 20), 32, 16))
    eighths = [words(batches[i::8]) for i in range(8)]
    assert max(eighths) - min(eighths) < 0.4 * words(batches)
