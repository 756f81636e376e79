"""Crosscoders over the embedded base and chat model: is what they call new what the world says the chat model learned?

The world lists which of its concepts only the chat model is expected to know. A latent stands for the concept that it
matches best, over tokens or over exchanges; so of every selection of latents it is known how many are really new, and
how many of the new concepts it finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.activations.texts import open_texts
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing.classes import PAPER
from saeworks.diffing.conversations import answered, conversation_batches
from saeworks.diffing.one_pass import Measured, measure_pair
from saeworks.diffing.paired_stream import PairedStream
from saeworks.diffing.pairs import ModelPair
from saeworks.diffing.patching import PatchedKL, conditions, patch_kl
from saeworks.diffing.transcripts import Message, messages_of, open_transcripts
from saeworks.evals.interpretation.pair_concepts import pair_concepts
from saeworks.files import read_json, sha256_json, write_json
from saeworks.models.language_model import LanguageModel, load_language_model
from saeworks.results.envelope import without_nan
from saeworks.training.cells import MemberConfig
from saeworks.training.recipes import recipe
from saeworks.training.schedules import default_learning_rate
from saeworks.training.trainer import Trainer, TrainerConfig
from saeworks.world.concepts import concepts
from saeworks.world.corpus import documents

RECIPES = {"batch_topk": "diffing-batch_topk", "l1": "diffing-l1"}
# F1 from which a latent counts as standing for a concept.
FOUND = 0.5


@dataclass(frozen=True)
class Settings:
    """All that decides the numbers.

    Attributes:
        site: where both models are read. width: latents. k: sparsity of BatchTopK. penalty: of L1, read off weights of
            0.03, 0.05 and 0.08 so that both have about the same L0, as in the paper.
        tokens: trained on, in batches of ``batch_size``. seeds: of weights and order.
        learning_rate: None takes that of ``saeworks diff``.
        measure_tokens: held out. transcripts, texts: documents that latents are matched with concepts on.
        conversations: patched. requests: answered with and without a push.
        gate: norm difference above which a latent is a candidate: just above the band of shared latents, 0.4 to 0.6.
    """

    site: str = "layers.2.resid_post"
    width: int = 1024
    k: float = 12.0
    penalty: float = 0.07
    tokens: int = 500_000
    batch_size: int = 512
    learning_rate: float | None = None
    seeds: int = 3
    measure_tokens: int = 100_000
    transcripts: int = 500
    texts: int = 200
    conversations: int = 150
    requests: int = 24
    gate: float = 0.6

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


# Decoders begin alike in both models and need some 200,000 tokens to part: a shorter run finds nothing new.
QUICK = Settings(
    width=512, tokens=250_000, seeds=1, measure_tokens=40_000, transcripts=250, texts=100, conversations=50, requests=12
)


@dataclass(frozen=True)
class Pair:
    """The two embedded models."""

    base: LanguageModel
    chat: LanguageModel

    def source(self, settings: Settings, split: str, seed: int = 0) -> ModelPair:
        """Texts and transcripts in turns."""
        texts, talks = open_texts(["world"], split=split, seed=0), open_transcripts("world", split=split)
        return ModelPair(self.base, self.chat, settings.site, texts, talks, seed=seed)


def open_pair() -> Pair:
    """The embedded base and chat model."""
    return Pair(load_language_model("world"), load_language_model("world:chat"))


def run(pair: Pair, settings: Settings, out: Path) -> list[dict[str, dict[str, float]]]:
    """By seed, configuration → measures; what ``out`` holds is continued, or only read."""
    found: list[dict[str, dict[str, float]]] = []
    for seed in range(settings.seeds):
        directory = out / f"seed{seed}"
        dictionaries = train(pair, settings, seed, directory)
        found.append({n: measures(pair, settings, d, directory / f"{n}.json") for n, d in dictionaries.items()})
    return found


def train(
    pair: Pair, settings: Settings, seed: int, directory: Path, recipes: Sequence[str] = tuple(RECIPES)
) -> dict[str, Dictionary]:
    """The recipes on one stream."""
    sparsity = {"batch_topk": settings.k, "l1": settings.penalty}
    steps = settings.tokens // settings.batch_size
    rate = settings.learning_rate or default_learning_rate(settings.width, steps)
    members = {
        name: MemberConfig(recipe(RECIPES[name]), settings.width, sparsity[name], seed, rate) for name in recipes
    }
    stream = PairedStream(pair.source(settings, "train", seed), 64 * settings.batch_size, seed)
    config = TrainerConfig(settings.tokens, settings.batch_size)
    trainer = Trainer(stream, list(members.values()), config, directory, pair.chat.device, {"site": settings.site})
    done = trainer.run(resume=True)
    return {name: done[member.name] for name, member in members.items()}


def measures(pair: Pair, settings: Settings, dictionary: Dictionary, path: Path) -> dict[str, float]:
    """What is found and what it causes, read from ``path`` where it was measured before with the same settings."""
    key = sha256_json([5, settings.as_json(), dictionary.fingerprint(), pair.chat.fingerprint()])
    return kept(path, key, lambda: _measured(pair, settings, dictionary))


def kept(path: Path, key: str, measured: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What ``measured`` gives, or what it gave when ``path`` was written with the same key."""
    if path.is_file():
        saved = read_json(path)
        if saved.get("key") == key:
            return {name: math.nan if v is None else float(v) for name, v in saved["measures"].items()}
    found = measured()
    write_json(path, {"key": key, "measures": without_nan(found)})
    return found


