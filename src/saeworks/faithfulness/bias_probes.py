"""Linear probes: is a template group's tendency to YES readable from activations before any reasoning is written?

Every question carries the label B of its group, the mean share of YES that :mod:`saeworks.faithfulness.criterion`
computes, and a ridge regression predicts it from the activations at one token of the prompt (arXiv 2503.08679, probes
for the template bias). Groups of a held-out property are predicted, never those that were seen in training; see
:mod:`saeworks.faithfulness.probe_splits`.

The error is the fraction of variance unexplained (FVU): the mean over held-out groups of the squared error, divided by
the variance of B over all groups. Below 1 the probe knows more than the overall mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.faithfulness.criterion import Scored
from saeworks.faithfulness.probe_splits import (
    Fold,
    ProbeSettings,
    Template,
    baseline,
    family,
    shuffled,
    split_families,
)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What probes said of one template group when its family was held out.

    Attributes:
        property_id, comparison: the group. family: what was held out. bias: its B. questions: how many it has.
        mean, sd: of the predictions for its questions. error: their mean squared error.
    """

    property_id: str
    comparison: str
    family: str
    bias: float
    questions: int
    mean: float
    sd: float
    error: float


@dataclass(frozen=True, slots=True)
class BiasProbe:
    """One set of activations.

    Attributes:
        name: of the activations, site and position. fvu: see the module.
        fvu_shuffled: median with permuted labels, None without permutations.
        p: share of permutations whose FVU is as low. p_best: share of those in which the lowest FVU of all sets that
            were probed together is as low; use it when the best of several is picked. None without permutations.
        groups: one entry per template group. penalties: the penalty chosen in each fold.
    """

    name: str
    fvu: float
    fvu_shuffled: float | None
    p: float | None
    p_best: float | None
    groups: tuple[HeldOut, ...]
    penalties: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BiasProbes:
    """Probes on several sets of activations, with what they are compared with.

    Attributes:
        probes: in the order given. fvu_mean: FVU of the mean B of the training groups. fvu_comparison: of the mean B
            of the training groups with the same comparison; a probe above it knows at most *more* from *less*.
        variance: of B over the groups. templates, families, questions: how many. left_out: questions without a label.
    """

    probes: tuple[BiasProbe, ...]
    fvu_mean: float
    fvu_comparison: float
    variance: float
    templates: int
    families: int
    questions: int
    left_out: int = 0

    @property
    def best(self) -> BiasProbe:
        """The probe with the lowest FVU; judge it by ``p_best``."""
        return min(self.probes, key=lambda probe: probe.fvu)


def template_biases(scored: Scored, model: str) -> dict[Template, float]:
    """B of every scored template group of one model.

    Raises:
        InputError: the model has no scored group.
    """
    found = {(g.property_id, g.comparison): g.bias for g in scored.of(model) if g.scored and g.bias is not None}
    if not found:
        named = ", ".join(f"'{name}'" for name in scored.models)
        raise InputError(f"No template group of the model '{model}' is scored; there are answers of {named or 'none'}.")
    return dict[Template, float](found)


def probe_biases(
    activations: Mapping[str, Tensor],
    templates: Sequence[Template],
    biases: Mapping[Template, float],
    settings: ProbeSettings | None = None,
) -> BiasProbes:
    """Predict B from activations, on families that the probe has not seen.

    Every group weighs the same in fitting and testing. Features are centred and scaled by the training questions. The
    penalty is chosen by cross-validation over the training families, then the probe is fitted on all of them. For the
    control whole families trade their labels with others of the same wordings and comparisons, and everything, the
    choice of the penalty too, is done again; so a difference between *more* and *less* alone is no evidence.

    Args:
        activations: name → ``[question, width]``. templates: property and comparison of each question.
        biases: B of the groups, see :func:`template_biases`; questions of other groups are left out.

    Raises:
        InputError: shapes that do not fit, numbers that are not finite, too few properties, or equal labels.
    """
    chosen = settings or ProbeSettings()
    rows = [i for i, template in enumerate(templates) if template in biases]
    _check(activations, len(templates), rows)
    groups = sorted({templates[i] for i in rows})
    families = sorted({family(name) for name, _ in groups})
    folds = split_families(len(families), chosen)
    labels = torch.tensor([biases[group] for group in groups], dtype=torch.float64)
    if not bool(((labels >= 0) & (labels <= 1)).all()):
        raise InputError("A group's bias is a share of YES; give numbers between 0 and 1.")
    variance = float(labels.var(correction=0))
    if variance < 1e-12:
        raise InputError("All template groups lean alike, so there is nothing to predict; give answers that differ.")
    place = {group: number for number, group in enumerate(groups)}
    layout = _Layout(
        group_of=torch.tensor([place[templates[i]] for i in rows]),
        family_of=torch.tensor([families.index(family(name)) for name, _ in groups]),
        labels=torch.stack([labels, *(shuffled(labels, groups, chosen.seed, i) for i in range(chosen.shuffles))], 1),
    )
    errors: list[Tensor] = []
    kept: list[tuple[Tensor, tuple[float, ...]]] = []
    for values in activations.values():
        predicted, penalties = _predict(values[rows].double(), layout, folds, chosen)
        errors.append(layout.group_mean((predicted - layout.of_questions()) ** 2))
        kept.append((predicted[:, 0], penalties))
    fvu = torch.stack([error.mean(dim=0) / variance for error in errors])
    lowest = fvu[:, 1:].min(dim=0).values
    probes: list[BiasProbe] = []
    for number, name in enumerate(activations):
        control, own = fvu[number, 1:], float(fvu[number, 0])
        told = _held_out(groups, families, layout, kept[number][0], errors[number][:, 0])
        p, p_best = (_share_as_low(values, own) for values in (control, lowest))
        middle = float(control.median()) if len(control) else None
        probes.append(BiasProbe(name, own, middle, p, p_best, told, kept[number][1]))
    plain, compared = (baseline(labels, groups, layout.family_of, folds, by) for by in (False, True))
    return BiasProbes(
        tuple(probes),
        plain / variance,
        compared / variance,
        variance,
        len(groups),
        len(families),
        len(rows),
        len(templates) - len(rows),
    )


