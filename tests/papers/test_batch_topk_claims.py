"""BatchTopK's claims from measures made by hand, and the interpolation that matches JumpReLU."""

from __future__ import annotations

import math

import pytest
import torch

from saeworks.dictionaries.config import DictionaryConfig
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.papers import batch_topk

Cells = dict[tuple[str, float], list[dict[str, float]]]


def one(l0: float, nmse: float, ce: float, p1: float = 1.0, p99: float = 40.0) -> dict[str, float]:
    return {"l0": l0, "nmse": nmse, "ce": ce, "p1": p1, "p50": l0, "p99": p99, "most": p99 + 5, "alive": 1.0} | {
        "l0_average": l0 * 1.01
    }


def cells(better: float = 0.9) -> Cells:
    """Two seeds; errors of every recipe are 1 / L0, of BatchTopK ``better`` times as much."""
    made: Cells = {}
    for k in (4.0, 16.0):
        made["topk", k] = [one(k, 1 / k, 2 / k) for _ in range(2)]
        made["batch_topk", k] = [one(k, better / k, 2 * better / k) for _ in range(2)]
    for target in (2.0, 8.0, 32.0):
        made["jumprelu", target] = [one(target, 1 / target, 2 / target) for _ in range(2)]
    return made


def verdicts(made: Cells) -> list[bool | None]:
    return [claim.holds for claim in batch_topk.claims(made)]


def test_all_claims_hold_where_they_should() -> None:
    assert verdicts(cells()) == [True] * 7


def test_no_comparison_holds_when_batch_topk_is_worse() -> None:
    assert verdicts(cells(better=1.1)) == [False, False, False, False, True, True, True]


def test_one_seed_that_is_worse_is_enough() -> None:
    made = cells()
    made["batch_topk", 16.0][1]["nmse"] = 1.01 / 16
    assert verdicts(made)[:4] == [False, True, False, True]


def test_equal_counts_and_a_threshold_that_drifts_are_found() -> None:
    made = cells()
    for seeds in (made["batch_topk", 4.0], made["batch_topk", 16.0]):
        for values in seeds:
            values |= {"p1": values["l0"] - 1, "p99": values["l0"] + 1, "l0_average": values["l0"] * 1.2}
    assert verdicts(made)[4:] == [False, True, False]


def test_what_would_need_extrapolation_is_not_claimed() -> None:
    made = cells()
    del made["jumprelu", 32.0]
    claim = batch_topk.claims(made)[2]
    assert list(claim.values) == ["k = 4"]
    assert claim.holds is True
    assert "No claim at k = 16" in claim.note
    assert "2.0 to 8.0" in claim.note
    for target in (2.0, 8.0):
        made["jumprelu", target] = [one(40.0 + target, 0.01, 0.01) for _ in range(2)]
    assert batch_topk.claims(made)[2].holds is None


def test_interpolation_is_exact_on_powers_of_l0() -> None:
    points = [(2.0, 3 * 2**-0.7), (32.0, 3 * 32**-0.7), (8.0, 3 * 8**-0.7)]
    for at in (2.0, 3.0, 8.0, 20.0, 32.0):
        assert batch_topk.interpolated(points, at) == pytest.approx(3 * at**-0.7)
    assert batch_topk.interpolated(points, 1.9) is None
    assert batch_topk.interpolated(points, 33.0) is None
    assert batch_topk.interpolated([(2.0, -0.1), (8.0, 0.2)], 4.0) is None


def test_active_counts_are_those_of_the_latents() -> None:
    cfg = DictionaryConfig(architecture="jumprelu", d_in=3, d_sae=3, apply_b_dec_to_input=False)
    threshold = torch.full((3,), 0.5)
    dictionary = Dictionary(cfg, torch.eye(3), torch.eye(3), torch.zeros(3), torch.zeros(3), threshold)
    rows = torch.tensor([[1.0, 0.6, 0.4], [0.5, 0.1, 0.0], [2.0, 2.0, 2.0]])
    assert batch_topk.active_counts(dictionary, rows, batch=2).tolist() == [2, 0, 3]
    assert math.isclose(float(batch_topk.active_counts(dictionary, rows).double().mean()), 5 / 3)
