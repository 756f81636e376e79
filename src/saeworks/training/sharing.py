"""What the ranks of a run share before a step: the text that the language model reads, and the rows it yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saeworks.activations.batches import ActivationBatch
from saeworks.activations.harvest import Harvestable, SiteLike
from saeworks.activations.streams import Stream
from saeworks.errors import InputError
from saeworks.models.tokens import TokenBatch
from saeworks.training.cells import MemberConfig
from saeworks.training.division import Division
from saeworks.training.ranks import Ranks

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel


def own_batch(stream: Stream, count: int, division: Division) -> ActivationBatch:
    """This rank's rows of the next ``count`` of a stream; all ranks together have each of them once.

    A stream with a method ``skip`` reads the others' rows from nowhere.
    """
    own = division.share(count)
    skip = getattr(stream, "skip", None)
    if own == slice(0, count):
        return stream.next_batch(count)
    if skip is None:
        return stream.next_batch(count)[own]
    skip(own.start)
    batch = stream.next_batch(own.stop - own.start)
    skip(count - own.stop)
    return batch


def check_division(members: Sequence[MemberConfig], batch_size: int, division: Division) -> None:
    """Refuse, in a sentence, what cannot be trained by the ranks at hand."""
    division.share(batch_size)
    count = division.ranks.count
    for member in members if division.by == "latents" else ():
        recipe = member.recipe
        if member.width < count:
            raise InputError(
                f"'{member.name}' has {member.width} latents, fewer than the {count} ranks that are to divide them; "
                "start fewer, or use --parallel data."
            )
        if recipe.across is not None:
            raise InputError(
                f"'{recipe.name}' divides its latents among sources, and not among ranks as well; use --parallel data."
            )
        if recipe.reorder:
            raise InputError(
                f"'{recipe.name}' sorts all its latents after every step, which would move them from rank to rank; "
                "use --parallel data."
            )
        if recipe.selection == "groupmax" and member.sparsity % count:
            raise InputError(
                f"'{recipe.name}' selects from {member.sparsity:g} groups of latents, which {count} ranks cannot "
                "divide without cutting one; choose a --k that is a multiple, or use --parallel data."
            )


class SharedModel:
    """A language model that every rank has, of which each reads its part of every batch of text.

    The activations are then sent to all: every rank has the same stream, for 1/ranks of the work. They agree with those
    of one process up to rounding, because matrix products round differently for fewer rows.
    """

    def __init__(self, model: LanguageModel, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self.name, self.device = model.name, model.device
        self.tokenizer: Any = model.tokenizer
        self.is_causal, self.max_context = model.is_causal, model.max_context

    def fingerprint(self) -> str:
        """The model's."""
        return self.model.fingerprint()

    def site(self, name: str) -> SiteLike:
        """The model's."""
        return self.model.site(name)

    def batch_from_ids(self, rows: Sequence[Sequence[int]]) -> TokenBatch:
        """The model's."""
        return self.model.batch_from_ids(rows)

    def harvest(self, batch: TokenBatch, sites: Sequence[str]) -> dict[str, Tensor]:
        """``{site: [row, position, width]}`` of the whole batch, computed by all ranks together."""
        rows, count = batch.token_ids.shape[0], self.ranks.count
        each = -(-rows // count)
        # Rows lie sorted by length, so every count-th one is an equal share. A batch that does not divide is filled up
        # with its first rows, whose results are dropped.
        places = (torch.arange(each) * count + self.ranks.rank) % rows
        own = replace(
            batch,
            token_ids=batch.token_ids[places],
            attention_mask=batch.attention_mask[places],
            keep=batch.keep[places],
            offsets=None,
        )
        found: dict[str, Tensor] = {}
        for name, part in self.model.harvest(own, sites).items():
            found[name] = self.ranks.gathered(part).transpose(0, 1).flatten(0, 1)[:rows]
        return found


def shared(model: LanguageModel, ranks: Ranks) -> Harvestable:
    """The model itself in a run of one process, otherwise its part in :class:`SharedModel`."""
    return model if ranks.count == 1 else SharedModel(model, ranks)
