"""A tiny base and chat model of one architecture, their transcripts, and random crosscoders over both."""

from __future__ import annotations

import torch

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.models.language_model import LanguageModel

WORDS = ["the", "a", "dog", "cat", "runs", "sleeps", "red", "blue", "house", "tree", "sees", "big", "no", "yes"]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"]
SITE = "layers.0.resid_post"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(template: str | None = TEMPLATE):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
    )
    made.chat_template = template
    return made


def model(seed: int, template: str | None = TEMPLATE) -> LanguageModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=48,
        initializer_range=0.5,
    )
    return LanguageModel(LlamaForCausalLM(config), tokenizer(template), name=f"tiny{seed}", head="causal")


def pair() -> tuple[LanguageModel, LanguageModel]:
    return model(0), model(1)


def crosscoder(latents: int = 24, seed: int = 0) -> Dictionary:
    draw = torch.Generator().manual_seed(seed)
    decoder = torch.randn(latents, 32, generator=draw)
    cfg = DictionaryConfig(
        architecture="topk", d_in=32, d_sae=latents, k=4, apply_b_dec_to_input=False, sources=("base", "chat")
    )
    return Dictionary(cfg, decoder.T.clone(), decoder, torch.zeros(latents), torch.randn(32, generator=draw) * 0.1)


def transcripts(count: int = 6, turns: int = 1):
    draw = torch.Generator().manual_seed(7)

    def words() -> str:
        n = int(torch.randint(2, 7, (1,), generator=draw))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=draw).tolist())

    return [
        [{"role": role, "content": words()} for _ in range(turns) for role in ("user", "assistant")]
        for _ in range(count)
    ]
