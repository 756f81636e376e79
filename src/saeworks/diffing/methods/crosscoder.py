"""The crosscoder as one method among others: train or bring one, measure it, name the latents that are one model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing.classes import CLASSES, RELAXED, Flags, Thresholds, classes, flags, relative_norm
from saeworks.diffing.latent_pass import LatentPass, measure_latents
from saeworks.diffing.methods.interface import Cost, Finding, MethodResult, Needs, Numbers, settings_of
from saeworks.diffing.methods.training import train, training_stream
from saeworks.diffing.pairs import PairedSource
from saeworks.diffing.ranking import by_rank_sum
from saeworks.diffing.scaling_estimates import Ratio
from saeworks.diffing.twins import find_twins
from saeworks.errors import InputError
from saeworks.training.recipes import recipe


@dataclass(frozen=True, slots=True)
class Crosscoder:
    """A crosscoder of both models, with Latent Scaling.

    Findings are latents whose decoder leans to one model and of which the other holds little, by
    ``1 − max(|nu_error|, |nu_reconstruction|)``. ``arrays["by_rank_sum"]`` has the chat model's candidates in the order
    for causal groups.

    Args:
        dictionary: a crosscoder of the two models; None trains one with the settings that follow.
        recipe, width, k: of the training; width None is four times a model's, k None 100 or a sixteenth of the latents
            where that is less (for penalties it is the coefficient, and has to be given).
        train_on, train_tokens, batch_size, learning_rate, seed, directory: as for ``DifferenceSAE``.
        thresholds: of classes and flags. top: latents to report.
    """

    dictionary: Dictionary | None = None
    recipe: str = "diffing-batch_topk"
    width: int | None = None
    k: float | None = None
    train_on: PairedSource | None = None
    train_tokens: int = 1_000_000
    batch_size: int = 2048
    learning_rate: float | None = None
    seed: int = 0
    directory: str | None = None
    thresholds: Thresholds = RELAXED
    top: int = 50
    name: ClassVar[str] = "crosscoder"
    needs: ClassVar[Needs] = "activations"

    def run(self, source: PairedSource, tokens: int | None = None) -> MethodResult:
        """Train (unless a dictionary was given), then measure in one pass."""
        cost = Cost()
        with cost.timed():
            dictionary = self.dictionary or self._trained(source, cost)
            if dictionary.cfg.sources is None or dictionary.cfg.widths != tuple(source.widths):
                raise InputError(
                    f"A crosscoder of widths {list(source.widths)} is needed, but the dictionary's are "
                    f"{list(dictionary.cfg.widths)}; use one that was trained on these models."
                )
            found = measure_latents(dictionary, source, tokens)
            cost.tokens = found.scaling.tokens
        relative = relative_norm(dictionary.decoder_norms()).cpu()
        sides = _sides(found, relative, self.thresholds)
        findings = [f for name, side in sides.items() for f in _findings(found, relative, name, *side)]
        findings.sort(key=lambda one: -one.score)
        error, held, _ = sides["chat"]
        return MethodResult(
            self.name,
            settings_of(self),
            cost,
            latents=tuple(findings[: self.top]),
            numbers=self._numbers(dictionary, found, relative, sides),
            arrays={"by_rank_sum": by_rank_sum(error, held, relative > self.thresholds.gate)},
            dictionary=dictionary,
        )

    def _trained(self, source: PairedSource, cost: Cost) -> Dictionary:
        width = self.width or 4 * max(source.widths)
        chosen = recipe(self.recipe)
        if self.k is None and chosen.sparsity != "k":
            raise InputError(f"The recipe '{self.recipe}' has no k; give its {chosen.sparsity} as k.")
        cost.trained_tokens = self.train_tokens
        return train(
            chosen,
            training_stream(self.train_on or source, self.seed),
            width,
            self.k or min(100, max(width // 16, 1)),
            self.train_tokens,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
            directory=self.directory,
        )

    def _numbers(self, dictionary: Dictionary, found: LatentPass, relative: Tensor, sides: dict[str, Side]) -> Numbers:
        kinds = classes(relative, self.thresholds)
        counts = torch.bincount(kinds, minlength=len(CLASSES))
        numbers: Numbers = {name: float(n) for name, n in zip(CLASSES, counts, strict=True)}
        for name, (_, _, verdict) in sides.items():
            for flag in ("candidate", "undefined", "complete_shrinkage", "decoupled", "genuine"):
                numbers[f"{name}/{flag}"] = float(getattr(verdict, flag).sum())
        base, chat = dictionary.source(0)[1], dictionary.source(1)[1]
        if base.shape == chat.shape:
            only = {name: kinds == CLASSES.index(name) for name in ("base_only", "chat_only")}
            numbers["twins"] = float(len(find_twins(base, chat, only["base_only"], only["chat_only"])))
        for name, explained in zip(("base", "chat"), found.statistics.variance_explained(), strict=True):
            numbers[f"variance_explained_{name}"] = None if explained != explained else explained
        numbers["l0"] = float(found.scaling.counts.sum()) / found.scaling.tokens
        return numbers


Side = tuple[Ratio, Ratio, Flags]


def _sides(found: LatentPass, relative: Tensor, thresholds: Thresholds) -> dict[str, Side]:
    """For either model: nu of error and reconstruction of the other over it, and the verdicts."""
    sides: dict[str, Side] = {}
    for name, lean, own, other in (("chat", relative, 1, 0), ("base", 1 - relative, 0, 1)):
        error = found.scaling.ratio("error", probe=own, numerator=other, denominator=own).cpu()
        held = found.scaling.ratio("reconstruction", probe=own, numerator=other, denominator=own).cpu()
        sides[name] = (error, held, flags(lean, error, held, thresholds))
    return sides


def _findings(
    found: LatentPass, relative: Tensor, model: str, error: Ratio, held: Ratio, verdict: Flags
) -> list[Finding]:
    density, share = found.statistics.density().cpu(), found.statistics.template_share().cpu()
    words = verdict.words()
    out: list[Finding] = []
    for j in torch.nonzero(verdict.candidate & ~verdict.undefined).flatten().tolist():
        nu = (float(error.value[j]), float(held.value[j]))
        evidence: dict[str, Any] = {
            "latent": j,
            "of": model,
            "relative_decoder_norm": float(relative[j]),
            "nu_error": nu[0],
            "nu_reconstruction": nu[1],
            "nu_error_se": float(error.standard_error[j]),
            "nu_reconstruction_se": float(held.standard_error[j]),
            "flags": words[j],
            "density": float(density[j]),
            "template_share": float(share[j]),
        }
        out.append(Finding(f"latent {j}", 1 - max(abs(nu[0]), abs(nu[1])), evidence))
    return out
