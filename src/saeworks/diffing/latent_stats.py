"""What can be counted of every latent in one pass: how often, how strongly and on which tokens it is active.

Activations are in the units of ``v = f · Σ_m ‖d^m‖``, which do not change when a latent's code is multiplied and its
directions divided by the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.diffing.pairs import PairedBatch
from saeworks.errors import InputError, did_you_mean

# Tokens by what they are, in the order of the counts: of the chat template, predicting an answer's token, any other.
GROUPS = ("template", "answer", "other")
# Histogram of v: four bins per factor of ten from 1e-4 to 1e4, the first and last with all that lies beyond.
BINS = 32
LOWEST, PER_DECADE = -4.0, 4


class Reduces(Protocol):
    """Whoever adds up tensors over processes, or takes the largest, in place."""

    def add(self, tensor: Tensor) -> Tensor: ...

    def most(self, tensor: Tensor) -> Tensor: ...


class LatentStatistics:
    """Counts of every latent by data set and group of tokens, and the variance explained in every source.

    Args:
        norms: ``[source, latent]`` norms of the directions, see ``Dictionary.decoder_norms``.
        widths: width of every source whose variance is measured; empty for none.
    """

    def __init__(self, norms: Tensor, widths: Sequence[int] = ()) -> None:
        self.scale = norms.detach().double().sum(dim=0)
        self.widths = tuple(widths)
        self._sets: dict[str, dict[str, Tensor]] = {}

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.scale.numel()

    @property
    def data_sets(self) -> tuple[str, ...]:
        """Names of the data sets seen, in order of their names."""
        return tuple(sorted(self._sets))

    def add(self, batch: PairedBatch, codes: Codes, errors: Sequence[Tensor] = ()) -> None:
        """Count a batch. ``errors`` are ``h − x̂`` of every source, ``[token, d_m]``, where widths were given."""
        if len(errors) != len(self.widths):
            raise InputError(f"Errors of {len(errors)} sources came, but the statistics are of {len(self.widths)}.")
        sums = self._sets.setdefault(batch.data_set, self._empty(codes.values.device))
        group = groups_of(batch).to(codes.indices.device)
        v = codes.values.double() * self.scale.to(codes.values.device)[codes.indices]
        latents = self.latents
        sums["tokens"] += torch.bincount(group, minlength=len(GROUPS))
        cells = group[codes.rows()] * latents + codes.indices
        sums["active"] += torch.bincount(cells, minlength=len(GROUPS) * latents).view(len(GROUPS), latents)
        sums["sum"] += torch.bincount(codes.indices, weights=v, minlength=latents)
        sums["max"].scatter_reduce_(0, codes.indices, v, "amax")
        bins = ((v.clamp_min(1e-300).log10() - LOWEST) * PER_DECADE).floor().clamp(0, BINS - 1).long()
        counted = torch.bincount(codes.indices * BINS + bins, minlength=BINS * latents)
        sums["histogram"] += counted.view(latents, BINS)
        if errors:
            rows = torch.cat([part.double() for part in batch.x], dim=1).to(codes.values.device)
            sums["rows"] += rows.sum(dim=0)
            sums["squares"] += torch.stack([part.square().sum() for part in rows.split(list(self.widths), dim=1)])
            sums["errors"] += torch.stack([part.double().square().sum() for part in errors])

    def _empty(self, device: torch.device) -> dict[str, Tensor]:
        def whole(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        def real(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        n, sources = self.latents, len(self.widths)
        counts = {"tokens": whole(len(GROUPS)), "active": whole(len(GROUPS), n), "histogram": whole(n, BINS)}
        sums = {"sum": real(n), "max": real(n), "rows": real(sum(self.widths))}
        return counts | sums | {"squares": real(sources), "errors": real(sources)}

    def __add__(self, other: LatentStatistics) -> LatentStatistics:
        """The statistics over the tokens of both."""
        if self.latents != other.latents or self.widths != other.widths:
            raise InputError("Statistics of different dictionaries cannot be merged; measure one dictionary.")
        merged = LatentStatistics(self.scale[None], self.widths)
        for name in dict.fromkeys((*self._sets, *other._sets)):
            found = [part._sets[name] for part in (self, other) if name in part._sets]
            merged._sets[name] = _added(found)
        return merged

    def reduce(self, ranks: Reduces) -> None:
        """Add up the counts of several processes, in place; all of them must have seen the same data sets."""
        for name in self.data_sets:
            for key, value in sorted(self._sets[name].items()):
                (ranks.most if key == "max" else ranks.add)(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors."""
        return {name: dict(sums) for name, sums in self._sets.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._sets = {name: {key: value.clone() for key, value in sums.items()} for name, sums in state.items()}

    # --- what follows -------------------------------------------------------------------------------------------

    def tokens(self, data_set: str | None = None) -> int:
        """Tokens of a data set; of all for None."""
        return int(self._of(data_set)["tokens"].sum())

    def active(self, data_set: str | None = None, group: str | None = None) -> Tensor:
        """``[latent]`` int64 tokens of a data set (and group) on which each latent is active."""
        active = self._of(data_set)["active"]
        return active.sum(dim=0) if group is None else active[_group(group)]

    def density(self, data_set: str | None = None, group: str | None = None) -> Tensor:
        """``[latent]`` float64 share of the tokens; not a number where there are none."""
        sums = self._of(data_set)
        tokens = sums["tokens"].sum() if group is None else sums["tokens"][_group(group)]
        active = sums["active"].sum(dim=0) if group is None else sums["active"][_group(group)]
        return active.double() / torch.where(tokens > 0, tokens.double(), torch.nan)

    def maximum(self, data_set: str | None = None) -> Tensor:
        """``[latent]`` largest v; 0 for a latent that was never active."""
        return self._of(data_set)["max"]

    def mean_active(self, data_set: str | None = None) -> Tensor:
        """``[latent]`` mean v over the tokens on which the latent is active; not a number without any."""
        sums = self._of(data_set)
        return sums["sum"] / torch.where((n := sums["active"].sum(dim=0)) > 0, n.double(), torch.nan)

    def histogram(self, data_set: str | None = None) -> Tensor:
        """``[latent, bin]`` int64 counts of v; bin edges are those of :func:`bin_edges`."""
        return self._of(data_set)["histogram"]

    def template_share(self, data_set: str | None = None) -> Tensor:
        """``[latent]`` share of a latent's active tokens that belong to the chat template; NaN for a silent latent."""
        active = self._of(data_set)["active"].double()
        return active[_group("template")] / active.sum(dim=0)

    def variance_explained(self, data_set: str | None = None) -> list[float]:
        """Of every source ``1 − Σ‖h − x̂‖² / Σ‖h − mean‖²``, the mean being that of all tokens seen."""
        sums = self._of(data_set)
        tokens = float(sums["tokens"].sum())
        means = sums["rows"].split(list(self.widths))
        about = [float(s) - float(m.square().sum()) / tokens for s, m in zip(sums["squares"], means, strict=True)]
        return [1 - float(e) / v if v > 0 else float("nan") for e, v in zip(sums["errors"], about, strict=True)]

    def _of(self, data_set: str | None) -> dict[str, Tensor]:
        if not self._sets:
            raise InputError("Nothing has been measured yet: no batch was added, so there is nothing to count.")
        if data_set is None:
            return _added(list(self._sets.values()))
        if data_set not in self._sets:
            raise InputError(f"No token of a data set '{data_set}' was seen.{did_you_mean(data_set, self._sets)}")
        return self._sets[data_set]


def groups_of(batch: PairedBatch) -> Tensor:
    """``[token]`` int64 index into :data:`GROUPS`; a template token that predicts an answer counts as template."""
    other, answer, template = GROUPS.index("other"), GROUPS.index("answer"), GROUPS.index("template")
    group = torch.where(batch.answer_index >= 0, answer, other)
    return torch.where(batch.is_template, template, group)


def bin_edges() -> Tensor:
    """``[bin + 1]`` edges of the histograms; what lies beyond the first or last is in the outermost bins."""
    return 10.0 ** (LOWEST + torch.arange(BINS + 1, dtype=torch.float64) / PER_DECADE)


def _added(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    def together(name: str) -> Tensor:
        values = torch.stack([part[name] for part in parts])
        return values.amax(dim=0) if name == "max" else values.sum(dim=0)

    return {name: together(name) for name in parts[0]}


def _group(name: str) -> int:
    if name not in GROUPS:
        raise InputError(f"There is no group '{name}' of tokens.{did_you_mean(name, GROUPS)}")
    return GROUPS.index(name)
