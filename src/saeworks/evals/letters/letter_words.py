"""Words, prompts about their first letters, and what a model and its dictionaries hold at the word's token."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.errors import InputError
from saeworks.evals.letters.letter_probes import LETTERS
from saeworks.evals.shared.batches import DictionaryLike, DocumentBatch, harvest, to_dictionary
from saeworks.progress import progress
from saeworks.runtime import derive_seed
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

_WORD = re.compile(r"[A-Za-z]+")
#: Latent values held at a time while words are encoded.
_BUDGET = 1 << 24


@dataclass(frozen=True)
class Prompt:
    """A text that ends by asking for the first letter of the word at characters ``start`` to ``end``."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Reading:
    """What was read at the words' tokens, on the CPU: site → activations [word, d] float32, and dictionary → codes."""

    activations: dict[str, Tensor]
    codes: dict[str, Codes]


def alphabetical_entries(tokenizer: Any) -> list[str]:
    """Vocabulary entries of letters A–Z and a–z alone, after a leading space is taken off, in the order of their ids.

    As in SAEBench: beginnings of words count too, and a word that the vocabulary has with and without a space comes
    twice.
    """
    entries = sorted(cast("dict[str, int]", tokenizer.get_vocab()).items(), key=lambda item: item[1])
    texts = (token.replace("Ġ", " ").replace("▁", " ").removeprefix(" ") for token, _ in entries)
    return [text for text in texts if _WORD.fullmatch(text)]


