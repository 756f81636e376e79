"""What the measures of differences make of the bench's crosscoders, against the truth and against targets.

A latent whose norm difference exceeds 0.9 looks chat-only. It is an artifact when the concept that it follows is in the
base as well (``PairedFeatures.chat_specific``). Latent Scaling flags artifacts without knowing the concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing import latent_scaling
from saeworks.diffing.classes import relative_norm
from saeworks.diffing.twins import find_twins
from saeworks.papers.claims import Claim, Rule
from saeworks.papers.diffing_bench import PENALTY, Bench, explained_variances
from saeworks.world.synthetic.matching import nearest_feature
from saeworks.world.synthetic.paired import PairedFeatures
from saeworks.world.synthetic.shrinkage import norm_difference, shrinkage_threshold, shrunk_norms

CHAT_ONLY, NU_ERROR, NU_RECONSTRUCTION = 0.9, 0.2, 0.5


@dataclass(frozen=True)
class Measured:
    """One dictionary of the bench.

    Attributes:
        variance_explained: of base and chat model. l0: at inference.
        looks_chat_only: latents that do. unmatched: those of them that follow no concept; left out below.
        artifacts: share of the others that are artifacts.
        flag_precision, flag_recall: of the flag for artifacts; NaN where there is none to flag, or to find.
        kept_precision: share of what is not flagged that is truly chat-specific.
        recall: share of the chat-only concepts that a latent stands for which looks chat-only and is not flagged.
        twins: pairs of a chat-only and a base-only latent of one direction.
        delta_errors: of every weak concept that one latent alone follows, the distance of its norm difference from the
            prediction. nu_errors: of ``ν^ε`` from the strength in the base, up to where shrinkage is complete.
        largest_nu, largest_biased_nu: the greatest ``|ν^r|`` of latents of chat-only concepts, centred and by plain
            sums.
    """

    variance_explained: list[float]
    l0: float
    looks_chat_only: int
    unmatched: int
    artifacts: float
    flag_precision: float
    flag_recall: float
    kept_precision: float
    recall: float
    twins: int
    delta_errors: list[float]
    nu_errors: list[float]
    largest_nu: float
    largest_biased_nu: float


def measure(bench: Bench, name: str) -> Measured:
    """One dictionary of the bench on its fresh tokens."""
    dictionary, pair = bench.dictionaries[name], bench.features
    latents, codes = _latents(bench, dictionary)
    scaling = latent_scaling(dictionary, bench.source.batches())
    error = scaling.ratio("error", "paper").value
    reconstruction, biased = (scaling.ratio("reconstruction", which).value for which in ("centered", "paper"))
    norms = dictionary.decoder_norms()
    delta, alive = relative_norm(norms), (latents > 0).any(dim=0)
    feature = torch.where(alive, nearest_feature(latents, codes).features, -1)
    true = pair.chat_specific(feature, pair.presence(latents, codes, feature))
    looks = (delta > CHAT_ONLY) & alive
    candidate = looks & (feature >= 0)
    artifact = candidate & ~true
    flagged = candidate & ((error >= NU_ERROR) | (reconstruction >= NU_RECONSTRUCTION))
    kept = candidate & ~flagged
    new = set(pair.members("chat_only"))
    found = {g for g in feature[kept].tolist() if g in new}
    of_new = candidate & torch.tensor([g in new for g in feature.tolist()])
    base, chat = (dictionary.source(m)[1] for m in (0, 1))
    base_only = ((delta < 1 - CHAT_ONLY) & alive).nonzero().flatten()
    delta_errors, nu_errors = _weak(pair, name, feature, delta, error)
    return Measured(
        variance_explained=explained_variances(dictionary, bench.source),
        l0=float((latents > 0).sum(dim=1).float().mean()),
        looks_chat_only=int(looks.sum()),
        unmatched=int((looks & ~candidate).sum()),
        artifacts=_share(artifact, candidate),
        flag_precision=_share(artifact, flagged),
        flag_recall=_share(flagged, artifact),
        kept_precision=_share(true, kept),
        recall=len(found) / len(new) if new else float("nan"),
        twins=len(find_twins(base, chat, base_only, looks.nonzero().flatten())),
        delta_errors=delta_errors,
        nu_errors=nu_errors,
        largest_nu=_largest(reconstruction[of_new]),
        largest_biased_nu=_largest(biased[of_new]),
    )


def targets(by_seed: Sequence[Mapping[str, Measured]]) -> tuple[Claim, ...]:
    """What every seed, or the mean over them, has to obey; one mapping by configuration per seed."""
    out: list[Claim] = []

    def each(name: str, quantity: str, low: float | None = None, high: float | None = None) -> None:
        values = [v for seed in by_seed if name in seed for v in _numbers(seed[name], quantity)]
        if values:
            out.append(Claim(f"{name}: {quantity}, each", "bench", quantity, {"": values}, Rule(low, high)))

    def mean(name: str, quantity: str, low: float | None = None, high: float | None = None) -> None:
        values = [v for seed in by_seed if name in seed for v in _numbers(seed[name], quantity)]
        if values:
            average = [sum(values) / len(values)]
            out.append(Claim(f"{name}: {quantity}, mean over seeds", "bench", quantity, {"": average}, Rule(low, high)))

    each("l1_sum", "artifacts", 0.35, 0.60)
    each("l1_sum", "flag_precision", 0.85)
    mean("l1_sum", "flag_recall", 0.95)
    mean("l1_sum", "kept_precision", 0.95)
    each("l1_sum", "recall", 0.85)
    mean("l1_sum", "recall", 0.95)
    each("l1_sum", "twins", 5.5)
    each("l1_sum", "delta_errors", None, 0.02)
    each("l1_sum", "nu_errors", None, 0.02)
    each("l1_sum", "largest_nu", None, 0.12)
    each("l1_sum", "largest_biased_nu", 0.2)
    each("l1_concatenated", "artifacts", None, 0.10 + 1e-9)
    each("l1_concatenated", "twins", None, 7.5)
    mean("l1_concatenated", "recall", 0.95)
    each("l1_concatenated", "delta_errors", None, 0.01)
    each("batch_topk", "variance_explained", 0.975)
    each("batch_topk", "artifacts", None, 0.15)
    mean("batch_topk", "recall", 0.95)
    each("batch_topk", "delta_errors", None, 0.10)
    each("batch_topk_k2", "artifacts", None, 0.05 + 1e-9)
    each("batch_topk_k2", "twins", None, 1.5)
    each("batch_topk_k2", "recall", 0.70)
    mean("batch_topk_k2", "recall", 0.85)
    return tuple(out)


def _numbers(measured: Measured, quantity: str) -> list[float]:
    value = getattr(measured, quantity)
    values = [float(v) for v in value] if isinstance(value, list) else [float(value)]
    return [v for v in values if v == v]


def _latents(bench: Bench, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
    """``[token, latent]`` and the true codes ``[token, model, feature]`` of the bench's fresh tokens."""
    parts = [(dictionary.encode(batch.flat()), codes) for batch, codes in bench.source.with_codes()]
    return torch.cat([latents for latents, _ in parts]), torch.cat([codes for _, codes in parts])


