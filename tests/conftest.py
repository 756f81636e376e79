"""Fixtures that several rooms share: a tiny language model and texts on disk, made once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ANIMALS, PLACES = ["dog", "cat", "bird"], ["house", "river", "mountain"]
WORDS = [
    *ANIMALS,
    *PLACES,
    "the",
    "a",
    "runs",
    "sleeps",
    "sings",
    "in",
    "on",
    "red",
    "green",
    "old",
    "new",
    "and",
    "often",
]


@pytest.fixture(scope="session", autouse=True)
def quiet_and_offline() -> Iterator[None]:
    """No progress bars, no network, one thread: many processes share the machine."""
    import torch

    settings = {"SAEWORKS_NO_PROGRESS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised two-layer Llama of width 16 with a word-level tokenizer, saved to disk."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("models") / "tiny"
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of 400 random sentences with the columns text and topic (animal or place)."""
    import csv
    import random

    draw = random.Random(0)
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    with open(path, "w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["text", "topic"])
        for i in range(400):
            topic = ("animal", "place")[i % 2]
            own = ANIMALS if topic == "animal" else PLACES
            rows.writerow([" ".join(draw.choice([*WORDS, *own, *own]) for _ in range(12)), topic])
    return path