def single_token_words(tokenizer: Any, candidates: Sequence[str]) -> list[str]:
    """The candidates that are one known token inside a text (after a space), each of them once."""
    words = list(dict.fromkeys(candidates))
    if not words:
        return []
    before = len(tokenizer("the", add_special_tokens=False)["input_ids"])
    encoded = tokenizer([f"the {word}" for word in words], add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    return [w for w, ids in zip(words, encoded, strict=True) if len(ids) == before + 1 and ids[-1] != unknown]


def letters_of(words: Sequence[str]) -> Tensor:
    """[word] int64: 0 for words with a, 25 for words with z. ``InputError`` for what begins with no letter of these."""
    numbers = [LETTERS.find(word[:1].lower()) if word else -1 for word in words]
    if -1 in numbers:
        raise InputError(f"'{words[numbers.index(-1)]}' does not begin with a letter from a to z; leave it out.")
    return torch.tensor(numbers, dtype=torch.int64)


def split_words(words: Sequence[str], test_share: float, seed: int, by_letter: bool) -> tuple[Tensor, Tensor]:
    """Rows of the training and of the test words, both ascending.

    With ``by_letter`` every letter is split for itself (its test part is rounded, but never empty where the letter has
    two words), and words that differ in case alone stay together. Without, one random order is cut, as in SAEBench.
    """
    draw = random.Random(derive_seed(seed, "letter words"))
    test: list[int] = []
    if by_letter:
        forms: dict[str, list[int]] = {}
        for row, word in enumerate(words):
            forms.setdefault(word.lower(), []).append(row)
        for letter in LETTERS:
            own = [rows for form, rows in forms.items() if form[0] == letter]
            count = max(1, round(len(own) * test_share)) if len(own) > 1 else 0
            test += [row for rows in draw.sample(own, count) for row in rows]
    else:
        order = draw.sample(range(len(words)), len(words))
        test = order[int(len(words) * (1 - test_share)) :]
    chosen = torch.zeros(len(words), dtype=torch.bool)
    chosen[torch.tensor(test, dtype=torch.int64)] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


def make_prompts(
    words: Sequence[str], pool: Sequence[str], template: str, examples: int, seed: int, space: bool
) -> list[Prompt]:
    """One prompt per word: ``examples`` lines about other words of ``pool`` with their letters, then the word's line.

    Every line is ``template`` with the word in place of ``{word}``; the text begins with a line break, since some
    tokenizers treat a first word unlike any other.

    Args:
        space: put a space before every line, so that the word is the token it is inside a sentence.
    """
    draw = random.Random(derive_seed(seed, "letter prompts"))
    lead = " " if space else ""
    prompts: list[Prompt] = []
    for word in words:
        drawn = draw.sample(range(len(pool)), min(examples + 1, len(pool)))
        others = [pool[i] for i in drawn if pool[i] != word][:examples]
        lines = [f"\n{lead}{template.format(word=other)} {other[0].upper()}" for other in others]
        before = "".join(lines) + "\n" + lead
        start = len(before) + template.index("{word}")
        prompts.append(Prompt(before + template.format(word=word), start, start + len(word)))
    return prompts


def word_positions(offsets: Sequence[Sequence[tuple[int, int]]], prompts: Sequence[Prompt]) -> list[int]:
    """The position of the last token of each prompt's word; −1 where the row was cut before the word's end."""
    out: list[int] = []
    for row, prompt in zip(offsets, prompts, strict=True):
        inside = [i for i, (start, end) in enumerate(row) if start < prompt.end and end > prompt.start and end > start]
        out.append(inside[-1] if inside and row[inside[-1]][1] >= prompt.end else -1)
    return out


def read_words(
    dictionaries: Mapping[str, DictionaryLike],
    sites: Mapping[str, str],
    model: LanguageModel,
    prompts: Sequence[Prompt],
    context_length: int,
    batch_size: int,
    position_from_end: int | None = None,
    description: str = "words",
) -> Reading:
    """One forward pass per prompt, up to the deepest site; every dictionary encodes every word once.

    Args:
        sites: dictionary → site.
        position_from_end: read the token this far from the end of the row (−6), whatever it is; None: the word's last
            token, found by its characters.

    Raises:
        InputError: prompts longer than the context, a tokenizer that cannot say where tokens stand in the text.
    """
    unique = sorted(set(sites.values()))
    rows: dict[str, list[Tensor]] = {site: [] for site in unique}
    limit = min(context_length, model.max_context or context_length)
    bar = progress(len(prompts), description, unit="word")
    with torch.no_grad():
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            batch = model.tokenize([p.text for p in part], limit)
            if batch.offsets is None:
                raise InputError(
                    f"The tokenizer of model '{model.name}' does not say where its tokens stand in a text, which is "
                    "needed to find the words; use a model with a fast tokenizer."
                )
            found = word_positions(batch.offsets, part)
            if -1 in found:
                raise InputError(
                    f"A prompt does not fit into {limit} tokens, so its word '{_word(part[found.index(-1)])}' was cut "
                    "off; raise context_length or lower the number of examples."
                )
            positions = torch.tensor(found)
            if position_from_end is not None:
                positions = (batch.attention_mask.sum(-1).cpu() + position_from_end).clamp_min(0)
            index = list(range(start, start + len(part)))
            documents = DocumentBatch(batch, [Document(text=p.text, id=_word(p)) for p in part], index)
            for site, activations in harvest(model, documents, unique).items():
                at = positions.to(activations.device)
                rows[site].append(activations[torch.arange(len(part), device=at.device), at].cpu())
            bar.update(len(part))
    bar.close()
    activations = {site: torch.cat(parts) for site, parts in rows.items()}
    return Reading(activations, {n: encode_words(d, activations[sites[n]]) for n, d in dictionaries.items()})


def encode_words(dictionary: DictionaryLike, x: Tensor) -> Codes:
    """The nonzero latents, of either sign, of activations ``x`` [word, d]; float32 on the CPU."""
    width = int(dictionary.W_dec.shape[0])
    parts: list[Codes] = []
    with torch.no_grad():
        for rows in x.split(max(1, _BUDGET // width)):
            given = to_dictionary(rows, dictionary)
            if hasattr(dictionary, "encode_sparse"):
                codes = cast("Codes", dictionary.encode_sparse(given))  # pyright: ignore[reportAttributeAccessIssue]
            else:
                dense = dictionary.encode(given)
                codes = Codes.from_mask(dense, dense != 0)
            parts.append(Codes(codes.values.float().cpu(), codes.indices.cpu(), codes.offsets.cpu(), width))
    return Codes.joined(parts)


def _word(prompt: Prompt) -> str:
    return prompt.text[prompt.start : prompt.end]
