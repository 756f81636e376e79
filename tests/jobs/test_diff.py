"""A diff end to end on two tiny models: stages, files, resuming, a crosscoder brought along, bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saeworks.cli.app import main
from saeworks.errors import InputError
from saeworks.jobs import diff_stages
from saeworks.jobs.diff import diff
from saeworks.jobs.diff_plan import plan

Settings = dict[str, Any]
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{{ 'often' if m['role'] == 'user' else 'and' }} {{ m['content'] }} </s> "
    "{% endfor %}{% if add_generation_prompt %}and{% endif %}"
)


@pytest.fixture(scope="module")
def models(tiny_model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny model as base, and one with other weights and a chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = tmp_path_factory.mktemp("pair")
    base, chat = root / "base", root / "chat"
    shutil.copytree(tiny_model_directory, base)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    module: Any = AutoModelForCausalLM.from_pretrained(base)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=draw)
    module.save_pretrained(chat)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(chat)
    return base, chat


@pytest.fixture(scope="module")
def settings(models: tuple[Path, Path], tiny_texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A diff of seconds."""
    import random

    draw = random.Random(1)
    words = ["dog", "cat", "runs", "sleeps", "red", "green", "house", "river"]
    path = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(900):  # of which some 45 are held out
            asked, said = (" ".join(draw.choices(words, k=n)) for n in (4, 5))
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            f.write(json.dumps({"messages": turns}) + "\n")
    return {
        "base": str(models[0]),
        "chat": str(models[1]),
        "data": (str(tiny_texts),),
        "transcripts": str(path),
        "site": "layers.0.resid_post",
        "width": 32,
        "k": 4,
        "tokens": 2048,
        "batch_size": 128,
        "buffer_tokens": 512,
        "measure_tokens": 600,
        "conversations": 8,
        "answer_tokens": 6,
        "first_tokens": "2",
        "context_length": 32,
        "harvest_batch_size": 8,
        "cards": 3,
        "gate": 0.5,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A whole diff, and its summary."""
    out = tmp_path_factory.mktemp("diffs") / "whole"
    return out, diff({**settings, "out": out})


def kl_of(summary: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(row["condition"], row["group"]): row["kl"] for row in summary["kl"]}


def test_everything_is_measured_and_written(finished: tuple[Path, dict[str, Any]]) -> None:
    import pyarrow.parquet as parquet

    out, summary = finished
    kl = kl_of(summary)
    assert abs(kl["full", "all"]) < 1e-5 < kl["none", "all"]
    assert {group for _, group in kl} == {"all", "first 2", "rest"}
    counts = summary["counts"]
    assert counts["latents"] == 32
    assert counts["tokens"] == 600
    assert counts["genuine"] == len(summary["genuine"]) <= counts["candidates"] <= counts["alive"]
    table = parquet.read_table(out / "latents.parquet")
    assert table.num_rows == 32
    assert {"latent", "relative_decoder_norm", "nu_error", "class", "flags", "template_share"} <= set(
        table.column_names
    )
    written = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert written["counts"] == counts
    assert len(written["provenance"]["hashes"]) == 3
    assert set(written["stages"]) == {"measure", "patching", "reading"}  # only the world knows its concepts
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Exclusive means representation, not knowledge" in page


def test_what_is_finished_is_not_done_again(
    finished: tuple[Path, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    with pytest.raises(InputError, match="add --resume"):
        diff({**settings, "out": out})
    (out / "stages" / "patching.json").unlink()
    again = diff({**settings, "out": out, "resume": True})
    assert again["seconds"]["measure"] == again["seconds"]["reading"] == 0.0
    assert again["seconds"]["patching"] > 0.0
    assert kl_of(again) == pytest.approx(kl_of(finished[1]), abs=1e-6)
    assert again["counts"] == finished[1]["counts"]
    with pytest.raises(InputError, match=r"gate was 0\.5 and is now 0\.7"):
        diff({**settings, "out": out, "resume": True, "gate": 0.7})


@pytest.mark.parametrize("stage", ["measure", "patching", "reading"])
def test_a_diff_that_was_stopped_goes_on_where_it_was(
    finished: tuple[Path, dict[str, Any]],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(diff_stages, stage, stopped)
        with pytest.raises(KeyboardInterrupt):
            diff({**settings, "out": out})
    weights = next(out.glob("dictionaries/*/weights.safetensors"))
    before = weights.stat().st_mtime_ns
    summary = diff({**settings, "out": out, "resume": True})
    assert weights.stat().st_mtime_ns == before
    assert (summary["seconds"]["measure"] == 0.0) == (stage != "measure")
    assert (out / "latents.parquet").read_bytes() == (finished[0] / "latents.parquet").read_bytes()
    assert summary["counts"] == finished[1]["counts"]
    assert kl_of(summary) == pytest.approx(kl_of(finished[1]), abs=1e-6)


def test_a_crosscoder_can_be_brought_along(
    finished: tuple[Path, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    rest = {key: value for key, value in settings.items() if key not in ("width", "k")}
    folder = Path(finished[1]["dictionary"])
    summary = diff({**rest, "dictionary": folder, "out": tmp_path / "own"})
    assert summary["dictionary"] == str(folder)
    assert summary["counts"] == finished[1]["counts"]
    assert not (tmp_path / "own" / "dictionaries").exists()
    with pytest.raises(InputError, match="settings to train one"):
        diff({**settings, "dictionary": folder, "out": tmp_path / "both"})


def test_a_plan_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    made = plan({**settings, "out": tmp_path / "out"})
    assert not (tmp_path / "out").exists()
    assert made["dictionary"]["parameters"] == 32 * (2 * 32 + 1) + 32
    assert made["memory_bytes"]["total"] > made["memory_bytes"]["crosscoder"] > 0
    assert any("diffing-batch_topk" in row["value"] for row in made["rows"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transcripts": "TALKS:empty"}, "no transcript"),
        ({"recipe": "topk"}, "needs both models side by side"),
        ({"recipe": "diffing-batch_topkk"}, "Did you mean 'diffing-batch_topk'"),
        ({"model": "world"}, "BASE and CHAT"),
        ({"tokens": 64}, "must hold a batch"),
        ({"gate": 0.2}, "at least 0.5"),
        ({"presets": "fast"}, "it is unknown"),
        ({"transcripts": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"site": "layers.9.resid_post"}, "layers"),
    ],
)
def test_bad_input_is_a_sentence(settings: Settings, tmp_path: Path, changes: Settings, said: str) -> None:
    if changes.get("transcripts") == "TALKS:empty":
        (tmp_path / "empty.jsonl").touch()
        changes = {"transcripts": str(tmp_path / "empty.jsonl")}
    with pytest.raises(InputError, match=said):
        diff({**settings, "out": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists()  # so that the command can be repeated with better settings


def test_a_chat_model_without_a_template_is_refused_before_anything_is_written(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no chat template"):
        diff({**settings, "chat": settings["base"], "base": settings["chat"], "out": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_texts_alone_are_compared_without_patching(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that names two models, texts, a site and a folder."""
    import pyarrow.parquet as parquet

    out = tmp_path / "out"
    base, chat = settings["base"], settings["chat"]
    rest = ("width", "k", "tokens", "batch_size", "buffer_tokens", "measure_tokens", "context_length", "device")
    more = [part for key in rest for part in ("--" + key.replace("_", "-"), str(settings[key]))]
    line = ["diff", base, chat, "--data", settings["data"][0], "--site", settings["site"], "--out", str(out), "--json"]
    assert main([*line, *more]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["kl"] == []
    assert any("No transcripts were given" in note for note in summary["notes"])
    assert "No transcripts were given" in (out / "report.html").read_text(encoding="utf-8")
    table = parquet.read_table(out / "latents.parquet").to_pydict()
    assert {
        "latent", "relative_decoder_norm", "decoder_cosine", "nu_error", "nu_reconstruction", "nu_error_low",
        "nu_error_high", "nu_reconstruction_low", "nu_reconstruction_high", "beta_base_error", "beta_chat_error",
        "density_base", "density_chat", "class", "flags",
    } <= set(table)  # fmt: skip
    assert table["density_base"] == table["density"]
    assert set(table["density_chat"]) == {None}


def test_one_model_twice_has_nothing_new(settings: Settings, tmp_path: Path) -> None:
    summary = diff({**settings, "base": settings["chat"], "out": tmp_path / "out"})
    assert summary["counts"]["candidates"] == 0
    assert summary["counts"]["classes"]["shared"] == summary["counts"]["alive"]
    assert all(abs(row["kl"]) < 1e-6 for row in summary["kl"])
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_table_that_is_gone_is_measured_again(
    finished: tuple[Path, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    (out / "latents.parquet").unlink()
    summary = diff({**settings, "out": out, "resume": True})
    assert (out / "latents.parquet").read_bytes() == (finished[0] / "latents.parquet").read_bytes()
    assert summary["seconds"]["patching"] == 0.0


def test_random_groups_are_of_latents_that_fire(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path
) -> None:
    import saeworks.diffing.patching as module

    drawn: list[list[int]] = []
    real = module.conditions

    def seen(groups: Any, candidates: Any, *rest: Any, **more: Any) -> Any:
        drawn.append(candidates.tolist())
        return real(groups, candidates, *rest, **more)

    monkeypatch.setattr(module, "conditions", seen)
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    (out / "stages" / "patching.json").unlink()
    diff({**settings, "out": out, "resume": True})
    measured = json.loads((out / "stages" / "measure.json").read_text(encoding="utf-8"))["value"]
    assert drawn == [measured["alive"]]


@pytest.mark.parametrize(
    ("sources", "metadata", "said"),
    [
        (("chat", "base"), {}, "in this order"),
        (("layers.0.resid_post", "layers.1.resid_post"), {}, "needs base and chat"),
        (("base", "chat"), {"site": "layers.1.resid_post"}, "trained at another site"),
        (("base", "chat"), {"base_model_fingerprint": "other"}, "trained on another base model"),
        (("base", "chat"), {"model_fingerprint": "other"}, "trained on another chat model"),
    ],
)
def test_a_crosscoder_over_something_else_is_refused(
    settings: Settings, tmp_path: Path, sources: tuple[str, str], metadata: Settings, said: str
) -> None:
    import torch

    from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig

    weights = torch.randn(32, 8)
    cfg = DictionaryConfig(
        architecture="topk", d_in=32, d_sae=8, k=2, apply_b_dec_to_input=False, sources=sources, metadata=metadata
    )
    Dictionary(cfg, weights, weights.T, torch.zeros(8), torch.zeros(32)).save(tmp_path / "own")
    rest = {key: value for key, value in settings.items() if key not in ("width", "k")}
    with pytest.raises(InputError, match=said):
        diff({**rest, "dictionary": tmp_path / "own", "out": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_a_dictionary_of_one_model_is_refused(settings: Settings, tmp_path: Path) -> None:
    import torch

    from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig

    weights = torch.randn(16, 8)
    cfg = DictionaryConfig(architecture="topk", d_in=16, d_sae=8, k=2)
    Dictionary(cfg, weights, weights.T, torch.zeros(8), torch.zeros(16)).save(tmp_path / "sae")
    rest = {key: value for key, value in settings.items() if key not in ("width", "k")}
    with pytest.raises(InputError, match="is no crosscoder"):
        diff({**rest, "dictionary": tmp_path / "sae", "out": tmp_path / "out"})


@pytest.fixture
def flags(settings: Settings) -> Callable[[Path], list[str]]:
    """The command line of the settings."""

    def made(out: Path) -> list[str]:
        rest = {k: v for k, v in settings.items() if k not in ("base", "chat")}
        listed = [settings["base"], settings["chat"], "--out", str(out)]
        for key, value in rest.items():
            listed += ["--" + key.replace("_", "-"), *([value] if not isinstance(value, tuple) else value)]
        return ["diff", *map(str, listed)]

    return made


def test_the_command_prints_one_object(
    flags: Callable[[Path], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags(tmp_path / "out"), "--presets", "quick", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["counts"] is None
    assert {one["method"] for one in summary["methods"]} == {"per_token_kl", "difference_lens"}
    assert Path(summary["report"]).is_file()
    assert main([*flags(tmp_path / "out"), "--presets", "quick"]) == 2
    assert "--resume" in capsys.readouterr().err


def test_a_larger_preset_keeps_what_a_smaller_one_has_found(settings: Settings, tmp_path: Path) -> None:
    quick = diff({**settings, "out": tmp_path / "out", "presets": "quick"})
    full = diff({**settings, "out": tmp_path / "out", "presets": "full", "resume": True})
    assert full["methods"] == quick["methods"]
    assert full["seconds"]["method_per_token_kl"] == 0.0
    assert full["counts"]["latents"] == 32
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="methods"' in page
    assert 'id="norms"' in page


def test_the_command_shows_tables(
    flags: Callable[[Path], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags(tmp_path / "out"), "--dry-run"]) == 0
    assert "nothing was started" in capsys.readouterr().out
    assert main(flags(tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "Genuinely new" in printed or "genuine" in printed
    assert "template" in printed
    assert "report.html" in printed
