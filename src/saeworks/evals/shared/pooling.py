"""One vector per text: activations and latents averaged over the kept tokens, harvested once for all dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.evals.shared.batches import (
    DictionaryLike,
    DocumentBatch,
    KeptActivations,
    chunks,
    document_batches,
    harvest,
    sites_of,
    to_dictionary,
)
from saeworks.progress import progress
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel


@dataclass(frozen=True)
class PooledTexts:
    """Means over kept tokens, float32 on the CPU.

    ``activations``: site → [text, d]; ``latents``: dictionary → [text, latent]; ``tokens`` [text] int64 counts kept
    tokens (the fewest of any site). A text without any has 0 tokens and rows of zeros: leave it out.
    """

    activations: dict[str, Tensor]
    latents: dict[str, Tensor]
    tokens: Tensor
    sites: dict[str, str] = field(default_factory=dict[str, str])


def pool_texts(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    documents: Sequence[Document],
    context_length: int = 128,
    batch_size: int = 64,
    site: str | None = None,
    description: str = "pooling",
    counted: Callable[[DocumentBatch, Tensor], Tensor] | None = None,
) -> PooledTexts:
    """Encode every kept token, then average: latents [text, latent] are means of codes, not codes of means.

    ``counted`` maps a batch and its activations [row, position, d] to a mask [row, position] that says which tokens to
    average in place of the kept ones.

    Raises ``InputError`` for widths that do not fit and activations that are not finite.
    """
    sites = sites_of(dictionaries, model, site)
    unique = sorted(set(sites.values()))
    sums = {s: torch.zeros(len(documents), model.site(s).width) for s in unique}
    latents = {n: torch.zeros(len(documents), int(d.W_dec.shape[0])) for n, d in dictionaries.items()}
    tokens = {s: torch.zeros(len(documents), dtype=torch.int64) for s in unique}
    bar = progress(len(documents), description, unit="text")
    with torch.no_grad():
        for batch in document_batches(model, documents, context_length, batch_size):
            index = torch.tensor(batch.index)
            for s, activations in harvest(model, batch, unique).items():
                mask = batch.kept().to(activations.device) if counted is None else counted(batch, activations)
                where = mask.nonzero()
                kept = KeptActivations(activations[mask], where[:, 0], where[:, 1])
                tokens[s][index] = mask.sum(-1).cpu()
                sums[s][index] = _row_sums(kept.x, kept.rows, len(index)).cpu()
                for name, dictionary in dictionaries.items():
                    if sites[name] != s:
                        continue
                    width = latents[name].shape[1]
                    for part in chunks(kept.rows, width):
                        pooled = _pooled_codes(dictionary, kept.x[part], kept.rows[part], len(index), width)
                        latents[name].index_add_(0, index, pooled.cpu())
            bar.update(len(index))
    bar.close()
    counts = {s: n.clamp_min(1)[:, None] for s, n in tokens.items()}
    return PooledTexts(
        {s: total / counts[s] for s, total in sums.items()},
        {name: total / counts[sites[name]] for name, total in latents.items()},
        torch.stack(list(tokens.values())).amin(0),
        sites,
    )


def _row_sums(values: Tensor, rows: Tensor, count: int) -> Tensor:
    return values.new_zeros(count, values.shape[1]).index_add_(0, rows.to(values.device), values)


def _pooled_codes(dictionary: DictionaryLike, x: Tensor, rows: Tensor, count: int, width: int) -> Tensor:
    """[row, latent] sums of the codes of each row."""
    x = to_dictionary(x, dictionary)
    if not hasattr(dictionary, "encode_sparse"):
        return _row_sums(dictionary.encode(x).float(), rows, count)
    # Adding the nonzeros alone: a token has tens of them among thousands of latents.
    codes = cast("Codes", dictionary.encode_sparse(x))  # pyright: ignore[reportAttributeAccessIssue]
    flat = rows.to(codes.indices.device)[codes.rows()] * width + codes.indices
    out = torch.zeros(count * width, device=codes.values.device)
    return out.index_add_(0, flat, codes.values.float()).view(count, width)


def without_repeats(train: Iterable[Document], test: Iterable[Document]) -> tuple[list[Document], list[Document], int]:
    """Drop test documents whose text is also a training text; returns (train, test, number dropped)."""
    train, test = list(train), list(test)
    known = {d.text for d in train}
    kept = [d for d in test if d.text not in known]
    return train, kept, len(test) - len(kept)
