"""Both conventions against closed forms, their errors against simulation, and streams put back where they were."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saeworks.activations.normalization import Normalization, estimate_normalization
from saeworks.activations.streams import SyntheticStream
from saeworks.errors import InputError


class Gaussian:
    """Rows of d independent normal entries: E‖x‖² = d σ², E‖x‖ = σ √2 Γ((d+1)/2) / Γ(d/2)."""

    def __init__(self, d: int = 12, sigma: float = 3.0) -> None:
        self.directions, self.sigma = torch.eye(d), sigma

    def sample(self, count: int, generator: torch.Generator) -> Any:
        return SimpleNamespace(activations=torch.randn(count, len(self.directions), generator=generator) * self.sigma)


def test_both_conventions_against_closed_forms() -> None:
    d, sigma = 12, 3.0
    stream = SyntheticStream(Gaussian(d, sigma), seed=0)
    msn = estimate_normalization(stream, "unit_msn")
    assert msn.tokens == 1 << 17
    assert abs(msn.scale - 1 / (sigma * math.sqrt(d))) < 4 * msn.standard_error
    mean_norm = sigma * math.sqrt(2) * math.gamma((d + 1) / 2) / math.gamma(d / 2)
    root = estimate_normalization(stream, "sqrt_d")
    assert abs(root.scale - math.sqrt(d) / mean_norm) < 4 * root.standard_error
    # Delta method: Var‖x‖² = 2 d σ⁴, and Var‖x‖ = d σ² − (E‖x‖)².
    assert msn.standard_error == pytest.approx(msn.scale * math.sqrt(2 * d) / d / 2 / math.sqrt(1 << 17), rel=0.02)
    spread = math.sqrt(d * sigma**2 - mean_norm**2)
    assert root.standard_error == pytest.approx(root.scale * spread / mean_norm / math.sqrt(1 << 17), rel=0.02)


def test_scaled_rows_have_the_promised_norm_exactly() -> None:
    rows = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) * 5 + 2
    msn, root = (estimate_normalization(rows, convention) for convention in ("unit_msn", "sqrt_d"))
    assert float(msn.apply(rows).double().pow(2).sum(1).mean()) == pytest.approx(1, rel=1e-6)
    assert float(root.apply(rows).double().norm(dim=1).mean()) == pytest.approx(math.sqrt(7), rel=1e-6)
    torch.testing.assert_close(root.undo(root.apply(rows)), rows)
    assert estimate_normalization(rows, "none") == Normalization("none", 1.0, 0, 0.0)


def test_sums_are_kept_in_double_precision() -> None:
    # 2²⁵ small squares beside one of 2²⁵ vanish in float32 sums; norms: one of 2¹², the rest 2⁻⁶.
    rows = torch.full((1 << 16, 1), 2.0**-6)
    rows[0] = 2.0**12
    found = estimate_normalization(rows, "unit_msn")
    exact = (2.0**24 + ((1 << 16) - 1) * 2.0**-12) / (1 << 16)
    assert found.scale == pytest.approx(1 / math.sqrt(exact), rel=1e-12)


def test_the_stream_is_put_back() -> None:
    stream, other = SyntheticStream(Gaussian(), seed=4), SyntheticStream(Gaussian(), seed=4)
    stream.next_batch(10)
    other.next_batch(10)
    assert estimate_normalization(stream, "unit_msn", tokens=5000, batch=512).tokens == 5000
    assert torch.equal(stream.next_batch(20).activations, other.next_batch(20).activations)


def test_rows_over_several_sites_are_scaled_as_one() -> None:
    rows = torch.randn(100, 3, 4, generator=torch.Generator().manual_seed(0))
    found = estimate_normalization(rows, "unit_msn")
    assert found.scale == pytest.approx(estimate_normalization(rows.reshape(300, 4), "unit_msn").scale)


def test_impossible_estimates_are_explained() -> None:
    cases = [
        (torch.ones(3, 2), "unit_mns", "Did you mean 'unit_msn'?"),
        (torch.zeros(3, 2), "unit_msn", "All activations are zero"),
        (torch.ones(0, 2), "sqrt_d", "from no rows"),
        (torch.tensor([[1.0, float("nan")]]), "sqrt_d", "not finite"),
    ]
    for rows, convention, expected in cases:
        with pytest.raises(InputError) as caught:
            estimate_normalization(rows, convention)
        assert expected in str(caught.value)
