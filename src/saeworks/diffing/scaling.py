"""Latent Scaling: how much of a latent, along its direction, each of several models contains.

One pass over paired activations gives every beta of every latent for every source and probe (see
``scaling_estimates.py`` for what these are). Nothing of size tokens × latents × width is ever made: with
``E = h − x̂`` the error target's numerator is ``Σ f ⟨E, u⟩ + ⟨d, u⟩ Σ f²``, so that what is summed are products of
activation rows with probe rows at the active (token, latent) pairs. All sums are float64 and additive: they merge over
shards and processes, and a pass can stop and go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.kernels.sparse import row_dots
from saeworks.diffing.block_sums import Adds, BlockSums, Sums, bootstrap, jackknife
from saeworks.diffing.pairs import SOURCES, PairedBatch
from saeworks.diffing.probes import Probe, Rows, fixed_products, shape_of, source_probes
from saeworks.diffing.reading import Encoded, Reads, how_it_reads
from saeworks.diffing.scaling_estimates import ESTIMATORS, TARGETS, Estimate, Estimator, Fixed, Ratio, Target, betas
from saeworks.diffing.scaling_estimates import ratio as ratio_of
from saeworks.errors import InputError, did_you_mean

# Latents whose estimates are computed at a time: 2^14 with 32 blocks and two models take some 100 MB.
CHUNK = 2**14
# Fewer where they are resampled: 1,000 values of each are sorted.
INTERVAL_CHUNK = 2**11
Statistic = Callable[[Sums], Tensor]


class LatentScaling:
    """Sums of one pass, and every estimate that follows from them.

    Args:
        probes: directions, all of the same number of latents and sources.
        decoders: ``[latent, d_m]`` of every source, for the error target; None where only activations are measured.
        biases: ``[d_m]`` of every source, for the estimator ``no_bias``.
        floor: ``[latent]`` codes below it count as 0, against noise at the threshold.
        blocks, block_tokens: see :class:`saeworks.diffing.block_sums.BlockSums`.
        precision: of the products; sums are float64 either way. bfloat16 would give errors of the order of 1.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        decoders: Rows | None = None,
        biases: Rows | None = None,
        *,
        floor: Tensor | None = None,
        blocks: int = 32,
        block_tokens: int = 1024,
        precision: torch.dtype = torch.float32,
    ) -> None:
        if precision not in (torch.float32, torch.float64):
            raise InputError(f"Latent Scaling in {precision} was asked for; use float32 or float64.")
        self.probes, self.precision, self.floor = tuple(probes), precision, floor
        self.parts: tuple[Target, ...] = ("activation",) if decoders is None else ("error", "reconstruction")
        self._directions = [
            [None if u is None else u.detach().to(precision).contiguous() for u in probe.directions] for probe in probes
        ]
        self.latents, self.widths = shape_of(self.probes)
        self.device = next(u.device for u in self._directions[0] if u is not None)
        self.fixed = fixed_products(self.probes, decoders, biases)
        self.sums = BlockSums(blocks, block_tokens)
        self._shift: list[list[Tensor]] | None = None
        self._shift_dots = torch.zeros(0)
        self._betas: dict[tuple[str, str], Estimate] = {}
        self._intervals: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, dictionary: Dictionary, reads: Reads | None = None, sources: int = 2, **options: Any) -> LatentScaling:
        """The measurement that fits a dictionary.

        A crosscoder is probed with the decoder of each source; any other dictionary with its one decoder in all of
        ``sources`` sources, and only the activation target is there.
        """
        if how_it_reads(dictionary, reads) != "sources":
            return cls([Probe("dictionary", (dictionary.W_dec,) * sources)], **options)
        names = dictionary.cfg.sources or ()
        parts = [dictionary.source(m) for m in range(len(names))]
        decoders, biases = [p[1] for p in parts], [p[2] for p in parts]
        return cls(source_probes(decoders, SOURCES if len(names) == 2 else names), decoders, biases, **options)

    # --- a pass -------------------------------------------------------------------------------------------------

    def add(
        self,
        codes: Codes | Tensor,
        errors: Rows | None = None,
        reconstructions: Rows | None = None,
        activations: Rows | None = None,
    ) -> None:
        """Add the next tokens, in order.

        Args:
            codes: of the tokens, or ``[token, latent]``.
            errors, reconstructions: ``h − x̂`` and ``x̂``, one ``[token, d_m]`` per source, with decoders.
            activations: ``h`` of every source, without.

        Raises:
            InputError: rows that are missing, do not fit, or are not finite.
        """
        given = {"error": errors, "reconstruction": reconstructions, "activation": activations}
        rows = [_checked(given[part], part, codes, self.widths) for part in self.parts]
        codes = self._kept(codes)
        if codes.width != self.latents:
            raise InputError(f"Codes of {codes.width} latents came, but the probes have {self.latents} directions.")
        if self._shift is None:
            self._set_shift([[part.mean(dim=0) for part in parts] for parts in rows])
        # What came at once may be many blocks, and errors are known only from several.
        size = self.sums.block_tokens if codes.tokens >= 2 * self.sums.block_tokens else max(codes.tokens, 1)
        for start in range(0, codes.tokens, size):
            end = min(start + size, codes.tokens)
            self._add(_rows(codes, start, end), [[part[start:end] for part in parts] for parts in rows])

    def add_encoded(self, batch: PairedBatch, found: Encoded) -> None:
        """Add a paired batch and what a dictionary made of it."""
        if found.errors:
            self.add(found.codes, found.errors, found.reconstructions)
        else:
            self.add(found.codes, activations=batch.x)

    def _add(self, codes: Codes, rows: Sequence[Rows]) -> None:
        assert self._shift is not None
        self._forget()
        f, latents = codes.values.double(), self.latents
        per_latent = torch.bincount(codes.indices, weights=f, minlength=latents)
        dots = f.new_zeros(len(self.parts), len(self.probes), len(self.widths), latents)
        for i, parts in enumerate(rows):
            for m, part in enumerate(parts):
                moved = part.to(self.precision) - self._shift[i][m]
                for p, directions in enumerate(self._directions):
                    if (u := directions[m]) is not None:
                        products = row_dots(moved, codes.rows(), u, codes.indices, codes.offsets).double()
                        dots[i, p, m] = torch.bincount(codes.indices, weights=f * products, minlength=latents)
        self.sums.add(
            {
                "tokens": f.new_tensor(float(codes.tokens)),
                "count": torch.bincount(codes.indices, minlength=latents).double(),
                "f": per_latent,
                "ff": torch.bincount(codes.indices, weights=f.square(), minlength=latents),
                "dots": dots + per_latent * self._shift_dots,
                "rows": torch.stack([torch.cat([part.double().sum(dim=0) for part in parts]) for parts in rows]),
            }
        )

    def _kept(self, codes: Codes | Tensor) -> Codes:
        codes = codes if isinstance(codes, Codes) else Codes.from_dense(codes)
        if self.floor is None:
            return codes
        return codes.subset(codes.values >= self.floor.to(codes.values)[codes.indices], codes.values)

    def _set_shift(self, shift: list[list[Tensor]]) -> None:
        """Products are taken of rows minus the mean of the first batch, which float32 holds with smaller errors.

        What this leaves out is added again in float64, so that the sums are those of the rows themselves.
        """
        self._shift = [[part.to(self.precision) for part in parts] for parts in shift]
        self._shift_dots = torch.stack([self._projected([p.double() for p in parts]) for parts in self._shift])

    def _projected(self, vectors: Rows, part: slice = slice(None)) -> Tensor:
        """``[..., probe, source, latent]`` products of float64 vectors ``[..., d_m]`` with the probes."""
        out = vectors[0].new_zeros(*vectors[0].shape[:-1], len(self.probes), len(self.widths), self.latents)[..., part]
        for p, directions in enumerate(self._directions):
            for m, vector in enumerate(vectors):
                if (u := directions[m]) is not None:
                    out[..., p, m, :] = vector @ u[part].double().T
        return out

    # --- merging and stopping -----------------------------------------------------------------------------------

    def __add__(self, other: LatentScaling) -> LatentScaling:
        """The measurement over the tokens of both, which must be of the same probes."""
        if (self.latents, self.widths, self.parts) != (other.latents, other.widths, other.parts):
            raise InputError("Two measurements of different dictionaries cannot be merged; measure one dictionary.")
        merged = object.__new__(LatentScaling)
        merged.__dict__.update(self.__dict__)
        merged.sums, merged._betas, merged._intervals = self.sums + other.sums, {}, {}
        if merged._shift is None and other._shift is not None:
            merged._set_shift(other._shift)
        return merged

    def reduce(self, ranks: Adds) -> None:
        """Add up the sums of several processes, in place; all of them call it."""
        self._forget()
        self.sums.reduce(ranks)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on with the same bits."""
        return {"sums": self.sums.state_dict(), "shift": self._shift, "latents": self.latents, "widths": self.widths}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; ``InputError`` when it is that of other shapes."""
        if state["latents"] != self.latents or tuple(state["widths"]) != self.widths:
            raise InputError(
                f"The saved sums are of {state['latents']} latents and widths {list(state['widths'])}, but this "
                f"measurement has {self.latents} and {list(self.widths)}; continue with the same dictionary."
            )
        self._forget()
        self.sums.load_state_dict(state["sums"], self.device)
        if state["shift"] is not None:
            self._set_shift([[part.to(self.device) for part in parts] for parts in state["shift"]])

    # --- estimates ----------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """Tokens measured so far."""
        return self.sums.tokens

    @property
    def counts(self) -> Tensor:
        """``[latent]`` int64 tokens on which each latent is active."""
        return self.sums.total()["count"].long()

    def targets(self) -> tuple[Target, ...]:
        """What can be asked of this measurement."""
        return ("activation",) if self.parts == ("activation",) else TARGETS

    def beta(self, target: Target = "activation", estimator: Estimator = "centered") -> Estimate:
        """``[probe, source, latent]`` betas with their standard errors."""
        self._check(target, estimator)
        key = (target, estimator)  # a table asks for the same betas again and again
        if key not in self._betas:
            found: list[tuple[Tensor, Tensor]] = []
            for sums, fixed in self._chunks():
                found.append(jackknife(sums, self._beta_statistic(fixed, target, estimator)))
            values, errors = zip(*found, strict=True)
            self._betas[key] = Estimate(torch.cat(values, dim=-1), torch.cat(errors, dim=-1))
        return self._betas[key]

    def ratio(
        self,
        target: Target = "activation",
        estimator: Estimator = "centered",
        *,
        probe: int = -1,
        numerator: int = 0,
        denominator: int = 1,
    ) -> Ratio:
        """The nu of every latent: beta in one source over beta in another, along one probe.

        The defaults are those of the paper: how much of a latent, along the last source's decoder (chat), the base
        holds relative to the chat model. For latents of the base, ask for ``probe=0, numerator=1, denominator=0``.
        """
        beta = self.beta(target, estimator)
        above, below = beta[probe, numerator], beta[probe, denominator]
        found: list[tuple[Tensor, Tensor]] = []
        for sums, fixed in self._chunks():
            beta_of = self._beta_statistic(fixed, target, estimator)
            found.append(jackknife(sums, _ratio_statistic(beta_of, probe, numerator, denominator)))
        both = Estimate(torch.cat([v for v, _ in found]), torch.cat([e for _, e in found]))
        return ratio_of(above, below, both, self.sums.total()["count"])

    def ratio_interval(
        self,
        target: Target = "activation",
        estimator: Estimator = "centered",
        *,
        probe: int = -1,
        numerator: int = 0,
        denominator: int = 1,
        resamples: int = 1000,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """``[latent]`` ends of 95 % intervals of :meth:`ratio`, by drawing blocks of tokens with replacement.

        Percentiles of the resampled ratios. Not a number where the latent fires in one block only: whatever is drawn,
        its ratio then hardly changes, and an interval of no width would look like certainty.

        Args:
            resamples: number of draws; the same ones for all latents. seed: of the draws.
        """
        self._check(target, estimator)
        key = (target, estimator, probe, numerator, denominator, resamples, seed)
        if key not in self._intervals:
            ends: list[tuple[Tensor, Tensor]] = []
            chosen = [numerator, denominator]
            for sums, fixed in self._chunks(INTERVAL_CHUNK):
                # Nothing is drawn but what the ratio is made of: one probe and two sources of all of them.
                needed = sums | {name: sums[name][:, :, [probe]][:, :, :, chosen] for name in ("dots", "means")}
                beta_of = self._beta_statistic(fixed.of(probe, chosen), target, estimator)
                low, high = bootstrap(needed, _ratio_statistic(beta_of, 0, 0, 1), resamples, seed)
                alone = (sums["count"] > 0).sum(dim=0) < 2
                ends.append((low.masked_fill(alone, torch.nan), high.masked_fill(alone, torch.nan)))
            self._intervals[key] = torch.cat([low for low, _ in ends]), torch.cat([high for _, high in ends])
        return self._intervals[key]

    def _forget(self) -> None:
        """What was computed from the sums so far holds no more."""
        self._betas.clear()
        self._intervals.clear()

    def _beta_statistic(self, fixed: Fixed, target: Target, estimator: Estimator) -> Statistic:
        return lambda sums: betas(sums, self.parts, fixed, target, estimator)

    def detection_ceiling(self, estimator: Estimator = "centered", penalty: float | None = None) -> Tensor:
        """``[latent]``: the most that nu of the error can be for a latent that a sparsity penalty shrank to nothing.

        At the optimum of squared error plus ``penalty · Σ f ‖d‖``, beta of the chat error is ``1 + t`` with
        ``t = penalty · E[f] / (2 E[f²] ‖d^chat‖)`` (the centred estimator has the variance of f in place of
        ``E[f²]``), and a completely shrunk latent has ``nu ≤ t / (1 + t)``. A fixed threshold says nothing about
        latents whose ceiling lies below it. Not a number where the measured beta is not positive.

        Args:
            penalty: coefficient for activations as measured (for a dictionary trained on activations divided by s,
                its coefficient times s). None reads t off the measured beta; it is then 0 without a penalty.
        """
        if penalty is None:
            beta = self.beta("error", estimator).value[-1, -1]
            # A beta that is not positive is no 1 + t of any t.
            return torch.where(beta > 0, (1 - 1 / beta).clamp_min(0.0), torch.nan)
        total = self.sums.total()
        norms, squares = self.fixed.squares[-1, -1].sqrt(), total["ff"]
        if estimator == "centered":  # whose betas divide by the variance of the codes; errors have a mean of 0
            squares = squares - total["f"].square() / total["tokens"]
        t = penalty / 2 * total["f"] / (squares * norms)
        return t / (1 + t)

    def saturation(self, estimator: Estimator = "centered", penalty: float | None = None) -> Tensor:
        """``[latent]``: nu of the error over its ceiling; not a number where the ceiling is 0 or nu undefined."""
        ceiling = self.detection_ceiling(estimator, penalty)
        nu = self.ratio("error", estimator)
        return torch.where((ceiling > 0) & nu.defined, nu.value / ceiling, torch.nan)

    def _chunks(self, size: int = CHUNK) -> Iterator[tuple[Sums, Fixed]]:
        """Sums of every block and what is fixed, for some latents at a time; ``means`` are made here."""
        stacked = self.sums.stacked()
        vectors = stacked["rows"].split(list(self.widths), dim=-1)
        for start in range(0, self.latents, size):
            part = slice(start, min(start + size, self.latents))
            sums = {name: stacked[name][..., part] for name in ("count", "f", "ff", "dots")}
            sums |= {"tokens": stacked["tokens"], "means": self._projected(vectors, part)}
            yield sums, self.fixed.latents(part)

    def _check(self, target: str, estimator: str) -> None:
        if target not in self.targets():
            known = self.targets()
            if target in TARGETS:
                raise InputError(f"The target '{target}' needs a crosscoder's reconstructions; ask for 'activation'.")
            raise InputError(f"There is no target '{target}'.{did_you_mean(target, known)}")
        if estimator not in ESTIMATORS:
            raise InputError(f"There is no estimator '{estimator}'.{did_you_mean(estimator, ESTIMATORS)}")
        if estimator == "no_bias" and self.fixed.bias is None:
            raise InputError("The estimator 'no_bias' needs the decoder bias of every source; use 'centered'.")


def _ratio_statistic(beta_of: Statistic, probe: int, numerator: int, denominator: int) -> Statistic:
    def statistic(sums: Sums) -> Tensor:
        beta = beta_of(sums)[:, probe]
        return beta[:, numerator] / beta[:, denominator]

    return statistic


def _rows(codes: Codes, start: int, end: int) -> Codes:
    """The codes of some consecutive tokens."""
    offsets = codes.offsets[start : end + 1]
    part = slice(int(offsets[0]), int(offsets[-1]))
    return Codes(codes.values[part], codes.indices[part], offsets - offsets[0], codes.width)


def _checked(rows: Rows | None, part: str, codes: Codes | Tensor, widths: tuple[int, ...]) -> Rows:
    tokens = codes.tokens if isinstance(codes, Codes) else codes.shape[0]
    if rows is None or [tuple(row.shape) for row in rows] != [(tokens, width) for width in widths]:
        came = "none" if rows is None else ", ".join(str(tuple(row.shape)) for row in rows)
        need = ", ".join(str((tokens, width)) for width in widths)
        raise InputError(f"Latent Scaling needs the {part} rows of every source, of shapes {need}; {came} came.")
    if not all(bool(torch.isfinite(row).all()) for row in rows):
        raise InputError(f"The {part} rows hold values that are not finite; one of them would spoil every sum.")
    return rows
