"""Multiple-choice questions under clamps of many kinds: the activations of the questions are encoded once.

A clamp changes only rows on which one of its latents fires; the answers to all other questions stay what they are
without it, and a clamp whose latents that fire on a question are those of an earlier one has the same answer there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saeworks.evals.answers.multiple_choice import Prompt, Row, right_answers
from saeworks.evals.shared.batches import DictionaryLike
from saeworks.evals.shared.clamping import clamp_shift, clamp_sizes, codes_of, input_scale

if TYPE_CHECKING:
    from saeworks.models.interventions import Splice
    from saeworks.models.language_model import LanguageModel
    from saeworks.models.tokens import TokenBatch


class ClampedAnswers:
    """Answers of one model through one dictionary.

    Args:
        prompts: questions that are answered rightly without a clamp.
        latents: all that will ever be clamped.
        scale: see :func:`saeworks.evals.shared.clamping.clamp_sizes`.
        signed: whether negative latents fire too.
        all_but_first: clamp at all tokens but the first, special ones included (as SAEBench does); else at the tokens
            that are no special ones.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        dictionary: DictionaryLike,
        site: str,
        latents: Sequence[int],
        batch_size: int,
        scale: float | None,
        signed: bool,
        all_but_first: bool = False,
    ) -> None:
        self.model, self.prompts, self.site, self.batch_size = model, prompts, site, batch_size
        self.scale, self.signed, self.all_but_first = scale, signed, all_but_first
        self.column = {latent: column for column, latent in enumerate(latents)}
        self.directions = dictionary.W_dec[list(latents)].float()
        self.values: dict[Row, Tensor] = {}
        self.factors: dict[Row, Tensor | float] = {}
        self.firing: list[frozenset[int]] = [frozenset()] * len(prompts)
        self.known: dict[tuple[int, float, frozenset[int]], bool] = {}
        if latents:
            self._encode(dictionary, torch.tensor(list(latents)))

    def right(self, latents: Sequence[int], multiplier: float) -> Tensor:
        """[question] bool: whether the right option wins with ``latents`` clamped."""
        chosen = frozenset(self.column[latent] for latent in latents)
        active = [fires & chosen for fires in self.firing]
        open_ones = [i for i, columns in enumerate(active) if columns and (i, multiplier, columns) not in self.known]
        found = right_answers(
            self.model,
            [self.prompts[i] for i in open_ones],
            self.batch_size,
            lambda rows: self._splice([(open_ones[i], option) for i, option in rows], sorted(chosen), multiplier),
        )
        for i, yes in zip(open_ones, found, strict=True):
            self.known[i, multiplier, active[i]] = yes
        return torch.tensor([not columns or self.known[i, multiplier, columns] for i, columns in enumerate(active)])

    def shift(self, row: Row, columns: Sequence[int], multiplier: float) -> Tensor:
        """[position, d] what the clamp adds to the activations of a row."""
        directions = self.directions[list(columns)]
        sizes = clamp_sizes(directions, multiplier, self.scale)
        return clamp_shift(self.values[row][:, list(columns)], directions, sizes, self.signed) * self.factors[row]

    def _splice(self, rows: Sequence[Row], columns: Sequence[int], multiplier: float) -> Splice:
        from saeworks.models.interventions import Splice

        shifts = [self.shift(row, columns, multiplier) for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(shifts, batch_first=True)
        return Splice(self.site, lambda x: x + padded.to(x), where="all")

    def _positions(self, batch: TokenBatch) -> Tensor:
        """[row, position] bool: where the clamp acts."""
        if not self.all_but_first:
            return batch.keep
        where = batch.attention_mask.clone()
        where[:, 0] = False
        return where

    @torch.no_grad()
    def _encode(self, dictionary: DictionaryLike, latents: Tensor) -> None:
        """Values of the latents at every token of every row, and which of them fire on which question."""
        rows: list[Row] = [(i, option) for i, prompt in enumerate(self.prompts) for option in prompt.rows()]
        rows.sort(key=lambda row: len(self.prompts[row[0]].row(row[1])))
        column = torch.full((int(dictionary.W_dec.shape[0]),), -1)
        column[latents] = torch.arange(len(latents))
        for start in range(0, len(rows), self.batch_size):
            chosen = rows[start : start + self.batch_size]
            batch = self.model.batch_from_ids([self.prompts[i].row(option) for i, option in chosen])
            x = self.model.harvest(batch, [self.site])[self.site].float()
            where = self._positions(batch).to(x.device)
            codes = codes_of(dictionary, x[where], self.signed)
            columns = column.to(codes.indices.device)[codes.indices]
            wanted = columns >= 0
            found = torch.zeros(codes.tokens, len(latents), device=codes.values.device)
            found[codes.rows()[wanted], columns[wanted]] = codes.values[wanted].float()
            values = torch.zeros(*where.shape, len(latents), device=found.device)
            values[where.to(found.device)] = found
            factors = torch.ones(*where.shape, 1, device=found.device)
            factors[where.to(found.device)] = torch.as_tensor(input_scale(dictionary, x[where])).to(found)
            for at, (i, option) in enumerate(chosen):
                length = len(self.prompts[i].row(option))
                self.values[i, option] = values[at, :length]
                self.factors[i, option] = factors[at, :length]
                fires = values[at].any(0).nonzero().squeeze(1).tolist()
                self.firing[i] = self.firing[i] | frozenset(fires)
