"""Paired activations of two models of which it is known what they share: the ground truth of model diffing.

Model 0 is the base and model 1 the chat model. A feature belongs to one of the groups below; a token's coefficient of
a feature is drawn once and shared by both models, so that ``x^m = Σ_g codes^m_g · directions^m_g + means^m + noise``.

- ``shared``: equally strong in both; every second one points elsewhere in the base.
- ``base_only``, ``chat_only``: absent from the other model.
- ``weak_in_base``, ``weak_in_chat``: the same direction, but weaker in that model by a given factor.
- ``decoupled``: in both, but not on all of the same tokens.
- ``dense``: shared and active most of the time; none by default.

The setting is that of sparse crosscoders (Lindsey et al. 2024) and their artifacts (arXiv 2504.02922).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from saeworks.errors import InputError, did_you_mean
from saeworks.runtime import generator as seeded
from saeworks.world.synthetic.amplitudes import AmplitudeLaw, Uniform
from saeworks.world.synthetic.directions import rows_at_cosine, unit_rows
from saeworks.world.synthetic.features import SyntheticBatch

GROUPS = ("shared", "base_only", "chat_only", "weak_in_base", "weak_in_chat", "decoupled", "dense")
MIRROR = {
    "base_only": "chat_only",
    "chat_only": "base_only",
    "weak_in_base": "weak_in_chat",
    "weak_in_chat": "weak_in_base",
}
DENSE_PROBABILITY = 0.5


@dataclass(frozen=True, slots=True)
class PairedBatch:
    """``activations [token, model, d]`` and the ``codes [token, model, feature]`` that made them, float32.

    A code is the token's coefficient times the feature's strength in that model, 0 where the feature is silent there.
    """

    activations: Tensor
    codes: Tensor


@dataclass(frozen=True)
class PairedFeatures:
    """A base and a chat model whose differences are known.

    Args:
        shared: Number of shared features; those at odd places have ``shared_cosine`` between the models.
        base_only, chat_only: Numbers of exclusive features.
        weak_levels: Strengths in the weaker model, 1 being that in the other.
        weak_in_base, weak_in_chat: Features per level.
        overlaps: For decoupled features, the chance to be active in the base given activity in the chat model.
        decoupled: Features per overlap.
        dense: Number of dense shared features.
        d: Width of each model's activations.
        probability: Chance of a feature to be active in any of the models.
        group_probabilities: The same for single groups, such as ``{"chat_only": 0.002}``.
        coefficient: Law of an active feature's coefficient.
        shared_cosine, decoupled_cosine: Cosines between the models' directions of one feature.
        mean_scale: Every coordinate of the base's mean activation is ``mean_scale · N(0, 1)``.
        mean_shift: … and the chat model's differs from it by ``mean_shift · N(0, 1)``.
        noise: Standard deviation of Gaussian noise on every coordinate, independent between the models.
        seed: Seed of directions and means.
        variant: See :meth:`swapped` and :meth:`null`.

    Attributes:
        directions: Unit directions ``[model, feature, d]``.
        scales: Strength in each model ``[model, feature]``; 0 where a model lacks the feature.
        means: Mean of the activations when no feature is active ``[model, d]``.
        probabilities: Chance to be active in any model ``[feature]``.
        together: Chance that both models are active given that one is ``[feature]``; below 1 for decoupled features.
        groups: Name of each feature's group.

    Strengths of exactly 0.2 and overlaps of exactly 0.5 stand on the border of :meth:`chat_specific`, where noise
    decides the label; the defaults avoid them.

    Raises:
        InputError: A chance outside (0, 1], a level or overlap outside its range, or an unknown group.
    """

    shared: int = 40
    base_only: int = 8
    chat_only: int = 8
    weak_levels: tuple[float, ...] = (0.10, 0.15, 0.25, 0.30, 0.35, 0.50, 0.60, 0.80)
    weak_in_base: int = 2
    weak_in_chat: int = 1
    overlaps: tuple[float, ...] = (0.3, 0.7, 0.9)
    decoupled: int = 4
    dense: int = 0
    d: int = 64
    probability: float = 0.03
    group_probabilities: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)
    coefficient: AmplitudeLaw = field(default_factory=Uniform)
    shared_cosine: float = 0.9
    decoupled_cosine: float = 1.0
    mean_scale: float = 0.5
    mean_shift: float = 0.1
    noise: float = 0.02
    seed: int = 0
    variant: Literal["pair", "swapped", "null", "noisy_null"] = "pair"
    directions: Tensor = field(init=False, repr=False, compare=False)
    scales: Tensor = field(init=False, repr=False, compare=False)
    means: Tensor = field(init=False, repr=False, compare=False)
    probabilities: Tensor = field(init=False, repr=False, compare=False)
    together: Tensor = field(init=False, repr=False, compare=False)
    groups: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "group_probabilities", dict(sorted(self.group_probabilities.items())))
        _check(self)
        groups, scales, together, cosine = _layout(self)
        chance = {g: DENSE_PROBABILITY if g == "dense" else self.probability for g in GROUPS}
        chance |= self.group_probabilities
        probabilities = torch.tensor([chance[group] for group in groups])
        draw = seeded(self.seed, "paired features")
        chat = unit_rows(len(groups), self.d, draw)
        directions = torch.stack([rows_at_cosine(chat, cosine, draw), chat])
        base_mean = self.mean_scale * torch.randn(self.d, generator=draw)
        means = torch.stack([base_mean, base_mean + self.mean_shift * torch.randn(self.d, generator=draw)])
        if self.variant == "swapped":
            directions, scales, means = directions.flip(0), scales.flip(0), means.flip(0)
            groups = [MIRROR.get(group, group) for group in groups]
        elif self.variant != "pair":
            # The chat model twice: what it lacks is gone, and a feature is active as often as it was there.
            there = scales[1] > 0
            probabilities = (probabilities * (1 + together) / 2)[there]
            directions, scales, means = directions[1, there], scales[1, there], means[1]
            directions, scales, means = (t.expand(2, *t.shape).clone() for t in (directions, scales, means))
            together = torch.ones_like(probabilities)
            groups = [
                "dense" if g == "dense" else "shared" for g, kept in zip(groups, there.tolist(), strict=True) if kept
            ]
        for name, value in (
            ("directions", directions),
            ("scales", scales),
            ("means", means),
            ("probabilities", probabilities),
            ("together", together),
            ("groups", tuple(groups)),
        ):
            object.__setattr__(self, name, value)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.groups)

    def members(self, group: str) -> list[int]:
        """Indices of the features of a group."""
        if group not in GROUPS:
            raise InputError(f"There is no group '{group}' of features.{did_you_mean(group, GROUPS)}")
        return [i for i, name in enumerate(self.groups) if name == group]

    def swapped(self) -> PairedFeatures:
        """Base and chat model exchanged: the same generator then draws the same tokens with the models exchanged."""
        other = {"pair": "swapped", "swapped": "pair"}.get(self.variant, self.variant)
        return replace(self, variant=other)

    def null(self, independent_noise: bool = False) -> PairedFeatures:
        """The chat model twice, so that every difference that is found is false.

        Args:
            independent_noise: Draw the noise of the two copies apart; otherwise their activations are equal bit for
                bit.

        Raises:
            InputError: On a swapped pair, whose chat model is the base of another.
        """
        if self.variant == "swapped":
            raise InputError("The null pair of a swapped pair is ambiguous; call null() on the pair before it.")
        return replace(self, variant="noisy_null" if independent_noise else "null")

    def sample(self, count: int, generator: torch.Generator) -> PairedBatch:
        """``count`` tokens seen by both models."""
        n = self.n_features
        active = torch.rand(count, n, generator=generator) < self.probabilities
        u = torch.rand(count, n, generator=generator)
        coefficient = self.coefficient.sample((count, n), generator)
        # Both with chance `together`; what is left is divided equally between the one model and the other.
        first = u < (1 + self.together) / 2
        second = (u < self.together) | ~first
        fires = torch.stack([first, second], dim=1)
        noise = self.noise * torch.randn(count, 2, self.d, generator=generator)
        if self.variant == "swapped":
            fires, noise = fires.flip(1), noise.flip(1)
        elif self.variant == "null":
            noise = noise[:, :1].expand(-1, 2, -1)
        codes = (active * coefficient)[:, None] * fires * self.scales
        signal = torch.einsum("tmf,mfd->tmd", codes, self.directions)
        return PairedBatch(signal + self.means + noise, codes)

    @property
    def activity(self) -> Tensor:
        """P(code > 0) ``[model, feature]``."""
        return self.probabilities * (1 + self.together) / 2 * (self.scales > 0)

    @property
    def expected_codes(self) -> Tensor:
        """E[code] ``[model, feature]``."""
        return self.activity * self.scales * self.coefficient.mean

    @property
    def expected_squares(self) -> Tensor:
        """E[code²] ``[model, feature]``."""
        return self.activity * self.scales.square() * self.coefficient.mean_square

    @property
    def expected_activations(self) -> Tensor:
        """E[x] ``[model, d]``."""
        return self.means + torch.einsum("mf,mfd->md", self.expected_codes, self.directions)

    @property
    def expected_l0(self) -> float:
        """Mean number of concepts per token that are active in any of the models: the budget that holds them all."""
        return float(self.probabilities.double().sum())

    @property
    def co_activity(self) -> Tensor:
        """P(active in the base | active in the chat model) ``[feature]``; not a number where chat lacks the feature."""
        there = 2 * self.together / (1 + self.together) * (self.scales[0] > 0)
        return torch.where(self.scales[1] > 0, there, torch.nan)

    @property
    def ideal_presence(self) -> Tensor:
        """What :meth:`presence` tends to for a latent that equals the feature's chat code ``[feature]``."""
        return self.co_activity * self.scales[0] / self.scales[1]

    def presence(self, latents: Tensor, codes: Tensor, features: Tensor) -> Tensor:
        """How much of each latent's feature the base holds where the latent is active, relative to the chat model.

        ``π_j = Σ_t f_tj · codes_t,base,g / Σ_t f_tj · codes_t,chat,g`` for latent j of feature g: the quantity that
        Latent Scaling estimates without knowing the codes. Each model's part is counted along its own direction.

        Args:
            latents: Latent activations ``[token, latent]``.
            codes: Codes of the same tokens ``[token, model, feature]``.
            features: The feature of each latent ``[latent]``, int64; negative for none.

        Returns:
            ``[latent]``, float32; not a number without a feature, or where the chat model never shows it.
        """
        f = latents.detach().cpu().double()
        of = codes.cpu().double()[:, :, features.cpu().clamp_min(0)]
        held = torch.einsum("tj,tmj->mj", f, of)
        ratio = held[0] / held[1]
        known = (features.cpu() >= 0) & (held[1] > 0)
        return torch.where(known, ratio, torch.nan).float()

    def chat_specific(self, features: Tensor, presence: Tensor) -> Tensor:
        """Whether a latent that looks chat-only is so in truth ``[latent]``, bool.

        True for a chat-only feature, for a shared or weak one of which the base holds less than 0.2, and for a
        decoupled one of which it holds less than 0.5 (so the chat-only rest beside a shared latent counts). A latent
        with a norm difference above 0.9 for which this is False is an artifact.

        Args:
            features: The feature of each latent ``[latent]``; negative (no feature) gives False.
            presence: Their :meth:`presence` ``[latent]``.
        """
        limits = {"chat_only": torch.inf, "shared": 0.2, "dense": 0.2, "weak_in_base": 0.2, "decoupled": 0.5}
        groups = [self.groups[int(g)] if int(g) >= 0 else "" for g in features]
        limit = torch.tensor([limits.get(group, -torch.inf) for group in groups])
        # A chat-only feature is one whatever was measured; a presence that is not a number is below no limit.
        return (presence.cpu() < limit) | (limit == torch.inf)

    def concatenated(self) -> ConcatenatedPair:
        """Both models side by side as one source of width ``2 d``, for whatever takes a single site."""
        return ConcatenatedPair(self)


