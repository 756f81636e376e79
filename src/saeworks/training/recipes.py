"""Recipes: named compositions of activation function, objective, constraint and schedule.

A new architecture is a new entry here, not a new class. Sources: TopK arXiv 2406.04093; BatchTopK arXiv 2412.06410;
Matryoshka BatchTopK arXiv 2503.17547.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from saeworks.dictionaries.activation import BatchTopK, TopK
from saeworks.errors import InputError, did_you_mean


@dataclass(frozen=True)
class AuxK:
    """Revive dead latents by letting them explain the residual (arXiv 2406.04093, appendix A.2).

    Attributes:
        coefficient: weight relative to the normalised reconstruction error.
        k: latents per token that take part; None means half of the input width.
    """

    coefficient: float = 1 / 32
    k: int | None = None


@dataclass(frozen=True)
class Recipe:
    """How one kind of dictionary is trained.

    Attributes:
        name: what ``--recipe`` takes.
        selection: which pre-activations become latents during training.
        group_fractions: sizes of the nested groups as fractions of the width; ``(1.0,)`` for a plain dictionary. The
            reconstruction error is the mean over the prefixes these groups form, so that its scale stays comparable.
        aux_k: the auxiliary term, None for none.
        betas: Adam's decay rates. clip_norm: bound on the global gradient norm.
        normalization: convention of the input scale, folded into the weights when a dictionary is exported.
    """

    name: str
    selection: Literal["topk", "batch_topk"]
    group_fractions: tuple[float, ...] = (1.0,)
    aux_k: AuxK | None = field(default_factory=AuxK)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    normalization: Literal["unit_msn", "sqrt_d", "none"] = "unit_msn"

    def activation(self, k: float) -> TopK | BatchTopK:
        """The activation function of training for ``k`` latents per token."""
        if self.selection == "topk":
            if k != int(k):
                raise InputError(f"'{self.name}' needs a whole k, but {k} was given; 'batch_topk' takes fractions.")
            return TopK(int(k))
        return BatchTopK(k)

    def group_sizes(self, width: int) -> tuple[int, ...]:
        """Sizes of the nested groups for ``width`` latents, the remainder in the last."""
        sizes = [int(fraction * width) for fraction in self.group_fractions[:-1]]
        sizes.append(width - sum(sizes))
        if min(sizes) < 1:
            raise InputError(
                f"'{self.name}' divides its latents into {len(sizes)} nested groups, and {width} latents are too few; "
                f"use a width of at least {round(1 / min(self.group_fractions))}."
            )
        return tuple(sizes)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("topk", selection="topk"),
        Recipe("batch_topk", selection="batch_topk"),
        # The paper's prefixes {2048, 6144, 14336, 30720, 65536} of 65,536 latents, as fractions of the width.
        Recipe(
            "matryoshka_batch_topk",
            selection="batch_topk",
            group_fractions=(1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2 + 1 / 32),
        ),
    )
}


def recipe(name: str, /, **changes: Any) -> Recipe:
    """The recipe called ``name``, with some of its fields replaced."""
    from dataclasses import replace

    if name not in RECIPES:
        raise InputError(f"There is no recipe '{name}'.{did_you_mean(name, RECIPES)}")
    return replace(RECIPES[name], **changes)
