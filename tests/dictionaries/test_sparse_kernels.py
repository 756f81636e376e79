"""Sparse paths against the dense formulas, in float64: selection, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.kernels.selection import select_above, select_batch_topk, select_positive, select_topk
from saeworks.dictionaries.kernels.sparse import (
    bag,
    bag_by_gathering,
    decode_codes,
    encode_selected,
    group_offsets,
    row_dots,
    row_dots_in_blocks,
)


def pre_activations(tokens=7, width=12, seed=0):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_topk(z, k):
    r = z.relu()
    kept = torch.zeros_like(r)
    values, indices = r.topk(k, dim=1)
    return kept.scatter(1, indices, values)


def dense_batch_topk(z, count):
    r = z.relu().flatten()
    kept = torch.zeros_like(r)
    values, indices = r.topk(min(count, r.numel()))
    return kept.scatter(0, indices, values).view_as(z)


def test_topk_keeps_the_k_largest_positive_of_each_token():
    z = pre_activations()
    assert torch.equal(select_topk(z, 3).dense(), dense_topk(z, 3))


def test_topk_of_a_token_with_few_positives_is_sparser_than_k():
    z = torch.tensor([[1.0, -1.0, -2.0, 0.5], [-1.0, -1.0, -1.0, -1.0]])
    codes = select_topk(z, 3)
    assert codes.counts().tolist() == [2, 0]
    assert codes.dense().tolist() == [[1.0, 0, 0, 0.5], [0, 0, 0, 0]]


@pytest.mark.parametrize("hint", [None, 0.0, 0.3, 50.0])
def test_batch_topk_selects_exactly_k_times_tokens_whatever_the_hint(hint):
    z = pre_activations(tokens=20, width=30)
    codes = select_batch_topk(z, 2.5, hint)
    assert codes.values.numel() == 50
    assert torch.equal(codes.dense(), dense_batch_topk(z, 50))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.integers(1, 11), st.sampled_from([None, 0.5, 1.5]))
def test_batch_topk_breaks_ties_in_order_whatever_the_hint(values, count, hint):
    z = torch.tensor(values, dtype=torch.float64).view(3, 4)
    codes = select_batch_topk(z, count / 3, hint)
    flat = z.flatten().tolist()
    ranked = sorted((i for i in range(12) if flat[i] > 0), key=lambda i: (-flat[i], i))[:count]
    expected = torch.zeros(12, dtype=torch.float64)
    expected[ranked] = z.flatten()[ranked]
    assert torch.equal(codes.dense().flatten(), expected)


def test_batch_topk_is_equivariant_to_the_order_of_tokens():
    z = pre_activations(tokens=9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(select_batch_topk(z[order], 2).dense(), select_batch_topk(z, 2).dense()[order])


def test_threshold_is_strict_and_never_lets_negatives_through():
    z = torch.tensor([[0.5, 0.6, -0.2, 0.1]])
    threshold = torch.tensor([0.5, 0.5, -1.0, 0.0])
    assert select_above(z, threshold).dense().tolist() == [[0.0, pytest.approx(0.6), 0.0, pytest.approx(0.1)]]


def test_codes_keep_empty_rows_and_ascending_indices():
    z = pre_activations()
    z[3] = -1.0
    codes = select_positive(z)
    assert codes.counts()[3] == 0
    for token in range(codes.tokens):
        row = codes.indices[codes.offsets[token] : codes.offsets[token + 1]]
        assert torch.equal(row, row.sort().values)
    assert torch.equal(Codes.from_dense(codes.dense()).dense(), codes.dense())
    assert torch.equal(codes.fired(), (z > 0).any(0))


@pytest.mark.parametrize("pre_bias", [True, False])
def test_gradients_equal_the_dense_path(pre_bias):
    g = torch.Generator().manual_seed(3)
    tokens, width, d = 11, 16, 5
    x = torch.randn(tokens, d, generator=g, dtype=torch.float64)
    shapes = {"encoder": (width, d), "b_enc": (width,), "b_dec": (d,), "decoder": (width, d)}
    sparse = {n: torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for n, s in shapes.items()}
    dense = {n: p.detach().clone().requires_grad_() for n, p in sparse.items()}

    def z_of(p):
        return (x - p["b_dec"] * pre_bias) @ p["encoder"].T + p["b_enc"]

    with torch.no_grad():
        codes = select_batch_topk(z_of(sparse), 3)
    codes = encode_selected(x, sparse["encoder"], sparse["b_enc"], sparse["b_dec"], codes, pre_bias)
    (x - decode_codes(codes, sparse["decoder"]) - sparse["b_dec"]).square().sum().backward()

    z = z_of(dense)
    f = z * (codes.dense() != 0)
    (x - f @ dense["decoder"] - dense["b_dec"]).square().sum().backward()
    for name in shapes:
        assert torch.allclose(sparse[name].grad, dense[name].grad, rtol=1e-10, atol=1e-12), name


def test_bags_per_group_are_the_groups_of_the_dense_product():
    codes = select_topk(pre_activations(), 4)
    decoder = torch.randn(12, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    sizes = (2, 3, 7)
    parts = decode_codes(codes, decoder, group_offsets(codes, sizes)).view(7, 3, 3)
    start = 0
    for group, size in enumerate(sizes):
        part = slice(start, start + size)
        assert torch.allclose(parts[:, group], codes.dense()[:, part] @ decoder[part])
        start += size


def test_row_dots_by_either_way():
    g = torch.Generator().manual_seed(6)
    left, right = torch.randn(5, 4, generator=g), torch.randn(6, 4, generator=g)
    offsets = torch.tensor([0, 1, 1, 3, 3, 5])
    rows, latents = torch.tensor([0, 2, 2, 4, 4]), torch.tensor([5, 0, 3, 3, 1])
    expected = (left[rows] * right[latents]).sum(1)
    assert torch.allclose(row_dots(left, rows, right, latents, offsets), expected)
    assert torch.allclose(row_dots_in_blocks(left, rows, right, latents, block=2), expected)


def test_bags_by_gathering_are_the_bags():
    g = torch.Generator().manual_seed(7)
    weight, values = torch.randn(6, 4, generator=g), torch.randn(5, generator=g)
    offsets, indices = torch.tensor([0, 1, 1, 3, 5, 5]), torch.tensor([5, 0, 3, 3, 1])
    assert torch.allclose(bag_by_gathering(weight, indices, offsets, values), bag(weight, indices, offsets, values))
