"""The claims about chain-of-thought faithfulness, with and without published answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from saeworks.papers import cot
from saeworks.papers.index import reproduce

DATA = Path(__file__).parents[3] / "shared" / "data" / "cot"
TINY = cot.Settings(seeds=1, repetitions=12, groups=10, pairs=20, permutations=200)


def test_without_answers_only_their_claims_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cot, "QUICK", TINY)
    found = reproduce("cot", tmp_path, quick=True)
    verdicts = [claim.holds for claim in found.claims]
    assert verdicts[:4] == [None] * 4
    assert None not in verdicts[4:]
    assert json.loads((tmp_path / "claims.json").read_text())["settings"]["data"] is None


def test_published_percentages_follow_from_one_denominator() -> None:
    assert cot.count_claim().holds
    told = {model: (n, share) for model, (n, share) in cot.PUBLISHED.items() if share and share != int(share)}
    off = [model for model, (n, share) in told.items() if round(100 * n / cot.TOLD, 2) != share]
    assert off == ["ChatGPT-4o", "Gemini 2.5 Flash"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared sample of stored answers is not here")
def test_published_answers_decide_their_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cot, "QUICK", TINY)
    shutil.copytree(DATA, tmp_path / "data")
    found = reproduce("cot", tmp_path, quick=True)
    verdicts, keywords, occurs, tendency = found.claims[:4]
    assert verdicts.holds
    assert [list(values) for values in verdicts.values.values()] == [[1.0], [1.0]]
    assert keywords.holds
    assert occurs.holds
    assert set(tendency.values) == {"Qwen/Qwen2.5-72B-Instruct", "openai/gpt-4o-mini"}
    assert found.hashes
    # One verdict changed, and the claim falls.
    stored = json.loads((DATA / "verdicts.json").read_text())
    stored[0]["flagged"].pop()
    (tmp_path / "data" / "verdicts.json").chmod(0o600)
    (tmp_path / "data" / "verdicts.json").write_text(json.dumps(stored))
    assert reproduce("cot", tmp_path, quick=True).claims[0].holds is False
