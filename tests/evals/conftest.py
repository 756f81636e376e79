"""A tiny language model and small dictionaries, made in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import pytest
import torch

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.world.documents import Document

WORDS = ["the", "a", "dog", "cat", "runs", "sleeps", "red", "blue", "house", "tree", "sees", "big", "small", "and"]
SITE = "layers.0.resid_post"


def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_model(head: str = "causal"):
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

    from saeworks.models.language_model import LanguageModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    module = LlamaForCausalLM(config) if head == "causal" else LlamaModel(config)
    return LanguageModel(module, tiny_tokenizer(), name="tiny", head=head)


class ListSource:
    """A text source over a list."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.rows = list(documents)
        self.size = len(self.rows)

    def fingerprint(self) -> str:
        return "list-" + "-".join(d.text for d in self.rows[:2])

    def documents(self, start: int = 0, limit: int | None = None) -> Iterator[Document]:
        return islice(iter(self.rows[start:]), limit)


def sentences(count: int, seed: int = 0) -> list[Document]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for i in range(count):
        length = int(torch.randint(3, 12, (1,), generator=generator))
        picked = torch.randint(len(WORDS), (length,), generator=generator).tolist()
        out.append(Document(text=" ".join(WORDS[j] for j in picked), id=f"s{i}"))
    return out


def random_dictionary(width: int = 32, d: int = 16, k: int = 4, seed: int = 0, **metadata) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(width, d, generator=generator), dim=-1)
    cfg = DictionaryConfig(architecture="topk", d_in=d, d_sae=width, k=k, metadata={"site": SITE, **metadata})
    return Dictionary(cfg, rows.T, rows, torch.zeros(width), torch.zeros(d))


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def headless_model():
    return tiny_model("none")


@pytest.fixture
def make_sentences():
    return sentences


@pytest.fixture
def make_dictionary():
    return random_dictionary


@pytest.fixture
def make_source():
    return ListSource


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("SAEWORKS_NO_PROGRESS", "1")
