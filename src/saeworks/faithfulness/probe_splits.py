"""How linear probes for a template group's tendency are split and controlled: always by whole families of properties.

All questions of a group share one label, so a split by questions would be won by recognising the group, and one by
groups by recognising the property. A *family* is a property with both comparisons and all its wordings and negations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.runtime import generator

Template = tuple[str, str]
# Times the mean eigenvalue of the covariance. The largest ones leave hardly more than the mean of the training labels.
PENALTIES = tuple(10.0**power for power in range(-3, 5))


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How probes are fitted.

    Attributes:
        folds: parts that the families are dealt into, each held out once; None holds out one family at a time.
        validation: share of the training families that are set aside at a time to choose the penalty; all are in turn.
        shuffles: how often the labels are permuted between families as a control.
        seed: of folds, validation families and permutations. penalties: ridge penalties to choose from.

    Raises:
        InputError: a number outside its range.
    """

    folds: int | None = None
    validation: float = 0.2
    shuffles: int = 100
    seed: int = 0
    penalties: tuple[float, ...] = PENALTIES

    def __post_init__(self) -> None:
        if self.folds is not None and self.folds < 2:
            raise InputError(f"{self.folds} folds were asked for; give at least 2, or none for one per property.")
        if not 0 < self.validation < 1:
            raise InputError(f"The share of validation properties is {self.validation:g}; give one between 0 and 1.")
        if self.shuffles < 0:
            raise InputError(f"{self.shuffles} shuffles were asked for; give 0 or more.")
        if not self.penalties or min(self.penalties) <= 0:
            raise InputError("A ridge regression needs penalties above 0; give at least one.")


def family(property_id: str) -> str:
    """The property without the marks of another wording or a negation: ``world-weight`` for ``world-weight-w2-not``."""
    return re.sub(r"(-w\d+|-not)+$", "", property_id)


@dataclass(frozen=True, slots=True)
class Fold:
    """Families by their place in the sorted list.

    Attributes:
        test: held out. train: the others. inner: for choosing the penalty, what of ``train`` is fitted and what is set
            aside, in turns.
    """

    test: tuple[int, ...]
    train: tuple[int, ...]
    inner: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def split_families(count: int, settings: ProbeSettings) -> list[Fold]:
    """Folds over ``count`` families; no family is in two parts that are fitted and predicted.

    Raises:
        InputError: so few families that a part is left empty.
    """
    if count < 3:
        raise InputError(f"There are {count} properties, but fitting, validation and testing need one each; give more.")
    folds = settings.folds or count
    if folds > count:
        raise InputError(f"{folds} folds were asked for, but there are {count} properties; give at most so many.")
    order: list[int] = torch.randperm(count, generator=generator(settings.seed, "folds")).tolist()
    parts = [tuple(sorted(order[i::folds])) for i in range(folds)]
    found: list[Fold] = []
    for number, test in enumerate(parts):
        rest = [one for one in order if one not in test]
        if len(rest) < 2:
            raise InputError(f"With {folds} folds of {count} properties one is left to train on; use more folds.")
        mixed: list[int] = torch.randperm(len(rest), generator=generator(settings.seed, "validation", number)).tolist()
        turns = min(len(rest), max(2, round(1 / settings.validation)))
        aside = [tuple(sorted(rest[i] for i in mixed[turn::turns])) for turn in range(turns)]
        inner = tuple((tuple(sorted(one for one in rest if one not in part)), part) for part in aside)
        found.append(Fold(test, tuple(sorted(rest)), inner))
    return found


def shuffled(labels: Tensor, groups: Sequence[Template], seed: int, number: int) -> Tensor:
    """Labels after whole families traded places with others that have the same wordings and comparisons."""
    members: dict[str, dict[Template, int]] = {}
    for place, (name, comparison) in enumerate(groups):
        kind = family(name)
        members.setdefault(kind, {})[name.removeprefix(kind), comparison] = place
    alike: dict[tuple[Template, ...], list[list[int]]] = {}
    for places in members.values():
        alike.setdefault(tuple(sorted(places)), []).append([places[key] for key in sorted(places)])
    draw = generator(seed, "shuffle", number)
    found = labels.clone()
    for blocks in alike.values():
        order: list[int] = torch.randperm(len(blocks), generator=draw).tolist()
        for target, source in zip(blocks, order, strict=True):
            found[target] = labels[blocks[source]]
    return found


def baseline(
    labels: Tensor, groups: Sequence[Template], family_of: Tensor, folds: Sequence[Fold], by_comparison: bool
) -> float:
    """Mean squared error of the mean label of the training groups, of all or of those with the same comparison."""
    total = 0.0
    for fold in folds:
        inside = torch.isin(family_of, torch.tensor(fold.test))
        for place in inside.nonzero()[:, 0].tolist():
            same = torch.tensor([not by_comparison or one[1] == groups[place][1] for one in groups])
            training = ~inside & (same if bool((~inside & same).any()) else torch.ones_like(same))
            total += float((labels[place] - labels[training].mean()) ** 2)
    return total / len(groups)
