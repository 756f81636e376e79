"""Everything that is measured of latents on activations, in one pass over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saeworks.diffing.classes import Thresholds, decoder_cosine, relative_norm
from saeworks.diffing.divergence import DivergenceCounts
from saeworks.diffing.examples import Examples
from saeworks.diffing.latent_pass import measure_latents
from saeworks.diffing.latent_stats import LatentStatistics
from saeworks.diffing.latent_table import Columns, latent_table, verdicts
from saeworks.diffing.ranking import by_rank_sum, halves
from saeworks.diffing.scaling import LatentScaling
from saeworks.diffing.twins import Twins, find_twins
from saeworks.errors import InputError

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.diffing.paired_batches import PairedBatch, PairedSource


@dataclass(frozen=True)
class Measured:
    """What one pass gave.

    Attributes:
        dictionary: that was measured. scaling, statistics, examples: see their classes. tokens: of the pass.
    """

    dictionary: Dictionary
    scaling: LatentScaling
    statistics: LatentStatistics
    examples: Examples
    tokens: int

    def relative(self) -> Tensor:
        """``[latent]`` norm difference: 1 chat-only, 0 base-only."""
        return relative_norm(self.dictionary.decoder_norms()).cpu()

    def twins(self, thresholds: Thresholds) -> Twins | None:
        """Pairs of a chat-only and a base-only latent; None for models of different width."""
        base, chat = self.dictionary.source(0)[1], self.dictionary.source(1)[1]
        if base.shape != chat.shape:
            return None
        relative = self.relative()
        alive = self.statistics.active().cpu() > 0
        chat_only = ((relative > thresholds.chat_only) & alive).nonzero().squeeze(1)
        base_only = ((relative < thresholds.base_only) & alive).nonzero().squeeze(1)
        return find_twins(base, chat, base_only, chat_only)

    def table(self, thresholds: Thresholds, penalty: float | None = None) -> Columns:
        """One row per latent; see ``latent_table``. The shares of firings on the template by strength come last."""
        found = latent_table(
            self.dictionary,
            self.scaling,
            self.statistics,
            twins=self.twins(thresholds),
            thresholds=thresholds,
            penalty=penalty,
        )
        for name, values in self.examples.template().items():
            if name.startswith("template_") and name not in found:
                found[name] = values.double().tolist()
        return found

    def candidates(self, thresholds: Thresholds) -> Tensor:
        """``[latent]`` bool: those that look new by their norms, and fire."""
        return (self.relative() > thresholds.gate) & (self.statistics.active().cpu() > 0)

    def genuine(self, thresholds: Thresholds) -> Tensor:
        """Latents int64 that Latent Scaling calls new, the least held by the base first."""
        words = verdicts(self.relative(), self.scaling, thresholds)
        candidates = self.candidates(thresholds)
        chosen = torch.tensor(["genuine" in word for word in words]) & candidates
        order = by_rank_sum(*self._ratios(), chosen).cpu()
        left = sorted(set(chosen.nonzero().squeeze(1).tolist()) - set(order.tolist()))
        return torch.cat([order, torch.tensor(left, dtype=torch.int64)])

    def groups(self, thresholds: Thresholds) -> dict[str, tuple[str, Tensor]]:
        """Groups for patching: name → (meaning, latents); those that would be empty are left out."""
        relative, candidates = self.relative(), self.candidates(thresholds)
        ranked = by_rank_sum(*self._ratios(), candidates).cpu()
        by_scaling = halves(ranked)
        # The same latents in another order, so that both rankings divide one set.
        by_norm = halves(ranked[relative[ranked].argsort(descending=True, stable=True)])
        groups = {
            "best half by scaling": ("The half of the candidates that the base holds least.", by_scaling.best),
            "worst half by scaling": ("The half that the base holds most.", by_scaling.worst),
            "best half by norm": ("The half of the candidates whose decoders differ most in norm.", by_norm.best),
            "worst half by norm": ("The half whose decoders differ least in norm.", by_norm.worst),
            "candidates": ("All candidates: latents that look new by their norms.", candidates.nonzero().squeeze(1)),
            "genuine": ("The candidates that are genuinely new by Latent Scaling.", self.genuine(thresholds)),
        }
        return {name: found for name, found in groups.items() if len(found[1])}

    def divergence(self, batches: Iterable[PairedBatch], thresholds: Thresholds) -> list[dict[str, Any]]:
        """Twins with how differently they fire; a second pass, made only where there are twins."""
        twins = self.twins(thresholds)
        if twins is None or not len(twins):
            return []
        scale = self.dictionary.decoder_norms().sum(dim=0)
        counts = DivergenceCounts(twins.chat, twins.base, self.statistics.maximum(), scale)
        for batch in batches:
            counts.add(self.dictionary.encode_sparse(batch.flat().to(self.dictionary.device)), batch.data_set)
        columns = (twins.chat.tolist(), twins.base.tolist(), twins.cosine.tolist(), counts.divergence().tolist())
        return [
            {"chat": chat, "base": base, "cosine": cosine, "divergence": value}
            for chat, base, cosine, value in zip(*columns, strict=True)
        ]

    def summary(self, thresholds: Thresholds) -> dict[str, Any]:
        """Counts and averages: classes, verdicts, L0, variance explained in both models."""
        table = self.table(thresholds)
        active = self.statistics.active().cpu()
        alive = active > 0
        base, chat = self.dictionary.source(0)[1], self.dictionary.source(1)[1]
        cosine = decoder_cosine(base, chat).cpu()[alive]
        cosine = cosine[cosine.isfinite()]
        candidates = self.candidates(thresholds)
        flags = [set(word.split(",")) - {""} for word in table["flags"]]
        kinds = ("genuine", "complete_shrinkage", "decoupled", "undefined")
        chosen = candidates.nonzero().squeeze(1).tolist()
        found = {kind: sum(kind in flags[i] for i in chosen) for kind in kinds}
        classes = [name for name, lives in zip(table["class"], alive.tolist(), strict=True) if lives]
        twins = self.twins(thresholds)
        return {
            "tokens": self.tokens,
            "latents": len(alive),
            "alive": int(alive.sum()),
            "l0": float(active.sum()) / self.tokens,
            "variance_explained": dict(zip(("base", "chat"), self.statistics.variance_explained(), strict=True)),
            "classes": {name: classes.count(name) for name in ("chat_only", "base_only", "shared", "other")},
            "candidates": len(chosen),
            **found,
            "undecided": sum(not flags[i] for i in chosen),
            "twins": 0 if twins is None else len(twins),
            "median_decoder_cosine": float(cosine.median()) if len(cosine) else None,
        }

    def _ratios(self) -> tuple[Any, Any]:
        return self.scaling.ratio("error"), self.scaling.ratio("reconstruction")


def measure_pair(
    dictionary: Dictionary,
    source: PairedSource,
    tokens: int | None = None,
    template_ids: Sequence[int] = (),
    contexts: int = 8,
) -> Measured:
    """Latent Scaling, counts and contexts of a crosscoder over two models.

    Args:
        source, tokens: what to read, and how much of it. template_ids: see :class:`Examples`.
        contexts: kept per latent.

    Raises:
        InputError: a dictionary of other sources than two, or no activations.
    """
    if dictionary.cfg.sources is None or len(dictionary.cfg.sources) != 2:
        raise InputError(
            "Two models are compared by a crosscoder over both, but the dictionary reads "
            f"{len(dictionary.cfg.sources or ('one',))}; train one with saeworks diff, or give another."
        )
    examples = Examples(dictionary, contexts, template_ids=template_ids)
    found = measure_latents(dictionary, source, tokens, also=examples.add)
    return Measured(dictionary, found.scaling, found.statistics, examples, found.scaling.tokens)
