"""A bench end to end on a tiny language model: grid, cells, resuming, failures, published rows, the time left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from saeworks.cli.app import main
from saeworks.errors import InputError, RunError
from saeworks.evals import core, sparse_probing
from saeworks.jobs.bench import bench
from saeworks.jobs.bench_board import Board
from saeworks.results.envelope import Result
from saeworks.results.import_saebench import read_saebench
from saeworks.results.table_file import write_parquet

Settings = dict[str, Any]
NAMES = ["topk_n32_k2_s0", "topk_n32_k4_s0", "topk_n64_k2_s0", "topk_n64_k4_s0"]
RELEASE = "saebench_pythia_width-2pow12"


@pytest.fixture(scope="session")
def settings(tiny_model_directory: Path, tiny_texts: Path) -> Settings:
    """A bench of seconds: two widths, two sparsities, two evals."""
    return {
        "model": str(tiny_model_directory),
        "data": (str(tiny_texts),),
        "label_column": "topic",
        "site": "layers.1.resid_post",
        "recipe": "topk",
        "width": "32,64",
        "k": "2,4",
        "tokens": 2048,
        "batch_size": 256,
        "buffer_tokens": 1024,
        "context_length": 32,
        "eval_tokens": 128,
        "probe_texts": 100,
        "evals": "core,sparse_probing",
        "settings": [
            "core.resamples=10",
            "sparse_probing.resamples=10",
            "sparse_probing.seeds=[0]",
            "sparse_probing.full_seeds=1",
        ],
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A whole bench, and its summary."""
    out = tmp_path_factory.mktemp("benches") / "whole"
    return out, bench({**settings, "out": out})


def taken(settings: Settings, source: Path, out: Path) -> Settings:
    """Settings that measure the dictionaries of another bench instead of training."""
    grid = ("recipe", "width", "k", "model", "site", "tokens")
    return {**{k: v for k, v in settings.items() if k not in grid}, "dictionary": (str(source),), "out": out}


def parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path)


