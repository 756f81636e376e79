"""Tiny randomly initialised models of every architecture in the table, saved like any checkpoint and loaded back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TEXTS = [
    "the dog saw the cat and the cat saw nothing at all",
    "a red bird sings",
    "cats and dogs sing songs about birds that saw the sea",
]
_WIDTH = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "head_dim": 8,
}
_ROTARY = dict(_WIDTH, max_position_embeddings=64)
_ENCODER = {k: v for k, v in _ROTARY.items() if k not in ("num_key_value_heads", "head_dim")}
# model_type → (config entries, class that reads it)
ARCHITECTURES: dict[str, tuple[dict[str, Any], str]] = {
    "llama": (_ROTARY, "causal"),
    "mistral": (_ROTARY, "causal"),
    "qwen2": (_ROTARY, "causal"),
    "qwen3": (_ROTARY, "causal"),
    "gemma": (_ROTARY, "causal"),
    "phi3": (_ROTARY, "causal"),
    "gemma2": (dict(_ROTARY, query_pre_attn_scalar=8, sliding_window=8), "causal"),
    "gemma3_text": (dict(_ROTARY, query_pre_attn_scalar=8, sliding_window=8), "causal"),
    "olmo2": (_ROTARY, "causal"),
    "gpt2": ({"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}, "causal"),
    "gpt_neo": (
        {
            "hidden_size": 16,
            "num_layers": 3,
            "num_heads": 2,
            "attention_types": [[["global"], 3]],
            "max_position_embeddings": 64,
        },
        "causal",
    ),
    "gpt_neox": (_ENCODER, "causal"),
    "bert": (_ENCODER, "masked"),
    "roberta": (_ENCODER, "masked"),
    "xlm-roberta": (_ENCODER, "masked"),
    "mpnet": (_ENCODER, "masked"),
    "distilbert": ({"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64}, "masked"),
    "modernbert": (_ENCODER, "masked"),
}
CAUSAL = [name for name, (_, head) in ARCHITECTURES.items() if head == "causal"]
MASKED = [name for name, (_, head) in ARCHITECTURES.items() if head == "masked"]


def make_tokenizer(style: str) -> Any:
    """A word-level tokenizer. Styles: ``bos`` adds <s>, ``gpt2`` has one end-of-text token that it does not add,
    ``plain`` has no BOS at all, ``encoder`` adds [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {
        "bos": ["<pad>", "<s>", "</s>", "<unk>"],
        "gpt2": ["<|endoftext|>"],
        "plain": ["<|end|>"],
        "encoder": ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"],
    }[style]
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    unknown = {"bos": "<unk>", "encoder": "[UNK]"}.get(style, special[0])
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names: dict[str, Any] = {
        "bos": {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "gpt2": {"bos_token": special[0], "eos_token": special[0], "unk_token": special[0]},
        "plain": {"eos_token": special[0]},
        "encoder": {
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "unk_token": "[UNK]",
            "mask_token": "[MASK]",
        },
    }[style]
    if style == "bos":
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    if style == "encoder":
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def save_model(directory: Path, model_type: str, style: str | None = None, bare: bool = False, **entries: Any) -> Path:
    """Write a tiny checkpoint; ``bare`` leaves the language-model head away."""
    import transformers

    config_entries, head = ARCHITECTURES.get(model_type, (_ROTARY, "causal"))
    tokenizer = make_tokenizer(style or {"causal": "bos", "masked": "encoder"}[head])
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if style in ("gpt2", "plain"):
        ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    if model_type == "modernbert":
        ids |= {"cls_token_id": 1, "sep_token_id": 2}
    merged = {"vocab_size": len(tokenizer), **ids, **config_entries, **entries}
    config = transformers.AutoConfig.for_model(model_type, **merged)
    torch.manual_seed(0)
    reader = {"causal": transformers.AutoModelForCausalLM, "masked": transformers.AutoModelForMaskedLM}[head]
    module = (transformers.AutoModel if bare else reader).from_config(config)
    for parameter in module.parameters():
        # Fresh models have unit gains and tiny weights, which would hide a norm that was forgotten.
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    module.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
