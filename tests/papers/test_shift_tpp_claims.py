"""The claims about SHIFT and TPP from scores made by hand."""

from __future__ import annotations

from saeworks.papers import shift_tpp
from saeworks.papers.saebench_grid import REMOVED

Cells = dict[tuple[str, int, float], list[dict[str, float]]]
FLOOR = {
    name: {"scr_20": s, "shift_20": s, "tpp_20": s / 2, "intended": s, "unintended": 0.0}
    for name, s in (("control_pca", 0.05), ("control_random_directions", 0.1), ("control_oracle", 0.9))
}


def cells(standard: float = -0.1, growth: float = 0.1) -> Cells:
    made: Cells = {}
    for name in shift_tpp.RECIPES:
        for step, tokens in enumerate((100, 400)):
            for place, sparsity in enumerate((8.0, 16.0)):
                base = 0.3 + growth * step + 0.02 * place + (standard if name == shift_tpp.STANDARD else 0.0)
                made[name, tokens, sparsity] = [
                    {
                        "scr_20": base + noise,
                        "shift_20": 0.8 * base + noise,
                        "tpp_20": base / 2 + noise,
                        "intended": base,
                        "unintended": base / 2,
                    }
                    for noise in (0.0, 0.01)
                ]
    return made


def verdicts(made: Cells) -> list[bool | None]:
    return [claim.holds for claim in shift_tpp.claims(made, FLOOR)]


def test_all_claims_hold_where_they_should() -> None:
    assert verdicts(cells()) == [True] * 12


def test_standard_dictionaries_that_are_better_break_three_claims() -> None:
    assert verdicts(cells(standard=0.1)) == [False] * 3 + [True] * 9


def test_scores_that_fall_with_training_break_three_claims() -> None:
    assert verdicts(cells(growth=-0.05)) == [True] * 3 + [False] * 3 + [True] * 6


def test_a_judge_who_disagrees_breaks_one() -> None:
    made = cells()
    for seeds in made.values():
        for values in seeds:
            values["shift_20"] = 1 - values["scr_20"]
    assert max(shift_tpp.agreement(made)) < -0.95
    assert verdicts(made)[6] is False


def test_the_floor_is_the_best_control_but_not_the_oracle() -> None:
    above = shift_tpp.above_floor(cells(), 400, FLOOR, "scr_20")
    assert [round(v, 6) for v in above] == [0.31, 0.32]


def test_nothing_is_said_about_seeds_when_there_is_one() -> None:
    made = {key: seeds[:1] for key, seeds in cells().items()}
    assert shift_tpp.discrimination(made, "scr_20") is None
    assert verdicts(made)[-1] is None


def test_scores_by_the_number_of_latents_removed_are_means_of_the_longest_runs() -> None:
    made = cells()
    for (_, tokens, sparsity), seeds in made.items():
        for measures in seeds:
            for removed in REMOVED:
                measures[f"scr_{removed}"] = removed + sparsity + (100 if tokens == 100 else 0)
    floor = {"control_pca": {f"scr_{removed}": float(removed) for removed in REMOVED}}
    table = shift_tpp.removed_table(made, floor)
    assert table.head == ("", "2", "5", "10", "20", "50")
    assert table.rows[0] == ("relu_april", "14.000", "17.000", "22.000", "32.000", "62.000")
    assert table.rows[-1] == ("control_pca", "2.000", "5.000", "10.000", "20.000", "50.000")