@dataclass(frozen=True)
class ConcatenatedPair:
    """The two models of a pair beside each other: ``activations [token, 2 d]`` and ``codes [token, 2 feature]``.

    A dictionary on this source is a crosscoder with one code for both models.

    Attributes:
        directions: ``[2 feature, 2 d]``: the base's features, silent in the chat half, then the chat model's.
        bias: The models' means ``[2 d]``.
        joint: What one latent for the feature in both models would write ``[feature, 2 d]``: the strengths times the
            directions. For decoupled features it holds only on tokens where both models are active.
    """

    pair: PairedFeatures
    directions: Tensor = field(init=False, repr=False, compare=False)
    bias: Tensor = field(init=False, repr=False, compare=False)
    joint: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        base, chat = self.pair.directions
        object.__setattr__(self, "directions", torch.block_diag(base, chat))
        object.__setattr__(self, "bias", self.pair.means.flatten())
        joint = self.pair.scales[:, :, None] * self.pair.directions
        object.__setattr__(self, "joint", torch.cat([joint[0], joint[1]], dim=1))

    def sample(self, count: int, generator: torch.Generator) -> SyntheticBatch:
        """``count`` tokens; the same ones as the pair draws."""
        batch = self.pair.sample(count, generator)
        return SyntheticBatch(batch.activations.flatten(1), batch.codes.flatten(1))


