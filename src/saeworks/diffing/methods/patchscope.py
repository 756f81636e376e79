"""Patchscope: what a direction means to the model itself, by writing it into prompts that repeat a word.

At the last token of ``man -> man / 1135 -> 1135 / hello -> hello / ?`` the direction takes the place of the
activation; what the model then predicts is its word for it. Predictions that several prompts share are no accident of
one of them (arXiv 2510.13900, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.models.upper_layers import UpperLayers

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

PROMPTS = (
    "man -> man\n1135 -> 1135\nhello -> hello\n?",
    "bear -> bear\n42 -> 42\nblue -> blue\n?",
    "921 -> 921\nwas -> was\ntarget -> target\n?",
)
#: Multiples of the norm that the direction is given, 30 of them evenly on a logarithmic scale.
SCALES = tuple(round(0.5 * 400 ** (i / 29), 4) for i in range(30))


@dataclass(frozen=True, slots=True)
class Reading:
    """What a direction was read as.

    Attributes:
        scale: multiple of the norm that was chosen.
        score: of that scale, see :func:`scale_scores`.
        tokens: (token id, least probability over the prompts), the largest first.
    """

    scale: float
    score: float
    tokens: tuple[tuple[int, float], ...]


@torch.no_grad()
def patchscope(
    model: LanguageModel,
    site: str,
    direction: Tensor,
    norm: float,
    *,
    prompts: Sequence[str] = PROMPTS,
    scales: Sequence[float] = SCALES,
    top: int = 20,
    skip: int = 5,
) -> Reading:
    """What the model makes of ``direction [d]`` at a site, at the scale where its prompts agree most.

    Args:
        norm: length of a usual activation at the site, which scales are multiples of.
        prompts: texts that ask to repeat a word; the direction replaces their last token's activation.
        top: tokens to report.
        skip: earlier positions of a prompt are never written to; prompts must be longer.

    Raises:
        InputError: prompts that are too short, a direction of length 0, or a site at no layer's input or output.
    """
    length = float(direction.norm())
    if length == 0:
        raise InputError("A direction of length 0 has no meaning to be read; the two models do not differ there.")
    upper = UpperLayers(model, site)
    if not upper.direct:
        raise InputError(f"Patchscope writes into the residual stream, and '{site}' is no resid_pre or resid_post.")
    distributions: list[Tensor] = []
    for prompt in prompts:
        batch = model.tokenize([prompt], model.max_context or 4096)
        last = int(batch.attention_mask.sum()) - 1
        if last < skip:
            raise InputError(f"The prompt {prompt!r} is shorter than {skip + 1} tokens; give a longer one.")
        hidden = model.harvest(batch, [upper.cached_site])[upper.cached_site].float()
        # All scales go through the upper layers together, one per row.
        stacked = hidden.repeat(len(scales), 1, 1)
        unit = direction.to(stacked) / length
        stacked[:, last] = torch.tensor(scales).to(stacked)[:, None] * norm * unit
        rows = model.batch_from_ids(batch.token_ids.repeat(len(scales), 1).tolist())
        distributions.append(upper.logits(stacked, rows)[:, last].softmax(dim=-1).cpu())
    together = torch.stack(distributions, dim=1)
    scores = scale_scores(together)
    best = int(scores.argmax())
    agreed = together[best].amin(dim=0)
    values, tokens = agreed.topk(min(top, len(agreed)))
    return Reading(scales[best], float(scores[best]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


def scale_scores(distributions: Tensor) -> Tensor:
    """``[scale]``: how well the prompts agree on something definite; 1 when all are sure of the same token.

    The probability on which all prompts agree, ``Σ_t min_prompt p(t)``, times the share by which the entropy of their
    mean lies below that of the uniform distribution. This stands in for a reader who picks the scale by the words that
    come out, and is the same every time.

    Args:
        distributions: ``[scale, prompt, vocabulary]`` probabilities.
    """
    p = distributions.double()
    agreement = p.amin(dim=1).sum(dim=-1)
    mean = p.mean(dim=1)
    entropy = -torch.where(mean > 0, mean * mean.clamp_min(1e-300).log(), 0.0).sum(dim=-1)
    return agreement * (1 - entropy / math.log(p.shape[-1]))