def _weak(
    pair: PairedFeatures, name: str, feature: Tensor, delta: Tensor, error: Tensor
) -> tuple[list[float], list[float]]:
    """Distances from the closed form, for weak concepts that one latent alone follows."""
    coefficient = pair.coefficient
    penalised = name.startswith("l1")
    norm = "sum" if name == "l1_sum" else "none"
    threshold = shrinkage_threshold(PENALTY, coefficient.mean, coefficient.mean_square) if penalised else 0.0
    expected = norm_difference(shrunk_norms(pair.scales, threshold, norm))
    deltas: list[float] = []
    nus: list[float] = []
    for g in pair.members("weak_in_base"):
        followers = (feature == g).nonzero().flatten()
        if len(followers) != 1:
            continue
        latent = int(followers[0])
        deltas.append(abs(float(delta[latent]) - float(expected[g])))
        strength = float(pair.scales[0, g])
        if not penalised or strength <= threshold:
            nus.append(abs(float(error[latent]) - strength))
    return deltas, nus


def _share(part: Tensor, whole: Tensor) -> float:
    """Share of ``whole`` that is in ``part``; NaN of nothing."""
    return float((part & whole).sum() / whole.sum()) if bool(whole.any()) else float("nan")


def _largest(values: Tensor) -> float:
    known = values[~values.isnan()].abs()
    return float(known.max()) if len(known) else float("nan")
