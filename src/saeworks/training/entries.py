"""The entries (token, latent) that take part in a step, out of one product with the encoder that is never kept.

Those are the active latents, and with them whatever else has a gradient: of a JumpReLU the window around the threshold,
of a gated encoder every open gate. All else is zero, in the loss and in its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.dictionaries.activation import BatchTopK
from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.kernels.positions import positions, positions_above
from saeworks.dictionaries.kernels.product import blocks
from saeworks.dictionaries.kernels.selection import largest_of_all
from saeworks.dictionaries.kernels.sparse import encode_selected
from saeworks.training.dense import Parameters
from saeworks.training.moment import Moment
from saeworks.training.objectives import decoder_norms, score_norms
from saeworks.training.penalties import Latents
from saeworks.training.recipes import SELECTIONS_BY_K, Recipe
from saeworks.training.straight_through import jump, step

# A guess of BatchTopK's smallest score is one with 1 to 4 times as many candidates as are wanted, sought at 1.5 times.
MOST_CANDIDATES, AIM = 4.0, 1.5
Blocks = Callable[[], Iterator[tuple[int, Tensor]]]


class TooDense(Exception):
    """More entries take part than the caller wants to treat one by one."""


@dataclass(frozen=True)
class Entries:
    """What takes part in a step.

    Attributes:
        codes: the places; the values are ``f [entry]``, with gradient, zero where a latent is not active.
        z: ``[entry]`` pre-activations. gate: ``[entry]`` those of a gate, all positive; None without one.
    """

    codes: Codes
    z: Tensor
    gate: Tensor | None = None

    def active(self) -> Codes:
        """The latents that are active."""
        f = self.codes.values.detach()
        return self.codes.with_values(f) if bool((f > 0).all()) else self.codes.subset(f > 0, f)


@dataclass(frozen=True)
class EntryLatents(Latents):
    """:class:`Latents` of which only the entries that take part are known; ``[token, width]`` becomes ``[entry]``.

    ``f``, ``z``, ``threshold`` and ``shares`` are given entry by entry, ``norms`` and ``joint`` as ever.

    Attributes:
        codes: where the entries are.
        mean_z: ``[width]`` mean pre-activation over all tokens, the others' included.
    """

    codes: Codes
    mean_z: Callable[[], Tensor]
    all_thresholds: Tensor | None

    def norm(self, norms: str) -> Tensor:  # type: ignore[override]
        """``[entry]`` norm of the direction of its latent."""
        if norms == "none":
            return torch.ones_like(self.shares)
        return (self.norms.sum(dim=0) if norms == "sum" else self.joint).index_select(0, self.codes.indices)

    def sums(self, terms: Tensor) -> Tensor:
        """``[token]`` sums of ``terms [entry]``."""
        return terms.new_zeros(self.codes.tokens).index_add(0, self.codes.rows(), terms)

    def active(self) -> Tensor:
        """``[entry]`` ones where ``z`` is above its threshold, with the gradient of the jump."""
        threshold = torch.zeros_like(self.z) if self.threshold is None else self.threshold
        return step(self.z, threshold, self.moment.bandwidth, self.everywhere)

    def rates(self) -> Tensor:
        """``[width]`` share of the tokens on which each latent is active."""
        return self._by_latent(self.active()) / self.codes.tokens

    def missing(self) -> Tensor:
        """``[width]`` mean over the tokens of how far ``z`` is below its threshold, 0 where it is above.

        Nearly all entries are below, so those above are counted off: ``(θ - z)⁺ = (θ - z) + (z - θ)⁺``.
        """
        above = torch.relu(self.z if self.threshold is None else self.z - self.threshold)
        mean = self.mean_z()
        below = -mean if self.all_thresholds is None else self.all_thresholds - mean
        return below + self._by_latent(above) / self.codes.tokens

    def _by_latent(self, terms: Tensor) -> Tensor:
        return terms.new_zeros(self.codes.width).index_add(0, self.codes.indices, terms)


def collect(
    recipe: Recipe, p: Parameters, x: Tensor, moment: Moment, widths: tuple[int, ...], densest: float = 1.0
) -> list[Entries]:
    """What takes part, with gradients; a second time for the larger selection of a recipe with ``multi``.

    Raises:
        TooDense: in the first block of rows more than the share ``densest`` of all entries takes part.
    """
    bias_name = "b_gate" if recipe.selection == "gated" else "b_enc"
    with torch.no_grad():
        encoder, bias = p["encoder"].detach(), p[bias_name].detach()
        shifted = bias - encoder @ p["b_dec"] if recipe.pre_bias else bias

        def rows() -> Iterator[tuple[int, Tensor]]:
            return blocks(x, encoder, shifted)

        if recipe.selection in SELECTIONS_BY_K:
            ks = [moment.k] if recipe.multi is None else [moment.k, min(recipe.multi.factor * moment.k, bias.numel())]
            if max(ks) > densest * bias.numel():
                raise TooDense
            norms = score_norms(recipe, p["decoder"], widths)
            found = _by_k(recipe, rows, ks, norms, moment, (x.shape[0], bias.numel()))
        else:
            found = [_above(rows, _floor(recipe, p, moment), (x.shape[0], bias.numel()), densest)]
    with_gradient = [
        encode_selected(x, p["encoder"], p[bias_name], p["b_dec"], codes, recipe.pre_bias) for codes in found
    ]
    return [_activated(recipe, p, codes, moment) for codes in with_gradient]


def _activated(recipe: Recipe, p: Parameters, codes: Codes, moment: Moment) -> Entries:
    """Entries of places whose values are what was collected: the gate's or the latents' own pre-activations."""
    if recipe.selection == "gated":
        gate, at = codes.values, codes.indices
        u = gate - p["b_gate"].index_select(0, at)
        z = p["r_mag"].exp().index_select(0, at) * u + p["b_enc"].index_select(0, at)
        return Entries(codes.with_values(z.relu()), z, gate)
    z = codes.values
    if recipe.selection == "jumprelu":
        threshold = p["threshold"].index_select(0, codes.indices)
        return Entries(codes.with_values(jump(z, threshold, moment.bandwidth, recipe.jump.everywhere)), z)
    return Entries(codes if _floor(recipe, p, moment) == 0.0 else codes.with_values(z.relu()), z)


def shown(
    recipe: Recipe, p: Parameters, x: Tensor, entries: Entries, moment: Moment, widths: tuple[int, ...]
) -> Latents:
    """The entries as penalties see them."""
    codes, groups = entries.codes, len(moment.sizes)
    held = torch.arange(groups, 0, -1, device=x.device).to(x.dtype) / groups
    if moment.discounts is not None:
        whole = moment.weighted(held.repeat_interleave(torch.tensor(moment.sizes, device=x.device)))
        shares = whole.index_select(0, codes.indices)
    elif groups == 1:
        shares = torch.ones_like(entries.z)
    else:
        shares = held.repeat_interleave(torch.tensor(moment.sizes, device=x.device)).index_select(0, codes.indices)
    threshold = p.get("threshold")

    def mean_z() -> Tensor:
        mean = x.mean(dim=0)
        return p["encoder"] @ (mean - p["b_dec"] if recipe.pre_bias else mean) + p["b_enc"]

    return EntryLatents(
        z=entries.z,
        f=codes.values if entries.gate is None else entries.gate,
        threshold=None if threshold is None else threshold.index_select(0, codes.indices),
        norms=decoder_norms(p["decoder"], widths),
        joint=p["decoder"].norm(dim=1),
        shares=shares,
        everywhere=recipe.jump.everywhere,
        moment=moment,
        codes=codes,
        mean_z=mean_z,
        all_thresholds=threshold,
    )


def _floor(recipe: Recipe, p: Parameters, moment: Moment) -> float | Tensor:
    """What a pre-activation must exceed to take part: a little less than the lower end of the window of the jump."""
    if recipe.selection == "jumprelu":
        threshold = p["threshold"].detach()
        rounding = 4 * torch.finfo(threshold.dtype).eps * (threshold.abs() + moment.bandwidth)
        return threshold - moment.bandwidth / 2 - rounding
    return -moment.bandwidth if recipe.selection == "relu" and recipe.jump.everywhere else 0.0


def _above(rows: Blocks, floor: float | Tensor, shape: tuple[int, int], densest: float) -> Codes:
    """All entries above a floor of all or of each latent."""
    found = _Found(shape)
    for start, z in rows():
        places = positions_above(z, floor)
        if start == 0 and places.numel() > densest * z.numel():
            raise TooDense
        found.add(start, places, z)
    return found.codes()


def _by_k(
    recipe: Recipe, rows: Blocks, ks: list[float], norms: Tensor | None, moment: Moment, shape: tuple[int, int]
) -> list[Codes]:
    """The latents that each of ``ks`` selects by ``z``, or by ``z * norms [width]``."""
    activations = [recipe.activation(k) for k in ks]
    if recipe.selection == "batch_topk":
        return _by_batch(rows, ks, norms, moment.hint if len(ks) == 1 else None, moment.sets, shape)
    parts: list[list[Codes]] = [[] for _ in ks]
    for _, z in rows():
        scores = z if norms is None else z * norms
        for part, activation in zip(parts, activations, strict=True):
            assert not isinstance(activation, BatchTopK)
            codes = activation(scores)
            part.append(codes if norms is None else codes.with_values(z[codes.rows(), codes.indices]))
    return [Codes.joined(part) for part in parts]


def _by_batch(
    rows: Blocks,
    ks: list[float],
    norms: Tensor | None,
    hint: float | None,
    sets: list[tuple[slice, float]],
    shape: tuple[int, int],
) -> list[Codes]:
    """BatchTopK without a matrix of all scores: candidates above a guess, then the largest of them, set by set.

    The guess is checked on the first block and replaced by one from there. It decides how many candidates are kept, and
    never what is selected: too few of them, and all positive scores are searched.
    """
    wanted = [[round(k * share * shape[0]) for _, share in sets] for k in ks]
    guesses = [0.0 if hint is None else hint] * len(sets)
    for attempt in range(2):
        scores, values = _Found(shape), _Found(shape)
        for start, z in rows():
            scored = z if norms is None else z * norms
            if start == 0 and attempt == 0:
                guesses = [
                    _checked(guess, scored[:, part], max(ks) * share)
                    for guess, (part, share) in zip(guesses, sets, strict=True)
                ]
            places = positions_above(scored, _floors(guesses, sets, scored))
            scores.add(start, places, scored)
            if norms is not None:
                values.add(start, places, z)
        candidates = scores.codes()
        of_sets = [_of_set(candidates.indices, part) for part, _ in sets]  # pyright: ignore
        numbers = [part.numel() for part in of_sets]
        if all(n >= max(most) or g == 0 for n, g, *most in zip(numbers, guesses, *wanted, strict=True)):
            break
        guesses = [0.0] * len(sets)
    pre = candidates if norms is None else values.codes()  # pyright: ignore
    return [_kept(candidates, pre.values, of_sets, counts) for counts in wanted]  # pyright: ignore


def _floors(guesses: list[float], sets: list[tuple[slice, float]], scores: Tensor) -> float | Tensor:
    """One guess, or that of each latent's set."""
    if len(sets) == 1:
        return guesses[0]
    sizes = torch.tensor([part.stop - part.start for part, _ in sets], device=scores.device)
    return scores.new_tensor(guesses).repeat_interleave(sizes)


