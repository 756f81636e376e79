"""Clamping latents in closed form: which latents fire on what, which of them to clamp, and what the clamp adds.

Clamping means: wherever a chosen latent fires, set it to a negative value and keep what the dictionary does not
reconstruct. Since decoding is linear, the activation changes by Σ (new − old) d_i over the chosen latents that fire,
so that neither the encoder nor the decoder runs again, whatever the value and the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.input_ops import apply_input_op
from saeworks.evals.shared.batches import (
    DictionaryLike,
    chunks,
    document_batches,
    harvest,
    kept_activations,
    to_dictionary,
)
from saeworks.progress import progress
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel


@dataclass(frozen=True)
class Firing:
    """How often latents fire on some texts.

    Attributes:
        frequencies: dictionary → [draw, latent] float64: share of the kept tokens of each draw of texts.
        norms: site → mean norm of the activations of all kept tokens.
        tokens: [draw] kept tokens.
    """

    frequencies: dict[str, Tensor]
    norms: dict[str, float]
    tokens: Tensor


def firing(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    documents: Sequence[Document],
    draws: Tensor,
    sites: Mapping[str, str],
    signed: bool = True,
    context_length: int = 128,
    batch_size: int = 64,
    description: str = "firing frequencies",
) -> Firing:
    """Firing frequencies of every dictionary from one pass over the texts.

    Args:
        draws: [draw, document] weights: how often each draw holds each text.
        sites: dictionary → site.
        signed: count f ≠ 0 as firing; else f > 0.
    """
    unique = sorted(set(sites.values()))
    draws = draws.double()
    counts = {name: torch.zeros(len(draws), d.W_dec.shape[0], dtype=torch.float64) for name, d in dictionaries.items()}
    norms, tokens = dict.fromkeys(unique, 0.0), torch.zeros(len(draws), dtype=torch.float64)
    seen = 0
    bar = progress(len(documents), description, unit="text")
    with torch.no_grad():
        for batch in document_batches(model, documents, context_length, batch_size):
            weights = draws[:, batch.index]
            kept_tokens = batch.tokens.keep.sum(-1).cpu().double()
            tokens += weights @ kept_tokens
            seen += int(kept_tokens.sum())
            for site, activations in harvest(model, batch, unique).items():
                kept = kept_activations(activations, batch)
                norms[site] += float(kept.x.norm(dim=-1).double().sum())
                for name, dictionary in dictionaries.items():
                    if sites[name] != site:
                        continue
                    for part in chunks(kept.rows, counts[name].shape[1]):
                        fired = fired_per_row(dictionary, kept.x[part], kept.rows[part], len(batch.index), signed)
                        counts[name] += weights @ fired.cpu().double()
            bar.update(len(batch.index))
    bar.close()
    shares = {name: count / tokens.clamp_min(1.0)[:, None] for name, count in counts.items()}
    return Firing(shares, {site: total / max(seen, 1) for site, total in norms.items()}, tokens)


def codes_of(dictionary: DictionaryLike, x: Tensor, signed: bool = True) -> Codes:
    """Codes of ``x`` [token, d]: the latents that are not zero, or only the positive ones."""
    x = to_dictionary(x, dictionary)
    if hasattr(dictionary, "encode_sparse"):
        return cast("Codes", dictionary.encode_sparse(x))  # pyright: ignore[reportAttributeAccessIssue]
    f = dictionary.encode(x)
    return Codes.from_mask(f, f != 0 if signed else f > 0)


def fired_per_row(dictionary: DictionaryLike, x: Tensor, rows: Tensor, count: int, signed: bool = True) -> Tensor:
    """[row, latent] number of tokens of each row on which each latent fires; ``rows`` [token] are below ``count``."""
    codes = codes_of(dictionary, x, signed)
    flat = rows.to(codes.indices.device)[codes.rows()] * codes.width + codes.indices
    return torch.bincount(flat, minlength=count * codes.width).view(count, codes.width)


def rounded_frequencies(frequencies: Tensor) -> Tensor:
    """Frequencies as they come back from a text file with six decimals: below 5e-7 they are 0."""
    return (frequencies.double() * 1e6).round() / 1e6


def choose_latents(forget: Tensor, retain: Tensor, threshold: float, count: int) -> Tensor:
    """[chosen] int64: the at most ``count`` latents that fire most on the texts to forget.

    Args:
        forget, retain: [latent] firing frequencies on the texts to forget and on the others.
        threshold: latents with a ``retain`` frequency of this or more are left out.

    Latents that never fire on the texts to forget are left out too. Of equals, the one that fires less on the other
    texts comes first, then the lower number.
    """
    order = retain.argsort(stable=True)
    order = order[forget[order].argsort(descending=True, stable=True)]
    usable = (retain[order] < threshold) & (forget[order] > 0)
    return order[usable][:count]


def clamp_shift(f: Tensor, directions: Tensor, size: Tensor | float, signed: bool = False) -> Tensor:
    """What clamping adds to the activation, [..., d].

    Args:
        f: [..., chosen] values of the chosen latents.
        directions: [chosen, d] their decoder rows.
        size: [chosen] or one number ≥ 0: a latent that fires becomes ``-size``.
        signed: a negative latent fires too, and becomes ``+size``; else only f > 0 is clamped.
    """
    size = torch.as_tensor(size, dtype=f.dtype, device=f.device)
    fires = f != 0 if signed else f > 0
    return torch.where(fires, -size * f.sign() - f, 0.0) @ directions


def input_scale(dictionary: DictionaryLike, x: Tensor) -> Tensor | float:
    """[token, 1] factor by which a dictionary that rescales every token scales its output; 1 for all others."""
    op: Any = getattr(dictionary.cfg, "input_op", "none")
    return 1.0 if op == "none" else apply_input_op(to_dictionary(x, dictionary), op)[2]


def clamp_sizes(directions: Tensor, multiplier: float, scale: float | None = None) -> Tensor:
    """[chosen] sizes of a clamp by ``multiplier``.

    Args:
        directions: [chosen, d] decoder rows.
        scale: None: the multiplier itself, in the units of the latents. Else ``multiplier · scale`` is the length by
            which a latent of that size moves the activation, whatever the norm of its row.
    """
    if scale is None:
        return torch.full((len(directions),), multiplier, dtype=directions.dtype, device=directions.device)
    return multiplier * scale / directions.norm(dim=-1).clamp_min(1e-12)