def _layout(pair: PairedFeatures) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Group, strengths ``[model, feature]``, chance of both models together, and cosine of every feature in order."""
    rows: list[tuple[str, float, float, float, float]] = []
    for i in range(pair.shared):
        rows.append(("shared", 1.0, 1.0, 1.0, pair.shared_cosine if i % 2 else 1.0))
    rows += [("base_only", 1.0, 0.0, 1.0, 1.0)] * pair.base_only
    rows += [("chat_only", 0.0, 1.0, 1.0, 1.0)] * pair.chat_only
    for level in pair.weak_levels:
        rows += [("weak_in_base", level, 1.0, 1.0, 1.0)] * pair.weak_in_base
    for level in pair.weak_levels:
        rows += [("weak_in_chat", 1.0, level, 1.0, 1.0)] * pair.weak_in_chat
    for overlap in pair.overlaps:
        # P(both | any) = q gives P(base | chat) = 2q / (1 + q), which is the overlap for this q.
        q = overlap / (2 - overlap)
        rows += [("decoupled", 1.0, 1.0, q, pair.decoupled_cosine)] * pair.decoupled
    rows += [("dense", 1.0, 1.0, 1.0, 1.0)] * pair.dense
    if not rows:
        raise InputError("A pair of models without a single feature was asked for; give at least one group members.")
    names, base, chat, together, cosine = zip(*rows, strict=True)
    return list(names), torch.tensor([base, chat]), torch.tensor(together), torch.tensor(cosine)


def _check(pair: PairedFeatures) -> None:
    for group in pair.group_probabilities:
        if group not in GROUPS:
            raise InputError(f"There is no group '{group}' of features.{did_you_mean(group, GROUPS)}")
    for p in (pair.probability, *pair.group_probabilities.values()):
        if not 0.0 < p <= 1.0:
            raise InputError(f"A feature was given the chance {p} of being active; chances lie above 0 and up to 1.")
    for level in pair.weak_levels:
        if not 0.0 < level <= 1.0:
            raise InputError(f"A weak feature was given the strength {level}; give one above 0 and up to 1.")
    for overlap in pair.overlaps:
        if not 0.0 <= overlap <= 1.0:
            raise InputError(f"A decoupled feature was given the overlap {overlap}; it is a chance, from 0 to 1.")
    if pair.noise < 0.0:
        raise InputError(f"Noise of {pair.noise} was asked for; a standard deviation is at least 0.")
