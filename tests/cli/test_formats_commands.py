"""``saeworks convert``, ``verify``, ``push`` and ``pull``: one JSON object or a few lines, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import saeworks
from hub_server import Hub, hub_in_use
from saeworks.cli.app import main
from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    cfg = DictionaryConfig(architecture="topk", d_in=16, d_sae=40, k=4, metadata={"site": "layers.1.resid_post"})
    W = torch.randn(40, 16, generator=g)
    Dictionary(cfg, W.T, W, torch.zeros(40), torch.zeros(16)).save(tmp_path / "sae")
    return tmp_path / "sae"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_in_use(monkeypatch, tmp_path / "cache") as made:
        yield made


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_convert_prints_what_was_written_and_how_far_it_is_off(capsys, sae: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "convert", sae, tmp_path / "out", "--to", "sparsify")
    assert code == 0
    assert "cfg.json, sae.safetensors, saeworks.json" in out
    assert "differ by" in out
    code, out, err = run(capsys, "convert", tmp_path / "out", tmp_path / "back", "--to", "saeworks", "--json")
    done = json.loads(out)
    assert (code, done["from"], done["to"], err) == (0, "sparsify", "saeworks", "")
    assert done["difference"] < 1e-6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "gemma_scope"), "selects by thresholds"),
        (("--to", "sparsly"), "Did you mean 'sparsify'"),
        (("--to", "saelens", "--from", "openai"), "holds no .pt file"),
        ((), "--to"),
    ],
)
def test_convert_refuses_in_one_line(capsys, sae: Path, tmp_path: Path, arguments, words: str) -> None:
    code, out, err = run(capsys, "convert", sae, tmp_path / "out", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_verify_says_yes_or_no_by_its_exit_code(
    capsys, sae: Path, tmp_path: Path, tiny_model_directory: Path, tiny_texts: Path
) -> None:
    # Random directions: the weights are sound, what they explain is worse than the mean.
    code, out, _ = run(capsys, "verify", sae, "--device", "cpu")
    assert (code, "Nothing speaks against it." in out, "Note:" in out) == (0, True, True)
    measured = ("--model", tiny_model_directory, "--data", tiny_texts, "--tokens", 300, "--device", "cpu")
    code, out, err = run(capsys, "verify", sae, *measured, "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (1, False)
    assert report["measured"]["tokens"] >= 300
    assert report["measured"]["l0"] <= 4
    assert "Traceback" not in err
    code, out, _ = run(capsys, "verify", sae, *measured)
    assert code == 1
    assert "Problem:" in out
    assert "layers.1.mlp_out" in out


def test_verify_answers_a_damaged_file_with_a_sentence(capsys, sae: Path) -> None:
    (sae / "weights.safetensors").write_bytes(b"no")
    code, out, err = run(capsys, "verify", sae, "--json")
    assert code == 2
    assert "truncated or damaged" in json.loads(out)["error"]
    assert err == ""


def test_a_dictionary_goes_to_a_hub_and_comes_back(capsys, sae: Path, tmp_path: Path, hub: Hub) -> None:
    code, out, _ = run(capsys, "push", sae, "some-one/saes/a", "--licence", "mit", "--dry-run")
    assert code == 0
    assert "Would send to some-one/saes/a" in out
    assert "license: mit" in out
    assert hub.asked == []
    code, out, _ = run(capsys, "push", sae, "some-one/saes/a", "--license", "mit", "--json")
    assert code == 0
    assert json.loads(out)["commit"].startswith(hub.endpoint)
    code, out, _ = run(capsys, "pull", "some-one/saes/a", tmp_path / "back")
    assert (code, "with its card" in out) == (0, True)
    assert saeworks.load(tmp_path / "back").fingerprint() == saeworks.load(sae).fingerprint()


def test_a_push_without_a_hub_is_one_line(capsys, sae: Path) -> None:
    code, out, err = run(capsys, "push", sae, "some-one/saes", "--licence", "mit")
    assert (code, out) == (2, "")
    assert "does not answer" in err
    assert len(err.strip().splitlines()) == 1
