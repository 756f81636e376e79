"""Two language models over the same tokens: texts as they are, and transcripts in the chat model's template.

Each batch of rows goes through both models up to the site and no further. Rows of both come from one mask and are
checked against each other, so that no pair can slip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from saeworks.activations.batches import Layout
from saeworks.activations.contexts import ContextBatch, ContextReader, Cursor
from saeworks.activations.harvest import HarvestStatistics
from saeworks.activations.texts import TextSource
from saeworks.diffing.paired_batches import CHAT, SOURCES, TEXTS, PairedBatch, check_alignment, cut
from saeworks.diffing.tokenizers import check_models
from saeworks.diffing.transcripts import MarkedWindow, TranscriptReader, check_template
from saeworks.errors import InputError
from saeworks.files import sha256_json
from saeworks.models.language_model import LanguageModel
from saeworks.models.tokens import TokenBatch


@dataclass(frozen=True, slots=True)
class PairedContext:
    """Rows of tokens for both models.

    Attributes:
        tokens: what the chat model reads; base_tokens: what the base reads, other ids only where tokens are replaced.
        keep: ``[row, position]`` bool, positions that count: no padding, no BOS, and of special tokens only those of
            the template.
        is_template: ``[row, position]`` bool. answer_index: ``[row, position]`` int64; see :class:`PairedBatch`.
        sequence_ids: ``[row]`` int64.
        data_set: which data set of the mix.
    """

    tokens: TokenBatch
    base_tokens: TokenBatch
    keep: Tensor
    is_template: Tensor
    answer_index: Tensor
    sequence_ids: Tensor
    data_set: str


class ModelPair:
    """A base and a chat model at one site; a :class:`PairedSource`.

    Data sets take turns so that each gives the same number of tokens, whole batches at a time.

    Args:
        base, chat: the models, loaded once by the caller; the same object twice is the null test.
        site: name of a site of both, or one name for each.
        texts: read by both models as they are; None for none.
        transcripts: rendered by the chat model's template, see ``open_transcripts``; None for none.
        context_length: tokens per row at most, special tokens included.
        batch_rows: rows per forward pass.
        seed: of the order of batches.
        max_norm_ratio: drop tokens whose norm exceeds this many times the batch's median in either model (2 in arXiv
            2602.11729); None keeps all.
        skip_first: positions at the start of every row that are read but do not count.
        token_replacement: ids that the base reads in place of others, such as markers that it was never trained on.
        prefetch: tokenise ahead in a second thread.

    Attributes:
        models: base and chat. sites: canonical names. widths: of the sources. layout: of a row, for streams.
        statistics: positions and rows of everything that was harvested.

    Raises:
        InputError: tokenizers that differ, a base whose vocabulary lacks tokens of the chat model, models of another
            dtype, no chat template where transcripts are given, no data, or an unknown site. Models of different width
            are fine: their sources are then of different width.
    """

    def __init__(
        self,
        base: LanguageModel,
        chat: LanguageModel,
        site: str | tuple[str, str],
        texts: TextSource | None = None,
        transcripts: TextSource | None = None,
        *,
        context_length: int = 128,
        batch_rows: int = 32,
        seed: int = 0,
        max_norm_ratio: float | None = None,
        skip_first: int = 0,
        token_replacement: Mapping[int, int] | None = None,
        prefetch: bool = False,
    ) -> None:
        self.token_replacement = dict(token_replacement or {})
        check_models(base, chat, self.token_replacement)
        if texts is None and transcripts is None:
            raise InputError("A pair of models was given nothing to read; give texts, transcripts, or both.")
        if max_norm_ratio is not None and not max_norm_ratio > 1:
            raise InputError(f"max_norm_ratio is {max_norm_ratio}; it must be above 1 (2 is usual), or None.")
        if skip_first < 0:
            raise InputError(f"skip_first is {skip_first}; it is a number of positions, 0 or more.")
        if transcripts is not None:
            check_template(chat.tokenizer)
        self.models = (base, chat)
        names = (site, site) if isinstance(site, str) else site
        places = [model.site(name) for model, name in zip(self.models, names, strict=True)]
        self.sites = tuple(place.name for place in places)
        self.widths = tuple(place.width for place in places)
        self.layout = Layout(
            sum(self.widths), SOURCES, source_widths=self.widths if len(set(self.widths)) > 1 else None
        )
        self.sources = {name: s for name, s in ((TEXTS, texts), (CHAT, transcripts)) if s is not None}
        self.context_length, self.batch_rows, self.seed = context_length, batch_rows, seed
        self.max_norm_ratio, self.skip_first, self.prefetch = max_norm_ratio, skip_first, prefetch
        self.statistics = HarvestStatistics()

    @property
    def site(self) -> str:
        """The site, or both of them."""
        return self.sites[0] if len(set(self.sites)) == 1 else "+".join(self.sites)

    def fingerprint(self) -> str:
        """Digest of models, data and all settings that change a row."""
        return sha256_json(
            [
                "model pair",
                [model.fingerprint() for model in self.models],
                {name: source.fingerprint() for name, source in self.sources.items()},
                [*self.sites, self.context_length, self.batch_rows, self.seed, self.max_norm_ratio, self.skip_first],
                sorted(self.token_replacement.items()),
            ]
        )

    def batches(self, tokens: int | None = None) -> Iterator[PairedBatch]:
        """One pass over all data sets from their beginning, cut to ``tokens`` rows.

        Raises:
            InputError: no ``tokens`` with a data set that never ends, such as the embedded world; activations that are
                not finite.
        """
        return cut((self.harvest(context) for context in self.contexts(tokens)), tokens)

    def contexts(self, tokens: int | None = None) -> Iterator[PairedContext]:
        """The rows of tokens of one pass, in order; at least so many that ``tokens`` positions count."""
        endless = [source.name for source in self.sources.values() if source.size is None and _is_world(source)]
        if tokens is None and endless:
            raise InputError(f"'{endless[0]}' never ends; say how many tokens of paired activations are wanted.")
        left = tokens
        for context in Turns(self, epochs=1).contexts():
            yield context
            if left is not None:
                left -= int(context.keep.sum())
                if left <= 0:
                    return

    def harvest(self, context: PairedContext) -> PairedBatch:
        """The activations of both models at the positions that count, checked and counted.

        Raises:
            InputError: activations that are not finite, or rows that are not of the same tokens.
        """
        keep = context.keep
        row, position = keep.nonzero(as_tuple=True)
        base, chat = self.models
        once = base is chat and context.base_tokens is context.tokens and len(set(self.sites)) == 1
        x = [self._rows(1, context.tokens, keep)]
        x = [x[0], x[0]] if once else [self._rows(0, context.base_tokens, keep), *x]
        read = replaced(context.tokens.token_ids, self.token_replacement)[keep]
        check_alignment({"token_ids": context.base_tokens.token_ids[keep]}, {"token_ids": read})
        batch = PairedBatch(
            (x[0], x[1]),
            token_ids=context.tokens.token_ids[keep],
            sequence_ids=context.sequence_ids[row],
            positions=position,
            is_template=context.is_template[keep],
            answer_index=context.answer_index[keep],
            data_set=context.data_set,
        )
        mask, counts = context.tokens.attention_mask, self.statistics
        counts.positions += keep.numel()
        counts.padding += int((~mask).sum())
        counts.special += int((mask & ~keep).sum())
        batch = self._without_outliers(batch)
        counts.tokens += len(batch)
        return batch

    def marked(self, found: ContextBatch, data_set: str) -> PairedContext:
        """Rows of tokens as they were read, with what has to be known of every position."""
        tokens = found.tokens
        template = torch.zeros_like(tokens.attention_mask)
        answers = torch.full(tokens.token_ids.shape, -1)
        for row, window in enumerate(found.windows):
            if isinstance(window, MarkedWindow):
                template[row, : len(window.is_template)] = torch.tensor(window.is_template)
                answers[row, : len(window.answer_index)] = torch.tensor(window.answer_index)
        keep = tokens.attention_mask & (tokens.keep | template)
        keep[:, : self.skip_first] = False
        ids = replaced(tokens.token_ids, self.token_replacement)
        order = list(self.sources)
        return PairedContext(
            tokens,
            tokens if torch.equal(ids, tokens.token_ids) else replace(tokens, token_ids=ids),
            keep,
            template,
            answers,
            found.document_ids * len(order) + order.index(data_set),
            data_set,
        )

    def _rows(self, source: int, tokens: TokenBatch, keep: Tensor) -> Tensor:
        """``[token, d]`` float32 of one model, on the chat model's device."""
        site, model = self.sites[source], self.models[source]
        rows = model.harvest(tokens, [site])[site]
        if rows.shape[:2] != keep.shape:
            raise InputError(
                f"The {SOURCES[source]} model gave activations of {list(rows.shape[:2])} rows and positions for "
                f"{list(keep.shape)} tokens; the sources would slip against each other."
            )
        found = rows[keep.to(rows.device)].float().to(self.models[1].device)
        bad = ~found.isfinite().all(dim=1)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            text = model.tokenizer.decode([int(tokens.token_ids[keep][first])])
            raise InputError(
                f"{int(bad.sum())} activations of the {SOURCES[source]} model at '{site}' are not finite, the first at "
                f"the token {text!r}; load the model with dtype float32, or check its weights."
            )
        return found

    def _without_outliers(self, batch: PairedBatch) -> PairedBatch:
        if self.max_norm_ratio is None or not len(batch):
            return batch
        fits = torch.ones(len(batch), dtype=torch.bool)
        for part in batch.x:
            norms = part.norm(dim=1)
            fits &= (norms <= self.max_norm_ratio * norms.median()).cpu()
        self.statistics.outliers += int((~fits).sum())
        return batch[fits]


