"""Features at several scales: the tree of concepts, and the ideal dictionaries of every size with their errors."""

from __future__ import annotations

import math

import pytest
import torch

from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.world.synthetic import MultiScaleFeatures

COUNT = 50_000
# Concepts that sometimes stay without a child, at both levels, beside the default where they never do.
OPEN = MultiScaleFeatures(n_coarse=3, splits=((0.4, 0.3), (0.5, 0.2, 0.1)), detail=0.7, novel=5, d=30, noise=0.05)


@pytest.fixture(scope="module", params=[MultiScaleFeatures(), OPEN], ids=["closed", "open"])
def features(request):
    return request.param


@pytest.fixture(scope="module")
def batch(features):
    return features.sample(COUNT, generator(0, "scales"))


def test_the_default_tree() -> None:
    features = MultiScaleFeatures()
    assert [len(features.concepts(level)) for level in (0, 1, 2, -1)] == [4, 12, 24, 24]
    assert features.parents[4:10].tolist() == [0, 0, 0, 1, 1, 1]
    assert features.parents[16:20].tolist() == [4, 4, 5, 5]
    assert features.coarse[[0, 4, 16, 39, 40]].tolist() == [0, 0, 0, 3, -1]
    assert features.strengths[[0, 4, 16, 40]].tolist() == [1.0, 0.5, 0.25, 1.0]
    assert features.probabilities[[0, 4, 16, 17]].tolist() == pytest.approx([0.15, 0.075, 0.045, 0.03])
    assert features.probabilities[[40, 63]].tolist() == pytest.approx([0.02, 0.002])


def test_children_exclude_each_other_and_follow_their_parent(features: MultiScaleFeatures, batch) -> None:
    active = batch.codes > 0
    for parent in range(features.n_features):
        children = (features.parents == parent).nonzero().flatten()
        if not len(children):
            continue
        on = active[:, parent]
        assert not bool(active[~on][:, children].any())
        assert int(active[:, children].sum(1).max()) == 1
        split = torch.tensor(features.splits[int(features.levels[parent])])
        share = active[on][:, children].float().mean(0)
        assert bool(((share - split).abs() < 5 * (split * (1 - split) / on.sum()).sqrt()).all())
        if math.isclose(sum(split.tolist()), 1.0, rel_tol=1e-6):
            assert bool(active[on][:, children].any(dim=1).all())
        ratio = batch.codes[:, children] / batch.codes[:, [parent]]
        shown = active[:, children]
        assert torch.allclose(ratio[shown], torch.tensor(features.detail).expand(int(shown.sum())))


def test_moments_and_independence(features: MultiScaleFeatures, batch) -> None:
    codes = batch.codes.double()
    for observed, expected in (
        ((codes > 0).double(), features.probabilities),
        (codes, features.expected_codes),
        (codes.square(), features.expected_squares),
    ):
        error = observed.std(dim=0) / math.sqrt(COUNT)
        assert bool(((observed.mean(0) - expected).abs() < 5 * error).all())
    apart = torch.cat([features.concepts(0), features.concepts(-1)])
    correlation = torch.corrcoef((codes[:, apart] > 0).double().T).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 6 / math.sqrt(COUNT)
    assert math.isclose(features.expected_l0, float(features.probabilities.sum()), rel_tol=1e-5)


def test_activations_are_codes_times_directions(features: MultiScaleFeatures, batch) -> None:
    rest = batch.activations - batch.codes @ features.directions
    if features.noise == 0.0:
        assert float(rest.abs().max()) < 1e-5
    else:
        assert math.isclose(float(rest.std()), features.noise, rel_tol=0.01)


