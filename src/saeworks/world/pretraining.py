"""How the base model is trained: rows of whole documents, AdamW with a cosine schedule, checkpoints that resume.

Step ``s`` reads the documents ``[s·D, (s+1)·D)`` of the training mixture and nothing else, so that a resumed run sees
what an uninterrupted one would have seen. In the second cycle some of them give way to documents of the domains that
have to be learnt by heart.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.runtime import derive_seed
from saeworks.world.corpus import document
from saeworks.world.tokenizer import CONTEXT_LENGTH

IGNORED = -100
# Documents of a second-cycle step that come from one domain, with indices that the mixture never reaches.
REHEARSED = (("spelling", 18), ("taxonomy", 8), ("facts", 4))
REHEARSED_FROM = 1 << 32


@dataclass(frozen=True, slots=True)
class PretrainingConfig:
    """What decides the weights.

    Attributes:
        steps: Optimiser steps of the first cycle.
        more_steps: Steps of a second, gentler cycle, which rehearses what has to be learnt by heart.
        more_learning_rate: Peak of the second cycle.
        documents_per_step: Documents of the mixture in one step (about 50 tokens each).
        learning_rate: Peak, reached after ``warmup_steps``, then a cosine down to a hundredth of it.
        weight_decay: On matrices that are not embeddings.
        d_model, n_layers, n_heads, d_mlp: Shape of the Llama model; embeddings are tied.
        seed: Seed of the initial weights and of the corpus.
        autocast: bfloat16 matrix products over float32 weights.
    """

    steps: int = 1300
    more_steps: int = 900
    more_learning_rate: float = 1.2e-3
    documents_per_step: int = 72
    learning_rate: float = 2.5e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    d_mlp: int = 640
    seed: int = 0
    autocast: bool = True


def new_model(config: PretrainingConfig, vocabulary: int, bos: int, eos: int, pad: int) -> Any:
    """A ``LlamaForCausalLM`` with initial weights from the seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.d_model,
        intermediate_size=config.d_mlp,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_heads,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
        initializer_range=0.02,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "base model"))
        return LlamaForCausalLM(shape)


def pack(documents: list[list[int]], length: int, pad: int) -> tuple[Tensor, Tensor]:
    """Rows of whole documents, longest first into the first row with room.

    Every row begins with a document's first token, as rows of a later harvest do; longer documents are cut.

    Returns:
        ``(token_ids [row, position], targets [row, position])`` int64; padded targets are ``IGNORED``.
    """
    rows: list[list[int]] = []
    for tokens in sorted((tokens[:length] for tokens in documents), key=len, reverse=True):
        for row in rows:
            if len(row) + len(tokens) <= length:
                row.extend(tokens)
                break
        else:
            rows.append(list(tokens))
    token_ids = torch.full((len(rows), length), pad, dtype=torch.int64)
    targets = torch.full((len(rows), length), IGNORED, dtype=torch.int64)
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = torch.tensor(row)
        targets[i, : len(row)] = token_ids[i, : len(row)]
    return token_ids, targets


def texts_of(step: int, config: PretrainingConfig) -> list[str]:
    """The documents of a step; the second cycle replaces the last of them by rehearsed ones."""
    first = step * config.documents_per_step
    texts = [document(None, "train", first + i, config.seed).text for i in range(config.documents_per_step)]
    if step < config.steps:
        return texts
    rehearsed = [
        document(domain, "train", REHEARSED_FROM + step * count + i, config.seed).text
        for domain, count in REHEARSED
        for i in range(count)
    ]
    return texts[: -len(rehearsed)] + rehearsed if len(rehearsed) < len(texts) else texts


def batch_of(step: int, config: PretrainingConfig, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """The packed rows of a step."""
    texts = texts_of(step, config)
    encoded: list[list[int]] = tokenizer(texts, truncation=True, max_length=CONTEXT_LENGTH)["input_ids"]
    eos: int = tokenizer.eos_token_id
    return pack([[*tokens, eos] for tokens in encoded], CONTEXT_LENGTH, tokenizer.pad_token_id)


def learning_rate_at(step: int, config: PretrainingConfig) -> float:
    """Two cycles, each a linear warm-up and then a cosine to one hundredth of its peak."""
    if step < config.steps:
        return _cycle(step, config.steps, config.warmup_steps, config.learning_rate)
    return _cycle(step - config.steps, config.more_steps, config.warmup_steps // 4, config.more_learning_rate)


def _cycle(step: int, steps: int, warmup: int, peak: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))))


def _optimizer(model: Any, config: PretrainingConfig) -> torch.optim.AdamW:
    decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.97), eps=1e-8)


def _precision(config: PretrainingConfig, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if config.autocast else nullcontext()


def row_losses(model: Any, token_ids: Tensor, targets: Tensor) -> Tensor:
    """Next-token losses in nats ``[row, position-1]``; zero where the target is ignored."""
    logits: Tensor = model(input_ids=token_ids, use_cache=False).logits
    flat = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(targets.shape[0], -1)


def _save(path: Path, model: Any, optimizer: torch.optim.AdamW, step: int, config: PretrainingConfig) -> None:
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": asdict(config)}
    torch.save(state, tmp)
    os.replace(tmp, path)


def train(
    config: PretrainingConfig,
    tokenizer: Any,
    directory: Path,
    device: torch.device,
    checkpoint_every: int = 100,
) -> Iterator[tuple[int, Any]]:
    """Train, yielding ``(step, model)`` after every checkpoint and at the end; log lines go to ``train_log.jsonl``.

    Args:
        config: The recipe.
        tokenizer: The world's tokenizer.
        directory: Where ``checkpoint.pt`` and the log are kept; an existing checkpoint is resumed.
        device: Where to compute.
        checkpoint_every: Steps between checkpoints.

    Raises:
        InputError: The checkpoint belongs to another recipe.
    """
    model = new_model(
        config, len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    ).to(device)
    optimizer = _optimizer(model, config)
    total = config.steps + config.more_steps
    checkpoint = directory / "checkpoint.pt"
    start = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["config"] != asdict(config):
            raise InputError(f"'{checkpoint}' comes from another recipe; choose another --out or delete it.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = int(state["step"])
    model.train()
    began = time.monotonic()
    with open(directory / "train_log.jsonl", "a", encoding="utf-8") as log:
        for step in range(start, total):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, config)
            token_ids, targets = (part.to(device) for part in batch_of(step, config, tokenizer))
            with _precision(config, device):
                losses = row_losses(model, token_ids, targets)
            count = int((targets[:, 1:] != IGNORED).sum())
            loss = losses.sum() / count
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
                _save(checkpoint, model, optimizer, step + 1, config)
                yield step + 1, model
    if start >= total:
        yield start, model
