"""Compositional features: objects hold one attribute of every group, and all frequencies and moments are exact."""

from __future__ import annotations

import math

import pytest
import torch

from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.world.synthetic import ClippedNormal, CompositionalFeatures

COUNT = 40_000


@pytest.fixture(scope="module")
def features():
    return CompositionalFeatures()


@pytest.fixture(scope="module")
def batch(features):
    return features.sample(COUNT, generator(0, "objects"))


def overlaps(rows: torch.Tensor) -> torch.Tensor:
    gram = rows @ rows.T
    return gram.fill_diagonal_(0.0).abs()


def test_atoms_are_nearly_orthogonal_unit_vectors(features: CompositionalFeatures) -> None:
    assert features.directions.shape == (64, 64)
    assert torch.allclose(features.directions.norm(dim=1), torch.ones(64), atol=1e-5)
    assert float(overlaps(features.directions).max()) < 0.03
    crowded = CompositionalFeatures.superposition()
    assert crowded.directions.shape == (64, 48)
    # No 64 unit vectors in 48 dimensions overlap less than sqrt(16 / (48 * 63)) = 0.073; random ones reach about 0.5.
    assert 0.073 < float(overlaps(crowded.directions).max()) < 0.15
    assert math.isclose(float(features.bias.norm()), 1.0, rel_tol=1e-5)
    assert torch.equal(features.directions, CompositionalFeatures().directions)


def test_an_object_is_one_attribute_of_each_group_in_one_amplitude(features: CompositionalFeatures, batch) -> None:
    colours, shapes = (batch.codes[:, list(features.attributes(g))] for g in (0, 1))
    assert features.attributes(1) == tuple(range(12, 24))
    assert int((colours > 0).sum(1).max()) == int((shapes > 0).sum(1).max()) == 1
    assert torch.equal(colours.sum(1), shapes.sum(1)), "no attribute alone, and both as strong"
    shown = colours.sum(1) > 0
    assert abs(float(shown.float().mean()) - 0.6) < 5 * math.sqrt(0.24 / COUNT)
    assert float(colours[colours > 0].min()) >= 0.5
    assert float(colours[colours > 0].max()) <= 1.5


def test_all_combinations_are_equally_likely(features: CompositionalFeatures, batch) -> None:
    index = features.composite_of(batch.codes)
    assert torch.equal(index >= 0, batch.codes[:, :24].sum(1) > 0)
    atoms = features.composites[index[index >= 0]]
    assert bool((batch.codes[index >= 0].gather(1, atoms) > 0).all())
    counts = torch.bincount(index[index >= 0], minlength=144).double()
    expected = counts.sum() / 144
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    # 143 degrees of freedom: mean 143, standard deviation 16.9.
    assert chi_square < 143 + 5 * 16.9


@pytest.mark.parametrize("p_single", [0.0, 0.1])
def test_frequencies_and_moments(p_single: float) -> None:
    features = CompositionalFeatures(p_single=p_single)
    codes = features.sample(COUNT, generator(1)).codes.double()
    assert math.isclose(float(features.probabilities[0]), 0.6 / 12 + p_single / 24, rel_tol=1e-5)
    for observed, expected in (
        ((codes > 0).double(), features.probabilities),
        (codes, features.expected_codes),
        (codes.square(), features.expected_squares),
    ):
        error = observed.std(dim=0) / math.sqrt(COUNT)
        assert bool(((observed.mean(0) - expected).abs() < 5 * error).all())
    lone = ((codes[:, :24] > 0).sum(1) == 1).double().mean()
    assert abs(float(lone) - p_single) <= 5 * math.sqrt(p_single * (1 - p_single) / COUNT)
    assert math.isclose(features.expected_l0, 1.2 + p_single + float(features.probabilities[24:].sum()), rel_tol=1e-5)


def test_the_background_is_log_spaced_and_independent(features: CompositionalFeatures, batch) -> None:
    chances = features.probabilities[24:]
    assert chances[[0, -1]].tolist() == pytest.approx([0.05, 0.002])
    assert torch.allclose(chances[1:] / chances[:-1], torch.tensor(0.04 ** (1 / 39)).expand(39), rtol=1e-4)
    active = torch.cat([batch.codes[:, :24].sum(1, keepdim=True), batch.codes[:, 24:]], dim=1) > 0
    correlation = torch.corrcoef(active.float().T).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 6 / math.sqrt(COUNT)


def test_the_second_moment_of_the_clipped_normal_is_exact() -> None:
    law = ClippedNormal(0.25, 2.0)
    z = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    integral = torch.trapezoid((1 + 0.25 * z.clamp(-2, 2)).square() * density, z)
    assert math.isclose(law.mean_square, float(integral), rel_tol=1e-9)
    assert math.isclose(ClippedNormal(0.05, 8.0).mean_square, 1.0025, rel_tol=1e-9)
    with pytest.raises(InputError, match="below 1"):
        ClippedNormal(spread=0.6)


@pytest.mark.parametrize("make", [CompositionalFeatures, CompositionalFeatures.superposition])
def test_activations_are_codes_times_directions_plus_bias(make) -> None:
    features = make()
    sample = features.sample(200, generator(2))
    assert torch.allclose(sample.activations, sample.codes @ features.directions + features.bias, atol=1e-5)
    noisy = CompositionalFeatures(noise=0.1).sample(5_000, generator(2))
    quiet = CompositionalFeatures().sample(5_000, generator(2))
    assert torch.equal(noisy.codes, quiet.codes)
    assert abs(float((noisy.activations - quiet.activations).std()) - 0.1) < 0.001


def test_a_composite_of_n_atoms_has_cosine_one_over_root_n_with_each() -> None:
    for features, parts in ((CompositionalFeatures(), 2), (CompositionalFeatures.three_way(), 3)):
        composites = features.composite_directions
        assert features.composites.shape == (math.prod(features.groups), parts)
        cosine = (composites[:, None] * features.directions[features.composites]).sum(2)
        assert torch.allclose(cosine, torch.tensor(1 / math.sqrt(parts)).expand_as(cosine), atol=0.03)
    three = CompositionalFeatures.three_way()
    codes = three.sample(2_000, generator(3)).codes
    shown = three.composite_of(codes) >= 0
    assert set((codes[shown, :24] > 0).sum(1).tolist()) == {3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": (4,)}, "two groups"),
        ({"groups": (4, 0)}, "at least one attribute"),
        ({"object_probability": 0.8, "p_single": 0.3}, "at most 1"),
        ({"background_probabilities": (0.5, 0.0)}, "above 0"),
    ],
)
def test_impossible_worlds_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompositionalFeatures(**settings)  # type: ignore[arg-type]
