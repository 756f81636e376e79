"""From scores of words to the result file of the absorption eval: means over letters and seeds, and their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from saeworks.evals.letters.absorption_scores import WordScores
from saeworks.evals.letters.letter_probes import LETTERS
from saeworks.evals.probes.label_scores import SEED_DRAWS
from saeworks.evals.shared.batches import DictionaryLike
from saeworks.evals.shared.bootstrap import Resampling, document_weights, interval
from saeworks.evals.shared.described import result_of
from saeworks.results.envelope import Metrics, Result

#: Absorbed words that are named in the result file.
EXAMPLES = 50


@dataclass(frozen=True)
class LetterScores:
    """One letter in one seed: F1 of the probe on activations and of the accepted k-sparse probe, how many latents it
    accepted, those latents, and the scores of the words that the probe finds (``rows``: their places in the data)."""

    letter: str
    probe_f1: float
    main_f1: float
    splits: int
    main: list[int]
    rows: Tensor
    scores: WordScores

    def record(self, seed: int) -> dict[str, Any]:
        """One entry of ``eval_result_details``, with SAEBench's names."""
        words = max(len(self.rows), 1)
        return {
            "first_letter": self.letter,
            "mean_absorption_fraction": float(self.scores.fraction.sum()) / words,
            "full_absorption_rate": int(self.scores.full.sum()) / words,
            "num_full_absorption": int(self.scores.full.sum()),
            "num_probe_true_positives": len(self.rows),
            "num_split_features": self.splits,
            "seed": seed,
            "main_latents": self.main,
            "probe_f1": self.probe_f1,
            "main_f1": self.main_f1,
        }


@dataclass(frozen=True)
class SeedScores:
    """One seed: F1 of the probes on activations [26] and on one latent [26] (None when too few letters could be read
    from the activations), and the letters that count."""

    seed: int
    probe_f1: Tensor
    one_latent_f1: Tensor | None
    letters: list[LetterScores]


@dataclass(frozen=True)
class Measured:
    """All seeds of one dictionary."""

    name: str
    dictionary: DictionaryLike
    site: str
    seeds: list[SeedScores]
    words: Sequence[str]


def aggregate(letters: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means and sample standard deviations over letters, with SAEBench's names.

    Args:
        letters: records with ``mean_absorption_fraction``, ``full_absorption_rate`` and ``num_split_features``.
    """
    columns = {
        "absorption_fraction_score": "mean_absorption_fraction",
        "full_absorption_score": "full_absorption_rate",
        "num_split_features": "num_split_features",
    }
    out: dict[str, float] = {}
    for name, column in columns.items():
        values = torch.tensor([float(letter[column]) for letter in letters], dtype=torch.float64)
        out[f"mean_{name}"] = float(values.mean())
        out[f"std_dev_{name}"] = float(values.std()) if len(values) > 1 else float("nan")
    return out


def make_result(
    measured: Measured, eval_type: str, definition: str, config: BaseModel, hashes: Mapping[str, str]
) -> Result:
    """The result of one dictionary; all metrics are null when no seed had enough letters."""
    dump = config.model_dump(mode="json")
    seeds = [s for s in measured.seeds if s.letters]
    records = {s.seed: [letter.record(s.seed) for letter in s.letters] for s in seeds}
    details: list[dict[str, Any]] = [record for rows in records.values() for record in rows]
    short = [s for s in measured.seeds if not s.letters]
    if short:
        readable = [int((s.probe_f1 > dump["min_GT_probe_f1"]).sum()) for s in short]
        reason = (
            f"probes on the activations read {readable} letters with an F1 above {dump['min_GT_probe_f1']}, "
            f"and {dump['min_feats_for_eval']} are needed"
        )
        details.append({"not_measured": [s.seed for s in short], "reason": reason})
    by_seed = {seed: aggregate(rows) for seed, rows in records.items()}
    return result_of(
        measured.name,
        measured.dictionary,
        dump,
        hashes,
        eval_type=eval_type,
        definition=definition,
        metrics=_metrics(seeds, by_seed),
        details=details,
        n=int(torch.cat([letter.rows for s in seeds for letter in s.letters]).unique().numel()) if seeds else 0,
        ci95=_intervals(seeds, len(measured.words), dump["resamples"], dump["seeds"][0]),
        unstructured={
            "site": measured.site,
            "words": len(measured.words),
            "by_seed": by_seed,
            "absorbed_words": _examples(measured.words, seeds),
        },
    )


def _metrics(seeds: Sequence[SeedScores], by_seed: Mapping[int, Mapping[str, float]]) -> Metrics:
    names = ("absorption_fraction_score", "full_absorption_score", "num_split_features")
    mean: dict[str, float | int | None] = {f"{kind}_{name}": None for name in names for kind in ("mean", "std_dev")}
    context: dict[str, float | int | None] = dict.fromkeys(
        ("num_letters", "probe_f1", "one_latent_f1", "main_f1", "main_share", "absorbed_share")
    )
    if seeds:
        mean = {key: _mean([values[key] for values in by_seed.values()]) for key in mean}
        letters = [letter for s in seeds for letter in s.letters]
        kept = [torch.tensor([LETTERS.index(letter.letter) for letter in s.letters]) for s in seeds]
        one = [
            float(s.one_latent_f1[k].mean()) for s, k in zip(seeds, kept, strict=True) if s.one_latent_f1 is not None
        ]
        context = {
            "num_letters": len(letters) / len(seeds),
            "probe_f1": _mean([letter.probe_f1 for letter in letters]),
            "one_latent_f1": _mean(one),
            "main_f1": _mean([letter.main_f1 for letter in letters]),
            "main_share": _mean([_main_share(letter.scores) for letter in letters]),
            "absorbed_share": _mean([float((letter.scores.fraction > 0).double().mean()) for letter in letters]),
        }
    # The name that older files of SAEBench have for the rate of full absorption.
    mean["mean_absorption_score"] = mean["mean_full_absorption_score"]
    return {"mean": mean, "context": context}


def _main_share(scores: WordScores) -> float:
    """How much of the words' projection on the direction the main latents rebuild, where it is positive."""
    there = scores.present > 0
    if not bool(there.any()):
        return float("nan")
    return float((scores.main[there] / scores.present[there]).clamp(0, 1).mean())


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if v == v]
    return sum(finite) / len(finite) if finite else float("nan")


