"""Transcripts as batches that both models of a pair read whole, and the chat model's own answers to them.

What patching measures is how far a change moves the chat model's predictions, so the answers should be its own: on
somebody else's words every condition pays for the style of the words too (arXiv 2504.02922, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saeworks.diffing.transcripts import ANSWERING, Message, render
from saeworks.errors import InputError
from saeworks.models.tokens import TokenBatch

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class ConversationBatch:
    """Whole transcripts, right-padded; all tensors are ``[row, position]``.

    Attributes:
        tokens: what both models read.
        is_template: tokens of the chat template; BOS is none of them.
        answer_index: k at the token that predicts the k-th token of an assistant's turn, from 0; −1 elsewhere.
        inside: tokens that a dictionary is applied to: neither padding nor BOS, whose activations are like no others.
        numbers: ``[row]``, which transcript.
    """

    tokens: TokenBatch
    is_template: Tensor
    answer_index: Tensor
    inside: Tensor
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


def conversation_batches(
    model: LanguageModel, transcripts: Sequence[Sequence[Message]], batch_size: int = 16, context_length: int = 1024
) -> Iterator[ConversationBatch]:
    """Batches of transcripts of similar length, rendered by the model's chat template and cut to the context.

    Transcripts that the template refuses, and those without an answer inside the context, are left out.

    Raises:
        InputError: a model without a chat template, or not one transcript with an answer.
    """
    length = min(context_length, model.max_context) if model.max_context else context_length
    rows: list[tuple[int, list[int], list[bool], list[int]]] = []
    for number, turns in enumerate(transcripts):
        try:
            ids, template, answers = render(model.tokenizer, turns)
        except InputError:
            if not getattr(model.tokenizer, "chat_template", None):
                raise
            continue
        # The last token predicts one that was cut off.
        if len(ids) > length:
            answers[length - 1] = -1
        if any(k >= 0 for k in answers[:length]):
            rows.append((number, ids[:length], template[:length], answers[:length]))
    if not rows:
        raise InputError(
            f"Of {len(transcripts)} transcripts not one has an answer of the assistant within {length} tokens; "
            "give others, or a longer context."
        )
    rows.sort(key=lambda row: len(row[1]))
    bos = model.tokenizer.bos_token_id
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        tokens = model.batch_from_ids([ids for _, ids, _, _ in part])
        shape = tokens.token_ids.shape
        template = torch.zeros(shape, dtype=torch.bool)
        answers = torch.full(shape, -1, dtype=torch.int64)
        for r, (_, ids, marks, index) in enumerate(part):
            template[r, : len(ids)] = torch.tensor(marks)
            answers[r, : len(ids)] = torch.tensor(index)
        inside = tokens.attention_mask.clone()
        if bos is not None:
            inside &= tokens.token_ids != bos
        yield ConversationBatch(tokens, template, answers, inside, torch.tensor([number for number, *_ in part]))


@torch.no_grad()
def answered(
    model: LanguageModel, transcripts: Sequence[Sequence[Message]], max_new_tokens: int = 48, batch_size: int = 32
) -> list[list[Message]]:
    """The transcripts with the model's greedy answer in place of the last turn of the assistant.

    What follows that turn is dropped; a transcript without one gets an answer to its end. Those that the template
    refuses or that leave no room for an answer in the model's context are left out, as are empty answers.
    """
    asked: list[list[Message]] = []
    prompts: list[str] = []
    for turns in transcripts:
        last = max((i for i, turn in enumerate(turns) if turn["role"] == ANSWERING), default=len(turns))
        prompt = prompt_of(model, turns[:last]) if last > 0 else None
        if prompt is not None:
            asked.append([dict(turn) for turn in turns[:last]])
            prompts.append(prompt)
    if model.max_context is not None:
        room = model.max_context - max_new_tokens
        if room < 1:
            raise InputError(f"{max_new_tokens} new tokens leave no room in a context of {model.max_context}.")
        lengths = model.tokenize(prompts, model.max_context).attention_mask.sum(dim=1) if prompts else torch.zeros(0)
        fits = [i for i, n in enumerate(lengths.tolist()) if n <= room]
    else:
        fits = list(range(len(prompts)))
    fits.sort(key=lambda i: len(prompts[i]))
    replies: dict[int, str] = {}
    stop = turn_end(model)
    for start in range(0, len(fits), batch_size):
        chosen = fits[start : start + batch_size]
        found = model.generate([prompts[i] for i in chosen], max_new_tokens, stop=stop)
        replies.update(zip(chosen, found, strict=True))
    return [
        [*asked[i], {"role": ANSWERING, "content": replies[i].strip()}] for i in sorted(replies) if replies[i].strip()
    ]


def prompt_of(model: LanguageModel, turns: Sequence[Message]) -> str | None:
    """The prompt for an answer to these turns; None where the template refuses them, as some do a system message."""
    try:
        return model.chat_prompt(turns)
    except InputError:
        raise
    except Exception:  # templates raise errors of their own, of jinja's kinds
        return None


def turn_end(model: LanguageModel) -> tuple[str, ...]:
    """The token that ends the assistant's turn, as the chat template writes it; nothing where it is not one token."""
    tokenizer = model.tokenizer
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}, {"role": ANSWERING, "content": "yyyy"}], tokenize=False
    )
    after = text[text.rindex("yyyy") + 4 :]
    ids: list[int] = tokenizer(after, add_special_tokens=False)["input_ids"]
    first = str(tokenizer.convert_ids_to_tokens(ids[:1])[0]) if ids else ""
    whole = first != "" and len(tokenizer(first, add_special_tokens=False)["input_ids"]) == 1
    return (first,) if whole and ids[0] in tokenizer.all_special_ids else ()


def repeated(batch: ConversationBatch, times: int) -> TokenBatch:
    """The tokens of a batch, all rows ``times`` times over."""
    tokens = batch.tokens
    parts = (tokens.token_ids, tokens.attention_mask, tokens.keep)
    ids, mask, keep = (part.repeat(times, 1) for part in parts)
    return replace(tokens, token_ids=ids, attention_mask=mask, keep=keep, offsets=None)