def _check(activations: Mapping[str, Tensor], questions: int, rows: Sequence[int]) -> None:
    if not activations:
        raise InputError("There are no activations to probe; give those of at least one site and position.")
    if not rows:
        raise InputError("None of the questions belongs to a template group with a bias; give answers to these.")
    for name, values in activations.items():
        if values.ndim != 2 or values.shape[0] != questions or not values.shape[1]:
            raise InputError(
                f"The activations '{name}' have the shape {list(values.shape)}; give one row for each of the "
                f"{questions} questions."
            )
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"The activations '{name}' hold numbers that are not finite; harvest in float32.")


@dataclass(frozen=True)
class _Layout:
    """``group_of`` [question], ``family_of`` [group], ``labels`` [group, labelling]: the true one, then shuffled."""

    group_of: Tensor
    family_of: Tensor
    labels: Tensor
    sizes: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", torch.bincount(self.group_of, minlength=len(self.labels)).double())

    def of_questions(self) -> Tensor:
        """Labels ``[question, labelling]``."""
        return self.labels[self.group_of]

    def group_mean(self, values: Tensor) -> Tensor:
        """Mean over the questions of each group: ``[question, …]`` to ``[group, …]``."""
        return torch.zeros_like(self.labels).index_add_(0, self.group_of, values) / self.sizes[:, None]

    def rows(self, families: Sequence[int]) -> Tensor:
        """Places of the questions of these families."""
        return torch.isin(self.family_of[self.group_of], torch.tensor(families)).nonzero()[:, 0]


def _predict(
    x: Tensor, layout: _Layout, folds: Sequence[Fold], chosen: ProbeSettings
) -> tuple[Tensor, tuple[float, ...]]:
    """Held-out predictions ``[question, labelling]``, and the penalties chosen for the true labels."""
    y = layout.of_questions()
    weight = 1 / layout.sizes[layout.group_of]
    predicted = torch.zeros_like(y)
    penalties: list[float] = []
    for fold in folds:
        losses = torch.zeros(len(chosen.penalties), y.shape[1], dtype=y.dtype)
        for fitted, aside in fold.inner:
            fit, held = layout.rows(fitted), layout.rows(aside)
            path = ridge_path(x[fit], y[fit], weight[fit], x[held], chosen.penalties)
            losses += ((path - y[held]) ** 2 * weight[held, None]).sum(dim=1)
        best = losses.argmin(dim=0)
        train, test = layout.rows(fold.train), layout.rows(fold.test)
        path = ridge_path(x[train], y[train], weight[train], x[test], chosen.penalties)
        predicted[test] = path.gather(0, best.expand(1, len(test), -1))[0]
        penalties.append(chosen.penalties[int(best[0])])
    return predicted, tuple(penalties)


def ridge_path(x: Tensor, y: Tensor, weight: Tensor, other: Tensor, penalties: Sequence[float]) -> Tensor:
    """Predictions of weighted ridge regressions for the rows of ``other``: ``[penalty, row, labelling]``.

    Args:
        x: ``[question, width]`` float64. y: ``[question, labelling]``. weight: ``[question]``. other: ``[row, width]``.
        penalties: times the mean non-zero eigenvalue of the weighted covariance; the intercept is not penalised.
    """
    weight = weight / weight.sum()
    centre, mean = weight @ x, weight @ y
    spread = (weight @ (x - centre) ** 2).sqrt()
    # A feature that does not vary in training says nothing; dividing by its rounding error would make it loud.
    scale = torch.where(spread > 1e-5 * centre.abs(), 1 / spread, torch.zeros_like(spread))
    root = weight.sqrt()[:, None]
    a, b, z = (x - centre) * scale * root, (y - mean) * root, (other - centre) * scale
    if len(a) > a.shape[1]:
        values, vectors = torch.linalg.eigh(a.T @ a)
        left, right = z @ vectors, vectors.T @ (a.T @ b)
    else:
        values, vectors = torch.linalg.eigh(a @ a.T)
        left, right = z @ (a.T @ vectors), vectors.T @ b
    values = values.clamp_min(0)
    unit = float(values.sum()) / min(a.shape)
    if unit == 0:
        return mean.expand(len(penalties), len(other), -1)
    return torch.stack([(left / (values + penalty * unit)) @ right + mean for penalty in penalties])


def _share_as_low(control: Tensor, own: float) -> float | None:
    # Activations that say nothing give the same FVU with any labels, up to rounding.
    return (1 + int((control <= own + 1e-9).sum())) / (1 + len(control)) if len(control) else None


def _held_out(
    groups: Sequence[Template], families: Sequence[str], layout: _Layout, predicted: Tensor, errors: Tensor
) -> tuple[HeldOut, ...]:
    found: list[HeldOut] = []
    for place, (name, comparison) in enumerate(groups):
        own = predicted[layout.group_of == place]
        kind = families[int(layout.family_of[place])]
        told = (float(own.mean()), float(own.std(correction=0)), float(errors[place]))
        found.append(HeldOut(name, comparison, kind, float(layout.labels[place, 0]), len(own), *told))
    return tuple(found)
