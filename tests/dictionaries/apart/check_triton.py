"""Triton's kernels against torch, in Triton's interpreter.

``test_triton_kernels.py`` runs this file in a process of its own: Triton reads ``TRITON_INTERPRET`` on import.
"""

from __future__ import annotations

import pytest
import torch

from saeworks.activations.batches import Layout
from saeworks.dictionaries.kernels import choice, rows, sparse
from saeworks.training.cells import MemberConfig
from saeworks.training.member import Member
from saeworks.training.recipes import recipe
from saeworks.training.schedules import Schedule

triton_kernels = pytest.importorskip("saeworks.dictionaries.kernels.triton_kernels")


def bags(counts: list[int], rows_of: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    total = int(offsets[-1])
    return torch.randint(rows_of, (total,), generator=generator), offsets, torch.randn(total, generator=generator)


# Widths around the tiles' edges; bags that are empty, of one row, of exactly a tile, of many tiles.
@pytest.mark.parametrize("d", [1, 3, 64, 256, 257, 300])
@pytest.mark.parametrize("counts", [[0], [1], [16, 0, 17, 1], [0, 0, 5, 33, 0]])
def test_bag(d: int, counts: list[int]) -> None:
    weight = torch.randn(11, d, generator=torch.Generator().manual_seed(1))
    indices, offsets, values = bags(counts, 11)
    torch.testing.assert_close(
        triton_kernels.bag(weight, indices, offsets, values),
        sparse.bag_by_gathering(weight.double(), indices, offsets, values.double()).float(),
        rtol=1e-5,
        atol=1e-5,
    )


def test_bag_of_equal_rows_counts_each() -> None:
    weight = torch.eye(3)
    out = triton_kernels.bag(weight, torch.tensor([2, 2, 2, 0]), torch.tensor([0, 4]), torch.tensor([1.0, 2, 4, 8]))
    assert out.tolist() == [[8.0, 0.0, 7.0]]


def test_bag_of_a_view_that_is_not_contiguous() -> None:
    weight = torch.randn(5, 8).T
    indices, offsets, values = bags([2, 3], 8)
    expected = sparse.bag_by_gathering(weight, indices, offsets, values)
    torch.testing.assert_close(triton_kernels.bag(weight, indices, offsets, values), expected)


@pytest.mark.parametrize("d", [1, 64, 257])
@pytest.mark.parametrize("count", [0, 1, 16, 37])
def test_row_dots(d: int, count: int) -> None:
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn(6, d, generator=generator), torch.randn(9, d, generator=generator)
    one, two = torch.randint(6, (count,), generator=generator), torch.randint(9, (count,), generator=generator)
    expected = sparse.row_dots_in_blocks(left.double(), one, right.double(), two).float()
    torch.testing.assert_close(triton_kernels.row_dots(left, one, right, two), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("d", [1, 5, 64, 100])
def test_unit_rows(d: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, grad = torch.randn(7, d, generator=generator), torch.randn(7, d, generator=generator)
    weight[2] = 0
    expected = weight / torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(1e-8)
    triton_kernels.normalise_(weight)
    torch.testing.assert_close(weight, expected)
    projected = grad - (grad * weight).sum(1, keepdim=True) * weight
    triton_kernels.remove_parallel_(grad, weight)
    torch.testing.assert_close(grad, projected, rtol=1e-5, atol=1e-6)


def test_the_check_passes_and_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert triton_kernels.agree(cpu)
    right = triton_kernels.bag
    monkeypatch.setattr(triton_kernels, "bag", lambda *given: right(*given) + 1e-2)
    assert not triton_kernels.agree(cpu)


def stepped(kind: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Parameters after three steps of training."""
    monkeypatch.setenv(choice.VARIABLE, kernels)
    member = Member(MemberConfig(recipe(kind), 48, 4.0, 0, 1e-3), Layout(12), 10**9, torch.device("cpu"))
    generator = torch.Generator().manual_seed(4)
    batches = [torch.randn(40, 12, generator=generator) for _ in range(4)]
    member.initialise(batches[0])
    for step, batch in enumerate(batches[1:]):
        member.step(batch, Schedule(3, 0, 3), step)
    return {name: value.detach().clone() for name, value in member.parameters.items()}


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "matryoshka_batch_topk"])
def test_training_is_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name in ("bag", "row_dots", "remove_parallel_", "normalise_"):
        right = getattr(triton_kernels, name)
        monkeypatch.setattr(triton_kernels, name, lambda *given, n=name, f=right: (used.append(n), f(*given))[1])
    ours, theirs = stepped(kind, "triton", monkeypatch), stepped(kind, "torch", monkeypatch)
    assert {"bag", "row_dots", "remove_parallel_", "normalise_"} <= set(used)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)


def test_rows_that_are_not_a_matrix_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "triton")
    threefold = torch.randn(4, 2, 3)
    expected = threefold / torch.linalg.vector_norm(threefold, dim=1, keepdim=True)
    rows.normalise_(threefold)
    torch.testing.assert_close(threefold, expected)
