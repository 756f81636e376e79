"""Which next tokens a latent speaks for: its direction in each model through the final norm and the unembedding.

A direction is read as if it were all that the last layer left: ``logits(d) − logits(0)``. The first layer above the
site may turn it, so this tells of latents that write what is said next, and little of those that only inform later
layers; steering tells of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.models.upper_layers import UpperLayers

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.models.language_model import LanguageModel

# Directions that go through the unembedding at a time.
ROWS = 256


@dataclass(frozen=True, slots=True)
class LogitEffects:
    """What a latent does to the next token in one model.

    Attributes:
        promoted, suppressed: (token id, its logit against the mean of all) in falling order of size.
        weak: whether the direction is so short in this model (under 5 % of the other's) that its effect means nothing.
    """

    promoted: tuple[tuple[int, float], ...]
    suppressed: tuple[tuple[int, float], ...]
    weak: bool = False

    def as_json(self, tokenizer: Any) -> dict[str, Any]:
        """Plain values with the text of each token."""
        return {
            "promoted": [[str(tokenizer.decode([t])), round(v, 3)] for t, v in self.promoted],
            "suppressed": [[str(tokenizer.decode([t])), round(v, 3)] for t, v in self.suppressed],
            "weak": self.weak,
        }


@torch.no_grad()
def direction_logits(model: LanguageModel, directions: Tensor) -> Tensor:
    """``[direction, vocabulary]`` float32: what ``directions [direction, d]`` add to the logits, centred per row.

    Raises:
        InputError: directions of another width than the model's residual stream, or a model without a head.
    """
    if directions.dim() != 2 or directions.shape[1] != model.d_model:
        raise InputError(
            f"Directions of shape {list(directions.shape)} do not fit the residual stream of '{model.name}', "
            f"whose width is {model.d_model}."
        )
    # Above the last layer there is only the final norm and the unembedding.
    top = UpperLayers(model, f"layers.{model.n_layers - 1}.resid_post")
    parts: list[Tensor] = []
    for part in directions.to(model.device, torch.float32).split(ROWS):
        hidden = torch.cat([torch.zeros_like(part[:1]), part])[:, None]
        logits = top.logits(hidden, model.batch_from_ids([[0]] * len(hidden)))[:, 0]
        effect = logits[1:] - logits[:1]
        parts.append((effect - effect.mean(dim=1, keepdim=True)).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, 0)


def logit_effects(
    models: Sequence[LanguageModel], dictionary: Dictionary, latents: Sequence[int], count: int = 8
) -> list[tuple[LogitEffects, ...]]:
    """For each latent one :class:`LogitEffects` per model, of its direction in that model's source.

    Raises:
        InputError: a number of models other than that of sources.
    """
    if len(models) != len(dictionary.cfg.widths):
        raise InputError(f"{len(models)} models came for a dictionary with {len(dictionary.cfg.widths)} sources.")
    index = torch.as_tensor(list(latents), dtype=torch.int64)
    norms = dictionary.decoder_norms()[:, index].cpu()
    strongest = norms.amax(dim=0)
    per_model: list[list[LogitEffects]] = []
    for m, model in enumerate(models):
        effects = direction_logits(model, dictionary.source(m)[1][index])
        per_model.append([_ends(row, count, bool(norms[m, i] < 0.05 * strongest[i])) for i, row in enumerate(effects)])
    return list(zip(*per_model, strict=True))


def _ends(row: Tensor, count: int, weak: bool) -> LogitEffects:
    count = min(count, len(row))
    high, low = row.topk(count), row.topk(count, largest=False)
    return LogitEffects(
        tuple(zip(high.indices.tolist(), high.values.tolist(), strict=True)),
        tuple(zip(low.indices.tolist(), low.values.tolist(), strict=True)),
        weak,
    )
