"""The recipe as a whole, on a model small enough for a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from saeworks.world.build import build, training_minutes
from saeworks.world.model_files import model_path
from saeworks.world.pretraining import PretrainingConfig
from saeworks.world.tokenizer import build_tokenizer, save_tokenizer, words_in_pieces

TINY = PretrainingConfig(
    steps=4, more_steps=2, documents_per_step=4, d_model=16, n_layers=1, n_heads=2, d_mlp=16, warmup_steps=2
)


def small_out(path: Path) -> Path:
    """A working directory that has the shipped tokenizer already."""
    (path / "model").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_path() / name, path / "model" / name)
    return path


def test_the_same_recipe_gives_the_same_files(tmp_path: Path) -> None:
    one, two = (build(small_out(tmp_path / name), TINY, torch.device("cpu"), measure=False) for name in "ab")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    other = PretrainingConfig(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | {"seed": 1})
    three = build(small_out(tmp_path / "c"), other, torch.device("cpu"), measure=False)
    assert (three / "model.safetensors").read_bytes() != (one / "model.safetensors").read_bytes()
    recipe = json.loads((one / "recipe.json").read_text())
    assert recipe["steps"] == 4
    assert recipe["minutes"] >= 0


def test_what_was_saved_is_what_was_trained(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    out = small_out(tmp_path / "out")
    directory = build(out, TINY, torch.device("cpu"), measure=False)
    trained = torch.load(out / "checkpoint.pt", weights_only=True)["model"]
    stored = load_file(directory / "model.safetensors")
    assert "lm_head.weight" not in stored, "tied weights are stored once"
    for name, tensor in stored.items():
        assert torch.equal(tensor, trained[name].half()), name
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, trained["lm_head.weight"].half().float())


def test_the_shipped_tokenizer_is_what_the_recipe_builds(tmp_path: Path) -> None:
    built = build_tokenizer()
    assert words_in_pieces(built) == []
    save_tokenizer(built, tmp_path)
    made, shipped = (json.loads((d / "tokenizer.json").read_text(encoding="utf-8")) for d in (tmp_path, model_path()))
    assert made["model"]["vocab"] == shipped["model"]["vocab"]
    assert made["model"]["merges"] == shipped["model"]["merges"]


@pytest.mark.parametrize(("seconds", "minutes"), [([30, 60], 1.0), ([30, 60, 12, 120], 3.0), ([], 0.0)])
def test_minutes_are_counted_over_resumed_runs(tmp_path: Path, seconds: list[int], minutes: float) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"seconds": s}) + "\n" for s in seconds))
    assert training_minutes(log) == minutes