def test_the_error_of_every_ideal_dictionary_is_exact(features: MultiScaleFeatures, batch) -> None:
    for level in range(features.n_levels):
        for novel in (0, features.novel // 2, features.novel):
            scale = features.scale(level, novel)
            latents = features.ideal_latents(scale, batch.codes)
            error = (batch.activations - latents @ scale.rows).square().sum(1).double()
            tolerance = 5 * float(error.std()) / math.sqrt(COUNT)
            assert abs(float(error.mean()) - features.expected_error(scale)) <= tolerance + 1e-6
            concepts = features.levels[scale.features] >= 0
            per_coarse = torch.zeros(COUNT, features.n_coarse)
            per_coarse.index_add_(1, features.coarse[scale.features[concepts]], (latents[:, concepts] > 0).float())
            assert int(per_coarse.max()) == 1, "one latent tells the concept"
    assert features.expected_error(features.scale(features.n_levels - 1, features.novel)) == pytest.approx(
        features.d * features.noise**2, abs=1e-6
    )


def test_larger_dictionaries_are_better_in_both_ways(features: MultiScaleFeatures) -> None:
    for novel in (0, features.novel):
        errors = [features.expected_error(features.scale(level, novel)) for level in range(features.n_levels)]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > errors[-1] + 0.05
    assert features.expected_error(features.scale(0, 1)) < features.expected_error(features.scale(0))


def test_rows_are_what_least_squares_finds(features: MultiScaleFeatures, batch) -> None:
    for level in range(features.n_levels):
        scale = features.scale(level, features.novel)
        latents = features.ideal_latents(scale, batch.codes).double()
        found = torch.linalg.lstsq(latents, batch.activations.double()).solution
        # Rows of rare latents are means over few tokens.
        assert torch.allclose(found.float(), scale.rows, atol=0.1)
        cosine = torch.nn.functional.cosine_similarity(found.float(), scale.rows, dim=1)
        assert float(cosine.min()) > 0.98


def test_sizes_and_coarse_concepts_that_occur_alone() -> None:
    closed = MultiScaleFeatures()
    assert [len(closed.scale(level).features) for level in range(3)] == [4, 12, 24]
    assert [len(OPEN.scale(level).features) for level in range(3)] == [3, 3 + 6, 3 + 6 + 18]
    assert torch.allclose(closed.scale(2).rows, closed.concept_rows[closed.concepts(2)])
    row = closed.directions[0] + 0.5 * closed.directions[4] + 0.25 * closed.directions[17]
    assert torch.allclose(closed.scale(2).rows[1], row, atol=1e-6)


def test_what_is_novel_between_two_scales_lowers_the_error_when_inserted(features: MultiScaleFeatures, batch) -> None:
    small, large = features.scale(0, 2), features.scale(features.n_levels - 1, features.novel)
    held = features.counterparts(small, large)
    novel = held < 0
    assert int(novel.sum()) == features.novel - 2
    for latent in range(len(large.features)):
        feature = int(large.features[latent])
        expected = -1 if novel[latent] else int(small.features[held[latent]])
        coarse = int(features.coarse[feature])
        assert expected == (coarse if coarse >= 0 else feature if held[latent] >= 0 else -1)
    x = batch.activations
    residual = x - features.ideal_latents(small, batch.codes) @ small.rows
    latents = features.ideal_latents(large, batch.codes)
    inner = (latents * (residual @ large.rows.T)).mean(0)
    change = -2 * inner + latents.square().mean(0) * large.rows.square().sum(1)
    assert bool((change[novel] < 0).all())
    assert bool((change[~novel] > 0).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": ((0.8, 0.4),)}, "add up to 1"),
        ({"splits": ((),)}, "positive"),
        ({"coarse_probability": 0.0}, "above 0"),
        ({"detail": 0.0}, "positive detail"),
    ],
)
def test_impossible_trees_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MultiScaleFeatures(**settings)  # type: ignore[arg-type]


def test_scales_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="levels 0 to 2"):
        OPEN.scale(3)
    with pytest.raises(InputError, match="5 novel"):
        OPEN.scale(0, 6)
    with pytest.raises(InputError, match="Level 7"):
        OPEN.concepts(7)
