"""Every kind of bad input that a person may bring: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from saeworks.cli.app import main
from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig

SMALL = "--width 64 --k 4 --recipe topk --tokens 2048 --batch-size 256 --buffer-tokens 1024 --context-length 32"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must be refused with exit code 2 and one line on standard error; returns that line."""

    def run(*arguments: object) -> str:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        message = printed.err.strip().splitlines()
        assert code == 2
        assert printed.out == ""
        assert len(message) == 1
        assert "Traceback" not in printed.err
        assert not (tmp_path / "out").exists()
        return message[0]

    return run


@pytest.fixture
def small(tiny_model_directory: Path, tmp_path: Path) -> list[object]:
    """Flags of a small run into ``tmp_path/out``; texts are still to be named."""
    return [*SMALL.split(), "--model", tiny_model_directory, "--out", tmp_path / "out", "--device", "cpu"]


def dictionary_of_width(width: int, path: Path) -> Path:
    import torch

    weights = torch.randn(width, 32)
    cfg = DictionaryConfig(architecture="topk", d_in=width, d_sae=32, k=2)
    Dictionary(cfg, weights, weights.T, torch.zeros(32), torch.zeros(width)).save(path)
    return path


def test_unknown_site(refused: Callable[..., str], small: list[object], tiny_texts: Path) -> None:
    said = refused("run", *small, "--data", tiny_texts, "--site", "layers.1.resid_pst")
    assert "Did you mean 'layers.1.resid_post'?" in said


def test_site_beyond_the_model(refused: Callable[..., str], small: list[object], tiny_texts: Path) -> None:
    assert "the model has 2 layers" in refused("run", *small, "--data", tiny_texts, "--site", "blocks.7.hook_resid_pre")


def test_site_and_dictionary_of_different_widths(
    refused: Callable[..., str], tiny_model_directory: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    path = dictionary_of_width(24, tmp_path / "wide")
    said = refused(
        *("eval", "core", "--dictionary", path, "--model", tiny_model_directory, "--data", tiny_texts),
        *("--site", "layers.1.resid_post", "--context-length", 32, "--out", tmp_path / "out", "--device", "cpu"),
    )
    assert "width 16" in said
    assert "width 24" in said


def test_a_dictionary_that_names_no_model(refused: Callable[..., str], tiny_texts: Path, tmp_path: Path) -> None:
    path = dictionary_of_width(16, tmp_path / "nameless")
    said = refused("eval", "core", "--dictionary", path, "--data", tiny_texts, "--out", tmp_path / "out")
    assert "give one with --model" in said


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", b"", "empty"),
        ("blank.txt", b"\n \n\n", "no "),
        ("binary.txt", bytes(range(256)) * 16, "binary"),
        ("latin.csv", "text\ncaf\xe9 \xfcber\n".encode("latin-1"), "UTF-8"),
        ("wrong.csv", b"txt,label\nthe dog,1\n", "Did you mean 'txt'?"),
        ("broken.jsonl", b'{"text": "the dog"}\n{"text": \n', "2"),
    ],
)
def test_text_files_that_hold_no_text(
    name: str, content: bytes, says: str, refused: Callable[..., str], small: list[object], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    said = refused("train", *small, "--data", path)
    assert name in said
    assert says in said


def test_a_text_file_that_is_not_there(refused: Callable[..., str], small: list[object], tiny_texts: Path) -> None:
    said = refused("train", *small, "--data", tiny_texts.with_name("text.csv"))
    assert "Did you mean 'texts.csv'?" in said


def test_results_into_a_file(refused: Callable[..., str], tiny_texts: Path, tmp_path: Path) -> None:
    path = dictionary_of_width(16, tmp_path / "sae")
    said = refused("eval", "core", "--dictionary", path, "--data", tiny_texts, "--out", path / "cfg.json")
    assert "is a file; give a directory" in said


def test_unknown_label_column(refused: Callable[..., str], small: list[object], tiny_texts: Path) -> None:
    assert "topic" in refused("run", *small, "--data", tiny_texts, "--label-column", "topics")


def test_unknown_configuration_key(refused: Callable[..., str], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("recipes: topk\n")
    said = refused("run", "--config", config, "--out", tmp_path / "out")
    assert "unknown key 'recipes'. Did you mean 'recipe'?" in said


def test_model_directory_without_weights(
    refused: Callable[..., str], tiny_model_directory: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "no-weights"
    shutil.copytree(tiny_model_directory, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    said = refused("run", *SMALL.split(), "--model", directory, "--data", tiny_texts, "--out", tmp_path / "out")
    assert "no weights" in said


def test_activations_that_are_not_numbers(
    refused: Callable[..., str], tiny_model_directory: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    directory = tmp_path / "broken"
    shutil.copytree(tiny_model_directory, directory)
    weights = load_file(directory / "model.safetensors")
    word = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]["river"]
    weights["model.embed_tokens.weight"][word] = float("nan")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    said = refused("train", *SMALL.split(), "--model", directory, "--data", tiny_texts, "--out", tmp_path / "out")
    assert "document" in said
    assert "token" in said
    assert "NaN" in said or "not finite" in said


def test_truncated_shard_of_a_store(
    refused: Callable[..., str],
    small: list[object],
    tiny_model_directory: Path,
    tiny_texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "store"
    flags = ["--model", tiny_model_directory, "--data", tiny_texts, "--context-length", 32, "--tokens", 512]
    assert main(["cache", *map(str, flags), "--out", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 512
    (shard,) = store.glob("shard-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    assert shard.name in refused("train", *small, "--data", store)


def test_a_finished_store_is_not_overwritten(
    tiny_model_directory: Path, tiny_texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", tiny_model_directory, "--data", tiny_texts, "--context-length", 32, "--tokens", 256]
    command = ["cache", *map(str, flags), "--out", str(tmp_path / "store")]
    assert main(command) == 0
    capsys.readouterr()
    before = {p.name: p.read_bytes() for p in (tmp_path / "store").iterdir()}
    assert main(command) == 2
    assert "finished activation store" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in (tmp_path / "store").iterdir()} == before


def test_a_dictionary_with_damaged_weights(
    refused: Callable[..., str], tiny_model_directory: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    path = dictionary_of_width(16, tmp_path / "cut")
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = refused(
        *("eval", "core", "--dictionary", path, "--model", tiny_model_directory, "--data", tiny_texts),
        *("--site", "layers.1.resid_post", "--out", tmp_path / "out"),
    )
    assert "weights.safetensors" in said


def test_dry_run_as_json_writes_nothing(
    small: list[object], tiny_texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("run", "train"):
        assert main([command, *map(str, small), "--data", str(tiny_texts), "--dry-run", "--json"]) == 0
        made = json.loads(capsys.readouterr().out)
        assert made["activations"]["steps"] == 8
        assert list(tmp_path.iterdir()) == []


def test_a_run_as_json_is_one_object(
    small: list[object], tiny_texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", *map(str, small), "--data", str(tiny_texts), "--label-column", "topic", "--eval-tokens", "128"]
    assert main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [row["dictionary"] for row in summary["table"]] == ["topk_n64_k4_s0"]
    assert Path(summary["report"]).is_file()
    assert main([*arguments, "--json"]) == 2
    assert "already holds a run" in json.loads(capsys.readouterr().out)["error"]
