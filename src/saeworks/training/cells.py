"""The cells of a grid: which recipe, at which width and sparsity, from which seed; and which of them cannot be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from saeworks.activations.batches import Layout
from saeworks.errors import InputError
from saeworks.training.partitions import Delta
from saeworks.training.penalties import TargetL0
from saeworks.training.recipes import SELECTIONS_BY_K, Recipe


@dataclass(frozen=True)
class MemberConfig:
    """One cell of a grid.

    Attributes:
        recipe: how it is trained. width: number of latents.
        sparsity: what the recipe says it is: latents per token, the mean L0 aimed at, or a penalty's coefficient.
        seed: of the weights. learning_rate: highest rate of the schedule.
        source: the one source of a stream with several that this dictionary is trained on; None for all of them.
        target: the one target of a stream with several that a transcoder predicts.
    """

    recipe: Recipe
    width: int
    sparsity: float
    seed: int
    learning_rate: float
    source: str | None = None
    target: str | None = None

    @property
    def name(self) -> str:
        """Directory name of the dictionary."""
        letter = "l" if self.recipe.sparsity == "coefficient" else "k"
        place = f"_{self.source}" if self.source is not None else ""
        place += f"_to_{self.target}" if self.target is not None else ""
        return f"{self.recipe.name}_n{self.width}_{letter}{self.sparsity:g}_s{self.seed}{place}"

    def layout(self, stream: Layout) -> Layout:
        """The part of a stream's rows that this dictionary reads; ``InputError`` when it does not fit the recipe."""
        layout = replace(stream, d_out=self._d_out(stream), targets=None, target_widths=None)
        if self.source is not None:
            if stream.sources is None or self.source not in stream.sources:
                raise InputError(f"The stream has no source '{self.source}'; it has {', '.join(stream.sources or ())}.")
            layout = Layout(stream.widths[stream.sources.index(self.source)], d_out=layout.d_out)
        self._check_sparsity()
        self._check_inputs(layout)
        check_recipe(self.recipe)
        if self.recipe.across is not None and self.recipe.across.delta is not None:
            self._check_sets(self.recipe.across.delta)
        return layout

    def _d_out(self, stream: Layout) -> int | None:
        """Width of what is predicted: the stream's one target, or the one named of several."""
        if self.recipe.inputs != "target" or stream.targets is None:
            return stream.d_out if self.recipe.inputs == "target" else None
        if self.target not in stream.targets or stream.target_widths is None:
            raise InputError(f"The stream has no target '{self.target}'; it has {', '.join(stream.targets)}.")
        return stream.target_widths[stream.targets.index(self.target)]

    def _check_sparsity(self) -> None:
        recipe, number = self.recipe, self.sparsity
        if recipe.sparsity == "coefficient":
            if not number >= 0:
                raise InputError(f"The penalty of '{recipe.name}' must not be negative, but {number:g} was given.")
        elif not 0 < number < self.width:
            raise InputError(
                f"k must lie between 0 and the width, but k is {number:g} and the width {self.width}; "
                "lower --k or raise --width."
            )
        if recipe.selection in SELECTIONS_BY_K:
            recipe.activation(number)
        if recipe.selection == "groupmax" and self.width % int(number):
            raise InputError(
                f"'{recipe.name}' divides its latents into k groups of one size, but {number:g} does not divide "
                f"{self.width}; choose another --k or --width."
            )

    def _check_sets(self, delta: Delta) -> None:
        """Each of two sets of latents needs fewer of them per token than it has."""
        size = round(delta.latents * self.width)
        for latents, k in ((self.width - size, (1 - delta.k) * self.sparsity), (size, delta.k * self.sparsity)):
            if not 0 < k < latents:
                raise InputError(
                    f"'{self.recipe.name}' would select {k:g} of a set of {latents} latents per token; change the "
                    "shares of delta, --k or --width."
                )

    def _check_inputs(self, layout: Layout) -> None:
        recipe = self.recipe
        if recipe.inputs == "target":
            if layout.d_out is None:
                raise InputError(f"'{recipe.name}' predicts another site; name it with --target-site.")
            if recipe.pre_bias or recipe.input_op != "none":
                raise InputError(f"'{recipe.name}' predicts another site, so it takes neither pre_bias nor input_op.")
            if layout.sources is not None:
                raise InputError(f"'{recipe.name}' reads one site, but several came: {', '.join(layout.sources)}.")
        if recipe.inputs == "sources" and len(layout.sources or ()) < 2:
            raise InputError(f"'{recipe.name}' reads several sites side by side; give at least two, as --site A,B.")
        if recipe.input_op != "none" and (layout.sources is not None or recipe.normalization != "none"):
            raise InputError(
                f"'{recipe.name}' applies '{recipe.input_op}' to every token, which allows neither several sources nor "
                "a normalisation; use --normalization none."
            )
        if layout.d_in < 1:
            raise InputError(f"Activations must have a positive width, but {layout.d_in} was given.")