def states(summary: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    return {(cell["eval"], cell["dictionary"]): cell["state"] for cell in summary["cells"]}


def test_a_grid_becomes_one_table(finished: tuple[Path, dict[str, Any]]) -> None:
    out, summary = finished
    table = parquet(out / "bench.parquet")
    assert table.column("dictionary").to_pylist() == NAMES
    assert table.to_pylist() == summary["table"]
    for row in summary["table"]:
        path = out / "results" / "core" / f"{row['dictionary']}_eval_results.json"
        measured = json.loads(path.read_text())["eval_result_metrics"]
        assert row["l0"] == measured["sparsity"]["l0"]
        assert row["ce_loss_score"] == measured["model_performance_preservation"]["ce_loss_score"]
        assert row["architecture"] == "topk"
        assert f"topk_n{row['width']}_k{row['setting']:g}_s{row['seed']}" == row["dictionary"]
        assert row["probe_k5"] is not None
    assert set(states(summary).values()) == {"measured"}
    assert json.loads((out / "bench.json").read_text())["cells"] == summary["cells"]


def test_its_result_files_are_read_as_those_of_saebench(finished: tuple[Path, dict[str, Any]]) -> None:
    out, summary = finished
    for cell in summary["cells"]:
        assert Path(cell["file"]).parent == out / "results" / cell["eval"]
        result, odd = read_saebench(Path(cell["file"]))
        assert (result.eval_type_id, result.sae_lens_id, odd) == (cell["eval"], f"saeworks/{cell['dictionary']}", [])


def test_resuming_measures_only_what_is_missing(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    lost = "core", NAMES[1]
    (out / "results" / "core" / f"{NAMES[1]}_eval_results.json").unlink()
    before = {p: p.read_bytes() for p in out.glob("dictionaries/*/weights.safetensors")}
    asked: list[list[str]] = []
    run = core.run

    def spy(dictionaries: Any, *rest: Any) -> Any:
        asked.append(list(dictionaries))
        return run(dictionaries, *rest)

    monkeypatch.setattr(core, "run", spy)
    again = bench({"out": out, "resume": True})
    assert asked == [[NAMES[1]]]
    assert states(again) == {cell: "measured" if cell == lost else "kept" for cell in states(again)}
    # Nor does it matter that it was measured alone.
    assert again["table"] == finished[1]["table"]
    assert {p: p.read_bytes() for p in before} == before
    # Another choice of evals is no other run.
    assert set(states(bench({"out": out, "resume": True, "evals": "core"})).values()) == {"kept"}
    with pytest.raises(InputError, match="cannot be resumed with other settings: k was"):
        bench({"out": out, "resume": True, "k": "3"})


def test_a_failing_cell_costs_no_other_and_is_tried_again(
    settings: Settings,
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = taken(settings, finished[0], tmp_path / "out")
    run = sparse_probing.run

    def breaking(dictionaries: Any, *rest: Any) -> Any:
        if NAMES[2] in dictionaries:
            raise ZeroDivisionError("no\nlatents")
        return run(dictionaries, *rest)

    monkeypatch.setattr(sparse_probing, "run", breaking)
    summary = bench(asked)
    assert states(summary) == {
        cell: "failed" if cell == ("sparse_probing", NAMES[2]) else "measured" for cell in states(finished[1])
    }
    (failed,) = [cell for cell in summary["cells"] if cell["state"] == "failed"]
    assert failed["sentence"] == "ZeroDivisionError: no latents"
    rows = {row["dictionary"]: row for row in parquet(tmp_path / "out" / "bench.parquet").to_pylist()}
    assert {name: row["failed"] for name, row in rows.items() if row["failed"]} == {NAMES[2]: "sparse_probing"}
    whole = {row["dictionary"]: row for row in finished[1]["table"]}
    assert rows[NAMES[2]]["probe_k5"] is None
    assert all(rows[name] == whole[name] for name in NAMES if name != NAMES[2])
    flags = [*("--label-column", "topic", "--context-length", 32, "--eval-tokens", 128, "--probe-texts", 100)]
    flags += ["--evals", "core,sparse_probing", "--device", "cpu", "--data", settings["data"][0]]
    flags += [f"--set={item}" for item in settings["settings"]]
    command = [str(part) for part in ("bench", "--dictionary", finished[0], "--out", tmp_path / "out", *flags)]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert f"sparse_probing failed on {NAMES[2]}: ZeroDivisionError: no latents" in printed.err
    assert "Table: " in printed.out
    monkeypatch.setattr(sparse_probing, "run", run)
    assert main([*command, "--json"]) == 0
    mended = json.loads(capsys.readouterr().out)
    assert states(mended) == {
        cell: "measured" if cell == ("sparse_probing", NAMES[2]) else "kept" for cell in states(mended)
    }
    assert mended["table"] == finished[1]["table"]


def test_a_damaged_dictionary_and_an_impossible_eval_leave_the_rest(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    source = tmp_path / "dictionaries"
    for name in NAMES[:2]:
        shutil.copytree(finished[0] / "dictionaries" / name, source / name)
    (source / NAMES[0] / "weights.safetensors").write_bytes(b"not tensors")
    asked = {**taken(settings, source, tmp_path / "out"), "evals": "core,scr,ravel", "label_column": None}
    summary = bench(asked)
    assert list(summary["failures"]) == [NAMES[0]]
    assert states(summary) == {
        ("core", NAMES[1]): "measured",
        ("scr", NAMES[1]): "skipped",
        ("ravel", NAMES[1]): "skipped",
    }
    sentences = {cell["eval"]: cell["sentence"] for cell in summary["cells"]}
    assert "--label-column" in sentences["scr"]
    assert "questions of its own" in sentences["ravel"]


def test_published_results_stand_beside_ones_own(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for eval_name, metrics in {
        "core": {"sparsity": {"l0": 81.5}, "model_performance_preservation": {"ce_loss_score": 0.98}},
        "ravel": {"ravel": {"disentanglement_score": 0.7}},
    }.items():
        record = {
            "eval_type_id": eval_name,
            "eval_config": {},
            "eval_result_metrics": metrics,
            "sae_lens_id": "trainer_3",
            "sae_lens_release_id": RELEASE,
            "sae_cfg_dict": {"architecture": "batch_topk", "d_sae": 4096, "model_name": "pythia-160m-deduped"},
        }
        path = tmp_path / "published" / eval_name / f"{RELEASE}_trainer_3_eval_results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record), encoding="utf-8")
    (path.parent / "cut_eval_results.json").write_text("{}", encoding="utf-8")
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    summary = bench({"out": out, "resume": True, "published": tmp_path / "published"})
    *own, theirs = parquet(out / "bench.parquet").to_pylist()
    assert [row["dictionary"] for row in own] == NAMES
    assert {row["source"] for row in own} == {"saeworks"}
    assert (theirs["dictionary"], theirs["source"]) == (f"{RELEASE}/trainer_3", "SAEBench")
    assert (theirs["l0"], theirs["width"], theirs["architecture"]) == (81.5, 4096, "batch_topk")
    assert (theirs["ravel"], theirs["probe_k5"], own[0]["ravel"]) == (0.7, None, None)
    assert any("cut_eval_results.json" in note for note in summary["notes"])


def test_what_cannot_be_is_refused_before_anything_is_written(settings: Settings, tmp_path: Path) -> None:
    out = {"out": tmp_path / "out"}
    with pytest.raises(InputError, match="does not exist"):
        bench({**settings, **out, "published": tmp_path / "nowhere"})
    with pytest.raises(InputError, match="Did you mean 'core'"):
        bench({**settings, **out, "evals": "cor"})
    with pytest.raises(InputError, match="questions of its own"):
        bench({**settings, **out, "evals": "ravel"})
    with pytest.raises(InputError, match=r"a grid to train \(k, recipe, width\) too"):
        bench({**settings, **out, "dictionary": (str(tmp_path),)})
    with pytest.raises(InputError, match="no setting 'nonsense'"):
        bench({**settings, **out, "settings": ["core.nonsense=1"]})
    assert not (tmp_path / "out").exists()


def test_a_bench_that_measured_nothing_is_a_failure_that_is_written_down(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(*_: Any) -> Any:
        raise RunError("The judge does not answer.")

    monkeypatch.setattr(core, "run", breaking)
    with pytest.raises(RunError, match="Not one of 4 cells could be measured: The judge does not answer"):
        bench({**taken(settings, finished[0], tmp_path / "out"), "evals": "core"})
    assert {c["state"] for c in json.loads((tmp_path / "out" / "bench.json").read_text())["cells"]} == {"failed"}


def test_a_full_disk_ends_the_bench(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    calls: list[str] = []

    def full(*_: Any) -> Any:
        calls.append("core")
        raise RunError("The disk is full.") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(core, "run", full)
    with pytest.raises(RunError, match="The disk is full"):
        bench({**taken(settings, finished[0], tmp_path / "out"), "evals": "core"})
    assert calls == ["core"]


def result(eval_name: str) -> Result:
    return Result(eval_type_id=eval_name, eval_config={}, eval_result_metrics={})


def test_the_time_that_is_left_is_what_finished_cells_took() -> None:
    said: list[str] = []
    board = Board({"a": 16, "b": 16, "c": 64, "d": 64}, ("core", "scr"), said.append)
    board.keep("core", {"a": result("core")})
    board.start()
    assert said == ["8 cells (eval × dictionary), 1 of them measured before."]
    assert board.remaining() == (None, ["scr", "core"])
    board.fell("skipped", [board.cells["scr", "a"]], "no labels")
    assert "left" not in said[-1]
    board.measured("core", {"b": result("core")}, 10.0)
    assert board.remaining() == (20.0, ["scr"])  # c and d as long as b, for want of better
    assert said[-1] == "[3/8] core · b: 10 s; about 20 s left, not counting scr (not timed yet)"
    board.measured("core", {"c": result("core")}, 30.0)
    assert board.remaining() == (30.0, ["scr"])  # d is as wide as c
    board.measured("scr", {"b": result("scr"), "c": result("scr")}, 8.0)
    assert board.remaining() == (34.0, [])
    assert said[-1].endswith("about 34 s left")
    board.fell("failed", board.waiting(), "broken")
    assert said[-1] == "[8/8] scr · d: failed: broken"


def test_columns_have_their_types_whatever_stands_in_them(tmp_path: Path) -> None:
    rows = [
        {"dictionary": "a", "width": None, "setting": 4, "tokens": 1e6, "l0": None, "failed": None},
        {"dictionary": "b", "width": 8, "setting": [4, 8], "tokens": 0.5, "l0": float("nan"), "failed": "core"},
    ]
    table = parquet(write_parquet(tmp_path / "t.parquet", rows))
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        **{"dictionary": "string", "width": "int64", "setting": "double", "tokens": "int64"},
        **{"l0": "double", "failed": "string"},
    }
    assert table.schema.field("l0").metadata == {b"better": b"0"}
    assert table.to_pylist() == [
        {"dictionary": "a", "width": None, "setting": 4.0, "tokens": 1_000_000, "l0": None, "failed": None},
        {"dictionary": "b", "width": 8, "setting": None, "tokens": None, "l0": None, "failed": "core"},
    ]
