"""Rows of activations out of a language model: one harvest batch at a time, masked, checked and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from saeworks.activations.batches import ActivationBatch, Layout
from saeworks.activations.contexts import ContextBatch, ContextReader, Cursor, Tokenizing
from saeworks.activations.texts import TextSource
from saeworks.errors import InputError
from saeworks.models.tokens import TokenBatch


class SiteLike(Protocol):
    """What harvesting needs to know of a resolved site."""

    @property
    def name(self) -> str:
        """Canonical name."""
        ...

    @property
    def width(self) -> int:
        """Floats per token."""
        ...


class Harvestable(Tokenizing, Protocol):
    """The part of a ``LanguageModel`` that harvesting needs."""

    name: str
    device: torch.device

    def fingerprint(self) -> str:
        """Digest of the weights."""
        ...

    def site(self, name: str) -> SiteLike:
        """Resolve a site."""
        ...

    def harvest(self, batch: TokenBatch, sites: Sequence[str]) -> dict[str, Tensor]:
        """``{site: [row, position, width]}``."""
        ...


@dataclass
class HarvestStatistics:
    """Positions and rows counted since the start of a stream.

    Attributes:
        positions: positions that went through the language model, padding included.
        padding: positions that were padding.
        special: positions of special tokens (BOS, EOS, …), dropped.
        outliers: rows dropped because their norm exceeded ``max_norm_ratio`` × the median of their harvest batch.
        tokens: rows that were kept.
        epochs: complete passes over the source.
    """

    positions: int = 0
    padding: int = 0
    special: int = 0
    outliers: int = 0
    tokens: int = 0
    epochs: int = 0


class Harvester:
    """Turns a source into activation rows, batch by batch, and knows its place.

    Args:
        site: name of a site, or several: their activations at one token then lie side by side (see ``Layout``).
        target: name of another site, whose activations become the targets; of several, they lie side by side.
        max_norm_ratio: drop rows whose Euclidean norm exceeds this many times the median norm of their harvest batch
            (10 removes attention sinks at unpredictable positions); None keeps all.

    Raises:
        InputError: unknown site, impossible context length, ratio not above 1.
    """

    def __init__(
        self,
        model: Harvestable,
        source: TextSource,
        site: str | Sequence[str],
        context_length: int,
        batch_rows: int,
        seed: int,
        max_norm_ratio: float | None,
        prefetch: bool = True,
        target: str | Sequence[str] | None = None,
    ) -> None:
        if max_norm_ratio is not None and not max_norm_ratio > 1:
            raise InputError(f"max_norm_ratio is {max_norm_ratio}; it must be above 1 (10 is usual), or None.")
        self.model, self.source, self.context_length = model, source, context_length
        several = not isinstance(site, str)
        resolved = [model.site(name) for name in (site if several else (site,))]
        self.sites = tuple(place.name for place in resolved)
        if not resolved or len(set(self.sites)) != len(resolved):
            raise InputError(f"Sites that differ were expected, but these came: {', '.join(self.sites) or 'none'}.")
        self.site = "+".join(self.sites)
        several_targets = target is not None and not isinstance(target, str)
        wanted = () if target is None else target if several_targets else (str(target),)
        aims = [model.site(name) for name in wanted]
        self.targets = tuple(place.name for place in aims)
        if len(set(self.targets)) != len(aims):
            raise InputError(f"Target sites that differ were expected, but these came: {', '.join(self.targets)}.")
        widths = tuple(place.width for place in resolved)
        self.width = sum(widths)
        self.layout = Layout(
            self.width,
            sources=self.sites if several else None,
            source_widths=widths if len(set(widths)) > 1 else None,
            d_out=sum(place.width for place in aims) if aims else None,
            targets=self.targets if several_targets else None,
            target_widths=tuple(place.width for place in aims) if several_targets else None,
        )
        self.max_norm_ratio = max_norm_ratio
        self.statistics = HarvestStatistics()
        self._reader = ContextReader(model, source, context_length, batch_rows, seed=seed, prefetch=prefetch)

    @property
    def cursor(self) -> Cursor:
        """The place after the batch that came last."""
        return self._reader.cursor

    def batches(self, epochs: int | None = None) -> Iterator[ActivationBatch]:
        """Yield the kept rows of one harvest batch after another, on the model's device, in the model's dtype.

        Raises:
            InputError: non-finite activations (document and token are named), or a pass that keeps no row.
        """
        empty_since: int | None = None
        for context in self._reader.batches(epochs):
            rows = self._rows(context)
            self.statistics.epochs = context.after.epoch
            if len(rows):
                empty_since = None
                yield rows
                # Not to hold these rows while the next ones are computed.
                del rows
                continue
            # One whole pass from here without a single row means that there will never be one.
            empty_since = self._reader.cursor.epoch if empty_since is None else empty_since
            if self._reader.cursor.epoch > empty_since + 1:
                raise InputError(
                    f"The text '{self.source.name}' gave no usable token in a whole pass: every token is special or "
                    "was dropped; check the text and max_norm_ratio."
                )

    def state_dict(self) -> dict[str, Any]:
        """Place and counts."""
        return {"cursor": asdict(self.cursor), "statistics": asdict(self.statistics)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place; iterators handed out before are void."""
        self._reader.cursor = Cursor(**state["cursor"])
        self.statistics = HarvestStatistics(**state["statistics"])

    def _rows(self, context: ContextBatch) -> ActivationBatch:
        tokens = context.tokens
        keep = tokens.keep
        wanted = list(dict.fromkeys((*self.sites, *self.targets)))
        taken = {name: rows[keep.to(rows.device)] for name, rows in self.model.harvest(tokens, wanted).items()}
        parts = [taken[name] for name in self.sites]
        if self.layout.sources is None:
            activations = parts[0]
        else:
            activations = torch.cat(parts, dim=1) if self.layout.source_widths else torch.stack(parts, dim=1)
        row, position = keep.nonzero(as_tuple=True)
        batch = ActivationBatch(
            activations=activations,
            token_ids=tokens.token_ids[keep],
            document_ids=context.document_ids[row],
            positions=context.starts[row] + position - context.prefix,
            targets=torch.cat([taken[name] for name in self.targets], dim=1) if self.targets else None,
        )
        counts = self.statistics
        counts.positions += keep.numel()
        counts.padding += int((~tokens.attention_mask).sum())
        counts.special += int((tokens.attention_mask & ~keep).sum())
        batch = self._checked(batch)
        counts.tokens += len(batch)
        return batch

    def _checked(self, batch: ActivationBatch) -> ActivationBatch:
        """Refuse non-finite rows, drop rows of outlying norm."""
        if not len(batch):
            return batch
        # A norm is finite only if all entries are: one pass over the rows serves both rules.
        norms = torch.linalg.vector_norm(batch.activations.flatten(1), dim=1, dtype=torch.float32)
        finite = norms.isfinite().all()
        if batch.targets is not None:
            finite = finite & torch.linalg.vector_norm(batch.targets, dim=1, dtype=torch.float32).isfinite().all()
        if not bool(finite):
            self._refuse_non_finite(batch)
        if self.max_norm_ratio is None:
            return batch
        fits = norms <= self.max_norm_ratio * norms.median()
        dropped = int((~fits).sum())
        if not dropped:
            return batch
        self.statistics.outliers += dropped
        on_host = fits.cpu()
        return ActivationBatch(
            batch.activations[fits],
            batch.token_ids[on_host],
            batch.document_ids[on_host],
            batch.positions[on_host],
            None if batch.targets is None else batch.targets[fits],
        )

    def _refuse_non_finite(self, batch: ActivationBatch) -> None:
        bad, where = ~batch.activations.flatten(1).isfinite().all(dim=1), self.site
        if batch.targets is not None and not bool(bad.any()):
            bad, where = ~batch.targets.isfinite().all(dim=1), "+".join(self.targets)
        if not bool(bad.any()):  # finite entries whose squares overflow
            return
        first = int(bad.nonzero()[0])
        token = int(batch.token_ids[first])
        text = self.model.tokenizer.decode([token])
        raise InputError(
            f"{int(bad.sum())} activations at '{where}' are not finite; the first belongs to document "
            f"{int(batch.document_ids[first])} of '{self.source.name}', token {int(batch.positions[first])} ({text!r}, "
            f"id {token}). Load the model with dtype float32, or check its weights."
        )
