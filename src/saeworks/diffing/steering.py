"""Steering: add a latent's direction to the chat model while it writes, and put the answers side by side.

The direction is the latent's decoder row in the model that is steered, as long as the latent's largest activation makes
it; a strength of 1 writes what the latent writes where it is strongest. BOS is left alone: all later tokens attend to
it, and whatever is written there breaks the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from saeworks.diffing.conversations import turn_end
from saeworks.diffing.transcripts import Message
from saeworks.errors import InputError
from saeworks.models.interventions import Where

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.models.language_model import LanguageModel

#: Multiples of the largest activation (arXiv 2504.02922's toolkit uses these).
STRENGTHS = (-0.5, 0.5, 1.0, 1.5)
Extent = Literal["all", "prompt", "last"]


@dataclass(frozen=True, slots=True, eq=False)
class Push:
    """An intervention that adds ``vector [d]`` to every token but the first of a prompt.

    With ``extent`` ``"prompt"`` new tokens are left alone, with ``"last"`` all tokens but the last one of the prompt,
    where the reply is decided. Prompts go one at a time, or are of one length: the first position of a row has to be
    its beginning, and the last one its end.
    """

    site: str
    vector: Tensor
    extent: Extent = "all"
    where: Where = "all"

    def check(self, width: int) -> None:
        """``InputError`` unless the vector is ``[width]``."""
        if tuple(self.vector.shape) != (width,):
            shape = list(self.vector.shape)
            raise InputError(f"A direction of shape {shape} cannot steer '{self.site}' of width {width}.")

    def edit(self, x: Tensor) -> Tensor:
        """``x`` with the vector added; a pass over one token is one that writes."""
        if x.shape[1] == 1:
            return x + self.vector.to(x) if self.extent == "all" else x
        kept = x.shape[1] - 1 if self.extent == "last" else 1
        return torch.cat([x[:, :kept], x[:, kept:] + self.vector.to(x)], dim=1)


@dataclass(frozen=True, slots=True)
class Project:
    """An intervention that takes ``direction [d]`` (of norm 1) out of all tokens but the first of a prompt.

    What lies along it is set to ``level``, that of the typical token, not to 0.
    """

    site: str
    direction: Tensor
    level: float = 0.0
    where: Where = "all"

    def check(self, width: int) -> None:
        """``InputError`` unless the direction is ``[width]``."""
        if tuple(self.direction.shape) != (width,):
            raise InputError(f"A direction of shape {list(self.direction.shape)} does not fit '{self.site}'.")

    def edit(self, x: Tensor) -> Tensor:
        """``x`` without its part along the direction."""
        unit = self.direction.to(x)
        out = x - ((x @ unit) - self.level)[..., None] * unit
        return out if x.shape[1] == 1 else torch.cat([x[:, :1], out[:, 1:]], dim=1)


@dataclass(frozen=True, slots=True)
class Steered:
    """One request, answered as the model is and with a latent pushed by several strengths."""

    request: str
    plain: str
    by_strength: dict[float, str]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        steered = [{"strength": s, "reply": text} for s, text in self.by_strength.items()]
        return {"request": self.request, "plain": self.plain, "steered": steered}


def vector_of(dictionary: Dictionary, latent: int, largest: float, source: int = 1) -> Tensor:
    """``[d]``: what a latent writes into one source where it is strongest.

    Args:
        largest: the latent's largest strength ``v = f Σ_m |d^m|``, as examples and tables have it.
    """
    norms = dictionary.decoder_norms()[:, latent]
    return dictionary.source(source)[1][latent].float() * (largest / float(norms.sum()))


@torch.no_grad()
def replies(
    model: LanguageModel,
    requests: Sequence[Sequence[Message]],
    interventions: Sequence[Any] = (),
    max_new_tokens: int = 48,
) -> list[str]:
    """The greedy answer to each request; requests of one length go together, so that no row is padded."""
    prompts = [model.chat_prompt(turns) for turns in requests]
    if not prompts:
        return []
    limit = model.max_context or 1_000_000
    lengths = model.tokenize(prompts, limit).attention_mask.sum(dim=1).tolist()
    out = [""] * len(prompts)
    stop = turn_end(model)
    for length in sorted(set(lengths)):
        chosen = [i for i, n in enumerate(lengths) if n == length]
        room = min(max_new_tokens, limit - length)
        if room < 1:
            continue
        found = model.generate([prompts[i] for i in chosen], room, interventions, stop=stop)
        for i, text in zip(chosen, found, strict=True):
            out[i] = text.strip()
    return out


def steer(
    model: LanguageModel,
    site: str,
    vector: Tensor,
    requests: Sequence[Sequence[Message]],
    strengths: Sequence[float] = STRENGTHS,
    where: Extent = "all",
    max_new_tokens: int = 48,
    plain: Sequence[str] | None = None,
) -> list[Steered]:
    """Answers to requests with and without a direction.

    Args:
        vector: ``[d]``, see :func:`vector_of`. strengths: its multiples.
        plain: the answers without, where they are known.
        where: push while the answer is written too (``all``), only where the request is read (``prompt``), or only at
            the last token of it (``last``).

    Raises:
        InputError: no request, or a vector of another width than the site.
    """
    if not requests:
        raise InputError("Steering needs a request to answer, but none was given.")
    plain = plain or replies(model, requests, (), max_new_tokens)
    pushed = {s: replies(model, requests, [Push(site, vector * s, where)], max_new_tokens) for s in strengths}
    return [
        Steered(requests[i][-1]["content"], plain[i], {s: texts[i] for s, texts in pushed.items()})
        for i in range(len(requests))
    ]
