"""Matryoshka's claims from measures made by hand, and the measures on names where the answer is known."""

from __future__ import annotations

import pytest
import torch

from saeworks.dictionaries.config import DictionaryConfig
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.errors import RunError
from saeworks.papers import matryoshka, taxonomy, toy_tree
from saeworks.papers.claims import Claim

PLAIN, NESTED = ("batch_topk", 4.0), ("matryoshka_batch_topk", 4.0)


def tree_measures(absorption: float, parent: float, child: float, decoder: float = 0.96) -> dict[str, float]:
    return {
        "absorption": absorption,
        "parent_cosine": parent,
        "child_cosine": child,
        "decoder_cosine": decoder,
    }


def toy(trees: int = 4) -> toy_tree.Measured:
    """What section by section should come out."""
    made = {name: [tree_measures(0.0, 0.95, 0.94) for _ in range(trees)] for name in toy_tree.ESSENTIAL}
    made["L1"] = [tree_measures(1.0, 1.0, 0.7) for _ in range(trees)]
    made["BatchTopK"] = [tree_measures(0.6, 0.9, 0.7) for _ in range(trees)]
    made["Matryoshka BatchTopK, coarse 11 20"] = [tree_measures(0.2, 0.95, 0.7) for _ in range(trees)]
    return made


def failing(claims: tuple[Claim, ...]) -> list[str]:
    return [claim.sentence for claim in claims if claim.holds is not True]


def test_the_claims_of_the_toy_tree_hold_on_the_expected_numbers() -> None:
    assert failing(matryoshka.toy_claims(toy())) == []


@pytest.mark.parametrize(
    ("variant", "changed", "broken"),
    [
        ("L1", {"absorption": 0.9}, "silent whenever"),
        ("L1", {"child_cosine": 0.8}, "half-way"),
        ("Matryoshka BatchTopK, fixed 3 6 11 20", {"absorption": 0.11}, "stay whole"),
        ("Matryoshka L1, sampled and sorted", {"parent_cosine": 0.99}, "almost along"),
        ("BatchTopK", {"absorption": 1.0}, "not everything"),
    ],
)
def test_one_tree_is_enough_to_break_a_claim(variant: str, changed: dict[str, float], broken: str) -> None:
    made = toy()
    made[variant][2] |= changed
    (sentence,) = failing(matryoshka.toy_claims(made))
    assert broken in sentence


def test_half_of_the_trees_may_miss_a_feature() -> None:
    made = toy()
    for tree in (0, 1):
        made["Matryoshka L1, sampled and sorted"][tree]["decoder_cosine"] = 0.88
    assert failing(matryoshka.toy_claims(made)) == []
    made["Matryoshka L1, sampled and sorted"][2]["decoder_cosine"] = 0.88
    assert "recovers all features" in failing(matryoshka.toy_claims(made))[0]


def test_coarse_prefixes_are_compared_by_their_mean() -> None:
    made = toy()
    made["Matryoshka BatchTopK, coarse 11 20"] = [tree_measures(v, 0.95, 0.7) for v in (0.0, 0.0, 0.3, 0.0)]
    assert failing(matryoshka.toy_claims(made)) == []
    made["Matryoshka BatchTopK, coarse 11 20"] = [tree_measures(0.0, 0.95, 0.7)] * 4
    assert "coarse" in failing(matryoshka.toy_claims(made))[0]


def world(ev: float = -0.02, absorbed: float = -0.1, latents: float = -1.0, cosine: float = -0.1) -> matryoshka.Cells:
    base = {"explained_variance": 0.9, "absorbed": 0.5, "latents": 3.0, "max_cosine": 0.4, "f1 first 3/32": 0.2}
    changed = {"explained_variance": ev, "absorbed": absorbed, "latents": latents, "max_cosine": cosine}
    nested = {key: value + changed.get(key, 0.2) for key, value in base.items()}
    return {PLAIN: [base, base], NESTED: [nested, nested]}


def test_the_claims_on_the_world_hold_on_the_published_differences() -> None:
    claims = matryoshka.world_claims(world(), world())
    assert len(claims) == 9
    assert failing(claims) == []


def test_each_place_has_verdicts_of_its_own() -> None:
    broken = failing(matryoshka.world_claims(world(), world(ev=0.01, absorbed=0.2)))
    assert len(broken) == 2
    assert all(sentence.startswith("All tokens") for sentence in broken)
    assert len(failing(matryoshka.world_claims(world(ev=-0.2), world()))) == 1  # not slightly lower, but far


def names() -> taxonomy.Names:
    """Forty dogs, forty cats; a latent each, and one for animals that is silent on cats."""
    kinds = ["dog"] * 40 + ["cat"] * 40 + ["oak"] * 40
    parents = {"dog": "animal", "cat": "animal", "oak": "plant"}
    concepts = [frozenset({f"taxonomy/{parents[k]}", f"taxonomy/{parents[k]}/{k}"}) for k in kinds]
    rows = torch.zeros(120, 3)
    for i, kind in enumerate(kinds):
        rows[i, ["dog", "cat", "oak"].index(kind)] = 1.0
    return taxonomy.Names(rows, concepts)


def test_parents_need_two_children_with_enough_names() -> None:
    found = taxonomy.parents_of(names())
    assert found == {"taxonomy/animal": ["taxonomy/animal/cat", "taxonomy/animal/dog"]}
    with pytest.raises(RunError):
        taxonomy.parents_of(names(), fewest=41)


def dictionary(animal: list[float]) -> Dictionary:
    """Latents for animal (reading ``animal``), dog and cat."""
    encoder = torch.tensor([animal, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).T
    cfg = DictionaryConfig(
        architecture="relu", d_in=3, d_sae=3, apply_b_dec_to_input=False, metadata={"group_sizes": [1, 2]}
    )
    decoder = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return Dictionary(cfg, encoder, decoder, torch.zeros(3), torch.zeros(3))


def test_an_absorbed_child_is_counted_and_a_whole_parent_is_not() -> None:
    parents = taxonomy.parents_of(names())
    whole = taxonomy.measure(dictionary([1.0, 1.0, 0.0]), names(), parents)
    assert (whole["silent"], whole["absorbed"], whole["f1 all"], whole["f1 first 1/32"]) == (0.0, 0.0, 1.0, 1.0)
    torn = taxonomy.measure(dictionary([1.0, 0.0, 0.0]), names(), parents)
    assert (torn["silent"], torn["absorbed"]) == (0.5, 0.5)
    assert torn["f1 all"] == pytest.approx(2 / 3)
    assert torn["latents"] == 3.0
    assert whole["max_cosine"] == pytest.approx(0.5**0.5)


def test_a_silent_latent_detects_nothing() -> None:
    truth = torch.tensor([True, True, False, False])
    scores = torch.tensor([[0.0, 3.0, 1.0], [0.0, 2.0, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert taxonomy.Ranked(scores).best_f1(truth).tolist() == pytest.approx([0.0, 1.0, 0.5])
