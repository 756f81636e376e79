"""What the numbers mean: reconstruction and sparsity metrics as pure functions on plain tensors.

Symbols: x [token, d] activations, x_hat [token, d] reconstructions, f [token, latent] codes;
RSS_t = ||x_t - x_hat_t||²; x_mean [d] the mean over all tokens. Sums run in float64 over the whole evaluation set (a
ratio of sums, not a mean of ratios) unless a docstring says otherwise, so the value does not depend on how tokens were
batched. SAEBench's own arithmetic, where it differs, is in :mod:`saeworks.evals.compat.core_compat`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: |EV| and |1 - EV| below this are rounding of float64 sums: predict-the-mean is then exactly 0, identity exactly 1.
ROUNDING = 1e-12


def double(x: Tensor) -> Tensor:
    """``x`` in float64, on the CPU where the device has no float64 (MPS)."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def ratio(numerator: float, denominator: float) -> float:
    """``numerator / denominator``; NaN when the denominator is 0."""
    return numerator / denominator if denominator != 0 else math.nan


def snap(value: float) -> float:
    """Remove float64 rounding around 0 and 1."""
    nearest = round(value) if math.isfinite(value) else value
    return float(nearest) if nearest in (0, 1) and abs(value - nearest) < ROUNDING else value


def explained_variance(x: Tensor, x_hat: Tensor) -> float:
    """1 - ΣRSS_t / Σ||x_t - x_mean||². 1 for a perfect reconstruction, 0 for predicting the mean, else unbounded below.

    Constant data have no variance: the value is then NaN. FVU = 1 - explained_variance.
    """
    return _accumulate(x, x_hat).explained_variance()


def explained_variance_per_dimension(x: Tensor, x_hat: Tensor) -> Tensor:
    """[d]: 1 - Σ_t(x_td - x_hat_td)² / Σ_t(x_td - x_mean_d)². NaN where a dimension is constant."""
    return _accumulate(x, x_hat).per_dimension()


def explained_variance_legacy(x: Tensor, x_hat: Tensor) -> float:
    """Mean over tokens of 1 - RSS_t / ||x_t - x_mean||² (the value in the SAEBench paper; heavy-tailed).

    Here x_mean is the mean of the given batch, so a streamed value depends on the batches.
    """
    return _accumulate(x, x_hat).result()["explained_variance_legacy"]


def mse(x: Tensor, x_hat: Tensor) -> float:
    """Mean over tokens of RSS_t (sum over d)."""
    return float(double(x - x_hat).square().sum(-1).mean())


def mse_per_dimension(x: Tensor, x_hat: Tensor) -> float:
    """Mean over tokens and dimensions of the squared error: :func:`mse` / d."""
    return float(double(x - x_hat).square().mean())


def normalised_mse(x: Tensor, x_hat: Tensor) -> float:
    """ΣRSS_t / Σ||x_t||²: the denominator is uncentred, unlike 1 - explained_variance."""
    return ratio(float(double(x - x_hat).square().sum()), float(double(x).square().sum()))


def cosine_similarity(x: Tensor, x_hat: Tensor) -> float:
    """Mean over tokens of cos(x_t, x_hat_t); a token of which either norm is 0 counts as 0."""
    return _accumulate(x, x_hat).result()["cossim"]


def l2_ratio(x: Tensor, x_hat: Tensor) -> float:
    """Mean over tokens of ||x_hat_t|| / ||x_t||, with norms of x below 1e-4 replaced by 1."""
    return _accumulate(x, x_hat).result()["l2_ratio"]


def relative_reconstruction_bias(x: Tensor, x_hat: Tensor) -> float:
    """Σ||x_hat_t||² / Σ x_t·x_hat_t. 1 means no bias, below 1 shrinkage (arXiv 2404.16014, section 4)."""
    return ratio(float(double(x_hat).square().sum()), float((double(x) * double(x_hat)).sum()))


def l0(f: Tensor) -> float:
    """Mean over tokens of the number of latents that are not 0."""
    return float(double((f != 0).sum(-1)).mean())


