"""Controls in a bench and in ``saeworks eval``: which there are, resuming, the plan, and a bench that was killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from saeworks.cli.app import main
from saeworks.errors import InputError
from saeworks.jobs import bench_plan
from saeworks.jobs.bench import bench
from saeworks.jobs.config import ALL_EVALS, CONTROLS, BenchConfig, EvaluateConfig, resolve
from saeworks.jobs.controls import Controls
from saeworks.jobs.evaluate import evaluate, load_dictionaries

Settings = dict[str, Any]
TRAINED = ["batch_topk_n32_k4_s0", "topk_n32_k2_s0", "topk_n32_k4_s0"]
MADE = [
    "control_identity",
    "control_pca",
    *(f"control_random_directions_n32_k{k}" for k in (4, 2)),
    *(f"control_permuted_decoder_{name}" for name in TRAINED),
    "control_oracle",
]


@pytest.fixture(scope="module")
def grid(tiny_model_directory: Path, tiny_texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trained dictionaries."""
    from saeworks.jobs.train import train

    out = tmp_path_factory.mktemp("grid") / "run"
    common = {"model": str(tiny_model_directory), "data": (str(tiny_texts),), "site": "layers.1.resid_post"}
    training = {"width": "32", "tokens": 1024, "batch_size": 256, "buffer_tokens": 512, "context_length": 32}
    train({**common, **training, "recipe": "topk,batch_topk", "k": "2,4", "out": out, "device": "cpu"})
    shutil.rmtree(out / "dictionaries" / "batch_topk_n32_k2_s0")
    return out


