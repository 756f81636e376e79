"""The shuffle buffer: every row leaves once, rows mix, work does not grow with capacity, state is exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saeworks.activations.batches import ActivationBatch
from saeworks.activations.buffer import ShuffleBuffer
from saeworks.errors import InputError


def rows(start: int, count: int, shape: tuple[int, ...] = (2,)) -> ActivationBatch:
    """Rows whose every entry says which row it is."""
    numbers = torch.arange(start, start + count)
    values = numbers.float().reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    return ActivationBatch(values, numbers * 2, numbers // 10, numbers + 5)


def buffer(capacity: int = 64, seed: int = 0, **options: object) -> ShuffleBuffer:
    return ShuffleBuffer(capacity, (2,), torch.Generator().manual_seed(seed), **options)  # type: ignore[arg-type]


def fill(target: ShuffleBuffer, at: int, chunk: int = 7) -> int:
    while target.free:
        at += target.push(rows(at, chunk))
    target.shuffle()
    return at


@settings(deadline=None, max_examples=40)
@given(
    capacity=st.integers(8, 60), batch=st.integers(1, 4), chunk=st.integers(1, 30), mix=st.sampled_from([0, 0.3, 0.9])
)
def test_every_row_leaves_exactly_once_with_its_origin(capacity: int, batch: int, chunk: int, mix: float) -> None:
    tested = buffer(capacity, mix=mix)
    tested.check_batch(batch)
    pushed, seen = 0, list[int]()
    for _ in range(50):
        if tested.wants_rows(batch):
            pushed = fill(tested, pushed, chunk)
        out = tested.pop(batch)
        numbers = out.activations[:, 0].long()
        assert torch.equal(out.activations[:, 1].long(), numbers)
        assert torch.equal(out.token_ids, numbers * 2)
        assert torch.equal(out.document_ids, numbers // 10)
        assert torch.equal(out.positions, numbers + 5)
        seen += numbers.tolist()
    seen += tested.pop(tested.unread).activations[:, 0].long().tolist()
    assert sorted(seen) == list(range(pushed))


def test_one_permutation_per_refill_and_none_per_batch() -> None:
    tested = buffer(1000)
    pushed, refills = 0, 0
    for _ in range(400):
        if tested.wants_rows(10):
            pushed, refills = fill(tested, pushed, 50), refills + 1
        before = tested.permutations
        tested.pop(10)
        assert tested.permutations == before
    assert tested.permutations == refills
    # 4000 rows read; a refill takes in half the capacity: 1 + (4000 − 1000) / 500 or one more.
    assert 7 <= refills <= 8


def test_storage_is_allocated_once() -> None:
    tested = buffer(128)
    places = {tested._rows.data_ptr(), tested._origin.data_ptr(), tested._order.data_ptr()}
    pushed = 0
    for _ in range(100):
        if tested.wants_rows(16):
            pushed = fill(tested, pushed)
        tested.pop(16)
    assert {tested._rows.data_ptr(), tested._origin.data_ptr(), tested._order.data_ptr()} == places


def test_batches_mix_documents_as_a_uniform_shuffle_would() -> None:
    # One filling of 200 documents of 10 rows: a batch of 100 drawn without replacement holds, on average,
    # 200 · (1 − C(1990, 100)/C(2000, 100)) ≈ 80.3 different documents; blocks of neighbours would hold 10.
    tested = buffer(2000)
    fill(tested, 0, 100)
    batches = [tested.pop(100).document_ids for _ in range(20)]
    different = torch.tensor([batch.unique().numel() for batch in batches]).float()
    assert abs(float(different.mean()) - 80.3) < 3
    # Chi-square of the batch number over the thirds of the input: 19 · 2 degrees of freedom, 99.9 % quantile 70.7.
    thirds = torch.stack([torch.bincount(batch // 67, minlength=3) for batch in batches]).float()
    expected = thirds.sum(0, keepdim=True) * thirds.sum(1, keepdim=True) / thirds.sum()
    assert float(((thirds - expected) ** 2 / expected).sum()) < 70.7


def test_old_rows_mix_with_new_ones() -> None:
    tested = buffer(1000, mix=0.5)
    pushed = fill(tested, 0, 100)
    while not tested.wants_rows(50):
        tested.pop(50)
    fill(tested, pushed, 100)
    numbers = tested.pop(200).activations[:, 0]
    old = int((numbers < 1000).sum())
    assert 55 < old < 145  # about 45 to 50 % of the unread rows are old ones; hypergeometric, four sigma


def test_state_continues_bit_for_bit_also_between_push_and_shuffle() -> None:
    for stop in range(8):
        first = buffer(40, seed=3)
        pushed = fill(first, 0)
        for _ in range(stop):
            if first.wants_rows(6):
                pushed = fill(first, pushed)
            first.pop(6)
        first.push(rows(pushed, 3))
        second = buffer(40, seed=99)
        second.load_state_dict(first.state_dict())
        first.shuffle()
        second.shuffle()
        while first.unread:
            a, b = first.pop(1), second.pop(1)
            assert torch.equal(a.activations, b.activations)
            assert torch.equal(a.token_ids, b.token_ids)


def test_state_without_contents_is_small_and_starts_empty() -> None:
    first = buffer(1000)
    fill(first, 0, 100)
    state = first.state_dict(contents=False)
    assert sum(v.numel() for v in state.values() if isinstance(v, torch.Tensor)) < 6000  # the generator's own state
    first.load_state_dict(state)
    assert (first.unread, first.free) == (0, 1000)


def test_rows_of_several_sites_and_half_precision() -> None:
    tested = ShuffleBuffer(20, (3, 4), torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    tested.push(rows(0, 20, (3, 4)))
    tested.shuffle()
    out = tested.pop(10)
    assert out.activations.shape == (10, 3, 4)
    assert out.activations.dtype == torch.float32
    assert torch.equal(out.activations[:, 2, 1].long() * 2, out.token_ids)


def test_bad_sizes_are_explained() -> None:
    with pytest.raises(InputError, match="at least 200 rows"):
        buffer(64).check_batch(100)
    with pytest.raises(InputError, match="at least 1"):
        buffer(64).check_batch(0)
    with pytest.raises(InputError, match="holds 0"):
        buffer(64).pop(1)
    with pytest.raises(InputError, match="mix"):
        buffer(64, mix=1.0)
    with pytest.raises(InputError, match="64 rows, this one 32"):
        buffer(32).load_state_dict(buffer(64).state_dict())
