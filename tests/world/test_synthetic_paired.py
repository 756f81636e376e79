"""Paired activations: every group does what its name says, moments are exact, and swapping and doubling are exact."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from saeworks.activations.streams import SyntheticStream
from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.world.synthetic import Exponential, PairedFeatures, Uniform, nearest_feature, norm_difference

COUNT = 30_000
LEVELS = (0.10, 0.15, 0.25, 0.30, 0.35, 0.50, 0.60, 0.80)


@pytest.fixture(scope="module")
def pair():
    return PairedFeatures()


@pytest.fixture(scope="module")
def batch(pair):
    return pair.sample(COUNT, generator(0, "pairs"))


def test_the_default_pair_has_the_groups_of_the_bench(pair: PairedFeatures) -> None:
    counts = {"shared": 40, "base_only": 8, "chat_only": 8, "weak_in_base": 16, "weak_in_chat": 8, "decoupled": 12}
    assert Counter(pair.groups) == counts
    assert pair.n_features == 92
    assert math.isclose(pair.expected_l0, 92 * 0.03, rel_tol=1e-6)
    assert torch.allclose(pair.directions.norm(dim=2), torch.ones(2, 92), atol=1e-5)
    cosine = (pair.directions[0] * pair.directions[1]).sum(1)
    for i, feature in enumerate(pair.members("shared")):
        assert math.isclose(float(cosine[feature]), 0.9 if i % 2 else 1.0, abs_tol=1e-5)
    assert torch.allclose(cosine[40:], torch.ones(52), atol=1e-5)
    assert pair.scales[:, pair.members("base_only")].tolist() == [[1.0] * 8, [0.0] * 8]
    assert pair.scales[:, pair.members("chat_only")].tolist() == [[0.0] * 8, [1.0] * 8]
    twice = [level for level in LEVELS for _ in range(2)]
    assert torch.allclose(pair.scales[:, pair.members("weak_in_base")], torch.tensor([twice, [1.0] * 16]))
    assert torch.allclose(pair.scales[:, pair.members("weak_in_chat")], torch.tensor([[1.0] * 8, list(LEVELS)]))


def test_means_have_the_asked_scale() -> None:
    wide = PairedFeatures(d=20_000, mean_scale=0.5, mean_shift=0.1, shared=1, weak_levels=(), overlaps=())
    assert abs(float(wide.means[0].std()) - 0.5) < 0.0125
    assert abs(float((wide.means[1] - wide.means[0]).std()) - 0.1) < 0.0025


def test_activations_are_codes_times_directions_plus_means_plus_noise(pair: PairedFeatures) -> None:
    quiet = PairedFeatures(noise=0.0).sample(2_000, generator(4))
    rebuilt = torch.einsum("tmf,mfd->tmd", quiet.codes, pair.directions) + pair.means
    assert torch.allclose(quiet.activations, rebuilt, atol=1e-5)
    noisy = pair.sample(2_000, generator(4))
    assert torch.equal(noisy.codes, quiet.codes)
    rest = (noisy.activations - quiet.activations).transpose(0, 1).flatten(1)
    assert torch.allclose(rest.std(dim=1), torch.tensor([0.02, 0.02]), rtol=0.02)
    assert abs(float(torch.corrcoef(rest)[0, 1])) < 5 / math.sqrt(rest.shape[1])


@pytest.mark.parametrize("law", [Uniform(1.0, 2.0), Exponential(1.0)])
@pytest.mark.parametrize("variant", ["pair", "swapped", "null"])
def test_moments_are_exact(law: Uniform | Exponential, variant: str) -> None:
    plain = PairedFeatures(coefficient=law, dense=2, group_probabilities={"chat_only": 0.01})
    pair = {"pair": plain, "swapped": plain.swapped(), "null": plain.null()}[variant]
    sample = pair.sample(COUNT, generator(1, "moments"))
    codes = sample.codes.double()
    for observed, expected in (
        ((codes > 0).double(), pair.activity),
        (codes, pair.expected_codes),
        (codes.square(), pair.expected_squares),
    ):
        error = observed.std(dim=0) / math.sqrt(COUNT)
        assert bool(((observed.mean(0) - expected).abs() <= 5 * error + 1e-9).all())
    spread = sample.activations.std(dim=0) / math.sqrt(COUNT)
    assert bool(((sample.activations.mean(0) - pair.expected_activations).abs() < 5 * spread).all())
    active = (codes > 0).any(dim=1).sum(1).double()
    assert abs(float(active.mean()) - pair.expected_l0) < 5 * float(active.std()) / math.sqrt(COUNT)


def test_coefficient_laws_have_the_moments_of_the_predictions() -> None:
    assert Uniform(1.0, 2.0).mean == 1.5
    assert math.isclose(Uniform(1.0, 2.0).mean_square, 7 / 3)
    assert Exponential(1.0).mean_square == 2.0


def test_one_coefficient_serves_both_models(pair: PairedFeatures, batch) -> None:
    both = (batch.codes > 0).all(dim=1)
    ratio = batch.codes[:, 0] / batch.codes[:, 1]
    expected = (pair.scales[0] / pair.scales[1]).expand_as(ratio)
    assert torch.allclose(ratio[both], expected[both])
    together = [*pair.members("shared"), *pair.members("weak_in_base"), *pair.members("weak_in_chat")]
    active = batch.codes > 0
    assert torch.equal(active[:, 0, together], active[:, 1, together])
    assert not bool(active[:, 1, pair.members("base_only")].any())
    assert not bool(active[:, 0, pair.members("chat_only")].any())


def test_decoupled_features_overlap_as_asked(pair: PairedFeatures, batch) -> None:
    members = pair.members("decoupled")
    active = batch.codes[:, :, members] > 0
    asked = torch.tensor([rho for rho in (0.3, 0.7, 0.9) for _ in range(4)])
    assert torch.allclose(pair.co_activity[members], asked)
    for here in (0, 1):
        count = active[:, here].sum(0)
        share = active.all(dim=1).sum(0) / count
        assert bool(((share - asked).abs() < 5 * (asked * (1 - asked) / count).sqrt()).all())


def test_features_are_independent(batch) -> None:
    active = (batch.codes > 0).any(dim=1).float()
    correlation = torch.corrcoef(active.T)
    correlation.fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 6 / math.sqrt(COUNT)


def test_swapping_exchanges_the_models_token_by_token(pair: PairedFeatures) -> None:
    swapped = pair.swapped()
    a, b = pair.sample(3_000, generator(2)), swapped.sample(3_000, generator(2))
    assert torch.equal(a.codes.flip(1), b.codes)
    assert torch.allclose(a.activations.flip(1), b.activations, atol=1e-6)
    assert swapped.members("chat_only") == pair.members("base_only")
    assert swapped.members("weak_in_base") == pair.members("weak_in_chat")
    assert swapped.swapped() == pair
    assert torch.allclose(norm_difference(swapped.scales), 1.0 - norm_difference(pair.scales))


def test_the_null_pair_is_the_chat_model_twice(pair: PairedFeatures) -> None:
    null, noisy = pair.null(), pair.null(independent_noise=True)
    assert set(null.groups) == {"shared"}
    assert null.n_features == 84, "the eight features of the base alone are gone"
    sample = null.sample(5_000, generator(3))
    assert torch.equal(sample.activations[:, 0], sample.activations[:, 1])
    assert torch.equal(sample.codes[:, 0], sample.codes[:, 1])
    there = pair.scales[1] > 0
    assert torch.allclose(null.activity[0], pair.activity[1, there])
    assert torch.allclose(null.expected_activations, pair.expected_activations[1].expand(2, -1), atol=1e-6)
    assert torch.equal(norm_difference(null.scales), torch.full((84,), 0.5))
    apart = noisy.sample(5_000, generator(3))
    assert torch.equal(apart.codes, sample.codes)
    difference = apart.activations[:, 0] - apart.activations[:, 1]
    assert math.isclose(float(difference.std()), 0.02 * math.sqrt(2), rel_tol=0.02)
    with pytest.raises(InputError, match="ambiguous"):
        pair.swapped().null()


def test_presence_of_ideal_latents_and_what_counts_as_chat_specific(pair: PairedFeatures, batch) -> None:
    features = torch.arange(pair.n_features)
    presence = pair.presence(batch.codes[:, 1], batch.codes, features)
    ideal = pair.ideal_presence
    known = ideal.isfinite()
    assert torch.equal(known.logical_not().nonzero().flatten(), torch.tensor(pair.members("base_only")))
    assert torch.equal(presence.isfinite(), known)
    assert torch.allclose(presence[known], ideal[known], atol=0.05)
    weak = torch.tensor(pair.members("weak_in_base"))
    assert torch.allclose(presence[weak], pair.scales[0, weak], atol=1e-5)
    specific = pair.chat_specific(features, presence)
    true = {*pair.members("chat_only"), *pair.members("weak_in_base")[:4], *pair.members("decoupled")[:4]}
    assert set(specific.nonzero().flatten().tolist()) == true


def test_the_residue_of_a_shared_latent_is_chat_specific(pair: PairedFeatures, batch) -> None:
    feature = pair.members("decoupled")[-1]  # in nine of ten cases in both models
    alone = (batch.codes[:, 0, feature] == 0) * batch.codes[:, 1, feature]
    latents = torch.stack([alone, batch.codes[:, 1, feature], torch.zeros(COUNT)], dim=1)
    features = torch.tensor([feature, feature, -1])
    presence = pair.presence(latents, batch.codes, features)
    assert float(presence[0]) == 0.0
    assert abs(float(presence[1]) - 0.9) < 0.02
    assert math.isnan(float(presence[2]))
    assert pair.chat_specific(features, presence).tolist() == [True, False, False]


def test_latents_are_named_by_the_closest_model(pair: PairedFeatures, batch) -> None:
    feature = pair.members("decoupled")[0]
    noise = torch.rand(COUNT, generator=generator(8))
    latents = torch.stack([batch.codes[:, 0, feature], batch.codes[:, 1, feature], noise], dim=1)
    named = nearest_feature(latents, batch.codes)
    assert named.features.tolist() == [feature, feature, -1]
    assert torch.allclose(named.cosines[:2], torch.ones(2))


def test_side_by_side_a_pair_is_a_source_of_one_site(pair: PairedFeatures) -> None:
    quiet = PairedFeatures(noise=0.0)
    joined = quiet.concatenated()
    sample, same = joined.sample(500, generator(5)), quiet.sample(500, generator(5))
    assert torch.equal(sample.activations, same.activations.flatten(1))
    assert torch.allclose(sample.activations, sample.codes @ joined.directions + joined.bias, atol=1e-5)
    together = [i for i, group in enumerate(quiet.groups) if group != "decoupled"]
    coefficient = same.codes.amax(dim=1) / quiet.scales.amax(dim=0)
    rest = same.codes.clone()
    rest[:, :, together] = 0.0
    joint = coefficient[:, together] @ joined.joint[together] + rest.flatten(1) @ joined.directions
    assert torch.allclose(sample.activations, joint + joined.bias, atol=1e-5)
    stream, other = (
        SyntheticStream(pair.concatenated()),
        SyntheticStream(PairedFeatures(probability=0.02).concatenated()),
    )
    assert stream.next_batch(7).activations.shape == (7, 128)
    assert stream.fingerprint() != other.fingerprint()


def test_knobs_change_what_they_name() -> None:
    pair = PairedFeatures(decoupled_cosine=0.3, group_probabilities={"chat_only": 0.002}, dense=3)
    members = pair.members("decoupled")
    cosine = (pair.directions[0, members] * pair.directions[1, members]).sum(1)
    assert torch.allclose(cosine, torch.full((12,), 0.3), atol=1e-5)
    assert pair.probabilities[pair.members("chat_only")].tolist() == pytest.approx([0.002] * 8)
    assert pair.probabilities[pair.members("dense")].tolist() == [0.5] * 3
    assert torch.equal(pair.directions, PairedFeatures(decoupled_cosine=0.3, dense=3).directions)
    assert not torch.equal(pair.directions, PairedFeatures(decoupled_cosine=0.3, dense=3, seed=1).directions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 0.0}, "chance 0.0"),
        ({"group_probabilities": {"chat_onyl": 0.1}}, "chat_only"),
        ({"weak_levels": (0.0,)}, "strength 0.0"),
        ({"overlaps": (1.5,)}, "overlap 1.5"),
        ({"shared_cosine": 1.2}, "Cosines"),
        ({"noise": -1.0}, "standard deviation"),
        ({"shared": 0, "base_only": 0, "chat_only": 0, "weak_levels": (), "overlaps": ()}, "without a single feature"),
    ],
)
def test_impossible_pairs_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PairedFeatures(**settings)  # type: ignore[arg-type]
