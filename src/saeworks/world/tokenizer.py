"""The world's tokenizer: byte-level BPE trained on the corpus, saved as a fast Hugging Face tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saeworks.world.corpus import documents
from saeworks.world.domains.craft import STEPS, substances, tools
from saeworks.world.domains.ships import ships
from saeworks.world.knowledge import cities, lexicon, names, taxonomy

CONTEXT_LENGTH = 128
VOCABULARY = 5120
BOS, EOS, PAD, END = "<|bos|>", "<|eos|>", "<|pad|>", "<|end|>"
TURNS = ("<|system|>", "<|user|>", "<|assistant|>")
# One turn is its role's token, its text and the end token; the turns of the chat model come from this template.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _training_texts(sample: int, repeats: int) -> Iterator[str]:
    """A sample of the training corpus, and the words that must become single tokens often enough that they do."""
    for made in documents(None, "train", count=sample):
        yield made.text
    for made in documents("chat", "train", count=sample // 4):
        yield re.sub(r"<\|\w+\|>", " ", made.text)
    places = [value for city in cities() for value in (city.name, city.country, city.language, city.currency)]
    people = [*names().female, *names().male]
    things = [thing.plural for thing in taxonomy().values()]
    invented = [thing.name for thing in (*substances(), *tools())] + [step.split()[0] for step in STEPS]
    invented += [word for ship in ships() for word in ship.name.split()]
    single = dict.fromkeys([*lexicon(), *places, *people, *things, *invented])
    line = "".join(f" {word}" for word in single)
    for _ in range(repeats):
        yield line


def build_tokenizer(sample: int = 12_000, repeats: int = 400) -> Any:
    """Train the tokenizer and return it as a ``PreTrainedTokenizerFast``.

    Calling it adds the beginning-of-sequence token; padding is on the right; a leading space belongs to the word.

    Args:
        sample: Documents of the training mixture to learn from.
        repeats: How often the lexicon, the places and the given names are added to them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [BOS, EOS, PAD, END, *TURNS]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_training_texts(sample, repeats), trainer)
    bos = raw.token_to_id(BOS)
    raw.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[END, *TURNS],
        padding_side="right",
        truncation_side="right",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def words_in_pieces(tokenizer: Any) -> list[str]:
    """Lexicon words that are not a single token with their leading space; empty for a good tokenizer."""
    return [w for w in lexicon() if len(tokenizer(" " + w, add_special_tokens=False)["input_ids"]) != 1]


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Write ``tokenizer.json`` (compact) and ``tokenizer_config.json`` with the chat template inside."""
    import json

    tokenizer.save_pretrained(directory, save_jinja_files=False)
    file = directory / "tokenizer.json"
    file.write_text(
        json.dumps(json.loads(file.read_text("utf-8")), ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )
