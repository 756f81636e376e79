"""Resampling in chunks: the numbers of the whole matrix of weights, without ever holding it."""

import pytest
import torch

from saeworks.evals.shared import bootstrap
from saeworks.evals.shared.bootstrap import Resampling, document_weights, interval, intervals
from saeworks.runtime import generator


def whole_matrix(documents, resamples, seed):
    """The definition: every resample counts independent uniform draws, all drawn in one call."""
    drawn = torch.randint(documents, (resamples, documents), generator=generator(seed, "bootstrap"))
    return torch.stack([torch.bincount(row, minlength=documents) for row in drawn]).double()


@pytest.mark.parametrize(("documents", "entries"), [(7, 1), (7, 20), (50, 50 * 16), (1000, 2**21), (300, 7000)])
def test_chunks_hold_the_rows_of_the_whole_matrix_and_no_more_than_allowed(monkeypatch, documents, entries):
    monkeypatch.setattr(bootstrap, "CHUNK_ENTRIES", entries)
    chunks = list(Resampling(documents, 100, 4).weights())
    assert all(chunk.numel() <= max(entries, documents) for chunk in chunks)
    assert len(chunks) == -(-100 // max(entries // documents, 1))
    whole = whole_matrix(documents, 100, 4)
    assert torch.equal(torch.cat(chunks), whole)
    assert torch.equal(document_weights(documents, 100, 4), whole)


def test_intervals_are_those_of_the_whole_matrix(monkeypatch):
    monkeypatch.setattr(bootstrap, "CHUNK_ENTRIES", 1000)
    values = torch.rand(120, generator=torch.Generator().manual_seed(1))
    sums = {"n": torch.full((120,), 3.0), "hits": values}
    statistics = {"rate": lambda s: s["hits"] / s["n"], "none": lambda s: s["hits"] / 0}
    found = intervals(sums, statistics, Resampling(120, 500, 2))
    drawn = whole_matrix(120, 500, 2) @ torch.stack([values.double(), sums["n"].double()], dim=1)
    assert found["rate"] == pytest.approx(interval(drawn[:, 0] / drawn[:, 1]), rel=1e-12)
    assert found["none"] is None
    low, high = found["rate"]
    assert low < float(values.mean()) / 3 < high


def test_one_document_has_no_interval():
    assert intervals({"n": torch.ones(1)}, {"a": lambda s: s["n"]}, Resampling(1, 10, 0)) == {"a": None}


def test_many_documents_are_resampled_in_small_portions():
    portions = Resampling(50_000, 1000, 0).weights()
    first = next(portions)
    assert first.numel() <= bootstrap.CHUNK_ENTRIES
    assert torch.equal(first.sum(1), torch.full((len(first),), 50_000.0, dtype=torch.float64))
