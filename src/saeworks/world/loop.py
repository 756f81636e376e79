"""The loop that trains both of the world's models: rows of whole documents, Muon, checkpoints that resume.

What is trained on, and how fast, is a :class:`Course`. Step ``s`` of a course reads documents that depend on ``s``
alone, so that a resumed run sees what an uninterrupted one would have seen.

Muon orthogonalises the steps of the weight matrices, which a corpus of many rare facts wants: after 150 steps of the
base model's course the validation loss was 2.4 nats with it and 4.0 with AdamW, at a tenth more time for a step.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.world.tokenizer import CONTEXT_LENGTH

IGNORED = -100


class Course(Protocol):
    """What decides the weights, given those that the course begins with."""

    @property
    def total_steps(self) -> int:
        """Optimiser steps."""
        ...

    @property
    def weight_decay(self) -> float:
        """On matrices that are not embeddings."""
        ...

    @property
    def other_rate(self) -> float:
        """Learning rate of what is no weight matrix (embeddings, norms), as a share of the matrices'."""
        ...

    @property
    def autocast(self) -> bool:
        """bfloat16 matrix products over float32 weights."""
        ...

    def texts(self, step: int) -> list[str]:
        """The documents of a step."""
        ...

    def learnt(self, step: int, text: str) -> tuple[int, int] | None:
        """The part ``(start, end)`` of one of the step's documents that is learnt, in characters; None for all."""
        ...

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the weight matrices in a step."""
        ...

    def identity(self) -> dict[str, Any]:
        """The settings as JSON values; a checkpoint of other settings is not resumed."""
        ...


def cosine_cycle(step: int, steps: int, warmup: int, peak: float) -> float:
    """A linear warm-up to ``peak``, then a cosine down to one hundredth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))))


def pack(
    documents: Sequence[Sequence[int]], length: int, pad: int, targets: Sequence[Sequence[int]] | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of whole documents, longest first into the first row with room.

    Every row begins with a document's first token, as rows of a later harvest do; longer documents are cut.

    Args:
        documents: Token ids of each. length: Of a row. pad: The token that fills it up.
        targets: For each document its tokens, those that are not learnt as ``IGNORED``; None: all are learnt.

    Returns:
        ``(token_ids [row, position], targets [row, position])`` int64; targets of padding are ``IGNORED``.
    """
    rows: list[tuple[list[int], list[int]]] = []
    cut = [(one[:length], own[:length]) for one, own in zip(documents, targets or documents, strict=True)]
    for tokens, own in sorted(cut, key=lambda pair: len(pair[0]), reverse=True):
        row = next((row for row in rows if len(row[0]) + len(tokens) <= length), None)
        if row is None:
            rows.append(row := ([], []))
        row[0].extend(tokens)
        row[1].extend(own)
    packed = torch.full((2, len(rows), length), IGNORED, dtype=torch.int64)
    packed[0] = pad
    for i, row in enumerate(rows):
        packed[:, i, : len(row[0])] = torch.tensor(row)
    return packed[0], packed[1]


def batch_of(course: Course, step: int, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """The packed rows of a step."""
    texts = course.texts(step)
    encoded = tokenizer(texts, truncation=True, max_length=CONTEXT_LENGTH, return_offsets_mapping=True)
    eos: int = tokenizer.eos_token_id
    documents: list[list[int]] = [[*tokens, eos] for tokens in encoded["input_ids"]]
    targets: list[list[int]] = []
    for text, tokens, places in zip(texts, documents, encoded["offset_mapping"], strict=True):
        start, end = course.learnt(step, text) or (0, 0)
        # What was added to the text, such as BOS, has an empty place.
        inside = [not end or (a < end and b > start) for a, b in (*places, (0, 0))]
        targets.append([token if learnt else IGNORED for token, learnt in zip(tokens, inside, strict=True)])
    return pack(documents, CONTEXT_LENGTH, tokenizer.pad_token_id, targets)


def _optimizers(model: Any, course: Course) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the weight matrices, AdamW for the embeddings and the norms."""
    muon: Any = getattr(torch.optim, "Muon", None)
    if muon is None:
        raise InputError(
            f"The world's models are trained with Muon, which torch {torch.__version__} lacks; install 2.9 or later."
        )
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return (
        muon(matrices, weight_decay=course.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.97), eps=1e-8, weight_decay=0.0),
    )


def _set_rate(optimizers: Sequence[torch.optim.Optimizer], course: Course, step: int) -> None:
    rate = course.learning_rate_at(step)
    for optimizer, share in zip(optimizers, (1.0, course.other_rate), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * share


def _precision(course: Course, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if course.autocast else nullcontext()


def row_losses(model: Any, token_ids: Tensor, targets: Tensor) -> Tensor:
    """Next-token losses in nats ``[row, position-1]``; zero where the target is ignored."""
    logits: Tensor = model(input_ids=token_ids, use_cache=False).logits
    flat = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(targets.shape[0], -1)


def _save(path: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer], step: int, course: Course) -> None:
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "course": course.identity(),
    }
    torch.save(state, tmp)
    os.replace(tmp, path)


def train(
    course: Course,
    model: Any,
    tokenizer: Any,
    directory: Path,
    name: str,
    device: torch.device,
    checkpoint_every: int = 100,
) -> Iterator[int]:
    """Train ``model`` in place, yielding the number of finished steps after every checkpoint and at the end.

    Args:
        course: What to read, and how fast to learn.
        model: The model with the weights that the course begins with.
        tokenizer: The world's tokenizer.
        directory: Where ``NAME_checkpoint.pt`` and ``NAME_log.jsonl`` are kept; an existing checkpoint is resumed.
        name: ``base`` or ``chat``.
        device: Where to compute.
        checkpoint_every: Steps between checkpoints.

    Raises:
        InputError: The checkpoint belongs to other settings.
    """
    model.to(device)
    optimizers = _optimizers(model, course)
    checkpoint = directory / f"{name}_checkpoint.pt"
    start, total = 0, course.total_steps
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["course"] != course.identity():
            raise InputError(f"'{checkpoint}' comes from another recipe; choose another --out or delete it.")
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        start = int(state["step"])
    model.train()
    began = time.monotonic()
    with open(directory / f"{name}_log.jsonl", "a", encoding="utf-8") as log:
        for step in range(start, total):
            _set_rate(optimizers, course, step)
            token_ids, targets = (part.to(device) for part in batch_of(course, step, tokenizer))
            with _precision(course, device):
                losses = row_losses(model, token_ids, targets)
            count = int((targets[:, 1:] != IGNORED).sum())
            loss = losses.sum() / count
            model.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            if step % 10 == 9 or step == total - 1:
                line = {
                    "step": step + 1,
                    "loss": round(float(loss.detach()), 4),
                    "tokens": count,
                    "rows": len(token_ids),
                    "gradient_norm": round(float(norm), 4),
                    "seconds": round(time.monotonic() - began, 1),
                }
                log.write(json.dumps(line) + "\n")
                log.flush()
            if (step + 1) % checkpoint_every == 0 or step + 1 == total:
                _save(checkpoint, model, optimizers, step + 1, course)
                yield step + 1
    model.eval()
    if start >= total:
        yield start