def l1(f: Tensor) -> float:
    """Mean over tokens of Σ_i |f_ti|."""
    return float(double(f.abs()).sum(-1).mean())


def densities(f: Tensor) -> Tensor:
    """[latent]: share of tokens on which the latent is not 0, whatever its sign."""
    return double(f != 0).mean(0)


def dead_fraction(density: Tensor) -> float:
    """Share of latents with density 0 on the evaluated tokens; ``frac_alive`` = 1 - dead fraction."""
    return float((density == 0).double().mean())


def density_histogram(density: Tensor, low: float = -6.0, bins: int = 24) -> tuple[list[float], list[int], int]:
    """Histogram of log10(density) from ``low`` to 0: (edges [bins + 1], counts [bins], number of dead latents).

    Densities below 10**low are counted in the first bin; density 0 has no logarithm and is counted apart.
    """
    alive = density[density > 0].double().cpu()
    logs = alive.log10().clamp(low, 0.0)
    edges = torch.linspace(low, 0.0, bins + 1, dtype=torch.float64)
    counts = torch.histogram(logs, bins=edges).hist if len(logs) else torch.zeros(bins)
    return edges.tolist(), [int(c) for c in counts], int((density == 0).sum())


def density_shares(density: Tensor) -> dict[str, float]:
    """``frac_alive`` and, for 1 % and 10 %, the share of latents above it and their share of all firing."""
    density = density.double()
    total = float(density.sum())
    out = {"frac_alive": 1 - dead_fraction(density)}
    for name, level in (("1", 0.01), ("10", 0.1)):
        over = density > level
        out[f"freq_over_{name}_percent"] = float(over.double().mean())
        out[f"normalized_freq_over_{name}_percent"] = float(density[over].sum()) / total if total else 0.0
    return out


def max_cosine(vectors: Tensor, block: int = 1024) -> Tensor:
    """[n]: for each row of ``vectors`` [n, d] the largest cosine with any other row (signed, itself excluded)."""
    unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
    if len(unit) < 2:
        return torch.full((len(unit),), torch.nan)
    best: list[Tensor] = []
    for start in range(0, len(unit), block):
        cosines = unit[start : start + block] @ unit.T
        rows = torch.arange(len(cosines), device=unit.device)
        cosines[rows, rows + start] = -torch.inf
        best.append(cosines.amax(-1))
    return torch.cat(best)


def score(clean: float, changed: float, ablated: float) -> float:
    """(ablated - changed) / (ablated - clean): 1 when nothing was lost, 0 when as bad as the ablation."""
    return snap(ratio(ablated - changed, ablated - clean))


@dataclass
class _Sums:
    tokens: int = 0
    rss: float = 0.0
    tss: float = 0.0
    legacy: float = 0.0
    cossim: float = 0.0
    l2_ratio: float = 0.0
    norm_in: float = 0.0
    norm_out: float = 0.0
    square_in: float = 0.0
    square_out: float = 0.0
    inner: float = 0.0
    l0: float = 0.0
    l1: float = 0.0


