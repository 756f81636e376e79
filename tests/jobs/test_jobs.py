"""The jobs end to end on a tiny language model: what lies in the workspace, resuming, measuring, storing, planning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from saeworks.activations.batches import Layout
from saeworks.dictionaries.formats import load
from saeworks.errors import InputError
from saeworks.jobs.cache import cache
from saeworks.jobs.config import RunConfig, resolve
from saeworks.jobs.doctor import doctor
from saeworks.jobs.eval_data import sample
from saeworks.jobs.evaluate import evaluate
from saeworks.jobs.plan import disk_bytes, grid, parameters, plan, plan_rows, step_seconds
from saeworks.jobs.run import run
from saeworks.jobs.train import train

Settings = dict[str, Any]
# The output of this norm is what the MLP reads: the input of a transcoder.
NORM = "model.layers.1.post_attention_layernorm"


@pytest.fixture(scope="session")
def settings(tiny_model_directory: Path, tiny_texts: Path) -> Settings:
    """A run of a second: two recipes, one width, one sparsity."""
    return {
        "model": str(tiny_model_directory),
        "data": (str(tiny_texts),),
        "label_column": "topic",
        "site": "layers.1.resid_post",
        "recipe": ("topk", "matryoshka_batch_topk"),
        "width": (64,),
        "k": (4,),
        "tokens": 8192,
        "batch_size": 256,
        "buffer_tokens": 1024,
        "context_length": 32,
        "eval_tokens": 256,
        "checkpoint_every": 8,
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The workspace of one whole run, and its summary."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, run({**settings, "out": out})


def weights(root: Path) -> dict[str, bytes]:
    """Bytes of every finished dictionary's weights."""
    return {p.parent.name: p.read_bytes() for p in sorted((root / "dictionaries").glob("*/weights.safetensors"))}


NAMES = {"topk_n64_k4_s0", "matryoshka_batch_topk_n64_k4_s0"}


