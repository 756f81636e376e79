"""Which labelled texts a job measures: domains, planted correlations, and files that bring labels of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saeworks.errors import InputError
from saeworks.evals import sparse_probing
from saeworks.jobs.config import EvaluateConfig
from saeworks.jobs.eval_data import check_evals, labelled_sets
from saeworks.world import corpus

SETTINGS = sparse_probing.Config(train_texts=60, test_texts=30)
PLANTED = "biographies?spurious=gender:1"


def config(*data: str, label: str | None = None) -> EvaluateConfig:
    return EvaluateConfig(data=data, dictionary=("d",), label_column=label)


def test_a_planted_correlation_is_a_set_of_its_own_beside_the_plain_domain() -> None:
    sets = labelled_sets(config("world:biographies", f"world:{PLANTED}"), SETTINGS)
    assert set(sets) == {"biographies", PLANTED}
    planted = sets[PLANTED]
    assert planted.labels == corpus.label_names("biographies")
    assert (len(planted.train), len(planted.test)) == (60, 30)
    assert list(planted.test) == list(corpus.documents("biographies", "probe_test", count=30, spurious=("gender", 1.0)))
    assert list(sets["biographies"].test) == list(corpus.documents("biographies", "probe_test", count=30))
    assert set(labelled_sets(config(f"world:{PLANTED}"), SETTINGS)) == {PLANTED}
    (one,) = labelled_sets(config(f"world:{PLANTED}", label="gender"), SETTINGS).values()
    assert one.labels == ("gender",)


def test_a_label_of_planted_texts_is_checked_before_the_work() -> None:
    check_evals(("sparse_probing",), config(f"world:{PLANTED}", label="profession"))
    with pytest.raises(InputError, match="no label 'topic'"):
        check_evals(("sparse_probing",), config(f"world:{PLANTED}", label="topic"))
    with pytest.raises(InputError, match="LABEL:STRENGTH"):
        check_evals(("sparse_probing",), config("world:biographies?spurious=gender", label="gender"))


def test_the_mixture_stands_for_the_usual_domains_and_others_are_named() -> None:
    assert tuple(labelled_sets(config("world"), SETTINGS)) == sparse_probing.WORLD_DOMAINS
    assert tuple(labelled_sets(config("world", "world:code"), SETTINGS)) == (*sparse_probing.WORLD_DOMAINS, "code")
    assert set(labelled_sets(config("world", f"world:{PLANTED}"), SETTINGS)) == {*sparse_probing.WORLD_DOMAINS, PLANTED}
    assert set(labelled_sets(config("world:code"), SETTINGS)) == {"code"}
    with pytest.raises(InputError, match=r"no label 'aspect'.*--data world:craft"):
        check_evals(("sparse_probing",), config("world", label="aspect"))
    check_evals(("sparse_probing",), config("world", "world:craft", label="aspect"))


def test_only_the_column_that_was_named_is_probed(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "labels": {"kind": i % 2, "mood": i % 3} if i % 5 else {}} for i in range(40)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = labelled_sets(config(str(path), label="kind"), SETTINGS).values()
    assert found.labels == ("label",)
    assert sorted(str(d.labels.get("label")) for d in found.train) == ["0"] * 16 + ["1"] * 16 + ["None"] * 8