def _intervals(
    seeds: Sequence[SeedScores], words: int, resamples: int, seed: int
) -> dict[str, tuple[float, float] | None]:
    """Words and seeds are drawn anew, the same ones for every dictionary; letters stay."""
    metrics = ("mean_absorption_fraction_score", "mean_full_absorption_score")
    keys = {"mean.mean_absorption_score": metrics[1]} | {f"mean.{name}": name for name in metrics}
    if not seeds:
        return dict.fromkeys(keys)
    letters = [(number, letter) for number, s in enumerate(seeds) for letter in s.letters]
    table = torch.zeros(3, words, len(letters), dtype=torch.float64)
    for column, (_, letter) in enumerate(letters):
        values = torch.stack([letter.scores.fraction, letter.scores.full.double(), torch.ones(len(letter.rows))])
        table[:, letter.rows, column] = values.double()
    drawn = [
        torch.stack([weights @ part for part in table]) for weights in Resampling(words, resamples, seed).weights()
    ]
    sums = torch.cat(drawn, dim=1)
    of_seed = document_weights(len(seeds), resamples, seed + SEED_DRAWS)
    weight = of_seed[:, [number for number, _ in letters]]
    # Every seed counts once, however many letters it has; a letter none of whose words were drawn says nothing.
    sizes = torch.tensor([len(seeds[number].letters) for number, _ in letters], dtype=torch.float64)
    weight = weight / sizes * (sums[2] > 0)
    ratios = {name: sums[i] / sums[2].clamp_min(1e-30) for i, name in enumerate(metrics)}
    means = {name: (weight * r).sum(1) / weight.sum(1) for name, r in ratios.items()}
    return {key: interval(means[name]) for key, name in keys.items()}


def _examples(words: Sequence[str], seeds: Sequence[SeedScores]) -> list[dict[str, Any]]:
    """Words with the largest absorbed fraction, each once, and the latent that carries the letter there."""
    found: dict[str, tuple[float, bool, int]] = {}
    for s in seeds:
        for letter in s.letters:
            for i, row in enumerate(letter.rows.tolist()):
                word, fraction, full = str(words[row]), float(letter.scores.fraction[i]), bool(letter.scores.full[i])
                if (fraction > 0 or full) and (word not in found or fraction > found[word][0]):
                    found[word] = (fraction, full, int(letter.scores.absorber[i]))
    ordered = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))[:EXAMPLES]
    return [{"word": w, "fraction": share, "full": full, "latent": latent} for w, (share, full, latent) in ordered]
