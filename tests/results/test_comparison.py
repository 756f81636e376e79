"""Comparison at equal L0, sweeps and Pareto fronts on rows small enough to check by hand."""

import math

import pytest

from saeworks.errors import InputError
from saeworks.results.comparison import common_range, matched_l0, mean_over_l0, pareto_front, sweeps


def row(name, architecture, l0, value, **more):
    return {"dictionary": name, "architecture": architecture, "width": 16, "l0": l0, "scr_20": value, **more}


ROWS = [
    row("a2", "topk", 80.0, 0.5),
    row("a1", "topk", 20.0, 0.1),
    row("b1", "batch_topk", 10.0, 0.3),
    row("b2", "batch_topk", 40.0, 0.5),
    row("b3", "batch_topk", 160.0, 0.4),
    row("nothing", "gated", 30.0, None),
    row("dead", "gated", 0.0, 0.2),
]


def test_sweeps_are_sorted_and_named_by_what_differs():
    first, second = sweeps(ROWS, "scr_20")
    assert first.kind == {"architecture": "topk"}
    assert (first.x, first.y, first.names) == ((20.0, 80.0), (0.1, 0.5), (("a1",), ("a2",)))
    assert second.label == "batch_topk"
    (alone,) = sweeps(ROWS[:2], "scr_20")
    assert (alone.kind, alone.label) == ({}, "all")


def test_interpolation_is_linear_in_the_logarithm_and_never_goes_beyond_the_ends():
    sweep = sweeps(ROWS, "scr_20")[0]
    assert sweep.at(40.0) == pytest.approx(0.3), "40 is halfway from 20 to 80 in log L0"
    assert sweep.at(20.0) == 0.1
    assert sweep.at(80.0) == 0.5
    assert sweep.at(19.9) is None
    assert sweep.at(80.1) is None


def test_seeds_of_one_setting_are_one_point():
    rows = [
        row("s0", "topk", 20.0, 0.1, setting=32, seed=0),
        row("s1", "topk", 45.0, 0.3, setting=32, seed=1),
        row("s2", "topk", 100.0, 0.9, setting=64, seed=0),
    ]
    (sweep,) = sweeps(rows, "scr_20")
    assert sweep.x == pytest.approx((30.0, 100.0)), "the geometric mean of 20 and 45"
    assert sweep.y == pytest.approx((0.2, 0.9))
    assert sweep.names == (("s0", "s1"), ("s2",))
    same = [row("s0", "topk", 20.0, 0.1, setting=1), row("s1", "topk", 20.0, 0.3, setting=2)]
    (merged,) = sweeps(same, "scr_20")
    assert (merged.x, merged.at(20.0)) == ((20.0,), pytest.approx(0.2))


def test_matched_l0_and_differences_to_a_baseline():
    found = sweeps(ROWS, "scr_20")
    topk, batch = matched_l0(found, (20, 40, 80, 160))
    assert [topk[c] for c in ("20", "40", "80", "160")] == [0.1, pytest.approx(0.3), 0.5, None]
    assert [batch[c] for c in ("20", "40", "80", "160")] == pytest.approx([0.4, 0.5, 0.45, 0.4])
    assert (topk["from_l0"], topk["to_l0"]) == (20.0, 80.0)
    apart, zero = matched_l0(found, (20, 40, 80, 160), baseline="batch_topk")
    assert [apart[c] for c in ("20", "40", "80")] == pytest.approx([-0.3, -0.2, 0.05])
    assert apart["160"] is None
    # From 20 to 80 the line of topk has the mean 0.3; batch_topk 0.45 up to 40 and 0.475 from there.
    assert apart["mean_difference"] == pytest.approx(0.3 - (0.45 + 0.475) / 2)
    assert zero["mean_difference"] == 0.0
    assert common_range(found) == (20.0, 80.0)


def test_the_mean_over_a_range_is_that_of_the_interpolated_line():
    sweep = sweeps(ROWS, "scr_20")[1]
    steps = [20 * (8 ** (i / 4000)) for i in range(4001)]
    numeric = sum(sweep.at(s) for s in steps) / len(steps)
    assert sweep.mean(20.0, 160.0) == pytest.approx(numeric, abs=1e-4)
    assert sweep.mean(40.0, 40.0) == 0.5
    assert sweep.mean(5.0, 40.0) is None
    table = mean_over_l0(sweeps(ROWS, "scr_20"), 40, 160)
    assert table[0]["mean"] is None
    assert table[1]["mean"] == pytest.approx((0.5 + 0.4) / 2)


def test_sweeps_apart_share_no_range():
    found = sweeps([row("a", "topk", 10.0, 0.1), row("b", "gated", 20.0, 0.2)], "scr_20")
    assert common_range(found) is None
    assert common_range([]) is None
    assert matched_l0(found, (10,), baseline="gated")[0]["mean_difference"] is None


def test_the_front_holds_what_no_other_dominates():
    rows = [
        row("low", "t", 10.0, 0.1),
        row("good", "t", 20.0, 0.5),
        row("worse", "t", 30.0, 0.4),
        row("equal", "t", 20.0, 0.5),
        row("same score, denser", "t", 25.0, 0.5),
        row("best", "t", 90.0, 0.6),
        row("nothing", "t", math.nan, 0.9),
    ]
    assert [r["dictionary"] for r in pareto_front(rows, "scr_20")] == ["low", "good", "equal", "best"]
    assert [r["dictionary"] for r in pareto_front(rows, "scr_20", more_y=False)] == ["low"]
    densest = pareto_front(rows, "scr_20", more_x=True)
    assert [r["dictionary"] for r in densest] == ["best"]
    absorbed = [{**r, "absorption": r["scr_20"]} for r in rows]
    assert [r["dictionary"] for r in pareto_front(absorbed, "absorption")] == ["low"], "less absorption is better"
    with pytest.raises(InputError, match="more_y"):
        pareto_front(rows, "frac_alive")


def test_every_front_row_is_undominated_and_every_other_dominated():
    import random

    draw = random.Random(0)
    rows = [row(str(i), "t", draw.randint(1, 12), draw.randint(0, 12) / 10) for i in range(80)]
    front = pareto_front(rows, "scr_20")

    def dominated(r):
        return any(
            o["l0"] <= r["l0"] and o["scr_20"] >= r["scr_20"] and (o["l0"] < r["l0"] or o["scr_20"] > r["scr_20"])
            for o in rows
        )

    assert {r["dictionary"] for r in front} == {r["dictionary"] for r in rows if not dominated(r)}


def test_bad_requests_are_sentences():
    found = sweeps(ROWS, "scr_20")
    with pytest.raises(InputError, match="Did you mean 'scr_20'"):
        sweeps(ROWS, "scr_2")
    with pytest.raises(InputError, match=r"no sweep 'top'.* Did you mean 'topk'"):
        matched_l0(found, (20,), baseline="top")
    with pytest.raises(InputError, match="positive"):
        matched_l0(found, (0, 20))
    assert sweeps([], "scr_20") == []
