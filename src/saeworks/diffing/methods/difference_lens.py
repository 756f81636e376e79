"""The activation-difference lens: mean differences by position, and what the chat model reads in them.

Narrow fine-tuning leaves a bias in activations even on text that has nothing to do with it; averaged over many texts,
position by position, it stands out, and the model's own unembedding or words say what it is about
(arXiv 2510.13900). Nothing is trained.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saeworks.diffing.logit_effects import direction_logits
from saeworks.diffing.methods.causal_effect import causal_effects
from saeworks.diffing.methods.interface import (
    Cost,
    Finding,
    MethodResult,
    Needs,
    Numbers,
    one_width,
    settings_of,
)
from saeworks.diffing.methods.patchscope import PROMPTS, SCALES, patchscope
from saeworks.diffing.model_pair import ModelPair
from saeworks.diffing.pairs import PairedBatch, PairedSource
from saeworks.errors import InputError

EVERYWHERE = "all tokens"


@dataclass(frozen=True, slots=True)
class DifferenceLens:
    """Mean of ``h_chat − h_base`` at every position, with the tokens that it promotes and suppresses.

    Findings are directions, one per position and one over all tokens, by the norm of the mean difference over the mean
    norm of the chat model's activations there; ``arrays["means"] [direction, d]`` are the means in that order, and
    ``noise`` in the evidence is the score that chance alone would give. With models, evidence has the tokens of the
    logit lens and of patchscope, and ``numbers`` the causal effect.

    Args:
        positions: first positions of a text, and first tokens of an answer, that get a mean of their own.
        top: tokens per reading. lens, patch: whether to read with logit lens and patchscope (models only).
        causal_tokens: positions to measure the causal effect on; 0 leaves it out. controls: control directions.
        after: tokens up to this position do not count there. seed: of the controls.
        prompts, scales: of patchscope.
    """

    positions: int = 5
    top: int = 20
    lens: bool = True
    patch: bool = True
    causal_tokens: int = 0
    controls: int = 64
    after: int = 20
    seed: int = 0
    prompts: tuple[str, ...] = PROMPTS
    scales: tuple[float, ...] = SCALES
    name: ClassVar[str] = "difference_lens"
    needs: ClassVar[Needs] = "activations"

    @torch.no_grad()
    def run(self, source: PairedSource, tokens: int | None = None) -> MethodResult:
        """One pass over activations; with models, some forward passes per direction."""
        means, cost = _Means(one_width(source, self.name)), Cost()
        with cost.timed():
            for batch in source.batches(tokens):
                for place, rows in self._places(batch):
                    means.add(place, batch, rows)
                cost.tokens += len(batch)
            ordered = sorted(means.places(), key=lambda place: (place != EVERYWHERE, -means.score(place)))
            pair = source if isinstance(source, ModelPair) else None
            findings = [self._finding(place, means, pair, cost) for place in ordered]
            numbers = self._causal(pair, means.mean(EVERYWHERE), cost)
        numbers["mean_cosine"] = means.agreement(ordered)
        arrays = {"means": torch.stack([means.mean(place) for place in ordered]).float()}
        return MethodResult(
            self.name, settings_of(self), cost, directions=tuple(findings), numbers=numbers, arrays=arrays
        )

    def _places(self, batch: PairedBatch) -> list[tuple[str, Tensor]]:
        places = [(EVERYWHERE, torch.ones(len(batch), dtype=torch.bool))]
        for k in range(self.positions):
            places.append((f"answer token {k}", batch.answer_index == k))
            if not bool(batch.is_template.any()):
                # Row 0 of a text is BOS in most models and never counts, so positions are shown as models see them.
                places.append((f"position {k}", batch.positions == k))
        return [(place, rows) for place, rows in places if bool(rows.any())]

    def _finding(self, place: str, means: _Means, pair: ModelPair | None, cost: Cost) -> Finding:
        mean = means.mean(place)
        evidence: dict[str, Any] = {
            "tokens": means.count(place),
            "norm": float(mean.norm()),
            "noise": means.noise(place),
        }
        if pair is not None and evidence["norm"] > 0:
            chat = pair.models[1]
            if self.lens and chat.d_model == len(mean):
                effect = direction_logits(chat, mean.float()[None])[0]
                for sign, word in ((1, "promoted"), (-1, "suppressed")):
                    evidence[word] = [
                        chat.tokenizer.decode([t]) for t in (sign * effect).topk(self.top).indices.tolist()
                    ]
                cost.forward_rows += 2
            if self.patch and pair.sites[1].endswith(("resid_pre", "resid_post")):
                for sign, word in ((1.0, "reads_as"), (-1.0, "opposite_reads_as")):
                    reading = patchscope(
                        chat,
                        pair.sites[1],
                        sign * mean.float(),
                        means.chat_norm(place),
                        prompts=self.prompts,
                        scales=self.scales,
                        top=self.top,
                    )
                    words = [chat.tokenizer.decode([t]) for t, _ in reading.tokens]
                    evidence[word] = {"tokens": words, "scale": reading.scale, "score": reading.score}
                    cost.forward_rows += len(self.prompts) * (1 + len(self.scales))
        return Finding(place, means.score(place), evidence)

    def _causal(self, pair: ModelPair | None, mean: Tensor, cost: Cost) -> Numbers:
        numbers: Numbers = {}
        if pair is None or not self.causal_tokens:
            return numbers
        effects = causal_effects(
            pair, mean, self.causal_tokens, controls=self.controls, after=self.after, seed=self.seed
        )
        for effect in effects:
            numbers |= {
                f"{effect.data_set}/causal_effect": effect.mean_difference,
                f"{effect.data_set}/causal_effect_random": float(effect.random.mean()),
                f"{effect.data_set}/causal_effect_token_differences": float(effect.token_differences.mean()),
                f"{effect.data_set}/causal_rank_random": effect.rank("random"),
                f"{effect.data_set}/causal_rank_token_differences": effect.rank("token_differences"),
            }
            cost.forward_rows += effect.rows
        return numbers


class _Means:
    """Sums of differences by place, float64."""

    def __init__(self, width: int) -> None:
        self._sums = defaultdict[str, Tensor](lambda: torch.zeros(width + 3, dtype=torch.float64))

    def add(self, place: str, batch: PairedBatch, rows: Tensor) -> None:
        rows = rows.to(batch.x[0].device)
        difference = (batch.x[1][rows] - batch.x[0][rows]).double()
        norms = batch.x[1][rows].double().norm(dim=1)
        more = torch.stack([norms.new_tensor(float(len(norms))), norms.sum(), difference.square().sum()])
        self._sums[place] += torch.cat([difference.sum(dim=0), more]).cpu()

    def places(self) -> list[str]:
        if not self._sums:
            raise InputError("There were no activations to take a mean of; give at least one batch.")
        return list(self._sums)

    def count(self, place: str) -> int:
        return int(self._sums[place][-3])

    def mean(self, place: str) -> Tensor:
        return self._sums[place][:-3] / self.count(place)

    def chat_norm(self, place: str) -> float:
        """Mean norm of the chat model's activations."""
        return float(self._sums[place][-2]) / self.count(place)

    def score(self, place: str) -> float:
        norm = self.chat_norm(place)
        return float(self.mean(place).norm()) / norm if norm > 0 else 0.0

    def noise(self, place: str) -> float:
        """The score to be expected if single differences pointed in random directions: their spread over √n."""
        count, norm = self.count(place), self.chat_norm(place)
        spread = float(self._sums[place][-1]) / count - float(self.mean(place).square().sum())
        return (max(spread, 0.0) / count) ** 0.5 / norm if norm > 0 else 0.0

    def agreement(self, places: list[str]) -> float | None:
        """Mean cosine of the means at single positions with that over all tokens; None without positions."""
        whole = self.mean(EVERYWHERE)
        others = [self.mean(place) for place in places if place != EVERYWHERE]
        known = [o for o in others if float(o.norm()) > 0 and float(whole.norm()) > 0]
        if not known:
            return None
        return float(torch.stack([torch.nn.functional.cosine_similarity(o, whole, dim=0) for o in known]).mean())
