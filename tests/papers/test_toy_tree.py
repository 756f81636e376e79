"""The toy tree of arXiv 2503.17547, trained for real: nesting keeps parents whole after 3,000 steps already."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saeworks.dictionaries.config import DictionaryConfig
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.papers import toy_tree
from saeworks.world.synthetic import TreeFeatures

PLAIN, NESTED = "L1", "Matryoshka L1, fixed 3 6 10 15 20"


def test_plain_latents_absorb_parents_and_nested_prefixes_keep_them(tmp_path: Path) -> None:
    measured = toy_tree.run(tmp_path, [0], (PLAIN, NESTED), toy_tree.SMOKE_STEPS)
    (plain,), (nested,) = measured[PLAIN], measured[NESTED]
    assert plain["absorption"] > 0.95
    assert plain["child_cosine"] < 0.75
    assert plain["l0"] == pytest.approx(toy_tree.ABSORBED, abs=0.05)
    assert nested["absorption"] < 0.05
    assert 0.93 < nested["parent_cosine"] < 0.97
    assert nested["alone"] > 0.95
    again = toy_tree.run(tmp_path, [0], (PLAIN, NESTED), toy_tree.SMOKE_STEPS)
    assert again == measured


def test_a_perfect_dictionary_scores_perfectly() -> None:
    tree = TreeFeatures(seed=3)
    norms = tree.directions.norm(dim=1)
    unit = tree.directions / norms[:, None]
    cfg = DictionaryConfig(architecture="relu", d_in=20, d_sae=20, apply_b_dec_to_input=False)
    # Rounding leaves directions that are orthogonal up to 1e-7; the bias keeps silent latents silent.
    dictionary = Dictionary(cfg, unit.T.contiguous(), unit, torch.full((20,), -1e-4), torch.zeros(20))
    found = toy_tree.measure(tree, dictionary)
    assert found["l0"] == pytest.approx(tree.expected_l0, rel=0.05)
    assert found["absorption"] == 0.0
    assert found["alone"] == 1.0
    for name in ("decoder_cosine", "least_cosine", "encoder_cosine", "parent_cosine", "child_cosine"):
        assert found[name] == pytest.approx(1.0, abs=1e-5), name
    assert found["fvu"] < 1e-5
    assert abs(found["parent_content"]) < 1e-5


def test_the_variants_are_those_of_the_paper() -> None:
    sizes = {name: v.recipe.group_sizes(20) for name, v in toy_tree.VARIANTS.items() if v.recipe.prefixes is None}
    assert sizes[NESTED] == (3, 3, 4, 5, 5)
    assert sizes["Matryoshka BatchTopK, fixed 3 6 11 20"] == (3, 3, 5, 9)
    assert sizes["Matryoshka BatchTopK, coarse 11 20"] == (11, 9)
    assert sizes[PLAIN] == sizes["BatchTopK"] == (20,)
    assert TreeFeatures().expected_l0 == pytest.approx(toy_tree.WHOLE)
    assert len({v.recipe.name for v in toy_tree.VARIANTS.values()}) == len(toy_tree.VARIANTS)
    assert set(toy_tree.ESSENTIAL) <= set(toy_tree.VARIANTS)
