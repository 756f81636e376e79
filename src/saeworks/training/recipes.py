"""Recipes: named compositions of selection, objective, constraint and schedule. A new architecture is a new entry here.

Sources: ReLU with resampling "Towards Monosemanticity" (2023); its April 2024 update; gated arXiv 2404.16014; JumpReLU
arXiv 2407.14435; TopK arXiv 2406.04093; BatchTopK arXiv 2412.06410; Matryoshka arXiv 2503.17547; p-annealing arXiv
2408.00113; GroupMax and transcoders: sparsify; crosscoders: Lindsey et al. 2024 and arXiv 2504.02922.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from saeworks.dictionaries.activation import BatchTopK, GroupMax, TopK
from saeworks.dictionaries.config import InputOp
from saeworks.errors import InputError, did_you_mean
from saeworks.training.controllers import L0Control
from saeworks.training.initialisation import Initialisation
from saeworks.training.partitions import Across
from saeworks.training.penalties import L1, Lp, Penalty, TargetL0
from saeworks.training.resampling import Resampling
from saeworks.training.schedules import KAnneal, Schedule, Timing, scaled_learning_rate

Selection = Literal["relu", "gated", "jumprelu", "topk", "batch_topk", "groupmax"]
SELECTIONS_BY_K = ("topk", "batch_topk", "groupmax")


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
class MultiTopK:
    """A second reconstruction from ``factor · k`` latents with a small ``weight`` (arXiv 2406.04093, section 5.3)."""

    factor: int = 4
    weight: float = 1 / 8


@dataclass(frozen=True)
class Jump:
    """The learned threshold of a JumpReLU.

    Attributes:
        bandwidth: width of the window in which the threshold has a gradient, in the units of the pre-activations.
        threshold: where it begins.
        relative: both are multiples of the root mean square of the first pre-activations instead.
        everywhere: send the gradient of the jump to all parameters (Anthropic, January 2025).
        rate: factor on the learning rate of the threshold.
    """

    bandwidth: float = 1e-3
    threshold: float = 1e-3
    relative: bool = False
    everywhere: bool = False
    rate: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How one kind of dictionary is trained. The defaults are those of the TopK family.

    Attributes:
        name: what ``--recipe`` takes.
        selection: which pre-activations become latents during training.
        group_fractions: sizes of the nested groups as fractions of the width; ``(1.0,)`` for a plain dictionary.
        aux_k: the auxiliary term, None for none.
        betas, epsilon: of Adam. clip_norm: bound on the global gradient norm; None for none.
        normalization: convention of the input scale, folded into the weights when a dictionary is exported. Sources
            have a scale each, but for ``shared``: one for all, of mean square norm 1 on average over the sources.
        sparsity: what the number in the grid means: ``k`` selected latents, a mean L0 aimed at, or the ``coefficient``
            of the penalties that have none of their own.
        grid: published values of that coefficient, used when none is given.
        inputs: ``same``: reconstruct the input. ``target``: predict another site. ``sources``: several side by side.
        penalties: sparsity terms beside the reconstruction.
        control: adapt the coefficient until the L0 is the one aimed at; None keeps it fixed.
        reconstruction: ``normalized``: squared error over the variance of the batch. ``squared``: mean over tokens of
            the squared error. ``norm``: mean over tokens and sources of the error's norm, not squared.
        prefixes: draw so many nested prefixes per step instead of fixed groups (toy model of arXiv 2503.17547).
        prefix_sum: add the errors of nested prefixes up instead of averaging them.
        reorder: keep latents sorted by how much they write, so that prefixes hold the strongest.
        multi: a second reconstruction from more latents.
        constraint: ``unit``: decoder rows of norm 1, gradients projected. ``free``: none.
        norm_weighted: select by scores ``z_i |W_dec_i|`` instead of ``z_i``. score_norms: of several sources, by the
            ``sum`` of their norms or by the ``joint`` norm over all of them.
        across: how a crosscoder divides its latents among its sources; None for no rule.
        pre_bias: subtract ``b_dec`` from the input before encoding. skip: add ``x W_skip`` to the output.
        input_op: operation on every token; see ``DictionaryConfig``.
        jump: threshold of ``jumprelu``.
        initialisation, timing, k_anneal, resampling: see the values.
        optimizer: ``adam`` or ``signum`` (sign of the gradient with schedule-free averaging, as in sparsify).
        weight_average: decay of a moving average of the weights that is exported in their place; None for none.
        learning_rate: published rate, None for the default of the width; by_width: scaled by ``1 / sqrt(n / 2^14)``.
        dead_after: tokens without firing after which a latent is dead; None for the trainer's rule.
    """

    name: str
    selection: Selection
    group_fractions: tuple[float, ...] = (1.0,)
    aux_k: AuxK | None = field(default_factory=AuxK)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    normalization: Literal["unit_msn", "sqrt_d", "none", "shared"] = "unit_msn"
    sparsity: Literal["k", "l0", "coefficient"] = "k"
    grid: tuple[float, ...] = ()
    inputs: Literal["same", "target", "sources"] = "same"
    penalties: tuple[Penalty, ...] = ()
    control: L0Control | None = None
    reconstruction: Literal["normalized", "squared", "norm"] = "normalized"
    prefixes: int | None = None
    prefix_sum: bool = False
    reorder: bool = False
    multi: MultiTopK | None = None
    constraint: Literal["unit", "free"] = "unit"
    norm_weighted: bool = False
    score_norms: Literal["sum", "joint"] = "sum"
    across: Across | None = None
    pre_bias: bool = True
    skip: bool = False
    input_op: InputOp = "none"
    jump: Jump = field(default_factory=Jump)
    initialisation: Initialisation = field(default_factory=Initialisation)
    timing: Timing = field(default_factory=Timing)
    k_anneal: KAnneal | None = None
    resampling: Resampling | None = None
    optimizer: Literal["adam", "signum"] = "adam"
    epsilon: float = 1e-8
    weight_average: float | None = None
    learning_rate: float | None = None
    by_width: bool = False
    dead_after: int | None = None

    def activation(self, k: float) -> TopK | BatchTopK | GroupMax:
        """The selection of training for ``k`` latents per token; for the recipes that have a k."""
        if self.selection == "batch_topk":
            return BatchTopK(k)
        if k != int(k):
            raise InputError(f"'{self.name}' needs a whole k, but {k} was given; 'batch_topk' takes fractions.")
        return TopK(int(k)) if self.selection == "topk" else GroupMax(int(k))

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

    def schedule(self, steps: int) -> Schedule:
        """Learning rate and warm-ups of a run of ``steps`` steps."""
        if self.resampling is None:
            return Schedule.for_run(steps, self.timing)
        return Schedule.for_run(steps, self.timing, *self.resampling.events(steps))

    def published_rate(self, width: int) -> float | None:
        """The learning rate of the source for ``width`` latents; None where the recipe names none."""
        rate = self.learning_rate
        return scaled_learning_rate(rate, width) if rate is not None and self.by_width else rate

    @property
    def cross(self) -> float:
        """Weight of twice the product of two sources' errors."""
        return self.across.cross if self.across is not None else 0.0

    @property
    def lp(self) -> Lp | None:
        """The penalty whose exponent falls, if there is one."""
        return next((p for p in self.penalties if isinstance(p, Lp)), None)