def check_recipe(recipe: Recipe) -> None:
    """Refuse parts of a recipe that do not go together."""
    by_k, nestable_k = recipe.selection in SELECTIONS_BY_K, recipe.selection in ("topk", "batch_topk")
    own = [penalty for penalty in recipe.penalties if penalty.coefficient is None]
    aims = recipe.control is not None or any(isinstance(penalty, TargetL0) for penalty in recipe.penalties)
    lp = recipe.lp
    refused = {
        "selects k latents, so what it asks for must be a k; leave sparsity at 'k'": by_k and recipe.sparsity != "k",
        "selects by no k; set sparsity to 'coefficient' or 'l0'": not by_k and recipe.sparsity == "k",
        "asks for a coefficient, but each of its penalties has one of its own": (
            recipe.sparsity == "coefficient" and not own
        ),
        "asks for an L0, but nothing aims at it; add a control, or TargetL0 to its penalties": (
            recipe.sparsity == "l0" and not aims
        ),
        "controls the weight of its penalties, but each of them has one of its own": (
            recipe.control is not None and not own
        ),
        "has no k that could fall during training; leave k_anneal out": (
            recipe.k_anneal is not None and not nestable_k
        ),
        "begins at a larger k and gives it no step to fall in; set the span of k_anneal, or leave it out": (
            recipe.k_anneal is not None and recipe.k_anneal.never
        ),
        "says twice at which k training begins; give k_max or times to k_anneal": (
            recipe.k_anneal is not None and recipe.k_anneal.k_max is not None and recipe.k_anneal.times is not None
        ),
        **_refused_across(recipe),
        "has no k of which a multiple could be selected; leave multi out": recipe.multi is not None and not nestable_k,
        "has both fixed and sampled prefixes; give group_fractions or prefixes": (
            recipe.prefixes is not None and len(recipe.group_fractions) > 1
        ),
        "resets the averages of Adam for resampled latents, and 'signum' has none; use optimizer 'adam'": (
            recipe.resampling is not None and recipe.optimizer == "signum"
        ),
        "resamples latents in the direction of inputs, which a dictionary of another site does not write; leave "
        "resampling out": recipe.resampling is not None and recipe.inputs == "target",
        "has an exponent that never falls, or not within (0, 1]; check start, end, begin and finish of Lp": (
            lp is not None and not (0 <= lp.begin < lp.finish <= 1 and 0 < lp.end <= lp.start <= 1)
        ),
        "takes the root of a sum over all latents, which nested prefixes would split; leave root or the prefixes out": (
            lp is not None and lp.root and (recipe.prefixes is not None or len(recipe.group_fractions) > 1)
        ),
    }
    for reason, wrong in refused.items():
        if wrong:
            raise InputError(f"'{recipe.name}' {reason}.")


def _refused_across(recipe: Recipe) -> dict[str, bool]:
    across, start = recipe.across, recipe.initialisation
    alone = recipe.inputs != "sources"
    refused = {
        "begins with the same rows for every source, and reads only one; choose other weights": (
            start.weights == "same" and alone
        )
    }
    if across is None:
        return refused
    sorting = recipe.reorder or recipe.resampling is not None or recipe.prefixes is not None
    return refused | {
        "divides its latents among sources, and reads only one; leave across out": alone,
        "divides its latents among sources, which must stay where they are; leave reorder, resampling and prefixes "
        "out": sorting or len(recipe.group_fractions) > 1,
        "divides its latents among sources, which needs decoder rows of free norm; set constraint to 'free'": (
            recipe.constraint != "free"
        ),
        "gives a share of its latents that is not within [0, 1]; check exclusive and tied": (
            not 0 <= across.exclusive <= 1 or not 0 <= across.tied <= 1
        ),
        "has tied latents, whose directions exist once and are not searched; set the scale of the start to 'none' or "
        "'matched'": across.tied > 0 and start.scale == "search",
        "mixes errors with a γ outside [-1, 0]; check cross": not -1 <= across.cross <= 0,
        "has two sets of latents with a k of their own, from which 'batch_topk' alone selects; leave delta out": (
            across.delta is not None and recipe.selection != "batch_topk"
        ),
        "adds the squared error of a difference to errors that are measured otherwise; measure errors squared": (
            across.delta is not None and recipe.reconstruction != "squared"
        ),
        "gives a share to the latents of the difference that is not within (0, 1), or a negative weight; check delta": (
            across.delta is not None
            and not (0 < across.delta.latents < 1 and 0 < across.delta.k < 1 and across.delta.weight >= 0)
        ),
        "mixes errors that are norms, which have no product; measure errors squared or normalized": (
            across.cross != 0 and recipe.reconstruction == "norm"
        ),
    }


def sampled_sizes(width: int, prefixes: int, draw: torch.Generator) -> tuple[int, ...]:
    """Sizes of the groups between ``prefixes`` prefixes of ``width`` latents, drawn with a preference for short ones.

    The last prefix is the whole; the others are drawn without replacement, of length j with a probability proportional
    to ``√j - √(j - 1)`` (toy model of arXiv 2503.17547).
    """
    edges = [0, width]
    count = min(prefixes, width) - 1
    if count > 0:
        j = torch.arange(1, width, dtype=torch.float32)
        chances = 1 / (j.sqrt() + (j - 1).sqrt())  # the same number, without the difference of two large ones
        edges += (torch.multinomial(chances, count, generator=draw) + 1).tolist()
    return tuple(after - before for before, after in pairwise(sorted(edges)))
