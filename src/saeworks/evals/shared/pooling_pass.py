"""One pass of the language model over some texts: means over tokens of activations and of any number of latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.errors import InputError
from saeworks.evals.shared.batches import (
    DictionaryLike,
    DocumentBatch,
    KeptActivations,
    chunks,
    harvest,
    to_dictionary,
)
from saeworks.evals.shared.pooled_rows import Rows
from saeworks.files import sha256_bytes
from saeworks.progress import progress
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

#: Texts that are tokenised together.
_WINDOW = 1024


@dataclass(frozen=True)
class TokenMask:
    """Which tokens of a text are averaged.

    ``name`` stands for the rule wherever pooled texts are kept: another rule needs another name. ``of`` gives
    [row, position] bool for a batch and its activations [row, position, d].
    """

    name: str
    of: Callable[[LanguageModel, DocumentBatch, Tensor], Tensor]


def _kept(model: LanguageModel, batch: DocumentBatch, activations: Tensor) -> Tensor:
    return batch.kept().to(activations.device)


#: All tokens but padding and special ones.
KEPT = TokenMask("kept", _kept)


@dataclass(frozen=True)
class TokenizedText:
    """A text as the model reads it. ``key`` is the content hash of ``ids`` and of which of them are kept."""

    key: bytes
    ids: list[int]
    document: Document
    index: int


def tokenized(model: LanguageModel, documents: Sequence[Document], context_length: int) -> list[TokenizedText]:
    """Every document cut at ``context_length`` tokens. ``InputError`` when none has a token to measure."""
    out, kept = list[TokenizedText](), 0
    for start in range(0, len(documents), _WINDOW):
        window = documents[start : start + _WINDOW]
        batch = model.tokenize([d.text for d in window], context_length).to("cpu")
        kept += int(batch.keep.sum())
        ids, keep = batch.token_ids.numpy(), batch.keep.numpy()
        for row, (document, length) in enumerate(zip(window, batch.attention_mask.sum(1).tolist(), strict=True)):
            key = bytes.fromhex(sha256_bytes(ids[row, :length].tobytes(), keep[row, :length].tobytes()))
            out.append(TokenizedText(key, ids[row, :length].tolist(), document, start + row))
    if not kept:
        raise InputError(
            "The data hold no text with a token to measure (every document is empty); check --data and --text-column."
        )
    return out


@dataclass(frozen=True)
class Wanted:
    """A dictionary, the site it reads, and which texts [text] bool it is to encode."""

    dictionary: DictionaryLike
    site: str
    texts: Tensor


@dataclass(frozen=True)
class ReadTexts:
    """Means over the averaged tokens, in the order of the texts that were read.

    ``activations``: site → [text, d]; ``tokens``: site → [text] int64, how many tokens are averaged; ``latents``:
    dictionary → the texts that it was to encode. A text without a token has rows of zeros.
    """

    activations: dict[str, Tensor]
    tokens: dict[str, Tensor]
    latents: dict[str, Rows]


@torch.no_grad()
def read_texts(
    model: LanguageModel,
    texts: Sequence[TokenizedText],
    sites: Sequence[str],
    dictionaries: Mapping[str, Wanted],
    batch_size: int,
    mask: TokenMask,
    description: str,
) -> ReadTexts:
    """Read every text once, up to the deepest site; every dictionary encodes every token that it wants once.

    Latents are means of codes, not codes of means. Raises ``InputError`` for activations that are not finite.
    """
    sums = {s: torch.zeros(len(texts), model.site(s).width) for s in sites}
    tokens = {s: torch.zeros(len(texts), dtype=torch.int64) for s in sites}
    parts: dict[str, list[Rows]] = {name: [] for name in dictionaries}
    # Similar lengths side by side: the forward pass then spends little on padding.
    order = sorted((i for i, text in enumerate(texts) if text.ids), key=lambda i: len(texts[i].ids))
    bar = progress(len(texts), description, unit="text")
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        chosen = [texts[i] for i in places]
        tokenised = model.batch_from_ids([text.ids for text in chosen])
        batch = DocumentBatch(tokenised, [text.document for text in chosen], [text.index for text in chosen])
        index = torch.tensor(places)
        for s, activations in harvest(model, batch, sites).items():
            averaged = mask.of(model, batch, activations)
            where = averaged.nonzero()
            kept = KeptActivations(activations[averaged], where[:, 0], where[:, 1])
            counts = averaged.sum(-1).cpu()
            tokens[s][index] = counts
            sums[s][index] = _row_sums(kept.x, kept.rows, len(index)).cpu()
            for name, wanted in dictionaries.items():
                if wanted.site == s:
                    parts[name].append(_encoded(wanted, kept, index, counts))
        bar.update(len(index))
    bar.close()
    return ReadTexts(
        {s: total / tokens[s].clamp_min(1)[:, None] for s, total in sums.items()},
        tokens,
        {name: _in_order(parts[name], wanted, order) for name, wanted in dictionaries.items()},
    )


def _encoded(wanted: Wanted, kept: KeptActivations, index: Tensor, counts: Tensor) -> Rows:
    """The mean latents of those texts of a batch that are wanted, in the order of the batch."""
    these = wanted.texts[index]
    width = int(wanted.dictionary.W_dec.shape[0])
    if not bool(these.any()):
        return Rows(width, torch.zeros(0, width))
    if not bool(these.all()):
        tokens = these.to(kept.rows.device)[kept.rows]
        kept = KeptActivations(kept.x[tokens], kept.rows[tokens], kept.positions[tokens])
    total = torch.zeros(len(index), width)
    for part in chunks(kept.rows, width):
        total += pooled_codes(wanted.dictionary, kept.x[part], kept.rows[part], len(index), width).cpu()
    return Rows.smallest((total / counts.clamp_min(1)[:, None])[these])


def _in_order(parts: Sequence[Rows], wanted: Wanted, order: Sequence[int]) -> Rows:
    """The rows of all batches, in the order of the texts; those that were not read (no tokens) are zeros."""
    width = int(wanted.dictionary.W_dec.shape[0])
    read = torch.tensor(order, dtype=torch.int64)
    read = read[wanted.texts[read]]
    empty = Rows(width, torch.zeros(0), torch.zeros(0, dtype=torch.int32), torch.zeros(2, dtype=torch.int64))
    place = torch.full((len(wanted.texts),), len(read))
    place[read] = torch.arange(len(read))
    return Rows.joined([*parts, empty], width).take(place[wanted.texts])


def pooled_codes(dictionary: DictionaryLike, x: Tensor, rows: Tensor, count: int, width: int) -> Tensor:
    """[row, latent] sums of the codes of each row of ``x`` [token, d]; ``rows`` [token] says whose each token is."""
    x = to_dictionary(x, dictionary)
    if not hasattr(dictionary, "encode_sparse"):
        return _row_sums(dictionary.encode(x).float(), rows, count)
    # Adding the nonzeros alone: a token has tens of them among thousands of latents.
    codes = cast("Codes", dictionary.encode_sparse(x))  # pyright: ignore[reportAttributeAccessIssue]
    flat = rows.to(codes.indices.device)[codes.rows()] * width + codes.indices
    out = torch.zeros(count * width, device=codes.values.device)
    return out.index_add_(0, flat, codes.values.float()).view(count, width)


def _row_sums(values: Tensor, rows: Tensor, count: int) -> Tensor:
    return values.new_zeros(count, values.shape[1]).index_add_(0, rows.to(values.device), values)
