"""Rules on numbers made by hand: when a claim holds, when not, and when nothing can be said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from saeworks.errors import InputError
from saeworks.papers.claims import Claim, Reproduction, Rule, Table


@pytest.mark.parametrize(
    ("rule", "groups", "verdict"),
    [
        (Rule(high=1.0), {"k = 4": [0.9, 0.99], "k = 8": [0.5, 0.7]}, True),
        (Rule(high=1.0), {"k = 4": [0.9, 0.99], "k = 8": [0.5, 1.01]}, False),
        (Rule(high=1.0), {"": [1.0]}, False),  # a bound itself is outside
        (Rule(low=0.93, high=0.97), {"": [0.94, 0.96]}, True),
        (Rule(low=0.93, high=0.97), {"": [0.94, 0.98]}, False),
        (Rule(low=0.95, share=0.5), {"": [0.96, 0.90, 0.97, 0.88]}, True),
        (Rule(low=0.95, share=0.5), {"": [0.96, 0.90, 0.91, 0.88]}, False),
        (Rule(low=0.95, share=0.5), {"a": [0.96, 0.90], "b": [0.1, 0.2]}, False),  # in each group, not over all
        (Rule(low=0.0), {"": [math.nan, 1.0]}, False),
        (Rule(low=0.0), {}, None),
        (Rule(low=0.0), {"a": [1.0], "b": []}, None),
    ],
)
def test_a_rule_decides(rule: Rule, groups: dict[str, list[float]], verdict: bool | None) -> None:
    assert rule.holds(groups) is verdict


def test_rules_say_what_they_ask() -> None:
    assert str(Rule(high=0.05)) == "every value below 0.05"
    assert str(Rule(low=0.95, share=0.5)) == "at least 50% of the values above 0.95"


@pytest.mark.parametrize("bounds", [{}, {"low": 1.0, "high": 1.0}, {"low": 0.0, "share": 0.0}])
def test_rules_that_decide_nothing_are_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Rule(**bounds)


def reproduction() -> Reproduction:
    claims = (
        Claim("Lower error", "direction", "error over TopK's", {"k = 4": [0.9, 0.8]}, Rule(high=1.0)),
        Claim("Whole parents", "0.05", "absorption", {"": [0.0, 0.11]}, Rule(high=0.05), "One child of nine."),
        Claim("Lower loss", "direction", "loss", {}, Rule(high=1.0)),
    )
    table = Table("Measures", ("recipe", "error"), (("topk", "0.5"),))
    return Reproduction("toy", "A paper", "arXiv 0", claims, (table,), {"k": (4,)}, {"training": 1.5}, quick=True)


def test_a_reproduction_counts_its_claims_and_shows_the_spread() -> None:
    found = reproduction()
    assert found.summary() == "1 of 3 claims hold, 1 not decided"
    rows = found.rows()
    assert [row["holds"] for row in rows] == ["yes", "no", "not decided"]
    assert rows[0]["here"] == "error over TopK's: k = 4: 0.850 (0.800–0.900)"
    assert rows[2]["here"] == "loss: not measured"


def test_a_reproduction_is_written_as_json_and_markdown(tmp_path: Path) -> None:
    reproduction().write(tmp_path)
    read = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert [claim["holds"] for claim in read["claims"]] == [True, False, None]
    assert read["claims"][1]["values"] == {"": [0.0, 0.11]}
    assert read["claims"][1]["rule"] == "every value below 0.05"
    assert read["seconds"] == {"training": 1.5}
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "| Whole parents | 0.05 | absorption: 0.055 (0.000–0.110) | no |" in text
    assert "2. every value below 0.05. One child of nine." in text
    assert "| topk | 0.5 |" in text
    assert "quick" in text


def test_seeds_in_which_a_value_is_not_defined_are_counted_and_speak_against_the_claim() -> None:
    claim = Claim("s", "p", "q", {"": [0.5, math.nan, 0.7]}, Rule(low=0.0), digits=1)
    assert claim.here == "0.6 (0.5–0.7), undefined in 1 of 3"
    assert claim.holds is False
    assert Claim("s", "p", "q", {"": [math.nan]}, Rule(low=0.0)).here == "–, undefined in 1 of 1"