def _measured(pair: Pair, settings: Settings, dictionary: Dictionary) -> dict[str, float]:
    thresholds = replace(PAPER, gate=settings.gate)
    source = pair.source(settings, "validation")
    latents = measure_pair(dictionary, source, settings.measure_tokens)
    summary = latents.summary(thresholds)
    labels = matched(pair, settings, dictionary)
    genuine = latents.genuine(thresholds)
    candidates = latents.candidates(thresholds).nonzero().squeeze(1)
    patched = _patched(pair, settings, dictionary, latents, thresholds)
    looks = int(((latents.relative() > PAPER.chat_only) & (latents.statistics.active().cpu() > 0)).sum())
    return {
        "fve_base": summary["variance_explained"]["base"],
        "fve_chat": summary["variance_explained"]["chat"],
        "l0": summary["l0"],
        "chat_only": float(looks),
        "candidates": float(len(candidates)),
        "genuine": float(len(genuine)),
        "artifacts": 1 - len(genuine) / len(candidates) if len(candidates) else math.nan,
        "precision_candidates": precision(labels, candidates),
        "precision_genuine": precision(labels, genuine),
        "precision_all": precision(labels, torch.arange(dictionary.cfg.d_sae)),
        "recall_candidates": recall(labels, candidates),
        "recall_genuine": recall(labels, genuine),
        **_kl(patched),
    }


# --- concepts --------------------------------------------------------------------------------------------------------

Labels = Sequence[Sequence[Mapping[str, Any]]]


def matched(pair: Pair, settings: Settings, dictionary: Dictionary) -> Labels:
    """For every latent its best concept over tokens and over exchanges, the better one first."""
    texts = [
        *documents("chat", "validation", count=settings.transcripts),
        *documents(None, "validation", count=settings.texts),
    ]
    by_token, by_exchange = pair_concepts((pair.base, pair.chat), dictionary, (settings.site,) * 2, texts)
    tables = [by_token.best(), *([] if by_exchange is None else [by_exchange.best()])]
    return [
        sorted((row for row in rows if row is not None), key=lambda row: -row["f1"])
        for rows in zip(*tables, strict=True)
    ]


def precision(labels: Labels, latents: Tensor) -> float:
    """Share of the latents whose best concept only the chat model is expected to know; of those that match any."""
    known = [concepts()[labels[i][0]["concept"]].known_to == "chat" for i in latents.tolist() if labels[i]]
    return sum(known) / len(known) if known else math.nan


def recall(labels: Labels, latents: Tensor) -> float:
    """Share of the chat model's own concepts that some of the latents stand for, with F1 of at least 0.5."""
    new = [name for name, c in concepts().items() if c.known_to == "chat" and _is_leaf(name)]
    chosen = {row["concept"] for i in latents.tolist() for row in labels[i] if row["f1"] >= FOUND}
    return sum(name in chosen for name in new) / len(new)


def _is_leaf(name: str) -> bool:
    return not any(other.startswith(name + "/") for other in concepts())


# --- causes -----------------------------------------------------------------------------------------------------------


def held_out_talks(count: int) -> list[list[Message]]:
    """Transcripts of the world that no crosscoder was trained on."""
    return [messages_of(document.text) for document in documents("chat", "validation", count=count)]


def _patched(pair: Pair, settings: Settings, dictionary: Dictionary, latents: Measured, thresholds: Any) -> PatchedKL:
    talks = answered(pair.chat, held_out_talks(settings.conversations))
    groups = latents.groups(thresholds)
    size = len(groups["best half by scaling"][1]) if "best half by scaling" in groups else 0
    wanted = conditions(groups, torch.arange(dictionary.cfg.d_sae), size, random_groups=2)
    return patch_kl(pair.base, pair.chat, dictionary, settings.site, conversation_batches(pair.chat, talks), wanted)


def _kl(found: PatchedKL) -> dict[str, float]:
    names = {condition.name for condition in found.conditions}
    out = {"kl_none": found.mean("none"), "kl_none_first": found.mean("none", "first 3")}
    out["kl_template_first"] = found.mean("template", "first 3")
    for name in ("all", "template", "error", "genuine", "full"):
        out[f"kl_{name}"] = found.mean(name) if name in names else math.nan
    out["kl_best"] = found.mean("best half by scaling") if "best half by scaling" in names else math.nan
    for by in ("scaling", "norm"):
        best, worst = f"best half by {by}", f"worst half by {by}"
        for group, short in (("all", ""), ("first 3", "_first")):
            gain = math.nan
            if best in names and worst in names:
                gain = (found.mean(worst, group) - found.mean(best, group)) / found.mean("none", group)
            out[f"best_over_worst_{by}{short}"] = gain
    return out
