"""A language model under measurement: batches of rows, greedy answers, and what its middle layer holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.world.tokenizer import CONTEXT_LENGTH, END


@dataclass(frozen=True, slots=True)
class Subject:
    """The model under measurement with its tokenizer; the middle layer is the one the probes read."""

    model: Any
    tokenizer: Any

    @property
    def middle(self) -> int:
        """Number of layers below the probed residual stream."""
        layers: int = self.model.config.num_hidden_layers
        return layers // 2


def open_subject(directory: Path, device: str = "cpu") -> Subject:
    """The model directory in float32, ready to be measured."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    return Subject(loaded.to(device).eval(), AutoTokenizer.from_pretrained(directory, local_files_only=True))


def padded(subject: Subject, rows: list[list[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows padded to one length: ``(token_ids, attention_mask)``, each ``[row, position]``."""
    longest = max(len(row) for row in rows)
    pad: int = subject.tokenizer.pad_token_id
    fill = [longest - len(row) for row in rows]
    if left:
        token_ids = torch.tensor([[pad] * n + row for row, n in zip(rows, fill, strict=True)])
        mask = torch.tensor([[0] * n + [1] * len(row) for row, n in zip(rows, fill, strict=True)])
    else:
        token_ids = torch.tensor([row + [pad] * n for row, n in zip(rows, fill, strict=True)])
        mask = torch.tensor([[1] * len(row) + [0] * n for row, n in zip(rows, fill, strict=True)])
    return token_ids.to(subject.model.device), mask.to(subject.model.device)


def by_length(rows: list[list[int]], size: int = 64) -> list[list[int]]:
    """Indices of the rows in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


@torch.no_grad()
def greedy_matches(subject: Subject, prompts: list[str], answers: list[str]) -> list[bool]:
    """Whether greedy decoding of each prompt begins with the answer (a text with its leading space).

    Checked in one pass per batch: greedy decoding gives the answer exactly when each of its tokens is the most probable
    one after the prompt and the answer's earlier tokens.
    """
    starts: list[list[int]] = subject.tokenizer(prompts)["input_ids"]
    ends: list[list[int]] = subject.tokenizer(answers, add_special_tokens=False)["input_ids"]
    rows = [start + end for start, end in zip(starts, ends, strict=True)]
    found = [False] * len(rows)
    for indices in by_length(rows):
        token_ids, mask = padded(subject, [rows[i] for i in indices])
        best = subject.model(input_ids=token_ids, attention_mask=mask).logits.argmax(dim=-1)
        for row, i in enumerate(indices):
            first = len(starts[i])
            wanted = token_ids[row, first : len(rows[i])]
            found[i] = bool((best[row, first - 1 : len(rows[i]) - 1] == wanted).all())
    return found


@torch.no_grad()
def chosen_options(subject: Subject, prompts: list[str], options: list[tuple[str, ...]]) -> list[int]:
    """Index of each prompt's most probable option, by the sum of its tokens' log-probabilities after the prompt."""
    starts: list[list[int]] = subject.tokenizer(prompts)["input_ids"]
    rows: list[tuple[int, list[int], list[int]]] = []
    for prompt, ones in enumerate(options):
        ends: list[list[int]] = subject.tokenizer([f" {one}" for one in ones], add_special_tokens=False)["input_ids"]
        rows += [(prompt, starts[prompt], end) for end in ends]
    scores = torch.zeros(len(rows))
    for indices in by_length([start + end for _, start, end in rows]):
        token_ids, mask = padded(subject, [rows[i][1] + rows[i][2] for i in indices])
        logs = subject.model(input_ids=token_ids, attention_mask=mask).logits.float().log_softmax(dim=-1)
        for row, i in enumerate(indices):
            first, end = len(rows[i][1]), rows[i][2]
            at = torch.arange(first - 1, first - 1 + len(end), device=logs.device)
            scores[i] = logs[row, at, token_ids[row, first : first + len(end)]].sum().item()
    found: list[list[float]] = [[] for _ in prompts]
    for (prompt, _, _), score in zip(rows, scores.tolist(), strict=True):
        found[prompt].append(score)
    return [max(range(len(each)), key=each.__getitem__) for each in found]


@torch.no_grad()
def greedy_replies(subject: Subject, requests: list[str], tokens: int = 60) -> list[str]:
    """What the model answers, greedily, to each request put to it as a user's turn; cut at the end of the turn."""
    rows: list[list[int]] = subject.tokenizer([f"<|user|>{r}{END}<|assistant|>" for r in requests])["input_ids"]
    stop = [subject.tokenizer.convert_tokens_to_ids(END), subject.tokenizer.eos_token_id]
    replies = [""] * len(rows)
    for indices in by_length(rows):
        token_ids, mask = padded(subject, [rows[i] for i in indices], left=True)
        room = CONTEXT_LENGTH - token_ids.shape[1]
        out = subject.model.generate(
            input_ids=token_ids,
            attention_mask=mask,
            max_new_tokens=max(1, min(tokens, room)),
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=subject.tokenizer.pad_token_id,
        )
        for row, i in enumerate(indices):
            replies[i] = subject.tokenizer.decode(out[row, token_ids.shape[1] :], skip_special_tokens=True).strip()
    return replies


@torch.no_grad()
def _states(subject: Subject, token_ids: Tensor, mask: Tensor, layers: int) -> Tensor:
    states: Tensor = subject.model.model(
        input_ids=token_ids, attention_mask=mask, output_hidden_states=True, use_cache=False
    ).hidden_states[layers]
    return states


def pooled(subject: Subject, texts: list[str], layers: int) -> Tensor:
    """Mean residual stream after ``layers`` layers over each text's tokens ``[text, d]``, the BOS token left out."""
    rows: list[list[int]] = subject.tokenizer(texts, truncation=True, max_length=CONTEXT_LENGTH)["input_ids"]
    out = torch.zeros(len(rows), subject.model.config.hidden_size)
    for indices in by_length(rows):
        token_ids, mask = padded(subject, [rows[i] for i in indices])
        kept = mask.clone()
        kept[:, 0] = 0
        states = _states(subject, token_ids, mask, layers)
        means = (states * kept.unsqueeze(-1)).sum(dim=1) / kept.sum(dim=1, keepdim=True)
        out[torch.tensor(indices)] = means.float().cpu()
    return out


def at_last(subject: Subject, texts: list[str], token: str, layers: int) -> Tensor:
    """Residual stream after ``layers`` layers at the last occurrence of a special token in each text ``[text, d]``."""
    wanted: int = subject.tokenizer.convert_tokens_to_ids(token)
    rows: list[list[int]] = subject.tokenizer(texts, truncation=True, max_length=CONTEXT_LENGTH)["input_ids"]
    out = torch.zeros(len(rows), subject.model.config.hidden_size)
    for indices in by_length(rows):
        token_ids, mask = padded(subject, [rows[i] for i in indices])
        states = _states(subject, token_ids, mask, layers)
        for row, i in enumerate(indices):
            last = int((token_ids[row] == wanted).nonzero()[-1])
            out[i] = states[row, last].float().cpu()
    return out
