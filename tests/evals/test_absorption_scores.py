"""Scores of single words: the hand-checkable table, either sign and any scale of latents, and planted absorption."""

import math

import pytest
import torch

from saeworks.errors import InputError
from saeworks.evals.letters.absorption_scores import planted_absorption, score_words
from saeworks.world.synthetic import TreeFeatures, match_features, measure_absorption

P = torch.tensor([1.0, 0.0])
COSINES = [0.6, 0.8, 0.05, 0.0]
ROWS = torch.tensor([[c, math.sqrt(1 - c * c)] for c in COSINES])
# x·p, latents, fraction, full
CASES = {
    "A": (2.0, (0, 2, 0, 0), 1.0, True),
    "B": (2.0, (1, 1.5, 0, 0), 2 / 3, False),
    "C": (2.0, (1, 4, 0, 0), 0.7, False),
    "D": (2.0, (4, 1, 0, 0), 0.0, False),
    "E": (2.0, (0, 0, 30, 0), 0.0, True),
    "F": (-1.0, (0, 2, 0, 0), 0.0, False),
    "G": (2.0, (0, 0.9, 0, 5), 0.0, False),
    "H": (2.0, (0.5, 0.9, 0, 0), 0.0, False),
}


def one(present, latents, rows=ROWS, mode="corrected", main=(0,)):
    scores = score_words(torch.tensor([present]), torch.tensor([latents], dtype=torch.float32), rows, P, main, mode)
    return float(scores.fraction), bool(scores.full)


@pytest.mark.parametrize("mode", ["compat", "corrected"])
@pytest.mark.parametrize("case", list(CASES))
def test_the_table_of_cases(case, mode):
    present, latents, fraction, full = CASES[case]
    assert one(present, latents, mode=mode) == (pytest.approx(fraction, abs=1e-6), full)


def test_a_batch_is_its_words_one_by_one():
    latents = torch.tensor([case[1] for case in CASES.values()], dtype=torch.float32)
    present = torch.tensor([case[0] for case in CASES.values()])
    scores = score_words(present, latents, ROWS, 3 * P, [0])
    assert scores.fraction.tolist() == pytest.approx([case[2] for case in CASES.values()], abs=1e-6)
    assert scores.full.tolist() == [case[3] for case in CASES.values()]
    assert scores.absorber.tolist() == [1, 1, 1, 1, -1, 1, 1, 1]


def test_the_three_strongest_absorbers_count_and_no_more():
    rows = torch.tensor([[1.0, 0.0]] * 6)
    assert one(10.0, (2.0, 2, 2, 2, 2, 0), rows)[0] == pytest.approx(6 / 8)
    assert one(10.0, (6.0, 1, 1, 1, 1, 1), rows)[0] == 0  # three of them carry 0.3 of it, less than 0.4


def test_scale_between_latent_and_row_matters_in_compat_alone():
    scale = torch.tensor([2.0, 0.25, 1.0, 3.0])
    latents = torch.tensor([1.0, 1.5, 0, 0])
    moved = tuple((latents / scale).tolist())
    rows = ROWS * scale[:, None]
    assert one(2.0, moved, rows) == (pytest.approx(2 / 3), False)
    assert one(2.0, moved, rows, "compat")[0] != pytest.approx(2 / 3, abs=0.05)


def test_a_latent_of_the_other_sign_is_the_same_latent_in_corrected_alone():
    turned = ROWS * torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
    assert one(2.0, (0, -2, 0, 0), turned) == (1.0, True)
    assert one(2.0, (0, -2, 0, 0), turned, "compat") == (0.0, False)
    # A main latent that is strongly negative is not silent.
    assert not one(2.0, (-3, 5, 0, 0))[1]
    assert one(2.0, (-3, 5, 0, 0), mode="compat")[1]


def test_splitting_is_no_absorption():
    # Both carry 1.6 of 2 together; nobody else carries the rest.
    assert one(2.0, (0, 2, 0, 0), main=(0, 1)) == (0.0, False)
    assert one(2.0, (0, 2, 0, 0), main=(0,)) == (1.0, True)
    assert one(1.6, (0, 2, 0, 0), main=(0, 1)) == (0.0, False)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_planted_share_is_measured(share):
    """Two tokens in four of the concept also have a special feature, whose latent takes over ``share`` of the concept
    there; below the least proportion of 0.4 nothing counts as absorbed."""
    concept, special = torch.eye(8)[0], torch.eye(8)[1]
    has = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    x = has @ torch.stack([concept, special])
    direction = special + share * concept
    row = direction / direction.norm()
    latents = torch.stack([has[:, 0] - share * has[:, 1], has[:, 1] * direction.norm()], dim=1)
    decoder = torch.stack([concept, row])
    assert torch.allclose(latents @ decoder, x)
    scores = planted_absorption(x, latents, decoder, concept, [0])
    wanted = share if share >= 0.4 else 0.0
    assert scores.fraction.tolist() == pytest.approx([wanted, wanted, 0, 0])
    assert scores.full.tolist() == [share == 1.0] * 2 + [False] * 2


def test_true_features_of_a_tree_show_none_and_absorbing_ones_what_the_toy_measure_says():
    tree = TreeFeatures()
    sample = tree.sample(4000, torch.Generator().manual_seed(0))
    directions = torch.nn.functional.normalize(tree.directions, dim=-1)
    lengths = tree.directions.norm(dim=-1)
    parent = tree.parents[0]
    children = list(tree.children(parent))
    active = (sample.codes[:, parent] > 0) & (sample.codes[:, children] > 0).any(dim=1)
    truth = sample.codes * lengths
    clean = planted_absorption((truth @ directions)[active], truth[active], directions, directions[parent], [parent])
    assert float(clean.fraction.max()) < 1e-6
    assert not bool(clean.full.any())
    # Each child's latent now brings its parent along, and the parent's latent is silent beside a child.
    rows = directions.clone()
    rows[children] = torch.nn.functional.normalize(directions[children] + directions[parent], dim=-1)
    latents = truth.clone()
    latents[active, parent] = 0
    latents[:, children] = truth[:, children] * 2**0.5
    absorbed = planted_absorption((truth @ directions)[active], latents[active], rows, directions[parent], [parent])
    matching = match_features(directions, tree.directions)
    toy = measure_absorption(tree, latents, sample.codes, rows, matching)
    assert float(absorbed.fraction.mean()) > 0.9
    assert float(absorbed.full.double().mean()) > 0.9
    assert toy.absorption > measure_absorption(tree, truth, sample.codes, directions, matching).absorption
    with pytest.raises(InputError, match="do not fit"):
        planted_absorption(truth, truth, directions, directions[0][:3], [0])
