"""How many bits it takes to write latents down: quantised values, counts and code lengths, on sparse codes.

A value is replaced by the middle of its bin among ``bins`` equal ones between two bounds of its latent. ``compat`` is
SAEBench's arithmetic; ``coded_bits`` is the length of a code that could be sent: frequencies are learnt on some texts
and the bits are counted on others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes

# The published search for the largest activation begins at this number instead of 0.
COMPAT_LEAST_MAXIMUM = 100.0


@dataclass(frozen=True)
class Bins:
    """``count`` equal bins between ``low`` and ``high``, [latent] each."""

    low: Tensor
    high: Tensor
    count: int

    @property
    def size(self) -> Tensor:
        """[latent] width of a bin; 1 where the bounds are equal."""
        size = (self.high - self.low) / self.count
        return torch.where(size > 0, size, 1.0)

    def middle(self, latents: Tensor, numbers: Tensor) -> Tensor:
        """Middles of the bins of the given numbers, of the given latents."""
        return self.low[latents] + (numbers + 0.5) * self.size[latents]

    def place(self, codes: Codes) -> Tensor:
        """[nonzero] real number whose whole part is the bin, 0 at the lower bound and ``count`` at the upper one."""
        return (codes.values - self.low[codes.indices]) / self.size[codes.indices]


def largest_per_token(codes: Codes, k: int | None) -> Codes:
    """The ``k`` nonzeros of largest magnitude of every token, the first of equals; None keeps all."""
    if k is None or not codes.indices.numel():
        return codes
    order = codes.values.abs().argsort(descending=True, stable=True)
    rows = codes.rows()
    order = order[rows[order].argsort(stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - codes.offsets[rows[order]]
    return codes.subset(ranks < k, codes.values)


def bounds(codes: Codes) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every latent, [latent] each, 0 among them."""
    low, high = codes.values.new_zeros(codes.width), codes.values.new_zeros(codes.width)
    low.scatter_reduce_(0, codes.indices, codes.values, "amin")
    high.scatter_reduce_(0, codes.indices, codes.values, "amax")
    return low, high


def entropy(counts: Tensor) -> Tensor:
    """Bits per event of the distributions ``counts [..., event]``; 0 where nothing was counted."""
    shares = counts.double() / counts.double().sum(-1, keepdim=True).clamp_min(1.0)
    return -torch.xlogy(shares, shares).sum(-1) / torch.log(torch.tensor(2.0, dtype=torch.float64))


# --- compat ----------------------------------------------------------------------------------------------------------


def compat_bins(high: Tensor, count: int) -> Bins:
    """Bins from 0 to the largest activation [latent], or to 100 where that is less."""
    return Bins(torch.zeros_like(high), high.clamp_min(COMPAT_LEAST_MAXIMUM), count)


def compat_description_length(codes: Codes, bins: Bins) -> float:
    """Σ over latents of H(fires) + P(fires) · H(bin).

    The bin's distribution includes the zeros, which lie in the first bin, and excludes values above the bounds.
    """
    active = codes.values > 0
    fires = torch.bincount(codes.indices[active], minlength=codes.width)
    number = bins.place(codes)
    # Left-closed bins, the last one closed on both sides.
    inside = (number >= 0) & (number <= bins.count)
    number = number.floor().clamp(0, bins.count - 1).long()
    flat = codes.indices[inside] * bins.count + number[inside]
    counts = torch.bincount(flat, minlength=codes.width * bins.count).view(codes.width, bins.count)
    nonzeros = torch.bincount(codes.indices, minlength=codes.width)
    counts[:, 0] += codes.tokens - nonzeros
    share = fires.double() / max(codes.tokens, 1)
    off = entropy(torch.stack([fires, codes.tokens - fires], dim=-1))
    return float((off + share * entropy(counts)).sum())


def compat_quantised(codes: Codes, bins: Bins) -> tuple[Tensor, Tensor]:
    """Middles of the bins of the nonzeros [nonzero], and of the zeros [latent]: half a bin, not 0.

    Bins are closed on the right here; values beyond the bounds go to the outermost ones.
    """
    number = (bins.place(codes).ceil() - 1).clamp(0, bins.count - 1)
    everything = torch.arange(codes.width, device=codes.indices.device)
    return bins.middle(codes.indices, number), bins.middle(everything, torch.zeros_like(everything))


