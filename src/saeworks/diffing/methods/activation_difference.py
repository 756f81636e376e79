"""How far apart are the activations of the two models, and on which tokens?"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saeworks.diffing.latent_stats import GROUPS, groups_of
from saeworks.diffing.methods.interface import (
    Cost,
    MethodResult,
    Needs,
    Numbers,
    one_width,
    settings_of,
)
from saeworks.diffing.methods.top_tokens import TopTokens, tokenizer_of
from saeworks.diffing.pairs import PairedBatch, PairedSource

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# Histogram for quantiles: 64 bins per factor of ten are within 4 % of the value.
LOWEST, PER_DECADE, BINS = -8.0, 64, 64 * 16


@dataclass(frozen=True, slots=True)
class ActivationDifference:
    """Norm of ``h_chat − h_base``, that norm over the mean of both activations' norms, and the cosine of the two.

    Findings are tokens by the relative norm. ``numbers`` has mean, deviation and quantiles over all tokens, and means
    by data set, group of tokens, position in an answer and token of the chat template.

    Args:
        top: tokens to report. profile: positions of an answer whose means are given one by one.
    """

    top: int = 20
    profile: int = 10
    name: ClassVar[str] = "activation_difference"
    needs: ClassVar[Needs] = "activations"

    def run(self, source: PairedSource, tokens: int | None = None) -> MethodResult:
        """One pass."""
        one_width(source, self.name)
        tokenizer, cost = tokenizer_of(source), Cost()
        best, totals = TopTokens(self.top, tokenizer), defaultdict[str, _Moments](_Moments)
        with cost.timed():
            for batch in source.batches(tokens):
                found = measures(batch)
                best.add(batch, found["relative_norm"], {k: v for k, v in found.items() if k != "relative_norm"})
                for place, rows in self._places(batch, tokenizer):
                    if bool(rows.any()):
                        totals[place].add({name: values[rows] for name, values in found.items()})
                cost.tokens += len(batch)
        numbers: Numbers = {}
        for place, moments in totals.items():
            numbers |= {f"{place}{name}": value for name, value in moments.numbers(place == "").items()}
        return MethodResult(self.name, settings_of(self), cost, best.findings(), numbers=numbers)

    def _places(self, batch: PairedBatch, tokenizer: Any) -> list[tuple[str, Tensor]]:
        """Prefixes of names, with the tokens that they are about."""
        everywhere = torch.ones(len(batch), dtype=torch.bool)
        group = groups_of(batch)
        places = [("", everywhere), (f"{batch.data_set}/", everywhere)]
        places += [(f"{name}/", group == g) for g, name in enumerate(GROUPS)]
        places += [(f"answer {k}/", batch.answer_index == k) for k in range(self.profile)]
        for token in batch.token_ids[batch.is_template].unique().tolist():
            text = str(token) if tokenizer is None else tokenizer.decode([token])
            places.append((f"template token {text!r}/", batch.is_template & (batch.token_ids == token)))
        return places


def measures(batch: PairedBatch) -> dict[str, Tensor]:
    """``norm``, ``relative_norm`` and ``cosine``, ``[token]`` float64 each; a cosine with a zero vector is NaN."""
    base, chat = batch.x[0].double().cpu(), batch.x[-1].double().cpu()
    # Subtracted in the precision that the activations came in, where a model against itself gives exact zeros.
    norm = (batch.x[-1] - batch.x[0]).double().norm(dim=1).cpu()
    norms = torch.stack([base.norm(dim=1), chat.norm(dim=1)])
    middle = norms.mean(dim=0)
    cosine = (base * chat).sum(dim=1) / norms.prod(dim=0)
    return {"relative_norm": torch.where(middle > 0, norm / middle, 0.0), "norm": norm, "cosine": cosine}


class _Moments:
    """Mean, deviation and quantiles of some measures, in constant memory."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = defaultdict[str, Tensor](lambda: torch.zeros(2, dtype=torch.float64))
        self.histograms = defaultdict[str, Tensor](lambda: torch.zeros(BINS, dtype=torch.int64))

    def add(self, values: dict[str, Tensor]) -> None:
        for name, part in values.items():
            self.sums[name] += torch.stack([part.sum(), part.square().sum()])
            bins = ((part.clamp_min(1e-300).log10() - LOWEST) * PER_DECADE).floor().clamp(0, BINS - 1).nan_to_num()
            if name != "cosine":
                self.histograms[name] += torch.bincount(bins.long(), minlength=BINS)
        self.count += len(next(iter(values.values())))

    def numbers(self, complete: bool) -> Numbers:
        out: Numbers = {"tokens": float(self.count)}
        for name, (total, squares) in ((k, v.tolist()) for k, v in self.sums.items()):
            mean = total / self.count
            out[f"{name}_mean"] = mean if math.isfinite(mean) else None
            if complete:
                spread = math.sqrt(max(squares / self.count - mean**2, 0.0)) if math.isfinite(mean) else None
                out[f"{name}_std"] = spread
        for name, histogram in self.histograms.items() if complete else ():
            reached = histogram.cumsum(0).double() / self.count
            for q in QUANTILES:
                at = int(torch.searchsorted(reached, q).clamp_max(BINS - 1))
                # The first bin holds what is 0 to any purpose.
                out[f"{name}_q{q:g}"] = 10 ** (LOWEST + (at + 0.5) / PER_DECADE) if at else 0.0
        return out
