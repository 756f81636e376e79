"""Activations of any language model at chosen tokens of a prompt, before it has written a word of its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from saeworks.errors import InputError, did_you_mean
from saeworks.models.language_model import LanguageModel
from saeworks.models.tokens import TokenBatch
from saeworks.progress import progress

# Name → (pattern whose last character counts, whether its first or last occurrence, how many tokens later). The order
# is that of the tokens in a prompt that has them all; "…_next" is the token after.
MARKS: dict[str, tuple[str, str, int]] = {
    "colon": (r":", "first", 0),
    "colon_next": (r":", "first", 1),
    "question_mark": (r"\?", "last", 0),
    "question_mark_next": (r"\?", "last", 1),
    "reasoning": (r"\breasoning\b", "last", 0),
    "reasoning_next": (r"\breasoning\b", "last", 1),
    "answer": (r"\banswer\b", "last", 0),
    "yes": (r"\bYES\b", "last", 0),
    "no": (r"\bNO\b", "last", 0),
}
#: Positions that every prompt has: its last token but one, and its last one.
ENDS = {"before_last": -2, "last": -1}
POSITIONS = (*MARKS, *ENDS)
# The embedded base model has a chat template that it never saw in use.
NO_CHAT = ("world", "world:base")


def prompt_activations(
    model: LanguageModel,
    texts: Sequence[str],
    sites: Sequence[str],
    positions: Sequence[str] = ("last",),
    chat: bool | None = None,
    batch_size: int = 32,
) -> dict[str, Tensor]:
    """Activations at each site and position while the model reads each text, in a conversation of its own.

    Args:
        texts: what the model is asked; the marks are looked for in it, not in what a chat template puts around.
        sites: as in :meth:`LanguageModel.harvest`; ``layers.0.resid_pre`` are the embeddings.
        positions: of :data:`POSITIONS`. Several must lie at different tokens, in the order of the list there.
        chat: whether the model's chat template is put around; None does so where it has one.

    Returns:
        ``"SITE at POSITION"`` → ``[text, width]`` float32 on the CPU.

    Raises:
        InputError: no prompts or positions, an unknown name, a prompt that the model has no room for or that lacks a
            position, or positions that fall together or stand in another order.
    """
    if not texts:
        raise InputError("There are no texts to read; give at least one.")
    if not positions:
        raise InputError(f"There are no positions to read at; give some of {', '.join(POSITIONS)}.")
    for name in positions:
        if name not in POSITIONS:
            raise InputError(f"There is no position '{name}'.{did_you_mean(name, POSITIONS)}")
    if batch_size < 1:
        raise InputError(f"The batch size is {batch_size}; give at least 1.")
    prompts = [_prompt(model, text, chat) for text in texts]
    wanted = [name for name in POSITIONS if name in positions]
    widths = {site: model.site(site).width for site in sites}
    found = {f"{site} at {name}": torch.empty(len(prompts), widths[site]) for site in sites for name in wanted}
    # Prompts of one length side by side leave little padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with progress(len(prompts), "reading prompts", "prompt") as bar:
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = _tokens(model, [prompts[i] for i in part])
            places = torch.tensor([_places(batch, row, prompts[i], texts[i], wanted) for row, i in enumerate(part)])
            rows = torch.arange(len(part))[:, None]
            for site, values in model.harvest(batch, sites).items():
                taken = values[rows.to(values.device), places.to(values.device)].float().cpu()
                for column, name in enumerate(wanted):
                    found[f"{site} at {name}"][part] = taken[:, column]
            bar.update(len(part))
    return found


def _prompt(model: LanguageModel, text: str, chat: bool | None) -> str:
    if chat is None:
        chat = bool(getattr(model.tokenizer, "chat_template", None)) and model.name not in NO_CHAT
    return model.chat_prompt([{"role": "user", "content": text}]) if chat else text


def _tokens(model: LanguageModel, prompts: Sequence[str]) -> TokenBatch:
    """The prompts as tokens, none of them cut."""
    if model.max_context is not None:
        for prompt in prompts:
            length = len(model.tokenizer(prompt)["input_ids"])
            if length > model.max_context:
                raise InputError(
                    f"The prompt '{prompt[:60]}…' has {length} tokens, but the model reads at most "
                    f"{model.max_context}; use a shorter prompt style."
                )
    return model.tokenize(prompts, model.max_context or 1_000_000)


def _places(batch: TokenBatch, row: int, prompt: str, text: str, wanted: Sequence[str]) -> list[int]:
    """The tokens of the positions in one row, strictly increasing."""
    length = int(batch.attention_mask[row].sum())
    found: list[int] = []
    for name in wanted:
        place = length + ENDS[name] if name in ENDS else _marked(batch, row, prompt, text, name)
        if not 0 <= place < length:
            raise InputError(f"The question '{text[:60]}' has no token for the position '{name}'; leave it out.")
        if found and place <= found[-1]:
            earlier = wanted[len(found) - 1]
            raise InputError(
                f"In the question '{text[:60]}' the position '{name}' does not lie after '{earlier}'; leave one out."
            )
        found.append(place)
    return found


def _marked(batch: TokenBatch, row: int, prompt: str, text: str, name: str) -> int:
    """The token of a mark; -1 where the prompt lacks it."""
    if batch.offsets is None:
        raise InputError(
            f"The tokenizer cannot tell where a token stands, so '{name}' is unknown; use {' or '.join(ENDS)}."
        )
    pattern, which, later = MARKS[name]
    # Templates strip a text; one that changes it further leaves the whole prompt to look in.
    begin = prompt.rfind(text.strip())
    end = begin + len(text.strip()) if begin >= 0 else len(prompt)
    hits = list(re.compile(pattern).finditer(prompt, max(begin, 0), end))
    if not hits:
        return -1
    character = hits[0 if which == "first" else -1].end() - 1
    inside = [i for i, (start, end) in enumerate(batch.offsets[row]) if start <= character < end]
    return inside[0] + later if inside else -1