def compat_reconstruction(codes: Codes, bins: Bins, decoder: Tensor, b_dec: Tensor) -> Tensor:
    """[token, d] decoded from quantised latents, of which none is 0: the zeros add the same vector to every token."""
    nonzero, zero = compat_quantised(codes, bins)
    changed = codes.with_values(nonzero - zero[codes.indices])
    return decode_sums(changed, decoder) + zero @ decoder + b_dec


def compat_mse_loss(x: Tensor, x_hat: Tensor) -> float:
    """√(mean of squared errors over tokens and dimensions) / d, for [token, d]."""
    return float((x_hat - x).double().square().mean().sqrt()) / x.shape[1]


def minimum_viable(lengths: list[float], within: list[bool]) -> int:
    """The shortest description among those within the threshold; among all where none is."""
    candidates = [i for i, fits in enumerate(within) if fits] or list(range(len(lengths)))
    return min(candidates, key=lambda i: lengths[i])


# --- corrected -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coder:
    """A code for latents: one bit stream for which of them fire, one for their bins.

    Attributes:
        bins: of the values that are not 0.
        on, off: [latent] bits to say that a latent fires on a token, that it does not.
        bin_bits: [latent, bin + 2] bits to say in which bin its value lies, or that it lies above or below all of them;
            how far is said by an Elias gamma code, so that no value is cut.
    """

    bins: Bins
    on: Tensor
    off: Tensor
    bin_bits: Tensor


def learn_code(codes: Codes, count: int) -> Coder:
    """The code that is best for ``codes``, each event counted half a time more than it occurs (Krichevsky-Trofimov).

    Bounds are those of every latent; one that never fires has the median bounds of those that do.
    """
    low, high = bounds(codes)
    seen = torch.bincount(codes.indices, minlength=codes.width)
    if bool((seen > 0).any()):
        low, high = (torch.where(seen > 0, own, own[seen > 0].median()) for own in (low, high))
    bins = Bins(low, high, count)
    symbols = count + 2
    flat = codes.indices * symbols + numbers(codes, bins).clamp(max=count - 1)  # the largest value closes the last bin
    counts = torch.bincount(flat, minlength=codes.width * symbols).view(codes.width, symbols).double()
    tokens, fires = float(codes.tokens), seen.double()
    return Coder(
        bins,
        -((fires + 0.5) / (tokens + 1)).log2(),
        -((tokens - fires + 0.5) / (tokens + 1)).log2(),
        -((counts + 0.5) / (fires + 0.5 * symbols)[:, None]).log2(),
    )


def numbers(codes: Codes, bins: Bins) -> Tensor:
    """[nonzero] int64 bin of every value; those beyond the bounds have numbers below 0 or from ``bins.count`` on."""
    place = bins.place(codes)
    return torch.where(place == bins.count, place - 1, place.floor()).long()


def coded_bits(codes: Codes, coder: Coder) -> Tensor:
    """[token] float64 bits that the code spends on each token."""
    count, number = coder.bins.count, numbers(codes, coder.bins)
    above, below = (number - count + 1).clamp_min(0), (-number).clamp_min(0)
    symbol = torch.where(above > 0, count, torch.where(below > 0, count + 1, number))
    distance = (above + below).clamp_min(1).double()
    gamma = torch.where(above + below > 0, 2 * distance.log2().floor() + 1, 0.0)
    per_nonzero = (coder.on - coder.off)[codes.indices] + coder.bin_bits[codes.indices, symbol] + gamma
    bits = coder.off.sum().expand(codes.tokens).clone()
    return bits.index_add_(0, codes.rows(), per_nonzero)


def quantised(codes: Codes, bins: Bins) -> Codes:
    """Every value replaced by the middle of its bin; zeros stay zeros."""
    return codes.with_values(bins.middle(codes.indices, numbers(codes, bins)))


def residual_bits(unexplained: Tensor, distortion: float, width: int) -> Tensor:
    """Bits per token to send what a reconstruction lacks: d/2 · log₂(unexplained / distortion), 0 where it lacks less.

    Args:
        unexplained: shares of the variance that are not explained. distortion: share that may be lost in the end.
        width: d. This is the rate of Gaussian errors that are equally large in all directions, and no more for others.
    """
    return width / 2 * (unexplained / distortion).clamp_min(1.0).log2()


def decode_sums(codes: Codes, decoder: Tensor) -> Tensor:
    """[token, d] Σ value · row, without a bias."""
    from saeworks.dictionaries.kernels.sparse import decode_codes

    return decode_codes(codes, decoder)