# The paper's prefixes {2048, 6144, 14336, 30720, 65536} of 65,536 latents, as fractions of the width.
NESTED = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2 + 1 / 32)
# Coefficients of SAEBench's suite for activations of mean square norm 1 and squared errors (arXiv 2503.09532).
SUITE_L1 = (0.012, 0.015, 0.02, 0.03, 0.04, 0.06)
SUITE_GATED = (0.012, 0.018, 0.024, 0.04, 0.06, 0.08)
SUITE_P_ANNEAL = (0.006, 0.008, 0.01, 0.015, 0.02, 0.025)

_TOPK = Recipe("topk", selection="topk")
_BATCH_TOPK = Recipe("batch_topk", selection="batch_topk")
_PENALISED: dict[str, Any] = {"aux_k": None, "reconstruction": "squared", "sparsity": "coefficient"}
_RELU = Recipe("relu", "relu", penalties=(L1(),), grid=SUITE_L1, resampling=Resampling(), **_PENALISED)
_FREE: dict[str, Any] = {"constraint": "free", "pre_bias": False, "initialisation": Initialisation(row_norm=0.1)}
_APRIL = replace(_RELU, name="relu_april", penalties=(L1(norms="sum"),), resampling=None, **_FREE)
_JUMPRELU = replace(
    Recipe("jumprelu", "jumprelu", penalties=(TargetL0(),), betas=(0.0, 0.999), **_PENALISED), sparsity="l0"
)
# A penalty over the same prefixes as the errors, its weight steered to the L0 aimed at. The source begins at 0.2 with
# inputs of norm √d; with inputs of norm 1 that is 0.2 / √d.
_MATRYOSHKA_RELU = replace(
    _APRIL,
    name="matryoshka_relu",
    group_fractions=NESTED,
    sparsity="l0",
    grid=(),
    control=L0Control(initial=0.02),
)
_TRANSCODER = replace(
    _TOPK,
    name="transcoder",
    inputs="target",
    constraint="free",
    pre_bias=False,
    initialisation=Initialisation(weights="zero", scale="none", b_dec="mean", b_enc="centred"),
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _TOPK,
        _BATCH_TOPK,
        replace(_BATCH_TOPK, name="matryoshka_batch_topk", group_fractions=NESTED),
        replace(_BATCH_TOPK, name="matryoshka_batch_topk_sampled", prefixes=10),
        _RELU,
        _APRIL,
        # The gate learns through the penalty and a reconstruction of its own, with the decoder held still.
        replace(_RELU, name="gated", selection="gated", grid=SUITE_GATED, betas=(0.0, 0.999), resampling=None),
        _JUMPRELU,
        replace(_RELU, name="p_anneal", penalties=(Lp(),), grid=SUITE_P_ANNEAL, resampling=None),
        _MATRYOSHKA_RELU,
        # Prefixes drawn anew at every step; latents are kept in order of what they write, as in the source.
        replace(
            _MATRYOSHKA_RELU,
            name="matryoshka_relu_sampled",
            group_fractions=(1.0,),
            prefixes=10,
            reorder=True,
        ),
        replace(_TOPK, name="groupmax", selection="groupmax"),
        _TRANSCODER,
        replace(_TRANSCODER, name="skip_transcoder", skip=True),
        replace(_APRIL, name="crosscoder_l1", inputs="sources"),
        replace(_BATCH_TOPK, name="crosscoder_batch_topk", inputs="sources", norm_weighted=True, **_FREE),
        replace(_JUMPRELU, name="crosscoder_jumprelu", inputs="sources", pre_bias=False),
    )
}


def recipe(name: str, /, **changes: Any) -> Recipe:
    """The recipe or published preset called ``name``, with some of its fields replaced."""
    from saeworks.training.catalogue import preset_recipes

    known = {**RECIPES, **preset_recipes()}
    if name not in known:
        raise InputError(f"There is no recipe '{name}'.{did_you_mean(name, known)}")
    return replace(known[name], **changes)
