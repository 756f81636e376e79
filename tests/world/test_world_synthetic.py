"""Synthetic activations: the statistics they promise, and the measures that judge a recovery."""

from __future__ import annotations

import math

import pytest
import torch

from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.world.synthetic import (
    IndependentFeatures,
    TreeFeatures,
    match_by_activity,
    match_features,
    measure_absorption,
    nearest_feature,
    recovery,
)

COUNT = 200_000


def within(observed: float, p: float, count: float) -> bool:
    """Five standard deviations of a mean of ``count`` Bernoulli draws."""
    return abs(observed - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_the_default_tree_has_its_known_probabilities() -> None:
    tree = TreeFeatures()
    batch = tree.sample(COUNT, generator(0, "tree test"))
    assert tree.n_features == 20
    assert tree.parents == (0, 4, 8)
    assert math.isclose(tree.expected_l0, 1.12)
    assert abs(float(batch.codes.sum(1).mean()) - 1.12) < 0.02
    assert set(batch.codes.unique().tolist()) == {0.0, 1.0}
    for parent in tree.parents:
        on = batch.codes[:, parent] > 0
        assert within(float(on.float().mean()), 0.15, COUNT)
        children = batch.codes[:, list(tree.children(parent))]
        assert float(children[~on].sum()) == 0.0, "a child is active only under its parent"
        assert float(children.sum(1).max()) == 1.0, "children exclude each other"
        for child in tree.children(parent):
            assert within(float(batch.codes[on, child].mean()), 0.2, float(on.sum()))
    for leaf in range(12, 20):
        assert within(float(batch.codes[:, leaf].mean()), 0.05, COUNT)


def test_activations_are_codes_times_directions() -> None:
    tree = TreeFeatures(n_parents=2, n_children=4, n_leaves=3, d=32, seed=5)
    batch = tree.sample(64, generator(1))
    assert batch.activations.shape == (64, 32)
    assert torch.allclose(batch.activations, batch.codes @ tree.directions, atol=1e-6)
    gram = tree.directions @ tree.directions.T
    assert float((gram - torch.diag(gram.diagonal())).abs().max()) < 1e-5
    norms = TreeFeatures(n_parents=50, n_children=3, n_leaves=300).directions.norm(dim=1)
    assert abs(float(norms.mean()) - 1.0) < 0.01
    assert abs(float(norms.std()) - 0.05) < 0.01


def test_seeds_decide_everything() -> None:
    assert torch.equal(TreeFeatures(seed=2).directions, TreeFeatures(seed=2).directions)
    assert not torch.equal(TreeFeatures(seed=2).directions, TreeFeatures(seed=3).directions)
    a, b = (IndependentFeatures(8, 8).sample(10, generator(7)) for _ in range(2))
    assert torch.equal(a.activations, b.activations)


def test_independent_features_follow_the_power_law() -> None:
    features = IndependentFeatures(50, 20, probability=0.04, zipf=0.8, magnitude=2.0, magnitude_spread=1.0)
    batch = features.sample(COUNT, generator(3))
    rates = (batch.codes > 0).float().mean(0)
    assert all(within(float(rate), float(p), COUNT) for rate, p in zip(rates, features.probabilities, strict=True))
    assert math.isclose(float(features.probabilities.mean()), 0.04, rel_tol=1e-5)
    assert math.isclose(float(features.probabilities[0] / features.probabilities[9]), 10**0.8, rel_tol=1e-4)
    active = batch.codes[batch.codes > 0]
    assert float(active.min()) >= 1.0
    assert float(active.max()) <= 3.0
    assert abs(float(active.mean()) - 2.0) < 0.01
    both = (batch.codes[:, 0] > 0) & (batch.codes[:, 1] > 0)
    assert within(float(both.float().mean()), float(features.probabilities[0] * features.probabilities[1]), COUNT)


def test_noise_is_added_to_the_activations_alone() -> None:
    features = IndependentFeatures(6, 40, noise=0.3)
    batch = features.sample(20_000, generator(4))
    rest = batch.activations - batch.codes @ features.directions
    assert abs(float(rest.std()) - 0.3) < 0.005


def test_a_permuted_rescaled_dictionary_is_matched_perfectly() -> None:
    features = IndependentFeatures(40, 64, seed=1)
    order = torch.randperm(40, generator=generator(9))
    extra = torch.randn(5, 64, generator=generator(10)) * 0.01
    rows = torch.cat([features.directions[order] * torch.rand(40, 1, generator=generator(11)).add(0.5), extra])
    found = match_features(rows, features.directions)
    assert math.isclose(found.mean_max_cosine, 1.0, abs_tol=1e-5)
    assert math.isclose(found.mean_cosine, 1.0, abs_tol=1e-5)
    assert torch.equal(order[found.latents], found.features)
    assert found.unmatched_latents.tolist() == list(range(40, 45))
    assert found.unmatched_features.tolist() == []


def test_one_latent_cannot_stand_for_two_features() -> None:
    directions = torch.eye(3)
    rows = torch.tensor([[1.0, 1.0, 0.0], [0.9, 1.0, 0.0]])
    found = match_features(rows, directions)
    assert found.latents.tolist() == [0, 1]
    assert found.features.tolist() == [0, 1]
    assert found.unmatched_features.tolist() == [2]
    assert found.latent_of(2) is None
    best = (1 / math.sqrt(2) + 1 / math.sqrt(1.81) + 0.0) / 3
    assert math.isclose(found.mean_max_cosine, best, rel_tol=1e-5)
    with pytest.raises(InputError, match="width 3"):
        match_features(rows, torch.eye(4))


def test_recovery_counts_pairs_above_the_threshold() -> None:
    directions = torch.eye(4)
    near = torch.tensor([0.0, 1.0, 0.3, 0.0])  # cosine 0.958 with the second direction
    far = torch.tensor([0.0, 0.0, 1.0, 1.0])  # cosine 0.707 with two
    rows = torch.stack([far, 3 * directions[0], near, directions[0], torch.full((4,), -1.0)])
    found = recovery(rows, directions, threshold=0.9)
    assert found.recall == 2 / 4
    assert found.precision == 2 / 5
    assert math.isclose(found.mean_max_cosine, (1 + 1 / math.sqrt(1.09) + 2 / math.sqrt(2)) / 4, rel_tol=1e-5)
    assert recovery(rows, directions, threshold=0.97).recall == 1 / 4
    assert recovery(rows, directions, threshold=0.7).recall == 3 / 4
    # With latents, the second copy of the first direction and the last row are found dead and left out.
    latents = torch.zeros(6, 5)
    latents[2, :3] = 1.0
    alive = recovery(rows, directions, 0.9, latents)
    assert alive.precision == 2 / 3
    assert alive.recall == 2 / 4
    assert alive.matching.latent_of(0) == 1
    assert alive.matching.latent_of(1) == 2
    with pytest.raises(InputError, match="no active latent"):
        recovery(rows, directions, 0.9, torch.zeros(6, 5))


def test_several_latents_may_bear_the_name_of_one_feature() -> None:
    codes = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    latents = torch.stack([codes[:, 0], 5 * codes[:, 0], torch.tensor([0.0, 0.0, 1.0, 2.0]), torch.zeros(4)], dim=1)
    named = nearest_feature(latents, codes)
    assert named.features.tolist() == [0, 0, -1, -1]
    assert named.cosines.tolist() == pytest.approx([1.0, 1.0, 1 / math.sqrt(5), 0.0])
    assert nearest_feature(latents, codes, threshold=0.4).features.tolist() == [0, 0, 1, -1]


def test_absorption_of_a_perfect_and_of_an_absorbing_dictionary() -> None:
    tree = TreeFeatures(scale_spread=0.0)
    batch = tree.sample(20_000, generator(6))
    perfect = match_by_activity(batch.codes, batch.codes, tree.directions, tree.directions)
    good = measure_absorption(tree, batch.codes, batch.codes, tree.directions, perfect)
    assert torch.equal(perfect.latents, perfect.features)
    assert good.absorption == 0.0
    assert good.alone == 1.0
    assert abs(good.parent_content) < 1e-5
    # The optimum of a plain L1 penalty: a child's latent writes parent and child, and the parent's stays silent.
    rows, latents = tree.directions.clone(), batch.codes.clone()
    for parent in tree.parents:
        for child in tree.children(parent):
            rows[child] += tree.directions[parent]
            latents[batch.codes[:, child] > 0, parent] = 0.0
    assert torch.allclose(latents @ rows, batch.activations, atol=1e-5), "it reconstructs without error"
    bad = measure_absorption(
        tree, latents, batch.codes, rows, match_by_activity(latents, batch.codes, rows, tree.directions)
    )
    assert bad.absorption == 1.0
    assert bad.alone == 1.0
    assert math.isclose(bad.parent_content, 1 / math.sqrt(2), rel_tol=1e-5)
    assert abs(float((latents > 0).float().sum(1).mean()) - 0.85) < 0.02


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TreeFeatures(n_children=6), "add up to more than"),
        (lambda: TreeFeatures(d=10), "orthonormal"),
        (lambda: IndependentFeatures(10, 5, probability=0.5, zipf=2.0), "lower one of the two"),
        (lambda: IndependentFeatures(10, 5, magnitude_spread=2.0), "negative"),
    ],
)
def test_impossible_generators_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=message):
        make()