@pytest.fixture(scope="module")
def settings(grid: Path, tiny_texts: Path) -> Settings:
    return {
        "dictionary": (str(grid),),
        "data": (str(tiny_texts),),
        "label_column": "topic",
        "context_length": 32,
        "eval_tokens": 128,
        "probe_texts": 60,
        "evals": "core,sparse_probing",
        "controls": "all",
        "control_texts": 100,
        "at_once": 1,
        "settings": [
            "core.resamples=10",
            "sparse_probing.resamples=10",
            "sparse_probing.seeds=[0]",
            "sparse_probing.full_seeds=1",
        ],
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("controls") / "whole"
    return out, bench({**settings, "out": out})


def test_controls_are_rows_of_their_own_and_order_as_they_must(finished: tuple[Path, dict[str, Any]]) -> None:
    import pyarrow.parquet as pq

    out, summary = finished
    table = pq.read_table(out / "bench.parquet").to_pylist()
    assert table == summary["table"]
    assert [row["dictionary"] for row in table] == [*TRAINED, *MADE]
    kinds = {row["dictionary"]: row["control"] for row in table}
    assert [kinds[name] for name in TRAINED] == [None] * 3
    assert set(kinds.values()) - {None} == set(CONTROLS)
    rows = {row["dictionary"]: row for row in table}
    assert rows["control_identity"]["explained_variance"] == pytest.approx(1.0, abs=1e-6)
    assert rows["control_pca"]["explained_variance"] == pytest.approx(1.0, abs=1e-4)
    for name in TRAINED:
        permuted = rows[f"control_permuted_decoder_{name}"]
        assert permuted["explained_variance"] < rows[name]["explained_variance"]
        assert permuted["l0"] == pytest.approx(rows[name]["l0"])
        assert (permuted["architecture"], permuted["setting"]) == (rows[name]["architecture"], rows[name]["setting"])
        assert rows[name]["explained_variance_low"] <= rows[name]["explained_variance"]
    assert rows["control_random_directions_n32_k2"]["l0"] == 2.0
    floor = max(rows[name]["explained_variance"] for name in MADE if "permuted" in name or "random" in name)
    (reading,) = [row for row in summary["readings"] if row["number"] == "explained_variance"]
    assert (reading["floor"], reading["ceiling_of"], reading["better"]) == (floor, "control_identity", "more")


def test_what_says_nothing_new_or_cannot_be_made_is_skipped_with_the_reason(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    cells = {(c["eval"], c["dictionary"]): c for c in finished[1]["cells"]}
    skipped = {key: cell["sentence"] for key, cell in cells.items() if cell["state"] == "skipped"}
    assert set(skipped) == {
        *(("sparse_probing", f"control_permuted_decoder_{name}") for name in TRAINED),
        *((name, "control_oracle") for name in ("core", "sparse_probing")),
    }
    assert "only those of the embedded world" in skipped["core", "control_oracle"]
    assert "its own" in skipped["sparse_probing", f"control_permuted_decoder_{TRAINED[0]}"]
    assert {cell["control"] for key, cell in cells.items() if key[1] in TRAINED} == {None}
    written = json.loads((finished[0] / "results" / "core" / "control_pca_eval_results.json").read_text())
    assert written["sae_cfg_dict"]["metadata"]["control"] == "pca"


def test_resuming_keeps_controls_without_making_them(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    monkeypatch.setattr(Controls, "_fresh", lambda *_: pytest.fail("a control was made again"))
    again = bench({**settings, "out": out})
    assert {cell["state"] for cell in again["cells"]} == {"kept", "skipped"}
    assert again["table"] == finished[1]["table"]
    monkeypatch.undo()
    other = bench({**settings, "out": out, "seed": 1, "controls": "random_directions", "evals": "core"})
    states = {cell["dictionary"]: cell["state"] for cell in other["cells"] if cell["control"]}
    assert set(states.values()) == {"measured"}, "another seed is another control"


def test_the_plan_counts_cells_and_knows_the_time_of_an_earlier_call(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = bench_plan.plan_bench({**settings, "out": tmp_path / "new"})
    counts = {row["eval"]: (row["cells"], row["kept"], row["skipped"], row["measure"]) for row in fresh["evals"]}
    assert counts == {"core": (11, 0, 1, 10), "sparse_probing": (11, 0, 4, 7)}
    assert (fresh["seconds"], fresh["not_timed"]) == (None, ["core", "sparse_probing"])
    assert fresh["evals"][0]["reads"] == "128 tokens"
    assert not (tmp_path / "new").exists()
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    (lost,) = [c for c in finished[1]["cells"] if (c["eval"], c["dictionary"]) == ("core", TRAINED[1])]
    (out / "results" / "core" / f"{TRAINED[1]}_eval_results.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    made = bench_plan.plan_bench({**settings, "out": out})
    assert {row["eval"]: row["measure"] for row in made["evals"]} == {"core": 1, "sparse_probing": 0}
    assert made["seconds"] == pytest.approx(lost["seconds"])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before, "a plan writes nothing"
    flags = ["--dictionary", settings["dictionary"][0], "--data", settings["data"][0], "--label-column", "topic"]
    assert main(["bench", *flags, "--evals", "core", "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    assert "not timed yet" in capsys.readouterr().out


def test_a_grid_that_is_not_trained_yet_is_planned_too(
    tiny_model_directory: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    made = bench_plan.plan_bench(
        {
            **{"model": str(tiny_model_directory), "data": (str(tiny_texts),), "site": "layers.1.resid_post"},
            **{"recipe": "topk", "width": "32,64", "k": "4", "tokens": 1024, "batch_size": 256, "buffer_tokens": 512},
            **{
                "context_length": 32,
                "evals": "core",
                "controls": "identity,random_directions",
                "out": tmp_path / "new",
                "device": "cpu",
            },
        }
    )
    assert [d["name"] for d in made["training"]["dictionaries"]] == ["topk_n32_k4_s0", "topk_n64_k4_s0"]
    assert {c["dictionary"] for c in made["cells"] if c["control"]} == {
        "control_identity",
        "control_random_directions_n32_k4",
        "control_random_directions_n64_k4",
    }
    assert not (tmp_path / "new").exists()


#: Runs a bench whose process is killed as it writes the result of its fifth cell.
KILLED = """
import json, os, signal, sys
from saeworks.jobs.bench import bench
from saeworks.results.envelope import Result
written, write = [], Result.write
def counted(self, directory):
    written.append(self)
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, directory)
Result.write = counted
bench(json.loads(sys.argv[1]))
"""


def test_a_killed_bench_loses_the_cell_in_progress_and_no_more(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    asked = {**settings, "out": str(out)}
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(asked)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert len(list(out.rglob("*_eval_results.json"))) == 4
    assert json.loads((out / "bench.json").read_text())["table"], "the table stands while the bench goes on"
    again = bench(asked)
    states = [cell["state"] for cell in again["cells"]]
    assert (states.count("kept"), states.count("failed")) == (4, 0)
    assert again["table"] == finished[1]["table"]
    assert (out / "bench.parquet").read_bytes() == (finished[0] / "bench.parquet").read_bytes()


def test_eval_measures_controls_beside_dictionaries(
    settings: Settings, grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {k: v for k, v in settings.items() if k not in ("evals", "at_once")}
    asked |= {"names": "core", "controls": "identity,permuted_decoder,oracle", "out": tmp_path / "out"}
    asked["settings"] = asked["settings"][:1]
    made = evaluate(asked)
    assert [row["dictionary"] for row in made["table"]] == TRAINED
    assert [row["control"] for row in made["controls"]] == ["identity", *["permuted_decoder"] * 3]
    assert "embedded world" in made["skipped"]["control_oracle"]
    (reading,) = [row for row in made["readings"] if row["number"] == "ce_loss_score"]
    assert reading["ceiling"] == pytest.approx(1.0)
    assert reading["floor_of"].startswith("control_permuted_decoder")
    flags = ["--dictionary", str(grid), "--data", asked["data"][0], "--context-length", "32", "--eval-tokens", "128"]
    flags += ["--set", "core.resamples=10", "--controls", "identity", "--out", str(tmp_path / "out")]
    assert main(["eval", "core", *flags]) == 0
    assert "control_identity" in capsys.readouterr().out


def test_control_names_are_checked(tmp_path: Path) -> None:
    config = resolve(EvaluateConfig, {"dictionary": "x", "controls": "pca, all"})
    assert config.controls == CONTROLS
    assert resolve(BenchConfig, {"controls": "pca"}).controls == ("pca",)
    with pytest.raises(InputError, match="Did you mean 'oracle'"):
        resolve(BenchConfig, {"controls": "orcale"})


def test_a_dictionary_may_not_be_called_as_a_control(settings: Settings, grid: Path, tmp_path: Path) -> None:
    source = tmp_path / "dictionaries"
    shutil.copytree(grid / "dictionaries" / TRAINED[1], source / "control_identity")
    with pytest.raises(InputError, match="rename it"):
        bench({**settings, "dictionary": (str(source),), "controls": "identity", "out": tmp_path / "out"})
    assert list(load_dictionaries([str(source)], "cpu")) == ["control_identity"]


def test_the_help_of_eval_explains_every_eval_and_direction(capsys: pytest.CaptureFixture[str]) -> None:
    from saeworks.evals.runner import REGISTRY, eval_module
    from saeworks.jobs.eval_help import QUESTIONS, eval_help
    from saeworks.results.headlines import HEADLINES

    assert set(QUESTIONS) == set(REGISTRY) == set(ALL_EVALS)
    assert {name: eval_module(name).EVAL_TYPE for name in REGISTRY} == {n: t for n, (t, _) in QUESTIONS.items()}
    text = eval_help()
    for h in HEADLINES:
        if h.eval != "sparse_probing_sae_probes":  # read from SAEBench's files, not measured here
            assert f"- {h.column} ({h.direction}): {h.meaning}" in text
    assert main(["eval", "--help"]) == 0
    assert "less is better" in capsys.readouterr().out


def test_which_controls_a_set_of_dictionaries_calls_for(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from saeworks.dictionaries.dictionary import DictionaryConfig

    def known(k: int | None, l0: float | None, site: str = "a", width: int = 64) -> Any:
        metadata = {"site": site, "recipe": "relu", "recorded": {"l0": l0}}
        return SimpleNamespace(
            cfg=DictionaryConfig(architecture="relu", d_in=16, d_sae=width, k=k, metadata=metadata), fingerprint="f"
        )

    model: Any = SimpleNamespace(site=lambda name: SimpleNamespace(name=name))

    def planned(**dictionaries: Any) -> Controls:
        config = resolve(EvaluateConfig, {"dictionary": "x", "controls": "all"})
        return Controls(config, dictionaries, model, None, tmp_path, lambda name: pytest.fail(f"{name} was loaded"))

    plans = planned(
        exact=known(24, 30.0), near=known(None, 21.0), far=known(None, 60.4), wide=known(24, None, width=128)
    )
    random = {p.name: (p.width, p.k) for p in plans.plans.values() if p.kind == "random_directions"}
    assert random == {
        "control_random_directions_n64_k24": (64, 24),  # near has an L0 that is near enough
        "control_random_directions_n64_k60": (64, 60),
        "control_random_directions_n128_k24": (128, 24),
    }
    assert plans.why_not("control_oracle", "core") is None, "the embedded world's concepts are known"
    assert plans.why_not("control_permuted_decoder_far", "core") is None
    assert plans.why_not("control_permuted_decoder_far", "latents") is not None
    two = planned(one=known(8, None, "a"), other=known(8, None, "b")).plans
    assert {"control_identity_at_a", "control_pca_at_b", "control_random_directions_n64_k8_at_b"} <= set(two)
    assert two["control_permuted_decoder_other"].site == "b"
