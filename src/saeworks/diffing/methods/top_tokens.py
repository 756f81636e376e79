"""The tokens with the largest scores of a pass, with the words before them."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saeworks.diffing.methods.interface import Finding
from saeworks.diffing.pairs import PairedBatch, PairedSource

# Tokens before the one found that are shown with it.
CONTEXT = 12


class TopTokens:
    """Keeps the ``count`` tokens with the largest scores; of equal ones, those seen first.

    Args:
        tokenizer: to write tokens as text; None for sources without (synthetic activations).
    """

    def __init__(self, count: int, tokenizer: Any = None) -> None:
        self.count, self.tokenizer = count, tokenizer
        self._heap: list[tuple[float, int, dict[str, Any]]] = []
        self._seen = 0

    def add(self, batch: PairedBatch, scores: Tensor, more: Mapping[str, Tensor] | None = None) -> None:
        """Consider a batch: ``scores [token]``, and further values ``[token]`` that become evidence.

        The tokens of a sequence have to be in order, as sources give them.
        """
        values = scores.detach().double().cpu()
        best = values.topk(min(self.count, len(values))).indices.sort().values
        for i in best.tolist():
            score = float(values[i])
            entry = (score, -(self._seen + i))
            if len(self._heap) == self.count and entry <= self._heap[0][:2]:
                continue
            evidence = self._evidence(batch, i) | {k: float(v[i]) for k, v in (more or {}).items()}
            push = heapq.heappush if len(self._heap) < self.count else heapq.heapreplace
            push(self._heap, (*entry, evidence))
        self._seen += len(values)

    def findings(self, words: Sequence[str] = ()) -> tuple[Finding, ...]:
        """The largest first; evidence named in ``words`` is token ids, and shown as text."""
        found: list[Finding] = []
        for score, _, evidence in sorted(self._heap, key=lambda item: item[:2], reverse=True):
            decoded = {name: self.tokenizer.decode([int(evidence[name])]) for name in words}
            found.append(Finding(str(evidence["token"]), score, evidence | decoded))
        return tuple(found)

    def _evidence(self, batch: PairedBatch, i: int) -> dict[str, Any]:
        before = torch.nonzero(batch.sequence_ids[: i + 1] == batch.sequence_ids[i]).flatten()[-CONTEXT - 1 :]
        ids: list[int] = batch.token_ids[before].tolist()
        decode = None if self.tokenizer is None or ids[-1] < 0 else self.tokenizer.decode
        return {
            "token": f"row {self._seen + i}" if decode is None else decode([ids[-1]]),
            "context": "" if decode is None else decode(ids[:-1]),
            "token_id": ids[-1],
            "data_set": batch.data_set,
            "sequence": int(batch.sequence_ids[i]),
            "position": int(batch.positions[i]),
            "is_template": bool(batch.is_template[i]),
            "answer_index": int(batch.answer_index[i]),
        }


def tokenizer_of(source: PairedSource) -> Any:
    """The chat model's tokenizer, where the source has models."""
    models = getattr(source, "models", None)
    return None if models is None else models[1].tokenizer
