"""The report: sentences, reasons, escaping, and that every section is there, from a result written by hand."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from saeworks.diffing.reasons import kind, reason
from saeworks.diffing.report import EXCLUSIVE, render, summary_sentences, write_report
from saeworks.errors import InputError

THRESHOLDS = {"gate": 0.9, "nu_error": 0.2, "nu_reconstruction": 0.5}
EVIL = "<script>alert(1)</script>"


def row(
    latent: int, delta: float, flags: str, error: float | None = 0.05, other: float | None = 0.02
) -> dict[str, Any]:
    return {
        "latent": latent,
        "relative_decoder_norm": delta,
        "flags": flags,
        "nu_error": error,
        "nu_error_se": 0.01,
        "nu_reconstruction": other,
        "nu_reconstruction_se": 0.01,
        "density": 0.01,
        "active_tokens": 120,
        "template_share": 0.5,
        "twin": None,
    }


@pytest.mark.parametrize(
    ("made", "name", "said"),
    [
        (row(0, 0.95, "genuine"), "genuine", "contains 5 % and the base's other latents 2 %"),
        (row(0, 0.95, "complete_shrinkage", 0.31), "shrinkage", "error contains 31 % of it: complete shrinkage"),
        (row(0, 0.95, "decoupled", 0.01, 0.8), "decoupled", "contain 80 % of it: latent decoupling"),
        (row(0, 0.95, "complete_shrinkage,decoupled", 0.3, 0.8), "both", "at once"),
        (row(0, 0.95, "undefined", None, None), "undecided", "fired on 120 tokens"),
        (row(0, 0.95, ""), "undecided", "too close to the line"),
        (row(0, 0.5, ""), "shared", "Not a candidate"),
        (row(0, float("nan"), ""), "shared", "no decoder"),
    ],
)
def test_reasons(made: dict[str, Any], name: str, said: str) -> None:
    assert kind(made, THRESHOLDS) == name
    assert said in reason(made, THRESHOLDS)


def test_a_twin_is_named() -> None:
    made = row(0, 0.95, "decoupled", 0.0, 0.7) | {"twin": 17}
    assert "latent 17 is its twin" in reason(made, THRESHOLDS)


def condition(name: str, kl: float, latents: int | None, group: str) -> dict[str, Any]:
    return {
        "condition": name,
        "meaning": EVIL,
        "latents": latents,
        "group": group,
        "tokens": 100,
        "kl": kl,
        "kl_low": kl - 0.1,
        "kl_high": kl + 0.1,
        "recovered": 1 - kl / 2,
        "recovered_low": 0.0,
        "recovered_high": 1.0,
        "nll": 1.0,
    }


def result() -> dict[str, Any]:
    """A diff with two genuine latents, one rejected and one shared."""
    rows = [
        row(0, 0.99, "genuine"),
        row(1, 0.95, "genuine", 0.1, 0.1),
        row(2, 0.93, "complete_shrinkage", 0.31, 0.1),
        row(3, 0.5, "", 1.0, 0.9),
    ]
    context = {
        "tokens": [EVIL, " yes"],
        "activations": [2.0, 0.0],
        "peak": 0,
        "data_set": "chat",
        "reach_base": 0.5,
        "reach_chat": 8.0,
    }
    effect = {"promoted": [[EVIL, 3.0]], "suppressed": [["no", -2.0]], "weak": False}
    kl = [
        condition(name, value, latents, group)
        for group in ("all", "first 3", "rest")
        for name, value, latents in (("none", 2.0, 0), ("all", 0.5, None), ("genuine", 1.5, 2), ("full", 0.0, None))
    ]
    difference = {"one": "best half by scaling", "other": "worst half by scaling", "group": "all"}
    counts = {
        "latents": 4,
        "alive": 4,
        "l0": 2.0,
        "variance_explained": {"base": 0.7, "chat": 0.71},
        "candidates": 3,
        "genuine": 2,
        "complete_shrinkage": 1,
        "decoupled": 0,
        "undefined": 0,
        "undecided": 0,
    }
    differences = [difference | {"difference": -0.4, "low": -0.5, "high": -0.3}]
    return {
        "definition": "model-diff/1",
        "saeworks_version": "0",
        "config": {"base": "b", "chat": EVIL, "data": ["world"], "transcripts": None},
        "site": "layers.2.resid_post",
        "dictionary": "d",
        "counts": counts,
        "kl": kl,
        "differences": differences,
        "genuine": [{"latent": 0, "concept": "chat/joke", "known_to": "chat"}, {"latent": 1}],
        "methods": [],
        "seconds": {"total": 5.0},
        "provenance": {"hashes": {"base": "abc"}, "versions": {"torch": "2"}},
        "stages": {
            "measure": {
                "thresholds": THRESHOLDS,
                "table": {name: [r[name] for r in rows] for name in rows[0]},
                "alive": [0, 1, 2, 3],
                "genuine": [0, 1],
                "shown": [0, 1, 2],
                "contexts": {str(i): [context] for i in range(3)},
                "template_tokens": {"0": {EVIL: 0.5}},
            },
            "concepts": {
                "0": {
                    "concept": "chat/joke",
                    "description": EVIL,
                    "f1": 0.9,
                    "unit": "exchange",
                    "known_to": "chat",
                }
            },
            "patching": {
                "table": kl,
                "differences": differences,
                "conversations": 12,
                "groups": ["all", "first 3", "rest"],
            },
            "reading": {
                "0": {
                    "chat": effect,
                    "base": effect | {"weak": True},
                    "steering": [
                        {
                            "request": "q",
                            "plain": "a b",
                            "steered": [{"strength": 0.5, "reply": "a b"}, {"strength": 1.0, "reply": EVIL}],
                        }
                    ],
                }
            },
        },
    }


class Balanced(HTMLParser):
    """Refuses a page whose elements do not close in order, or that loads or runs anything."""

    VOID = ("meta", "br", "hr", "img", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "img", "link")
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href", "xlink:href") or (value or "").startswith("#")
            if name == "id":
                self.ids.append(str(value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_everything_is_escaped() -> None:
    page = render(result())
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert {"norms", "patching", "genuine", "rejected", "definitions", "provenance"} <= set(parser.ids)
    assert set(re.findall('href="#([^"]+)"', page)) <= set(parser.ids)
    assert EVIL not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6
    assert "error contains 31 % of it: complete shrinkage" in page


def test_a_card_says_how_sure_nu_is() -> None:
    made = result()
    table = made["stages"]["measure"]["table"]
    # Without intervals, as results of earlier versions are.
    assert "ν of the error 0.05 ± 0.01, of the reconstruction 0.02 ± 0.01" in render(made)
    table |= {"nu_error_low": [-0.021, 0.05, None, 0.9], "nu_error_high": [0.08, 0.212, None, 1.1]}
    table |= {"nu_reconstruction_low": [0.0] * 4, "nu_reconstruction_high": [0.04] * 4}
    page = render(made)
    assert "ν of the error 0.05 (-0.02 to 0.08), of the reconstruction 0.02 (0.00–0.04)" in page
    assert "ν of the error 0.10 (0.05–0.21)" in page
    assert "ν of the error 0.31 ± 0.01" in page


def test_the_summary_says_what_was_found() -> None:
    said = " ".join(re.sub("<[^>]+>", "", s) for s in summary_sentences(result()))
    assert "3 latents look new" in said
    assert "2 are genuinely new. The base holds the others after all: 1 in its error (complete shrinkage), 0 by" in said
    assert "those the base holds least first: chat/joke 0, latent 1." in said
    assert "cost 2.000 nats per token of the answer; adding all latents takes away 75 %" in said
    assert "adding the genuinely new ones alone 25 %" in said
    assert "recovers more than the other half" in said
    assert "1 of 1 match best" in said
    assert EXCLUSIVE.split(":")[0] in said


def test_every_candidate_is_counted_once() -> None:
    """Latents that are held in both ways would otherwise be counted twice, and the sum would not be what looks new."""
    made = result()
    table = made["stages"]["measure"]["table"]
    table["flags"][1:3] = ["complete_shrinkage,decoupled", "decoupled"]
    said = " ".join(summary_sentences(made))
    assert "0 in its error (complete shrinkage), 1 by other latents (decoupling), 1 in both ways; 0 cannot" in said


def test_an_interval_around_zero_decides_nothing() -> None:
    made = result()
    made["differences"][0] |= {"difference": -0.01, "low": -0.2, "high": 0.2}
    assert any("cannot be told from" in s for s in summary_sentences(made))


def test_a_diff_without_a_crosscoder_has_a_report_too() -> None:
    made = result() | {"stages": {}, "counts": None, "kl": [], "differences": [], "genuine": [], "dictionary": None}
    finding = {"name": EVIL, "score": 1.5, "evidence": {"tokens": ["a", EVIL]}}
    cost = {"tokens": 10, "seconds": 0.1}
    made["methods"] = [{"method": "m", "numbers": {"kl": 0.25}, "tokens": [finding], "cost": cost}]
    page = render(made)
    Balanced().feed(page)
    assert EVIL not in page
    assert 'id="methods"' in page
    assert 'id="norms"' not in page


def test_the_report_is_made_from_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result()))
    assert write_report(tmp_path).read_text(encoding="utf-8") == render(result())
    (tmp_path / "result.json").write_text('{"other": 1}')
    with pytest.raises(InputError, match="no result of saeworks diff"):
        write_report(tmp_path)