def _of_set(latents: Tensor, part: slice) -> Tensor:
    """Ascending places of the ``latents [nonzero]`` that are in a set."""
    if part == slice(None):
        return torch.arange(latents.numel(), device=latents.device)
    return positions((latents >= part.start) & (latents < part.stop))


def _kept(candidates: Codes, values: Tensor, of_sets: list[Tensor], counts: list[int]) -> Codes:
    """The candidates with the largest scores, so many of each set, with their ``values``."""
    mask = torch.zeros_like(candidates.values, dtype=torch.bool)
    for places, count in zip(of_sets, counts, strict=True):
        mask[places[largest_of_all(candidates.values[places], count)]] = True
    return candidates.subset(mask, values)


def _checked(guess: float, scores: Tensor, k: float) -> float:
    """The guess, if about ``k`` scores per token exceed it; otherwise one that fits these ``scores [token, width]``."""
    some = scores[:64]
    count = int((some > guess).sum())
    if guess > 0 and k * some.shape[0] <= count <= MOST_CANDIDATES * k * some.shape[0]:
        return guess
    rank = min(max(round(AIM * k * some.shape[0]), 1), some.numel())
    return max(float(some.flatten().topk(rank, sorted=False).values.min()), 0.0)


class _Found:
    """Places and values found block by block."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._places: list[Tensor] = []
        self._values: list[Tensor] = []

    def add(self, first_row: int, places: Tensor, block: Tensor) -> None:
        """Keep the entries of ``block [rows, width]`` at flat ``places``."""
        self._values.append(block.flatten()[places])
        self._places.append(places + first_row * self._shape[1])

    def codes(self) -> Codes:
        """All that was found."""
        return Codes.of_places(torch.cat(self._places), torch.cat(self._values), *self._shape)
