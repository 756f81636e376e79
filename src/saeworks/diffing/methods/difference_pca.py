"""Principal components of the difference of activations: the directions along which most of it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from saeworks.diffing.methods.interface import Cost, Finding, MethodResult, Needs, one_width, settings_of
from saeworks.diffing.pairs import PairedBatch, PairedSource
from saeworks.errors import InputError

Of = Literal["difference", "base", "chat"]


class Covariance:
    """Mean and covariance of rows ``[token, d]`` in one pass: float64 sums, exact to merge."""

    def __init__(self, width: int) -> None:
        self.tokens = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add rows ``[token, d]``."""
        rows = rows.double()
        self.tokens += len(rows)
        self.total += rows.sum(dim=0).cpu()
        self.products += (rows.T @ rows).cpu()

    def __add__(self, other: Covariance) -> Covariance:
        """Over the rows of both."""
        merged = Covariance(len(self.total))
        merged.tokens = self.tokens + other.tokens
        merged.total, merged.products = self.total + other.total, self.products + other.products
        return merged

    @property
    def mean(self) -> Tensor:
        """``[d]``."""
        self._refuse_empty()
        return self.total / self.tokens

    @property
    def matrix(self) -> Tensor:
        """``[d, d]`` covariance, divided by the number of tokens."""
        mean = self.mean
        return self.products / self.tokens - torch.outer(mean, mean)

    def components(self) -> tuple[Tensor, Tensor]:
        """Variances ``[d]`` from the largest down, and unit directions ``[d, d]``, one per row.

        A direction points where the mean does; where it has no part in that, its largest coordinate is positive.
        """
        values, vectors = torch.linalg.eigh(self.matrix)
        rows = vectors.T.flip(0)
        along = rows @ self.mean
        largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))[:, 0]
        signs = torch.where(along.abs() > 1e-9 * self.mean.norm().clamp_min(1e-30), along, largest).sign()
        return values.flip(0).clamp_min(0.0), rows * signs[:, None]

    def _refuse_empty(self) -> None:
        if not self.tokens:
            raise InputError("There were no activations to find components of; give at least one batch.")


@dataclass(frozen=True, slots=True)
class DifferencePCA:
    """Exact principal components of ``h_chat − h_base`` (or of one model's activations), by one streaming pass.

    Findings are directions by the share of the variance along them; ``arrays`` has ``components [count, d]`` and
    ``mean [d]``. Two models that do not differ have none.

    Args:
        count: components to report. of: what they are of.
    """

    count: int = 10
    of: Of = "difference"
    name: ClassVar[str] = "difference_pca"
    needs: ClassVar[Needs] = "activations"

    def run(self, source: PairedSource, tokens: int | None = None) -> MethodResult:
        """One pass."""
        width = one_width(source, self.name) if self.of == "difference" else source.widths[self.of == "chat"]
        covariance, cost = Covariance(width), Cost()
        with cost.timed():
            for batch in source.batches(tokens):
                covariance.add(self._rows(batch))
            cost.tokens = covariance.tokens
            variances, components = covariance.components()
        total, mean = float(variances.sum()), covariance.mean
        numbers = {"variance": total, "mean_norm": float(mean.norm())}
        if total <= 0:
            return MethodResult(self.name, settings_of(self), cost, numbers=numbers, arrays={"mean": mean.float()})
        shares, kept = variances / total, components[: self.count]
        numbers["effective_dimensions"] = float(variances.sum() ** 2 / variances.square().sum())
        along = kept @ mean / mean.norm().clamp_min(1e-30)
        findings = tuple(
            Finding(
                f"component {i}",
                float(shares[i]),
                {
                    "variance": float(variances[i]),
                    "cumulative_share": float(shares[: i + 1].sum()),
                    "cosine_with_mean": float(along[i]),
                },
            )
            for i in range(len(kept))
        )
        arrays = {"components": kept.float(), "mean": mean.float()}
        return MethodResult(self.name, settings_of(self), cost, directions=findings, numbers=numbers, arrays=arrays)

    def _rows(self, batch: PairedBatch) -> Tensor:
        # The difference is taken in float32 of float32 activations; a model against itself gives exact zeros.
        return batch.x[1] - batch.x[0] if self.of == "difference" else batch.x[self.of == "chat"]
