"""The recipe as a whole, on a model small enough for a test."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saeworks.errors import InputError
from saeworks.world.build import TOKENIZER_FILES, build, training_minutes
from saeworks.world.chat_tuning import ChatTuningConfig
from saeworks.world.model_files import model_path
from saeworks.world.pretraining import PretrainingConfig
from saeworks.world.tokenizer import build_tokenizer, save_tokenizer, words_in_pieces

TINY = PretrainingConfig(
    steps=4, more_steps=2, documents_per_step=4, d_model=16, n_layers=1, n_heads=2, d_mlp=16, warmup_steps=2
)
CHAT = ChatTuningConfig(
    steps=3,
    judging_steps=2,
    settling_steps=2,
    statements_per_step=4,
    transcripts_per_step=3,
    mixture_per_step=1,
    warmup_steps=1,
)
CPU = torch.device("cpu")


def small_out(path: Path) -> Path:
    """A working directory that has the shipped tokenizer already."""
    (path / "base").mkdir(parents=True)
    for name in TOKENIZER_FILES:
        shutil.copy(model_path() / name, path / "base" / name)
    return path


def test_the_same_recipe_gives_the_same_files(tmp_path: Path) -> None:
    one, two = (build(small_out(tmp_path / name), TINY, CHAT, CPU, measure=False) for name in "ab")
    for part in ("base", "chat"):
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            assert (one[part] / name).read_bytes() == (two[part] / name).read_bytes(), name
    other = replace(TINY, seed=1)
    three = build(small_out(tmp_path / "c"), other, CHAT, CPU, parts=("base",), measure=False)
    assert set(three) == {"base"}
    assert (three["base"] / "model.safetensors").read_bytes() != (one["base"] / "model.safetensors").read_bytes()
    recipe = json.loads((one["base"] / "recipe.json").read_text())
    assert recipe["steps"] == 4
    assert recipe["rehearsed"]
    assert recipe["minutes"] >= 0


def test_what_was_saved_is_what_was_trained(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    out = small_out(tmp_path / "out")
    directory = build(out, TINY, CHAT, CPU, parts=("base",), measure=False)["base"]
    trained = torch.load(out / "base_checkpoint.pt", weights_only=True)["model"]
    stored = load_file(directory / "model.safetensors")
    assert "lm_head.weight" not in stored, "tied weights are stored once"
    for name, tensor in stored.items():
        assert torch.equal(tensor, trained[name].half()), name
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, trained["lm_head.weight"].half().float())


def test_the_chat_model_starts_from_the_stored_base_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = small_out(tmp_path / "out")
    still = replace(CHAT, steps=1, judging_steps=0, settling_steps=0, learning_rate=0.0)
    written = build(out, TINY, still, CPU, measure=False)
    base, chat = (load_file(written[part] / "model.safetensors") for part in ("base", "chat"))
    assert all(torch.equal(base[name], chat[name]) for name in base), "a step of length zero changes nothing"
    ends = json.loads((written["chat"] / "generation_config.json").read_text())["eos_token_id"]
    assert len(ends) == 2, "a reply ends with its turn"
    (out / "base" / "model.safetensors").write_bytes((out / "chat" / "model.safetensors").read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(InputError, match="another recipe"):
        build(out, TINY, still, CPU, parts=("chat",), measure=False)


def test_unknown_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="base and chat, not 'chatt'"):
        build(tmp_path, TINY, CHAT, CPU, parts=("chatt",))


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
