"""Which way a step is computed: on the entries that take part, or on dense matrices.

The results are the same up to rounding, so the choice is one of time alone. A ReLU, JumpReLU or gated dictionary begins
with half of its latents active, where dense matrices are faster; the first block of every batch tells, after a small
share of one product, and nothing is remembered from step to step.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.training import dense, divided, sparse
from saeworks.training.dense import Parameters
from saeworks.training.entries import TooDense
from saeworks.training.moment import Moment
from saeworks.training.recipes import Recipe

# Share of all entries up to which the way along the entries is faster; docs/performance.md has the measurement.
DENSEST = 0.13


def select(recipe: Recipe, p: Parameters, x: Tensor, moment: Moment, widths: tuple[int, ...]) -> Codes:
    """The active latents of ``x [token, d_in]`` by the selection of training."""
    return _faster(recipe, moment).select(recipe, p, x, moment, widths)


def losses(
    recipe: Recipe, p: Parameters, x: Tensor, y: Tensor, moment: Moment, widths: tuple[int, ...]
) -> tuple[dict[str, Tensor], Codes]:
    """Loss terms by name and the active latents; see :func:`saeworks.training.dense.losses`."""
    path = _faster(recipe, moment)
    if path is not sparse:
        return path.losses(recipe, p, x, y, moment, widths)
    try:
        return sparse.losses(recipe, p, x, y, moment, widths, DENSEST)
    except TooDense:
        return dense.losses(recipe, p, x, y, moment, widths)


def _faster(recipe: Recipe, moment: Moment) -> ModuleType:
    """Where the recipe is computed when few latents are active."""
    path = sparse if moment.division.by is None else divided
    return path if path.covers(recipe) else dense
