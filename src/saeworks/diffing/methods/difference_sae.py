"""A sparse autoencoder of ``h_chat − h_base``: latents of what changed, and what became of it in either model.

Whatever both models hold equally is gone before training, so all latents are spent on change. The mean difference is
the decoder's bias. Of each latent, Latent Scaling gives how much of its direction each model has where it is active:
the two betas differ by the latent's own share of the difference, which is about 1, so that the pair says what happened.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing.latent_pass import LatentPass, measure_latents
from saeworks.diffing.methods.interface import (
    Cost,
    Finding,
    MethodResult,
    Needs,
    Numbers,
    one_width,
    settings_of,
)
from saeworks.diffing.methods.training import DifferenceStream, train, training_stream
from saeworks.diffing.pairs import PairedBatch, PairedSource
from saeworks.diffing.ranking import by_size
from saeworks.diffing.scaling_estimates import LEAST_TOKENS, Estimate
from saeworks.training.recipes import recipe

KINDS = ("new", "removed", "amplified", "weakened", "flipped")
# A beta this close to 0 counts as none.
NONE = 0.2
TOKEN_GROUPS = ("template", "first_9", "rest")


@dataclass(frozen=True, slots=True)
class DifferenceSAE:
    """BatchTopK autoencoder of the difference, trained on the source or brought along.

    Findings are latents by how far one model lacks them, ``1 − min(|β|) / max(|β|)``, with the kind of change.
    ``arrays["by_nu"]`` has latents by ascending ``|nu|`` of the activations, the order for causal groups.

    Args:
        dictionary: trained before; None trains one with the settings that follow.
        width: latents; None for twice the width of the models. k: active latents per token; None for 100, or a
            sixteenth of the latents where that is less.
        train_on: source of the training's tokens; None for the one that is measured, which then holds no new ones.
        train_tokens: differences to train on. batch_size, learning_rate, seed: of the training.
        directory: where the run is kept, and continued from; None keeps nothing on disk.
        top: latents to report.
    """

    dictionary: Dictionary | None = None
    width: int | None = None
    k: float | None = None
    train_on: PairedSource | None = None
    train_tokens: int = 1_000_000
    batch_size: int = 2048
    learning_rate: float | None = None
    seed: int = 0
    directory: str | None = None
    top: int = 50
    name: ClassVar[str] = "difference_sae"
    needs: ClassVar[Needs] = "activations"

    def run(self, source: PairedSource, tokens: int | None = None) -> MethodResult:
        """Train (unless a dictionary was given), then measure in one pass."""
        d, cost = one_width(source, self.name), Cost()
        with cost.timed():
            if self.dictionary is None and not _differs(source, tokens):
                return MethodResult(self.name, settings_of(self), cost, numbers={"variance": 0.0})
            dictionary = self.dictionary or self._trained(source, d, cost)
            explained = _Explained(dictionary)
            found = measure_latents(dictionary, source, tokens, "difference", also=explained.add)
            cost.tokens = found.scaling.tokens
        nu = found.scaling.ratio("activation")
        findings, counts = self._findings(found)
        return MethodResult(
            self.name,
            settings_of(self),
            cost,
            latents=findings,
            numbers={**explained.numbers(), **counts},
            arrays={"by_nu": by_size(nu)},
            dictionary=dictionary,
        )

    def _trained(self, source: PairedSource, d: int, cost: Cost) -> Dictionary:
        width = self.width or 2 * d
        k = self.k or min(100, max(width // 16, 1))
        plain = recipe("batch_topk")
        # The mean difference moves behaviour by itself, so it is kept where it can be taken out: in the bias.
        start = replace(plain.initialisation, b_dec="mean")
        stream = DifferenceStream(training_stream(self.train_on or source, self.seed))
        cost.trained_tokens = self.train_tokens
        return train(
            replace(plain, initialisation=start),
            stream,
            width,
            k,
            self.train_tokens,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
            directory=self.directory,
            metadata={"site": stream.site, "reads": "difference"},
        )

    def _findings(self, found: LatentPass) -> tuple[tuple[Finding, ...], Numbers]:
        beta, nu = found.scaling.beta("activation")[0], found.scaling.ratio("activation")
        counts = found.scaling.counts
        sizes = beta.value.abs()
        score = 1 - sizes.amin(dim=0) / sizes.amax(dim=0)
        usable = (counts >= LEAST_TOKENS) & ~score.isnan()
        kinds = kinds_of_change(beta)
        density, share = found.statistics.density(), found.statistics.template_share()
        order = torch.nonzero(usable).flatten()
        order = order[score[order].argsort(descending=True, stable=True)]
        findings: list[Finding] = []
        for j in order[: self.top].tolist():
            evidence: dict[str, Any] = {
                "latent": j,
                "kind": kinds[j],
                "beta_base": float(beta.value[0, j]),
                "beta_chat": float(beta.value[1, j]),
                "beta_base_se": float(beta.standard_error[0, j]),
                "beta_chat_se": float(beta.standard_error[1, j]),
                "nu": float(nu.value[j]) if bool(nu.defined[j]) else None,
                "density": float(density[j]),
                "template_share": float(share[j]),
            }
            findings.append(Finding(f"latent {j}", float(score[j]), evidence))
        numbers: Numbers = {"latents": float(len(counts)), "measured_latents": float(usable.sum())}
        measured = [kinds[j] for j in order.tolist()]
        return tuple(findings), numbers | {kind: float(measured.count(kind)) for kind in KINDS}


def kinds_of_change(beta: Estimate) -> list[str]:
    """What became of every latent's direction, from betas ``[2, latent]`` of base and chat.

    ``(0, 1)`` new; ``(−1, 0)`` removed, the latent fires where the base has it; ``(a, a + 1)`` amplified;
    ``(−a − 1, −a)`` weakened; opposite signs flipped. A latent that was never active has none, ``""``.
    """
    kinds: list[str] = []
    for base, chat in beta.value.T.tolist():
        if base != base or chat != chat:
            kinds.append("")
        elif abs(base) <= NONE * abs(chat):
            kinds.append("new")
        elif abs(chat) <= NONE * abs(base):
            kinds.append("removed")
        elif base * chat < 0:
            kinds.append("flipped")
        else:
            kinds.append("amplified" if abs(chat) > abs(base) else "weakened")
    return kinds


class _Explained:
    """Variance of the difference that is explained, by group of tokens: large norms hide what happens on others."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        d = dictionary.cfg.d_in
        self.sums = {name: torch.zeros(d + 3, dtype=torch.float64) for name in ("all", *TOKEN_GROUPS)}
        self.active = 0

    def add(self, batch: PairedBatch, codes: Codes) -> None:
        z = (batch.x[-1] - batch.x[0]).double()
        errors = (z - self.dictionary.decode(codes).double()).square().sum(dim=1).cpu()
        self.active += codes.values.numel()
        z = z.cpu()
        first = (batch.answer_index >= 0) & (batch.answer_index < 9) & ~batch.is_template
        rows = {"template": batch.is_template, "first_9": first, "rest": ~batch.is_template & ~first}
        rows["all"] = torch.ones_like(first)
        for name, which in rows.items():
            part = z[which]
            more = torch.stack([part.square().sum(), errors[which].sum(), torch.tensor(float(len(part))).double()])
            self.sums[name] += torch.cat([part.sum(dim=0), more])

    def numbers(self) -> Numbers:
        out: Numbers = {}
        for name, sums in self.sums.items():
            squares, errors, count = sums[-3:].tolist()
            about = squares - float(sums[:-3].square().sum()) / count if count else 0.0
            out[f"variance_explained_{name}"] = 1 - errors / about if about > 0 else None
            if name == "all":
                out |= {"variance": about / count if count else 0.0, "l0": self.active / count if count else None}
        return out


def _differs(source: PairedSource, tokens: int | None) -> bool:
    """Whether any row of the source's first tokens differs between the models in more than a constant."""
    first: Tensor | None = None
    for batch in source.batches(min(tokens or 8192, 8192)):
        z = batch.x[-1] - batch.x[0]
        first = z[0] if first is None and len(z) else first
        if first is not None and bool((z != first).any()):
            return True
    return False
