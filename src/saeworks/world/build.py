"""Everything again from the seed: tokenizer, base model, chat model, their abilities and cards.

``saeworks world build --out DIR`` calls :func:`build`. A killed build goes on from the last checkpoint in ``DIR``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saeworks.errors import InputError
from saeworks.files import atomic_write_bytes, read_json, sha256_file, write_json
from saeworks.progress import progress
from saeworks.runtime import reuse_freed_memory
from saeworks.world.chat_tuning import ChatTuningConfig
from saeworks.world.corpus import MIXTURE, fingerprint
from saeworks.world.loop import Course, train
from saeworks.world.model_files import model_path
from saeworks.world.pretraining import PretrainingConfig, new_model
from saeworks.world.tokenizer import build_tokenizer, save_tokenizer, words_in_pieces

PARTS = ("base", "chat")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save_model(model: Any, directory: Path) -> None:
    """Write ``config.json``, ``generation_config.json`` and ``model.safetensors`` in float16, tied weights once."""
    from safetensors.torch import save

    directory.mkdir(parents=True, exist_ok=True)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set[str]()
    state = {
        name: tensor.detach().cpu().half().contiguous()
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    atomic_write_bytes(directory / "model.safetensors", save(state, metadata={"format": "pt"}))
    model.generation_config.save_pretrained(directory)
    model.config.save_pretrained(directory)
    config = read_json(directory / "config.json")
    write_json(directory / "config.json", config | {"architectures": [type(model).__name__], "dtype": "float16"})


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer in ``directory``, built and saved there first when it is missing."""
    from transformers import AutoTokenizer

    if not (directory / "tokenizer.json").is_file():
        built = build_tokenizer()
        pieces = words_in_pieces(built)
        if pieces:
            raise RuntimeError(f"{len(pieces)} lexicon words are not single tokens, among them {pieces[:5]}")
        directory.mkdir(parents=True, exist_ok=True)
        save_tokenizer(built, directory)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    return tokenizer


def training_minutes(log: Path) -> float:
    """Time spent in training according to its log; the clock of the log starts again with every resumed run."""
    seconds, last = 0.0, 0.0
    for line in log.read_text(encoding="utf-8").splitlines():
        now = float(json.loads(line)["seconds"])
        seconds += now - last if now >= last else now
        last = now
    return round(seconds / 60, 1)


def build(
    out: Path,
    base: PretrainingConfig,
    chat: ChatTuningConfig,
    device: torch.device,
    parts: Sequence[str] = PARTS,
    measure: bool = True,
) -> dict[str, Path]:
    """Train the parts asked for and write their model directories.

    Args:
        out: Working directory: checkpoints, logs, and the models under ``base/`` and ``chat/``.
        base: The base model's recipe.
        chat: The chat model's recipe. Its base model is the one in ``out``, or the shipped one when there is none.
        device: Where to train.
        parts: ``base``, ``chat`` or both.
        measure: Write ``abilities.json`` and the card at the end (some minutes per model).

    Returns:
        The model directory of each part.

    Raises:
        InputError: An unknown part, or a checkpoint in ``out`` that another recipe wrote.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise InputError(f"Parts of the world's models are base and chat, not '{', '.join(unknown)}'.")
    out.mkdir(parents=True, exist_ok=True)
    reuse_freed_memory()
    written: dict[str, Path] = {}
    if "base" in parts:
        written["base"] = _build_base(out, base, device)
    if "chat" in parts:
        written["chat"] = _build_chat(out, chat, device)
    if measure:
        from saeworks.world.abilities import measure as measure_abilities
        from saeworks.world.card import write_card

        abilities: dict[str, Any] = {}
        for part, directory in written.items():
            abilities = measure_abilities(part, directory, str(device), other=abilities)
            write_card(part, directory, abilities, read_json(directory / "recipe.json"))
    return written


def _train(name: str, out: Path, course: Course, model: Any, tokenizer: Any, device: torch.device) -> None:
    with progress(course.total_steps, f"{name} model", "step") as bar:
        for step in train(course, model, tokenizer, out, name, device):
            bar.update(step - bar.n)


def _finish(name: str, out: Path, course: Course, model: Any, device: torch.device) -> Path:
    """Model and recipe in their directory."""
    save_model(model, out / name)
    read = MIXTURE if name == "base" else (*MIXTURE, "chat")
    recipe = course.identity() | {"corpus": fingerprint(read), "device": device.type}
    recipe["threads"] = torch.get_num_threads()
    write_json(out / name / "recipe.json", recipe | {"minutes": training_minutes(out / f"{name}_log.jsonl")})
    return out / name


def _build_base(out: Path, config: PretrainingConfig, device: torch.device) -> Path:
    tokenizer = load_tokenizer(out / "base")
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    model = new_model(config, len(tokenizer), *ends)
    _train("base", out, config, model, tokenizer, device)
    return _finish("base", out, config, model, device)


def _build_chat(out: Path, config: ChatTuningConfig, device: torch.device) -> Path:
    """The chat model starts from the base model as it is stored: in float16, so that everybody can start there."""
    from transformers import AutoModelForCausalLM

    start = out / "base" if (out / "base" / "model.safetensors").is_file() else model_path("base")
    (out / "chat").mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(start / name, out / "chat" / name)
    tokenizer = load_tokenizer(out / "chat")
    model: Any = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32, local_files_only=True)
    course = replace(config, base=sha256_file(start / "model.safetensors"))
    _train("chat", out, course, model, tokenizer, device)
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id]
    return _finish("chat", out, course, model, device)
