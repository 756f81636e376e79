"""Pooled texts from which latents can be removed: what SCR, SHIFT and TPP read of the model, for all dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.config import InputOp
from saeworks.dictionaries.input_ops import apply_input_op
from saeworks.evals.compat.sparse_probing_compat import COUNTED
from saeworks.evals.probes.linear_probes import ProbeSettings
from saeworks.evals.shared.batches import DictionaryLike, fingerprint_of, to_dictionary
from saeworks.evals.shared.pooled_rows import Tables
from saeworks.evals.shared.pooling import TextPool
from saeworks.evals.shared.pooling_pass import KEPT
from saeworks.files import sha256_json
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel


@dataclass(frozen=True)
class AblatableTexts:
    """Means over kept tokens, float32 on the CPU.

    Attributes:
        tokens: [text] int64. sites: dictionary → site. activations: site → [text, d].
        latents: dictionary → [text, latent], in units in which latent i adds f_i d_i to an activation.
        ablatable: the same as an ablation subtracts it, which ``compat`` distorts.
        directions: dictionary → [latent, d], rows of ``W_dec``.
    """

    tokens: Tensor
    sites: Mapping[str, str]
    activations: Mapping[str, Tensor]
    latents: Mapping[str, Tensor]
    ablatable: Mapping[str, Tensor]
    directions: Mapping[str, Tensor]


def pool_ablatable(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    documents: Sequence[Document],
    settings: ProbeSettings,
    description: str,
    pool: TextPool,
) -> AblatableTexts:
    """Pool ``documents`` once for all dictionaries; those that ``pool`` has are not read again.

    ``compat`` averages the tokens that SAEBench does, and lets masked positions into the ablation. Raises
    ``InputError`` for dictionaries that do not fit the model and for activations that are not finite.
    """
    inner = in_units_of_activations(dictionaries)
    compat = settings.mode == "compat"
    pooled = pool.pool(
        inner,
        model,
        documents,
        settings.context_length,
        settings.batch_size,
        settings.site,
        description,
        COUNTED if compat else KEPT,
    )
    positions = min(settings.context_length, getattr(model, "max_context", None) or settings.context_length)
    directions = {name: d.W_dec.detach().float().cpu() for name, d in inner.items()}

    def distorted(name: str) -> Tensor:
        return with_masked_positions(pooled.latents[name], pooled.tokens, latents_at_zero(inner[name]), positions)

    ablatable = Tables({name: partial(distorted, name) for name in inner}) if compat else pooled.latents
    return AblatableTexts(pooled.tokens, pooled.sites, pooled.activations, pooled.latents, ablatable, directions)


def with_masked_positions(latents: Tensor, tokens: Tensor, at_zero: Tensor, positions: int) -> Tensor:
    """[text, latent]: what SAEBench's ablation takes for the mean of the latents over the kept tokens.

    It sums over all ``positions`` of the padded text, where activations of masked ones are 0, and divides by the number
    of kept ``tokens`` [text]: a latent that is active at x = 0 (``at_zero`` [latent]) counts at each masked position.
    """
    return latents + ((positions - tokens) / tokens.clamp_min(1))[:, None] * at_zero


def latents_at_zero(dictionary: DictionaryLike) -> Tensor:
    """[latent] float32: latents of an activation of zeros."""
    x = to_dictionary(torch.zeros(1, int(dictionary.W_dec.shape[-1])), dictionary)
    return dictionary.encode(x)[0].float().cpu()


class InUnitsOfActivations:
    """A dictionary that rescales every token (``input_op``), with latents that say what each adds to the activation.

    ``decode`` multiplies all that a token's latents give by the token's scale; here the scale is part of the latents,
    so that removing latent i from an activation removes f_i d_i for this dictionary as for any other.
    """

    def __init__(self, dictionary: DictionaryLike) -> None:
        self._dictionary = dictionary
        self.cfg, self.b_enc, self.b_dec = dictionary.cfg, dictionary.b_enc, dictionary.b_dec
        self.W_enc, self.W_dec = dictionary.W_enc, dictionary.W_dec
        self._op: InputOp = dictionary.cfg.input_op
        if hasattr(dictionary, "fingerprint"):
            # Without one, it is known by its identity alone, and so is this.
            self.fingerprint = partial(sha256_json, ["in units of activations", fingerprint_of(dictionary)])

    def encode(self, x: Tensor) -> Tensor:
        """[token, d] → [token, latent]."""
        return self._dictionary.encode(x) * apply_input_op(x, self._op)[2]

    def encode_sparse(self, x: Tensor) -> Codes:
        """[token, d] → codes."""
        codes = cast("Codes", cast("Any", self._dictionary).encode_sparse(x))
        return codes.with_values(codes.values * apply_input_op(x, self._op)[2].squeeze(1)[codes.rows()])

    def decode(self, f: Tensor) -> Tensor:
        """[token, latent] → [token, d], less what does not depend on the latents."""
        return f @ self.W_dec


def in_units_of_activations(dictionaries: Mapping[str, DictionaryLike]) -> dict[str, DictionaryLike]:
    """The same dictionaries, those that rescale their tokens as :class:`InUnitsOfActivations`."""
    return {
        name: d if getattr(d.cfg, "input_op", "none") == "none" else InUnitsOfActivations(d)
        for name, d in dictionaries.items()
    }