class ReconstructionAccumulator:
    """Sums for every metric of this file over batches; the order and size of batches changes none of them but
    ``explained_variance_legacy``, which its definition ties to the batch mean."""

    def __init__(self) -> None:
        self.sums = _Sums()
        self._mean: Tensor | None = None
        self._rss: Tensor | None = None
        self._tss: Tensor | None = None
        self._fired: Tensor | None = None
        self._width_in = 0

    def update(self, x: Tensor, x_hat: Tensor, codes: Tensor | None = None) -> None:
        """Add a batch: x, x_hat [token, d]; codes [token, latent] or None when only fidelity is wanted."""
        if x.shape != x_hat.shape or x.dim() != 2:
            raise ValueError(f"x {tuple(x.shape)} and x_hat {tuple(x_hat.shape)} must be equal and [token, d].")
        if not len(x):
            return
        x, x_hat = double(x), double(x_hat)
        s, self._width_in = self.sums, x.shape[1]
        squares = (x - x_hat).square()
        rss = squares.sum(-1)
        norm_in, norm_out, inner = x.norm(dim=-1), x_hat.norm(dim=-1), (x * x_hat).sum(-1)
        batch_mean = x.mean(0)
        scatter = (x - batch_mean).square()
        batch_tss = scatter.sum(-1)
        self._merge_variance(len(x), batch_mean, scatter.sum(0))
        self._rss = squares.sum(0) if self._rss is None else self._rss + squares.sum(0)
        s.rss += float(rss.sum())
        s.legacy += float((1 - rss / batch_tss).sum())
        s.cossim += float(torch.where(norm_in * norm_out > 0, inner / (norm_in * norm_out), 0.0).sum())
        s.l2_ratio += float((norm_out / torch.where(norm_in < 1e-4, 1.0, norm_in)).sum())
        s.norm_in += float(norm_in.sum())
        s.norm_out += float(norm_out.sum())
        s.square_in += float(norm_in.square().sum())
        s.square_out += float(norm_out.square().sum())
        s.inner += float(inner.sum())
        s.tokens += len(x)
        if codes is not None:
            s.l0 += float((codes != 0).sum())
            s.l1 += float(double(codes.abs().sum(-1)).sum())
            fired = double((codes != 0).sum(0))
            self._fired = fired if self._fired is None else self._fired + fired

    def _merge_variance(self, count: int, mean: Tensor, tss: Tensor) -> None:
        # The pairwise update of Chan, Golub and LeVeque: no cancellation, unlike E[x²] - E[x]².
        s = self.sums
        if self._mean is None or self._tss is None:
            self._mean, self._tss = mean, tss
        else:
            delta = mean - self._mean
            total = s.tokens + count
            self._tss = self._tss + tss + delta.square() * (s.tokens * count / total)
            self._mean = self._mean + delta * (count / total)
        s.tss = float(self._tss.sum())

    def explained_variance(self) -> float:
        """See :func:`explained_variance`."""
        return snap(1 - ratio(self.sums.rss, self.sums.tss))

    def per_dimension(self) -> Tensor:
        """[d]; see :func:`explained_variance_per_dimension`."""
        if self._rss is None or self._tss is None:
            raise ValueError("No token was added yet.")
        return torch.where(self._tss > 0, 1 - self._rss / self._tss, torch.nan)

    def mean(self) -> Tensor:
        """[d] float64: the mean of all x so far."""
        if self._mean is None:
            raise ValueError("No token was added yet.")
        return self._mean

    def densities(self) -> Tensor:
        """[latent] float64; see :func:`densities`."""
        if self._fired is None:
            raise ValueError("No codes were added yet.")
        return self._fired / self.sums.tokens

    def result(self) -> dict[str, float]:
        """All scalar metrics by SAEBench's field names (and ours where SAEBench has none)."""
        s = self.sums
        n = s.tokens or math.nan
        out = {
            "explained_variance": self.explained_variance(),
            "explained_variance_dimension_mean": math.nan,
            "explained_variance_dimension_median": math.nan,
            "explained_variance_legacy": snap(s.legacy / n),
            "mse": s.rss / n,
            "mse_per_dimension": s.rss / n / (self._width_in or math.nan),
            "normalised_mse": ratio(s.rss, s.square_in),
            "cossim": s.cossim / n,
            "l2_norm_in": s.norm_in / n,
            "l2_norm_out": s.norm_out / n,
            "l2_ratio": s.l2_ratio / n,
            "relative_reconstruction_bias": snap(ratio(s.square_out, s.inner)),
        }
        if self._rss is not None:
            each = self.per_dimension()
            out["explained_variance_dimension_mean"] = snap(float(each.nanmean()))
            out["explained_variance_dimension_median"] = snap(float(each.nanmedian()))
        if self._fired is not None:
            out |= {"l0": s.l0 / n, "l1": s.l1 / n}
        return out


def _accumulate(x: Tensor, x_hat: Tensor) -> ReconstructionAccumulator:
    accumulator = ReconstructionAccumulator()
    accumulator.update(x, x_hat)
    return accumulator
