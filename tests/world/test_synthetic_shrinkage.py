"""Closed forms of Complete Shrinkage against the minimum of the objective itself, and against Latent Scaling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.world.synthetic import (
    PairedFeatures,
    Uniform,
    error_ratio,
    norm_difference,
    reconstruction_ratio,
    shrinkage_threshold,
    shrunk_norms,
)

LEVELS = torch.tensor([0.10, 0.15, 0.25, 0.30, 0.35, 0.50, 0.60, 0.80])
WEAK = torch.stack([LEVELS, torch.ones(8)])
A_STAR = shrinkage_threshold(1.2, Uniform(1.0, 2.0).mean, Uniform(1.0, 2.0).mean_square)


def test_the_figures_of_the_bench() -> None:
    assert math.isclose(A_STAR, 0.386, abs_tol=5e-4)
    delta = norm_difference(shrunk_norms(WEAK, A_STAR))
    assert delta[:5].tolist() == [1.0] * 5
    assert delta[5:].tolist() == pytest.approx([0.907, 0.826, 0.663], abs=1e-3)
    for norm in ("concatenated", "none"):
        assert torch.allclose(norm_difference(shrunk_norms(WEAK, A_STAR, norm)), 1 - LEVELS / 2)


def minimum(strengths: Tensor, penalty: float, s: Tensor, norm: str) -> Tensor:
    """Decoder norms of one concept that minimise the objective over a sample of coefficients, by descent."""
    x = strengths.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=5e-3)
    for step in range(800):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 800)
        size = x.abs().sum() if norm == "sum" else x.norm()
        error = ((strengths - x) * s[:, None]).square().sum(1).mean()
        loss = error + (penalty * s.mean() * size if norm != "none" else 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return x.detach()


@pytest.mark.parametrize("norm", ["sum", "concatenated", "none"])
@pytest.mark.parametrize("level", [0.2, 0.6])
def test_the_closed_form_is_the_minimum_of_the_objective(norm, level: float) -> None:
    s = Uniform(1.0, 2.0).sample((200,), generator(0))
    strengths = torch.tensor([level, 1.0], dtype=torch.float64)
    a_star = shrinkage_threshold(1.2, float(s.mean()), float(s.square().mean()))
    found = minimum(strengths, 1.2, s.double(), norm)
    assert torch.allclose(found, shrunk_norms(strengths, a_star, norm), atol=2e-3)


def test_exchanging_the_models_mirrors_the_difference() -> None:
    norms = shrunk_norms(WEAK, A_STAR)
    assert torch.allclose(norm_difference(norms.flip(0)), 1.0 - norm_difference(norms))
    assert math.isnan(float(norm_difference(torch.zeros(2, 1))))


@pytest.mark.parametrize("level", [0.25, 0.6])
def test_latent_scaling_of_an_isolated_concept(level: float) -> None:
    """Least-squares fits to the error and to the reconstruction of a pair with one concept give the stated ratios."""
    pair = PairedFeatures(
        0, 0, 0, (level,), 1, 0, (), d=16, probability=0.2, mean_scale=0.0, mean_shift=0.0, noise=0.0, seed=3
    )
    sample = pair.sample(5_000, generator(1))
    f = sample.codes[:, 1, 0]
    norms = shrunk_norms(pair.scales, A_STAR)[:, 0]
    decoders = norms[:, None] * pair.directions[:, 0]
    probe = decoders[1]
    betas = []
    for model in (0, 1):
        reconstruction = f[:, None] * decoders[model]
        target = sample.activations[:, model] - reconstruction + f[:, None] * decoders[model]
        scale = probe.square().sum() * f.square().sum()
        betas.append([float(f @ (y @ probe) / scale) for y in (target, reconstruction)])
    assert math.isclose(betas[0][0] / betas[1][0], float(error_ratio(pair.scales)), abs_tol=1e-4)
    assert math.isclose(float(error_ratio(pair.scales)), level, rel_tol=1e-6)
    assert math.isclose(betas[0][1] / betas[1][1], float(reconstruction_ratio(norms)), abs_tol=1e-4)
    assert math.isclose(float(reconstruction_ratio(norms)), max(0.0, level - A_STAR) / (1 - A_STAR), rel_tol=1e-5)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="mean square"):
        shrinkage_threshold(1.0, 0.0, 0.0)
    with pytest.raises(InputError, match="concatenated"):
        shrunk_norms(WEAK, 0.1, "concatenate")  # type: ignore[arg-type]
