"""What decoder rows share: a small BatchTopK dictionary trained on them, and how much of their variance it explains.

Rows that are sums of a few common directions are explained well by a dictionary of fewer latents (a meta-SAE, arXiv
2503.17547, appendix D.1). So are random rows, to a degree that depends on their number, their width and the size of the
dictionary; only the excess over them is evidence of composition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.kernels.sparse import decode_codes
from saeworks.runtime import generator
from saeworks.training.cells import MemberConfig
from saeworks.training.initialisation import Initialisation
from saeworks.training.member import Member
from saeworks.training.recipes import AuxK, Recipe
from saeworks.training.schedules import Span, Timing

Mode = Literal["compat", "corrected"]
# Steps and learning rate. Those of compat are SAEBench's. On decoder rows and on random rows alike, a tenth of its time
# at ten times its rate explains less and 225 steps at that rate explain as much (docs/metrics.md has the measurement).
STEPS = {"compat": 1500, "corrected": 225}
LEARNING_RATE = {"compat": 5e-4, "corrected": 5e-3}
# Steps without firing after which a latent counts as dead. The published window is longer than the published run, so
# that its auxiliary loss never acts. The released meta-SAEs wait for 100 of 1,500 steps; here it is the same share.
PUBLISHED_DEAD_AFTER = 2000
DEAD_SHARE, LEAST_DEAD_AFTER = 1 / 15, 15
_CONSTANT = Timing(warm_up=Span(0, 0.0), decay=0.0)


@dataclass(frozen=True)
class Training:
    """How the small dictionary is trained.

    Attributes:
        width: its latents. k: of them active per row, on average.
        steps, batch_size: rows are drawn with replacement. learning_rate: constant, Adam; see ``STEPS``.
        seed: of weights and draws.
        mode: ``compat``: decoder rows of free norm, starting at 0.1 with latents chosen by value times norm, no
            revival of dead latents within 2,000 steps. ``corrected``: rows of norm 1, dead latents revived.
    """

    width: int
    k: float
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    mode: Mode = "corrected"

    @property
    def dead_after(self) -> int:
        """Steps without firing after which a latent is dead."""
        return PUBLISHED_DEAD_AFTER if self.mode == "compat" else max(LEAST_DEAD_AFTER, int(self.steps * DEAD_SHARE))

    def recipe(self) -> Recipe:
        """The recipe of the mode."""
        if self.mode == "compat":
            return Recipe(
                "decoder_structure",
                selection="batch_topk",
                aux_k=AuxK(coefficient=1.0),
                normalization="none",
                reconstruction="squared",
                constraint="free",
                norm_weighted=True,
                initialisation=Initialisation(row_norm=0.1, scale="none", b_dec="zero"),
                timing=_CONSTANT,
            )
        start = Initialisation(b_dec="mean")
        return Recipe(
            "decoder_structure", selection="batch_topk", normalization="none", initialisation=start, timing=_CONSTANT
        )


@dataclass(frozen=True)
class Explained:
    """How well rows are rebuilt: per row, float64.

    Attributes:
        residual: [row] squared error. total: [row] squared distance from the mean row.
        l0: latents per row. alive: share of latents that some row uses.
        width: of the rows.
    """

    residual: Tensor
    total: Tensor
    l0: float
    alive: float
    width: int

    def fraction(self) -> float:
        """Fraction of variance explained; 0 where all rows are equal."""
        total = float(self.total.sum())
        return 1 - float(self.residual.sum()) / total if total > 0 else 0.0

    def mse(self) -> float:
        """Squared error per entry."""
        return float(self.residual.mean()) / self.width


def meta_width(rows: int, ratio: float, k: float) -> int:
    """Latents for so many rows: the ratio rounded up, and more than k."""
    return max(math.ceil(rows * ratio), math.floor(k) + 1)


def train(rows: Tensor, training: Training) -> Member:
    """Train on ``rows`` [row, d] as they are; the dictionary in training, which still chooses among a whole batch."""
    recipe = training.recipe()
    cell = MemberConfig(recipe, training.width, training.k, training.seed, training.learning_rate)
    member = Member(cell, rows.shape[1], training.dead_after * training.batch_size, rows.device)
    member.initialise(rows)
    schedule, draws = recipe.schedule(training.steps), generator(training.seed, "rows")
    for step in range(training.steps):
        picked = torch.randint(len(rows), (training.batch_size,), generator=draws).to(rows.device)
        member.step(rows[picked], schedule, step)
    return member


@torch.no_grad()
def explained(member: Member, rows: Tensor, mode: Mode, eval_batch_size: int = 4096) -> Explained:
    """Rebuild ``rows`` [row, d].

    ``compat`` selects the k·n largest latents of every batch of ``eval_batch_size`` rows, as in training, so that the
    number depends on how the rows are cut; ``corrected`` selects those of all rows.
    """
    if mode == "compat":
        parts = [member.select(part) for part in rows.split(eval_batch_size)]
    else:
        # Scores are computed twice: those of all rows may not fit into memory.
        least = least_selected(_scores(member, rows), int(member.config.sparsity * len(rows)))
        parts = [Codes.from_mask(scores, (scores >= least) & (scores > 0)) for scores in _scores(member, rows)]
    rebuilt = torch.cat([decode_codes(codes, member.decoder) for codes in parts]) + member.b_dec
    used = torch.stack([codes.fired() for codes in parts]).any(0)
    count = sum(codes.indices.numel() for codes in parts)
    return residuals(rows, rebuilt, count / len(rows), float(used.double().mean()))


def residuals(rows: Tensor, rebuilt: Tensor, l0: float = 0.0, alive: float = 0.0) -> Explained:
    """Squared errors and squared distances from the mean of ``rows`` [row, d] and what they were rebuilt as."""
    x, y = rows.double().cpu(), rebuilt.double().cpu()
    return Explained((x - y).square().sum(1), (x - x.mean(0)).square().sum(1), l0, alive, rows.shape[1])


def _scores(member: Member, rows: Tensor, size: int = 4096) -> Iterator[Tensor]:
    """Positive parts of the pre-activations, [row, latent] of some rows each; decoder rows have norm 1."""
    bias = member.b_enc - member.encoder @ member.b_dec
    for part in rows.split(size):
        yield torch.addmm(bias, part, member.encoder.T).relu()


def least_selected(parts: Iterable[Tensor], wanted: int) -> float:
    """The ``wanted``-th largest of the positive entries of all ``parts``, the smallest where they are fewer."""
    largest: Tensor | None = None
    for part in parts:
        pool = part[part > 0] if largest is None else torch.cat([largest, part[part > 0]])
        largest = pool.topk(min(wanted, len(pool))).values
    return float(largest[-1]) if largest is not None and len(largest) else 0.0


def gaussian_rows(rows: int, width: int, seed: int) -> Tensor:
    """[row, d] random directions of norm 1: what there is to explain where nothing is shared."""
    drawn = torch.randn(rows, width, generator=generator(seed, "gaussian rows"))
    return torch.nn.functional.normalize(drawn, dim=-1)