class Turns:
    """Reads the data sets of a pair in turns, resumable at any batch.

    Args:
        pair: whose data sets. epochs: passes over each of them; None for no end. In a single pass a data set that ends
            leaves its turns to the others.
    """

    def __init__(self, pair: ModelPair, epochs: int | None) -> None:
        self.pair, self.epochs = pair, epochs
        kinds = {TEXTS: ContextReader, CHAT: TranscriptReader}
        self._readers: dict[str, ContextReader] = {
            name: kinds[name](
                pair.models[1],
                source,
                pair.context_length,
                pair.batch_rows,
                seed=pair.seed,
                prefetch=pair.prefetch,
            )
            for name, source in pair.sources.items()
        }
        self._given = dict.fromkeys(self._readers, 0)

    def contexts(self) -> Iterator[PairedContext]:
        """The rows of tokens from the present place on."""
        reading = {name: reader.batches(self.epochs) for name, reader in self._readers.items()}
        while reading:
            name = min(reading, key=lambda one: self._given[one])
            found = next(reading[name], None)
            if found is None:
                del reading[name]
                continue
            context = self.pair.marked(found, name)
            # A batch of which nothing counts has had its turn too: else nobody else would ever have one.
            self._given[name] += int(context.keep.sum()) or int(context.tokens.attention_mask.sum())
            self.pair.statistics.epochs = min(reader.cursor.epoch for reader in self._readers.values())
            yield context

    def state_dict(self) -> dict[str, Any]:
        """Place in every data set, and the tokens that each has given."""
        cursors = {name: asdict(reader.cursor) for name, reader in self._readers.items()}
        return {"cursors": cursors, "given": dict(self._given)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place; iterators handed out before are void."""
        for name, reader in self._readers.items():
            reader.cursor = Cursor(**state["cursors"][name])
            self._given[name] = int(state["given"][name])


def replaced(token_ids: Tensor, replacement: Mapping[int, int]) -> Tensor:
    """``token_ids`` with every key of ``replacement`` turned into its value."""
    out = token_ids
    for old, new in replacement.items():
        out = torch.where(token_ids == old, new, out)
    return out


def _is_world(source: TextSource) -> bool:
    return type(source).__name__ == "WorldTexts"
