"""The scores of all probes for one label of one data set: their means, and their spread over seeds and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from saeworks.evals.probes.problems import Problem
from saeworks.evals.probes.text_probes import Scores
from saeworks.evals.shared.bootstrap import document_weights, interval

#: Set apart from the numbers of the data sets, which seed the draws of texts.
SEED_DRAWS = 1 << 20


@dataclass(frozen=True)
class LabelScores:
    """Everything measured for one label of ``dataset`` with one dictionary.

    Attributes:
        problems: one per class and seed, ordered by seed.
        scores: kind of probe → its scores on the problems (on those of the first seeds where it is fitted for fewer).
        groups: [text] int64, which texts are drawn together when intervals are made.
    """

    dataset: str
    label: str
    problems: list[Problem]
    scores: dict[str, Scores]
    groups: Tensor

    def metrics(self) -> dict[str, float]:
        """``{kind}_accuracy`` and ``{kind}_auc``: means over seeds, then over classes."""
        out: dict[str, float] = {}
        for kind in self.scores:
            for field in ("accuracy", "auc"):
                values = list(self.class_means(kind, field).values())
                out[f"{kind}_{field}"] = sum(values) / len(values)
        return out

    def class_means(self, kind: str, field: Literal["accuracy", "auc"]) -> dict[str, float]:
        """Class → mean over seeds."""
        values: Tensor = getattr(self.scores[kind], field)
        grouped: dict[str, list[float]] = {}
        for problem, value in zip(self._used(kind), values.tolist(), strict=True):
            grouped.setdefault(problem.name, []).append(value)
        return {name: sum(v) / len(v) for name, v in grouped.items()}

    def seed_means(self, kind: str) -> dict[int, float]:
        """Seed → accuracy, mean over classes."""
        grouped: dict[int, list[float]] = {}
        for problem, value in zip(self._used(kind), self.scores[kind].accuracy.tolist(), strict=True):
            grouped.setdefault(problem.seed, []).append(value)
        return {seed: sum(v) / len(v) for seed, v in grouped.items()}

    def sizes(self) -> dict[str, float]:
        """``train_texts`` and ``test_texts``: how many balanced texts train and test a probe, mean over probes."""
        return {
            "train_texts": sum(len(p.train_rows) for p in self.problems) / len(self.problems),
            "test_texts": sum(len(p.test_rows) for p in self.problems) / len(self.problems),
        }

    def resampled(self, resamples: int, seed: int) -> dict[str, Tensor]:
        """Kind → [resample] accuracies. Seeds (training texts, negatives) and groups of test texts are both redrawn,
        the same ones for every kind of probe and every dictionary, so that differences are paired."""
        # The dense probe is fitted for every problem; in compat mode other kinds have test texts of their own.
        tested = torch.stack([scores.correct.isfinite().any(0) for scores in self.scores.values()]).any(0)
        of_text = document_weights(int(self.groups.max()) + 1, resamples, seed)[:, self.groups[tested]]
        seeds = list(dict.fromkeys(p.seed for p in self.problems))
        out: dict[str, Tensor] = {}
        for kind, scores in self.scores.items():
            used = [seeds.index(p.seed) for p in self._used(kind)]
            of_seed = document_weights(max(used) + 1, resamples, seed + SEED_DRAWS)[:, used]
            correct = scores.correct[:, tested].double()
            per_problem = (of_text @ correct.nan_to_num().T) / (of_text @ correct.isfinite().double().T)
            # A problem none of whose texts were drawn says nothing.
            of_seed = of_seed * per_problem.isfinite()
            out[kind] = (of_seed * per_problem.nan_to_num()).sum(1) / of_seed.sum(1)
        return out

    def intervals(self, resampled: Mapping[str, Tensor], k_values: Sequence[int]) -> dict[str, Any]:
        """95 % intervals, the accuracy of every seed, and the differences of sparse probes to the dense one.

        Args:
            resampled: what :meth:`resampled` returned.
            k_values: the sparse probes that are compared with the dense one.
        """
        out: dict[str, Any] = {f"{kind}_accuracy_ci95": interval(values) for kind, values in resampled.items()}
        out |= {f"{kind}_accuracy_by_seed": list(self.seed_means(kind).values()) for kind in self.scores}
        for k in k_values:
            difference = resampled[f"sae_top_{k}_test"] - resampled["llm_test"]
            out[f"sae_top_{k}_minus_llm_test_accuracy_ci95"] = interval(difference)
        return out

    def _used(self, kind: str) -> list[Problem]:
        """The problems that this kind of probe was fitted for: all, or those of the first ``full_seeds`` seeds."""
        return self.problems[: len(self.scores[kind].accuracy)]
