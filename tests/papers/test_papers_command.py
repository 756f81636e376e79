"""``saeworks papers``: the list, a tiny reproduction of each paper, and bad input in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saeworks.cli.app import main
from saeworks.papers import batch_topk, matryoshka, world_grid
from saeworks.papers.index import PAPERS

TINY = world_grid.Settings(width=128, tokens=8192, batch_size=256, eval_tokens=1024)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["papers", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_papers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["paper"] for row in call(capsys)["papers"]] == list(PAPERS)
    assert main(["papers"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in PAPERS)


@pytest.mark.parametrize("arguments", [["matrioshka"], ["batch_topk", "--seeds", "0"]])
def test_bad_input_is_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["papers", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "matryoshka" in error or "at least 1" in error


def test_batch_topk_runs_resumes_and_prints_its_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_topk, "QUICK", TINY)
    monkeypatch.setattr(batch_topk, "QUICK_K", (4.0,))
    monkeypatch.setattr(batch_topk, "QUICK_TARGETS", (2.0, 32.0))
    arguments = ("batch_topk", "--quick", "--seeds", "1", "--out", str(tmp_path))
    found = call(capsys, *arguments)
    assert len(found["claims"]) == 7
    assert all(set(claim) >= {"claim", "paper", "here", "rule", "holds"} for claim in found["claims"])
    for claim in found["claims"]:
        assert all(len(values) == 1 for values in claim["values"].values())
    weights = sorted(tmp_path.glob("seed0/dictionaries/*/weights.safetensors"))
    assert len(weights) == 4
    written = {path: path.stat().st_mtime_ns for path in [*weights, *tmp_path.glob("results/core/*.json")]}
    again = call(capsys, *arguments)
    assert again["claims"] == found["claims"]
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert main(["papers", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "claims hold" in printed
    assert json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))["quick"] is True


def test_matryoshka_runs_all_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = replace(matryoshka.QUICK, most_steps=30, width=64, steps=20, documents=800, mixture=TINY)
    monkeypatch.setattr(matryoshka, "QUICK", tiny)
    found = call(capsys, "matryoshka", "--quick", "--seeds", "1", "--out", str(tmp_path))
    assert len(found["claims"]) == 16
    assert [table["title"].split(",")[0].split(":")[0] for table in found["tables"]] == [
        "Toy tree",
        "Toy tree",
        "Toy tree",
        "Names of things",
        "All tokens of the mixture",
    ]
    assert set(found["seconds"]) == {"toy tree", "names", "mixture"}
    assert (tmp_path / "claims.md").read_text(encoding="utf-8").count("| claim | paper | here | holds |") == 1
