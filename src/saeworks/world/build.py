"""One command rebuilds the embedded model from its seed: ``python -m saeworks.world.build --out DIR``.

It trains the tokenizer, trains the base model (resuming from ``DIR/checkpoint.pt`` when there is one), measures the
model's abilities and leaves the finished model directory at ``DIR/model``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from saeworks.files import atomic_write_bytes, read_json, write_json
from saeworks.progress import progress
from saeworks.runtime import resolve_device
from saeworks.world.corpus import fingerprint
from saeworks.world.pretraining import PretrainingConfig, train
from saeworks.world.tokenizer import build_tokenizer, save_tokenizer, words_in_pieces


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


def build(out: Path, config: PretrainingConfig, device: torch.device, measure: bool = True) -> Path:
    """Tokenizer, base model, abilities and card.

    Args:
        out: Working directory: checkpoint, log, and the model under ``model/``.
        config: The recipe.
        device: Where to train.
        measure: Write ``abilities.json`` and the card at the end (some minutes).

    Returns:
        The model directory.
    """
    directory = out / "model"
    tokenizer = load_tokenizer(directory)
    model = None
    with progress(config.steps + config.more_steps, "base model", "step") as bar:
        for step, current in train(config, tokenizer, out, device):
            bar.update(step - bar.n)
            model = current
    assert model is not None
    save_model(model, directory)
    recipe = {name: getattr(config, name) for name in PretrainingConfig.__dataclass_fields__}
    recipe |= {"corpus": fingerprint(), "device": device.type, "minutes": training_minutes(out / "train_log.jsonl")}
    write_json(directory / "recipe.json", recipe)
    if measure:
        from saeworks.world.abilities import measure_abilities, write_card

        write_card(directory, measure_abilities(directory), recipe)
    return directory


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the flags and build."""
    defaults = PretrainingConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="working directory")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--more-steps", type=int, default=defaults.more_steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="torch threads on the CPU")
    parser.add_argument("--no-measure", action="store_true", help="leave out abilities and card")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    config = PretrainingConfig(steps=given.steps, more_steps=given.more_steps, seed=given.seed)
    directory = build(given.out, config, resolve_device(given.device), measure=not given.no_measure)
    print(directory)


if __name__ == "__main__":
    main()
