"""``saeworks compare``: one's own results and SAEBench's, without a bench and without a model."""

import json

import pytest

from saeworks.cli.app import main
from saeworks.results.envelope import Result

SIZES = {"topk": (16.0, 64.0), "batch_topk": (20.0, 80.0)}


@pytest.fixture
def places(tmp_path):
    """A folder of one's own results and one of SAEBench's."""
    for kind, l0s in SIZES.items():
        for l0 in l0s:
            metrics = {
                "sparsity": {"l0": l0},
                "model_performance_preservation": {"ce_loss_score": 0.9 + l0 / 1000 + (kind == "topk") / 100},
            }
            Result(
                eval_type_id="core",
                eval_config={"mode": "corrected"},
                eval_result_metrics=metrics,
                sae_lens_id=f"{kind}_{l0:g}",
                sae_cfg_dict={"architecture": kind, "d_sae": 64, "metadata": {"recipe": kind, "k": l0}},
                definition_id="saeworks/core/2",
            ).write(tmp_path / "own")
    record = {
        "eval_type_id": "core",
        "eval_config": {},
        "eval_result_metrics": {"sparsity": {"l0": 40.0}, "model_performance_preservation": {"ce_loss_score": 0.99}},
        "sae_lens_id": "trainer_3",
        "sae_lens_release_id": "saebench_width-2pow12",
        "sae_cfg_dict": {"architecture": "gated", "d_sae": 4096},
    }
    folder = tmp_path / "theirs" / "core"
    folder.mkdir(parents=True)
    (folder / "a_eval_results.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "cut_eval_results.json").write_text("{", encoding="utf-8")
    return [str(tmp_path / "own"), str(tmp_path / "theirs")]


def asked(capsys, *arguments):
    assert main(["compare", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_matched_l0_fronts_and_published_results(places, capsys, tmp_path):
    out = tmp_path / "page.html"
    made = asked(capsys, *places, "--at-l0", "20,64", "--pareto", "l0,ce_loss_score", "--out", str(out))
    assert {row["source"] for row in made["table"]} == {"saeworks", "SAEBench"}
    by_name = {row["sweep"]: row for row in made["matched"]["ce_loss_score"]}
    ours = {name: row for name, row in by_name.items() if name.startswith("saeworks")}
    assert len(ours) == 2
    assert len(by_name) == 3
    topk = next(row for name, row in ours.items() if ", topk" in name)
    assert topk["64"] == pytest.approx(0.974)
    assert topk["20"] == pytest.approx(0.926 + 0.048 * 0.1609640474)
    assert [row["dictionary"] for row in made["front"]] == ["topk_16", "saebench_width-2pow12/trainer_3"]
    assert any("cut_eval_results.json" in note for note in made["notes"])
    assert out.is_file()
    assert made["report"] == str(out)


def test_differences_to_a_baseline_and_one_metric(places, capsys):
    made = asked(capsys, places[0], "--metric", "ce_loss_score", "--baseline", "topk", "--at-l0", "32")
    rows = {row["sweep"]: row for row in made["matched"]["ce_loss_score"]}
    assert rows["topk"]["32"] == 0
    assert rows["batch_topk"]["mean_difference"] < 0
    assert list(made["matched"]) == ["ce_loss_score"]
    assert main(["compare", places[0], "--at-l0", "32"]) == 0
    assert "ce_loss_score at matched L0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "No results were named"),
        (["{own}", "--metric", "ce_los_score"], "Did you mean 'ce_loss_score'"),
        (["{own}", "--metric", "ravel"], "No result has a column 'ravel'"),
        (["{own}", "--at-l0", "16,x"], "'x' is no number"),
        (["{own}", "--at-l0", "0"], "must be positive"),
        (["{own}", "--pareto", "l0"], "two columns"),
        (["{own}", "--pareto", "frac_alive,ce_loss_score"], "makes no front"),
        (["{own}", "--baseline", "topkk"], "Did you mean 'topk'"),
        (["{own}/nowhere"], "does not exist"),
    ],
)
def test_a_mistake_is_one_sentence(places, arguments, says, capsys):
    assert main(["compare", *(part.replace("{own}", places[0]) for part in arguments)]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
