"""The claims on crosscoders from measures made by hand, and how latents are held against the world's concepts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from saeworks.papers import diffing, diffing_named, diffing_world
from saeworks.papers.diffing_targets import Measured
from saeworks.papers.index import PAPERS

SHARED = dict.fromkeys((*diffing.FOUND, *diffing.CAUSES), 0.5)


def measured(**changes: float) -> Measured:
    good = Measured(
        variance_explained=[0.8, 0.8],
        l0=3.0,
        looks_chat_only=20,
        unmatched=0,
        artifacts=0.45,
        flag_precision=1.0,
        flag_recall=1.0,
        kept_precision=1.0,
        recall=1.0,
        twins=8,
        delta_errors=[],
        nu_errors=[],
        largest_nu=0.1,
        largest_biased_nu=1.0,
    )
    return replace(good, **changes)


def bench() -> list[dict[str, Measured]]:
    return [{"l1_sum": measured(), "batch_topk": measured(artifacts=0.05, twins=2)} for _ in range(2)]


def pairs(**changes: float) -> list[dict[str, dict[str, float]]]:
    """Two seeds on which every claim holds, with some measures of BatchTopK, plain and wide, changed."""
    good = SHARED | {"chat_only": 2.0, "precision_genuine": 0.9, "precision_candidates": 0.5, "genuine": 10.0}
    good |= {"kl_none": 3.0, "kl_best": 2.5, "kl_all": 1.5, "best_over_worst_scaling": 0.2}
    good |= {"kl_none_first": 3.0, "kl_template_first": 1.5}
    good |= {f"pushed_{name}": 0.6 for name in diffing_named.NAMED}
    good |= {f"other_{name}": 0.1 for name in diffing_named.NAMED}
    good |= {f"removed_{name}": 0.5 for name in diffing_named.NAMED}
    good |= {f"kept_{name}": 0.1 for name in diffing_named.NAMED}
    good |= {f"best_f1_{name}": 0.8 for name in diffing_named.NAMED}
    good |= {f"any_f1_{name}": 0.8 for name in diffing_named.NAMED}
    holding = ("relative", "nu_error", "nu_reconstruction")
    good |= {f"{key}_{name}": 0.1 for name in diffing_named.NAMED for key in holding}
    l1 = good | {"chat_only": 18.0, "best_over_worst_scaling_first": 0.6, "best_over_worst_norm_first": 0.4}
    return [{"batch_topk": good | changes, "l1": l1, "wide": good | changes} for _ in range(2)]


def test_all_claims_hold_where_they_should() -> None:
    assert all(claim.holds for claim in diffing.bench_claims(bench()))
    assert all(claim.holds for claim in diffing.world_claims(pairs()))


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"chat_only": 30.0}, 1),
        ({"precision_genuine": 0.6}, 1),
        ({"precision_genuine": 0.4}, 2),
        ({"best_f1_personal question": 0.2}, 1),
        ({"best_over_worst_scaling": -0.01}, 1),
        ({"kl_all": 2.4, "kl_template_first": 2.95}, 2),
        ({"kl_best": 1.4}, 1),
        ({"pushed_refusal trigger": 0.2}, 1),
        ({"pushed_false information": math.nan}, 1),
        ({"pushed_personal question": 0.25}, 1),
        ({"removed_personal question": 0.25}, 1),
    ],
)
def test_a_measure_that_speaks_against_a_claim_is_seen(changes: dict[str, float], broken: int) -> None:
    assert [claim.holds for claim in diffing.world_claims(pairs(**changes))].count(False) == broken


def test_artifacts_that_are_missed_break_the_bench_claims() -> None:
    made = bench()
    made[1]["l1_sum"] = measured(flag_recall=0.5, kept_precision=0.6, twins=1)
    assert [claim.holds for claim in diffing.bench_claims(made)] == [True, True, False, False, False]


def test_tables_have_a_row_per_recipe() -> None:
    table = diffing.world_table(pairs(), "What is found", diffing.FOUND)
    assert [row[0] for row in table.rows] == ["batch_topk", "l1"]
    assert all(len(row) == len(table.head) for row in table.rows)
    assert len(diffing.bench_table(bench()).rows) == 2
    assert [row[0] for row in diffing.named_table(pairs()).rows] == list(diffing_named.NAMED)


def label(concept: str, f1: float) -> dict[str, object]:
    return {"concept": concept, "f1": f1}


def test_precision_and_recall_against_the_world() -> None:
    labels = [
        [label("chat/refusal/harm", 0.9), label("person", 0.2)],
        [label("person", 0.8), label("chat/joke", 0.6)],
        [label("chat/joke", 0.4)],
        [],
    ]
    every = torch.arange(4)
    assert diffing_world.precision(labels, every) == pytest.approx(2 / 3)
    assert diffing_world.precision(labels, torch.tensor([0, 3])) == 1.0
    assert math.isnan(diffing_world.precision(labels, torch.tensor([3])))
    one, two = diffing_world.recall(labels, torch.tensor([0])), diffing_world.recall(labels, every)
    assert two == pytest.approx(2 * one) != 0.0
    assert diffing_named.best_f1(labels, every, ["chat/joke"]) == 0.6
    assert diffing_named.best_f1(labels, every, ["chat/self"]) == 0.0


def test_latents_that_stand_for_a_concept_come_best_first() -> None:
    labels = [[label("a", 0.6), label("b", 0.9)], [label("b", 0.4)], [label("a", 0.8)], [label("a", 0.6)], []]
    every = torch.arange(5)
    assert diffing_named.standing_for(labels, every, ["a"], 2) == [2, 0]
    assert diffing_named.standing_for(labels, every, ["a"], 9) == [2, 0, 3]
    assert diffing_named.standing_for(labels, every, ["a", "b"], 1) == [0]
    assert diffing_named.standing_for(labels, torch.tensor([1, 4]), ["b"], 3) == []
    assert diffing_named.standing_for(labels, torch.tensor([1, 4]), ["b"], 3, 0.0) == [1]


def test_what_a_push_does_is_judged_by_the_answers() -> None:
    refused = diffing_named._refused  # pyright: ignore[reportPrivateUsage]
    turned = diffing_named._turned  # pyright: ignore[reportPrivateUsage]
    assert refused("In Japan.", "I cannot do that. It does harm.")
    assert not refused("I cannot do that. It does harm.", "I cannot do that. It does harm.")
    assert turned("Oslo is in Norway. That is right.", "Oslo is in Norway. That is a mistake.")
    assert turned("Oslo is in Norway. That is right.", "Oslo is in Norway. That is false. Yes. That")
    assert not turned("Oslo is in Norway. That is right.", "Oslo is in Norway. Yes, that is right. No.")
    assert not turned("Oslo is in Norway. That is right.", "the the the")
    assert not turned("Oslo is in Norway.", "Oslo is in Norway. That is a mistake.")
    of_itself = diffing_named._speaks_of_itself  # pyright: ignore[reportPrivateUsage]
    assert of_itself("In Japan.", "A program has no home.")
    assert not of_itself("A program has no home.", "A program has no home.")


def test_the_paper_is_listed() -> None:
    assert PAPERS["diffing"].source == "arXiv 2504.02922"