def test_the_workspace_holds_what_the_architecture_says(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    assert set(weights(out)) == NAMES
    assert all((out / "dictionaries" / name / "cfg.json").is_file() for name in NAMES)
    assert {p.name for p in (out / "results").iterdir()} == {"core", "sparse_probing", "latents"}
    for eval_name in ("core", "sparse_probing", "latents"):
        found = [json.loads(p.read_text()) for p in (out / "results" / eval_name).glob("*.json")]
        assert {result["sae_lens_id"] for result in found} == NAMES
        assert {result["eval_type_id"] for result in found} == {eval_name}
    assert "<html" in (out / "report.html").read_text(encoding="utf-8").lower()
    run_file = json.loads((out / "run.json").read_text())
    assert run_file["config"]["site"] == "layers.1.resid_post"
    assert run_file["finished"] > run_file["started"]


def test_every_step_of_the_log_names_every_dictionary(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    lines = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    seen = {(line["step"], line["dictionary"]) for line in lines}
    assert seen == {(step, name) for step in (10, 20, 30, 32) for name in NAMES}


def test_the_summary_is_what_the_result_files_say(finished: tuple[Path, dict[str, Any]]) -> None:
    out, summary = finished
    assert json.loads(json.dumps(summary))["out"] == str(out)
    for row in summary["table"]:
        core = json.loads((out / "results" / "core" / f"{row['dictionary']}_eval_results.json").read_text())
        probing = json.loads(
            (out / "results" / "sparse_probing" / f"{row['dictionary']}_eval_results.json").read_text()
        )
        assert row["l0"] == core["eval_result_metrics"]["sparsity"]["l0"]
        assert row["probe_k5"] == probing["eval_result_metrics"]["sae"]["sae_top_5_test_accuracy"]
        assert row["probe_dense"] == probing["eval_result_metrics"]["llm"]["llm_test_accuracy"]


def test_the_dictionaries_say_where_they_come_from(finished: tuple[Path, dict[str, Any]], settings: Settings) -> None:
    out, _ = finished
    dictionary = load(out / "dictionaries" / "topk_n64_k4_s0")
    metadata = dictionary.cfg.metadata
    assert (metadata["model_name"], metadata["site"]) == (settings["model"], "layers.1.resid_post")
    assert metadata["data"] == list(settings["data"])
    assert dictionary.W_enc.shape == (16, 64)


def test_resuming_a_finished_run_changes_no_weights(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    before = weights(out)
    run({"out": out, "resume": True})
    assert weights(out) == before


def test_an_interrupted_run_resumes_to_the_same_bytes(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    # The process interrupts itself at step 20, as Ctrl-C would; checkpoints lie at 16 and, written on the way out, 20.
    script = (
        "import json, os, signal, sys\n"
        "from saeworks.cli.app import main\n"
        "from saeworks.training.trainer import Trainer\n"
        "log = Trainer._log\n"
        "def interrupting(self, *rest):\n"
        "    log(self, *rest)\n"
        "    if self.state.step == 20: os.kill(os.getpid(), signal.SIGINT)\n"
        "Trainer._log = interrupting\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    import yaml

    out, config = tmp_path / "run", tmp_path / "run.yaml"
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}
    config.write_text(yaml.safe_dump(plain))
    done = subprocess.run(
        [sys.executable, "-c", script, "train", "--config", str(config), "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130
    assert f"saeworks train --config {config} --out {out} --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert weights(out) == {}
    summary = train({"out": out, "resume": True}, config)
    assert weights(out) == weights(finished[0])
    assert {row["dictionary"] for row in summary["table"]} == NAMES


def test_bad_input_found_late_leaves_no_run_behind(settings: Settings, tmp_path: Path) -> None:
    texts = tmp_path / "bad.txt"
    texts.write_bytes(b"the dog runs\n" * 1000 + b"the \xff\xfe dog\n")
    with pytest.raises(InputError):
        train({**settings, "out": tmp_path / "run", "data": (str(texts),), "label_column": None})
    assert not (tmp_path / "run").exists()


def test_probing_without_labels_is_skipped_with_its_reason(settings: Settings, tmp_path: Path) -> None:
    summary = run({**settings, "out": tmp_path / "run", "label_column": None, "tokens": 1024, "recipe": "topk"})
    assert "--label-column" in summary["skipped"]["sparse_probing"]
    assert {p.name for p in (tmp_path / "run" / "results").iterdir()} == {"core", "latents"}


def test_labels_too_rare_to_probe_cost_neither_the_report_nor_the_other_evals(
    settings: Settings, tiny_texts: Path, tmp_path: Path
) -> None:
    rows = tiny_texts.read_text().splitlines()
    data = tmp_path / "rare.csv"
    data.write_text("\n".join([rows[0] + ",rare"] + [f"{row},{i}" for i, row in enumerate(rows[1:])]))
    rare = {**settings, "data": (str(data),), "label_column": "rare", "tokens": 1024, "recipe": "topk"}
    summary = run({**rare, "out": tmp_path / "run"})
    assert "No label can be probed" in summary["skipped"]["sparse_probing"]
    assert {p.name for p in (tmp_path / "run" / "results").iterdir()} == {"core", "latents"}
    assert "No label can be probed" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_what_cannot_be_measured_is_refused_before_anything_is_trained(settings: Settings, tmp_path: Path) -> None:
    unlabelled = {**settings, "out": tmp_path / "run", "label_column": None, "evals": ("sparse_probing",)}
    world = {**settings, "out": tmp_path / "run", "data": ("world",), "label_column": "profesion"}
    for job in (run, plan):
        with pytest.raises(InputError, match="needs labels"):
            job(unlabelled)
        with pytest.raises(InputError, match="Did you mean 'profession'"):
            job(world)
    assert not (tmp_path / "run").exists()


def test_a_file_sorted_by_label_is_sampled_from_end_to_end() -> None:
    drawn = sample(iter(range(20_000)), 900, seed=3)
    assert len(drawn) == len(set(drawn)) == 900
    # Three standard deviations of a fair draw from each half, and from each half of the order it comes in.
    assert 450 - 45 < sum(number < 10_000 for number in drawn) < 450 + 45
    assert 225 - 32 < sum(number < 10_000 for number in drawn[:450]) < 225 + 32
    assert sorted(sample(range(5), 9, seed=3)) == [0, 1, 2, 3, 4]


def test_a_run_is_resumed_at_its_site_by_any_of_its_names(
    finished: tuple[Path, dict[str, Any]], settings: Settings
) -> None:
    out, _ = finished
    again = train({**settings, "out": out, "site": "blocks.1.hook_resid_post", "resume": True})
    assert again["site"] == "layers.1.resid_post"
    for job in (train, plan):
        with pytest.raises(InputError, match=r"site was 'layers\.1\.resid_post' and is now 'layers\.0\.resid_post'"):
            job({**settings, "out": out, "site": "layers.0.resid_post", "resume": True})


def test_eval_takes_model_and_site_from_the_dictionaries(
    finished: tuple[Path, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    out, summary = finished
    texts = {"data": settings["data"], "context_length": 32, "eval_tokens": 256, "device": "cpu"}
    measured = evaluate({**texts, "names": ("core",), "dictionary": (str(out),), "out": tmp_path / "results"})
    assert len(measured["files"]) == 2
    assert all(Path(file).parent == tmp_path / "results" / "core" for file in measured["files"])
    by_name = {row["dictionary"]: row["l0"] for row in summary["table"]}
    assert {row["dictionary"]: row["l0"] for row in measured["table"]} == pytest.approx(by_name)


def test_only_a_needed_eval_without_labels_is_an_error(
    finished: tuple[Path, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    given = {"data": settings["data"], "dictionary": (str(finished[0]),), "out": tmp_path, "names": ("sparse_probing",)}
    with pytest.raises(InputError, match="needs labels"):
        evaluate(given)


def test_a_store_is_written_and_trained_on(settings: Settings, tmp_path: Path) -> None:
    shared = {key: settings[key] for key in ("model", "data", "site", "context_length", "device")}
    stored = cache({**shared, "tokens": 2048, "out": tmp_path / "store"})
    assert (stored["tokens"], stored["width"], stored["site"]) == (2048, 16, "layers.1.resid_post")
    from_store = {**settings, "data": (str(tmp_path / "store"),), "site": None, "recipe": "topk"}
    train({**from_store, "out": tmp_path / "run"})
    dictionary = load(tmp_path / "run" / "dictionaries" / "topk_n64_k4_s0")
    assert dictionary.cfg.metadata["site"] == "layers.1.resid_post"
    assert dictionary.cfg.metadata["model_name"] == settings["model"]
    with pytest.raises(InputError, match=r"holds activations of 'layers\.1\.resid_post'"):
        train({**from_store, "site": "layers.0.mlp_out", "out": tmp_path / "other"})
    with pytest.raises(InputError, match="holds no text to measure on"):
        run({**from_store, "out": tmp_path / "other"})
    with pytest.raises(InputError, match="holds no text to measure on"):
        plan({**from_store, "out": tmp_path / "other"})
    made = plan({**from_store, "out": tmp_path / "other"}, measuring=False)
    assert made["disk_bytes"]["results"] == 0
    assert not (tmp_path / "other").exists()


def test_a_plan_adds_up_and_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    made = plan({**settings, "out": tmp_path / "run"})
    assert list(tmp_path.iterdir()) == []
    assert json.loads(json.dumps(made)) == made
    # Two matrices of 64 x 16, a bias per latent, a bias per input.
    assert {d["parameters"] for d in made["dictionaries"]} == {2 * 64 * 16 + 64 + 16}
    assert made["activations"] == {"site": "layers.1.resid_post", "width": 16, "tokens": 8192, "steps": 32}
    for part in ("memory_bytes", "disk_bytes"):
        parts = {key: value for key, value in made[part].items() if key not in ("total", "free")}
        assert made[part]["total"] == sum(parts.values())
    assert made["memory_bytes"]["dictionaries"] == 2 * 16 * (2 * 64 * 16 + 64 + 16)
    assert made["seconds"]["total"] == pytest.approx(sum(made["seconds"].values()) - made["seconds"]["total"], abs=0.03)
    titles = plan_rows(made)
    assert {row["name"] for row in titles["Dictionaries"]} == NAMES


def test_the_disk_that_is_planned_is_enough(finished: tuple[Path, dict[str, Any]], settings: Settings) -> None:
    out, _ = finished
    config = resolve(RunConfig, settings)
    planned = disk_bytes(config, grid(config), Layout(16))
    used = sum(p.stat().st_size for p in (out / "checkpoints").rglob("*.safetensors"))
    assert used <= planned["checkpoints"]
    assert (out / "train_log.jsonl").stat().st_size <= 2 * planned["log"]


def test_a_full_disk_is_refused_before_the_start(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saeworks.jobs.plan.free_disk", lambda _: 1000)
    for job in (plan, train):
        with pytest.raises(InputError, match=r"The run needs .* of disk at .*, but 0\.0 MB are free"):
            job({**settings, "out": tmp_path / "run"})
    assert not (tmp_path / "run").exists()


def test_the_grid_is_the_product_without_repeats() -> None:
    config = resolve(RunConfig, {"recipe": "topk,batch_topk", "width": "64,128", "k": "4,8,4"})
    members = grid(config)
    assert len({m.name for m in members}) == len(members) == 2 * 2 * 2
    assert all(m.recipe.normalization == "unit_msn" for m in members)
    other = resolve(RunConfig, {"recipe": "topk,relu", "width": "64", "k": "4", "normalization": "sqrt_d"})
    assert {m.recipe.normalization for m in grid(other)} == {"sqrt_d"}
    assert parameters(members[0], Layout(10)) == 2 * 64 * 10 + 64 + 10


def test_recipes_with_a_penalty_take_their_published_weights_or_those_given() -> None:
    config = resolve(RunConfig, {"recipe": "topk,relu,jumprelu", "width": "64", "k": "4"})
    published = [m.sparsity for m in grid(config) if m.recipe.name == "relu"]
    assert published == [0.012, 0.015, 0.02, 0.03, 0.04, 0.06]
    config = resolve(RunConfig, {"recipe": "topk,relu,jumprelu", "width": "64", "k": "4", "penalty": "0.1,5"})
    assert [m.name for m in grid(config)] == [
        "topk_n64_k4_s0",
        "relu_n64_l0.1_s0",
        "relu_n64_l5_s0",
        "jumprelu_n64_k4_s0",
    ]
    with pytest.raises(InputError, match=r"'penalty' is -1\.0, but it must be at least 0"):
        resolve(RunConfig, {"penalty": -1.0})


def test_several_sites_make_a_dictionary_each_but_one_crosscoder_of_all() -> None:
    sites = "layers.0.resid_post,layers.1.resid_post"
    config = resolve(RunConfig, {"recipe": "topk,crosscoder_batch_topk", "width": "64", "k": "4", "site": sites})
    names = [m.name for m in grid(config, Layout(32, tuple(sites.split(","))))]
    assert names == [
        "topk_n64_k4_s0_layers.0.resid_post",
        "topk_n64_k4_s0_layers.1.resid_post",
        "crosscoder_batch_topk_n64_k4_s0",
    ]


def test_a_preset_stands_in_for_the_defaults_and_flags_win(tmp_path: Path) -> None:
    config = resolve(RunConfig, {"preset": "batchtopk-gpt2"})
    (recipe,) = {m.recipe for m in grid(config)}
    assert (config.model, config.width, config.batch_size, config.k) == ("gpt2", (12288,), 4096, (16, 32, 64))
    assert (recipe.input_op, recipe.normalization, recipe.betas) == ("layer_norm", "none", (0.9, 0.99))
    assert {m.learning_rate for m in grid(config)} == {3e-4}
    file = tmp_path / "run.yaml"
    file.write_text("preset: sparsify\nwidth: 65536\n", encoding="utf-8")
    config = resolve(RunConfig, {"k": 8, "model": "world"}, file)
    (member,) = grid(config)
    assert (member.recipe.optimizer, member.sparsity, member.learning_rate) == ("signum", 8, 2.5e-3)
    assert resolve(RunConfig, {"preset": "gemma-scope", "model": "world"}).site is None  # it was of the other model
    with pytest.raises(InputError, match=r"There is no preset 'gemmascope'\. Did you mean 'gemma-scope'"):
        resolve(RunConfig, {"preset": "gemmascope"})


def test_transcoders_and_crosscoders_are_trained_from_a_model(settings: Settings, tmp_path: Path) -> None:
    import saeworks

    small = {**settings, "tokens": 2048, "evals": ("core",)}
    sites = "layers.0.resid_post,layers.1.resid_post"
    wide = {**small, "site": sites, "recipe": "crosscoder_batch_topk,topk", "out": tmp_path / "wide"}
    made = plan(wide, measuring=False)
    done = train(wide)
    assert [row["dictionary"] for row in done["table"]] == [d["name"] for d in made["dictionaries"]]
    first, *single = (saeworks.load(tmp_path / "wide" / "dictionaries" / row["dictionary"]) for row in done["table"])
    assert (first.cfg.sources, first.cfg.d_in) == (tuple(sites.split(",")), 32)
    assert [d.cfg.metadata["site"] for d in single] == sites.split(",")
    assert [d.cfg.d_in for d in single] == [16, 16]
    assert train({**wide, "resume": True})["table"] == done["table"]
    with pytest.raises(InputError, match=r"none of the recipes \(crosscoder_batch_topk, topk\) predicts"):
        train({**wide, "target_site": "layers.1.mlp_out", "out": tmp_path / "none"})
    with pytest.raises(InputError, match="several sites side by side"):
        train({**wide, "site": sites.split(",")[0], "out": tmp_path / "none"})
    across = {**small, "recipe": "skip_transcoder", "site": NORM, "target_site": "layers.1.mlp_out"}
    with pytest.raises(InputError, match="name it with --target-site"):
        train({**across, "target_site": None, "out": tmp_path / "none"})
    (row,) = train({**across, "out": tmp_path / "across"})["table"]
    found = saeworks.load(tmp_path / "across" / "dictionaries" / row["dictionary"])
    assert found.cfg.skip
    assert found.cfg.d_out == 16
    assert found.cfg.metadata["target_site"] == "layers.1.mlp_out"
    assert not (tmp_path / "none").exists()


def test_each_of_several_sites_has_a_transcoder_to_its_own_target(settings: Settings, tmp_path: Path) -> None:
    import saeworks

    norms = [NORM.replace("1", layer) for layer in "01"]
    targets = [f"layers.{layer}.mlp_out" for layer in "01"]
    asked = {**settings, "tokens": 2048, "recipe": "transcoder", "width": "64", "k": "4", "out": tmp_path / "pairs"}
    done = train({**asked, "site": ",".join(norms), "target_site": ",".join(targets)})
    found = [saeworks.load(tmp_path / "pairs" / "dictionaries" / row["dictionary"]) for row in done["table"]]
    reads = [d.cfg.metadata["normalization"]["scale"] for d in found]
    assert [d.cfg.metadata["target_site"] for d in found] == targets
    assert [d.cfg.metadata["site"] for d in found] == norms
    assert reads[0] != reads[1], "every site has a scale of its own"
    config = resolve(RunConfig, {**asked, "site": ",".join(norms), "target_site": ",".join(targets)})
    layout = Layout(32, ("a", "b"), d_out=32, targets=("c", "d"), target_widths=(16, 16))
    assert [(m.source, m.target) for m in grid(config, layout)] == [("a", "c"), ("b", "d")]
    one = Layout(32, ("a", "b"), d_out=16)
    assert [(m.source, m.target) for m in grid(config, one)] == [("a", None), ("b", None)]
    single = Layout(16, d_out=32, targets=("c", "d"), target_widths=(16, 16))
    assert [(m.source, m.target) for m in grid(config, single)] == [(None, "c"), (None, "d")]
    assert grid(config, single)[1].name == "transcoder_n64_k4_s0_to_d"
    three = Layout(48, ("a", "b", "e"), d_out=32, targets=("c", "d"), target_widths=(16, 16))
    with pytest.raises(InputError, match="3 sites and 2 target sites"):
        grid(config, three)


def test_what_no_eval_can_measure_is_trained_and_reported(settings: Settings, tmp_path: Path) -> None:
    asked = {**settings, "tokens": 2048, "evals": ("core",), "width": "64", "k": "4", "out": tmp_path / "both"}
    sites = "layers.0.resid_post,layers.1.resid_post"
    summary = run({**asked, "site": sites, "recipe": "crosscoder_l1,topk", "penalty": "0.02"})
    cross, *single = summary["table"]
    assert cross["dictionary"] == "crosscoder_l1_n64_l0.02_s0"
    assert (cross["ce_loss_score"], cross["l0"] > 0) == (None, True)
    assert [row["dictionary"].rpartition("_")[2] for row in single] == ["post", "post"]
    assert all(row["ce_loss_score"] is not None for row in single)
    assert summary["skipped"] == {cross["dictionary"]: summary["skipped"][cross["dictionary"]]}
    assert "it is a crosscoder" in summary["skipped"][cross["dictionary"]]
    assert "was not measured: it is a crosscoder" in (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    alone = {**asked, "recipe": "transcoder", "site": NORM, "target_site": "layers.1.mlp_out", "out": tmp_path / "one"}
    (row,) = run(alone)["table"]
    assert row["explained_variance"] < 1
    with pytest.raises(InputError, match="it is a transcoder"):
        evaluate({"dictionary": [str(tmp_path / "one")], "data": asked["data"], "out": tmp_path / "results"})


def test_a_dictionary_with_an_operation_on_every_token_is_measured(settings: Settings, tmp_path: Path) -> None:
    asked = {**settings, "tokens": 2048, "evals": ("core",), "width": "64", "k": "4", "out": tmp_path / "normed"}
    (row,) = run({**asked, "recipe": "openai-topk"})["table"]
    assert row["dictionary"] == "openai-topk_n64_k4_s0"
    assert 0 < row["l0"] <= 4
    assert row["ce_loss_score"] is not None


def test_the_calibration_of_a_wide_dictionary_is_scaled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(RunConfig, {"width": "64", "k": "4", "recipe": "topk", "batch_size": 8, "device": "cpu"})
    (member,) = grid(config)
    monkeypatch.setattr("saeworks.jobs.plan.CALIBRATION_WIDTH", 32)
    seen: list[int] = []
    from saeworks.training.member import Member

    original = Member.__init__

    def spy(self: Member, config: Any, *rest: Any, **named: Any) -> None:
        seen.append(config.width)
        original(self, config, *rest, **named)

    monkeypatch.setattr(Member, "__init__", spy)
    assert step_seconds(config, member, Layout(16), budget=0.01) > 0
    assert seen == [32]


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="file size limits exist on Unix only")
def test_a_disk_that_fills_up_is_a_sentence_and_loses_nothing(settings: Settings, tmp_path: Path) -> None:
    # A limit on file sizes stands in for the full disk: writing fails in the same place, with EFBIG for ENOSPC.
    script = (
        "import resource, signal, sys\n"
        "from saeworks.cli.app import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["train", "--out", str(tmp_path / "run"), "--recipe", "topk", "--json"]
    for key in ("model", "site", "context_length", "batch_size", "buffer_tokens", "tokens"):
        arguments += [f"--{key.replace('_', '-')}", str(settings[key])]
    arguments += ["--data", settings["data"][0], "--width", "512", "--k", "4"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 1
    assert "disk is full" in json.loads(done.stdout)["error"]
    assert "Traceback" not in done.stderr
    resumed = train({"out": tmp_path / "run", "resume": True})
    assert [row["dictionary"] for row in resumed["table"]] == ["topk_n512_k4_s0"]


def test_doctor_finds_this_installation_healthy_but_for_the_machine() -> None:
    report = doctor()
    checks = {check["check"]: check for check in report["checks"]}
    assert report["facts"]["torch"] == torch.__version__
    assert checks["python"]["ok"]
    assert checks["extra [hf]"]["ok"]
    assert report["healthy"] == all(check["ok"] for check in report["checks"])


def test_doctor_says_how_to_add_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from saeworks.jobs import doctor as module

    absent = (("no_such_module", "no-such", "something"),)
    monkeypatch.setattr(module, "EXTRAS", {"hf": absent, "probe": absent})
    report = module.doctor()
    checks = {check["check"]: check for check in report["checks"]}
    assert checks["extra [hf]"]["advice"] == 'pip install "saeworks[hf]"'
    assert checks["extra [probe]"]["advice"] == 'pip install "saeworks[probe]"'
    # The main job needs language models; it can do without the other.
    assert (checks["extra [hf]"]["ok"], checks["extra [probe]"]["ok"]) == (False, True)
    assert not report["healthy"]
