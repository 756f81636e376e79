"""The claims of SAEBench from scores made by hand: all that the paper says is so, and what breaks it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from saeworks.papers import saebench
from saeworks.papers.saebench_grid import BY_L0, L0, QUICK, REMOVED, WEIGHTS, Settings, cells
from saeworks.results.ranks import spearman

RECIPES = (*WEIGHTS, *BY_L0)


def rows(nested_gain: float = 0.1) -> list[dict[str, Any]]:
    """Two widths, two seeds; Matryoshka reconstructs worse and scores better, the more so when wide."""
    made: list[dict[str, Any]] = []
    for width in (1024, 4096):
        for seed in (0, 1):
            for place, recipe in enumerate(RECIPES):
                nested = recipe == saebench.NESTED
                wide = width == 4096
                for l0 in L0:
                    up = math.log2(l0 / 8)
                    base = 0.3 if not nested else 0.3 - nested_gain * (2 if wide else 1)
                    absorbs = base + (0.05 if wide and not nested else 0) + (0.2 if recipe == "relu_april" else 0)
                    made.append(
                        {
                            "dictionary": f"{recipe}{width}{seed}{l0}",
                            "architecture": recipe,
                            "width": width,
                            "setting": l0,
                            "seed": seed,
                            "l0": l0,
                            "explained_variance": 0.8 + 0.02 * up + 0.001 * place - (0.05 if nested else 0),
                            "ce_loss_score": 0.9 + 0.02 * up - (0.05 if nested else 0),
                            "absorption": absorbs - 0.02 * up + 0.001 * place,
                            "scr_20": 0.2 - 0.001 * place + (nested_gain * (2 if wide else 1) if nested else 0),
                            "tpp_20": 0.1 + 0.01 * up - 0.001 * place + (nested_gain if nested else 0),
                            "probe_k1": 0.7 - 0.001 * place + (nested_gain if nested else 0),
                            "autointerp": 0.9 - 0.01 * up - 0.001 * place,
                        }
                    )
    return made


def verdicts(made: list[dict[str, Any]]) -> dict[str, bool | None]:
    return {claim.sentence: claim.holds for claim in saebench.claims(saebench.by_sweep(made))}


def test_all_claims_hold_where_they_should() -> None:
    assert [s for s, holds in verdicts(rows()).items() if holds is not True] == []


def test_a_matryoshka_that_is_worse_fails_what_is_said_of_it_and_nothing_else() -> None:
    found = verdicts(rows(-0.1))
    failed = {sentence for sentence, holds in found.items() if holds is not True}
    assert failed == {
        "Matryoshka absorbs less",
        "It isolates unwanted cues better (SCR)",
        "It disentangles classes better (TPP)",
        "Its single latents are better probes",
        "Matryoshka's advantage grows with the width",
    }


def test_one_seed_against_the_claim_is_enough() -> None:
    made = rows()
    for row in made:
        if row["architecture"] == saebench.NESTED and row["seed"] == 1 and row["width"] == 4096:
            row["tpp_20"] = 0.0
    assert verdicts(made)["It disentangles classes better (TPP)"] is False


def test_scores_are_compared_at_the_same_l0_only() -> None:
    """A score that is nothing but L0 gives no difference, although the dictionaries differ in L0; without a common
    range there is nothing to say."""
    made = [row for row in rows() if row["architecture"] in (saebench.NESTED, saebench.PLAIN)]
    for row in made:
        if row["architecture"] == saebench.NESTED:
            row["l0"] *= 1.5
        row["scr_20"] = math.log(row["l0"])
    found = saebench.differences(saebench.by_sweep(made), saebench.NESTED, saebench.PLAIN, "scr_20")
    assert [abs(v) < 1e-12 for values in found.values() for v in values] == [True] * 4
    for row in made:
        if row["architecture"] == saebench.NESTED:
            row["l0"] *= 10
    assert saebench.differences(saebench.by_sweep(made), saebench.NESTED, saebench.PLAIN, "scr_20") == {}


@pytest.mark.parametrize(
    ("a", "b", "rho"),
    [([1, 2, 3], [10, 20, 30], 1.0), ([1, 2, 3], [3, 2, 1], -1.0), ([1, 1, 2], [5, 6, 7], math.sqrt(3) / 2)],
)
def test_rank_correlation(a: list[float], b: list[float], rho: float) -> None:
    assert spearman(a, b) == pytest.approx(rho)


def test_rank_correlation_of_a_constant_is_not_a_number() -> None:
    assert math.isnan(spearman([1, 1], [1, 2]))


def test_the_grid_is_what_was_asked_for() -> None:
    made = cells(Settings())
    assert len({recipe.name for recipe, _ in made}) == 8
    assert len(made) == 24
    assert len(cells(QUICK)) == 16
    assert {recipe.sparsity for recipe, _ in made if recipe.name in WEIGHTS} == {"coefficient"}


def test_scores_by_the_number_of_latents_removed_are_compared_by_width() -> None:
    made = rows()
    for row in made:
        nested = row["architecture"] == saebench.NESTED
        row |= {f"scr_{n}": 0.5 + (n / 100 if nested else 0) + row["seed"] / 1000 for n in REMOVED}
    table = saebench.removed_table(saebench.by_sweep(made))
    assert table.head == ("width", "scr_2", "scr_5", "scr_10", "scr_20", "scr_50")
    assert [row[0] for row in table.rows] == ["1,024", "4,096"]
    assert table.rows[0][1] == "0.020 (0.020–0.020)"
    assert table.rows[1][5] == "0.500 (0.500–0.500)"
