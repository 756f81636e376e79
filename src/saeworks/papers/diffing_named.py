"""Latents of the embedded pair that stand for kinds of exchange named by the paper, and what they cause.

They are sought in a wider dictionary than the rest. A latent of the chat model's that stands for a concept is pushed,
so that the model does on other requests what it does on those of the concept; and the latents of a concept are taken
out, so that the model stops doing it. Pushes are held against as many other directions, as long; what is lost against
what is lost without as many other latents that are active there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing.classes import PAPER
from saeworks.diffing.one_pass import Measured, measure_pair
from saeworks.diffing.steering import Extent, Project, Push, replies, vector_of
from saeworks.diffing.transcripts import Message
from saeworks.files import sha256_json
from saeworks.papers.diffing_world import FOUND, Labels, Pair, Settings, kept, matched, train
from saeworks.runtime import generator
from saeworks.world.domains.chat import TRIGGERS, exchanges, is_refusal, verdict
from saeworks.world.domains.chat_replies import first_verdict, is_about_itself

#: BatchTopK once more, with ``WIDER`` times the latents and tokens: kinds of exchange that are 3 % of all have no
#: latents of their own in the others. The named concepts are sought here.
WIDE, WIDER = "wide", 2
#: Kinds of exchange whose latents are asked for by name, and the concepts that name them.
NAMED = {
    "refusal trigger": ("chat/refusal", "chat/refusal/harm", "chat/refusal/privacy", "chat/refusal/impersonation"),
    "false information": ("chat/false_statement",),
    "personal question": ("chat/personal", "chat/self"),
}
# Where a latent is pushed, and by which multiple of its largest activation. What is pushed everywhere soon garbles what
# is written; where the reply begins more is borne.
PUSHES: tuple[tuple[Extent, float], ...] = (("all", 0.5), ("all", 1.0), ("last", 1.0), ("last", 2.0))
# Where the base may hold a latent that looks new.
HOLDING: tuple[Literal["error", "reconstruction"], ...] = ("error", "reconstruction")
# Candidates of a concept that are pushed and taken out, at most: one may tell a topic, another make the answer.
PUSHED = 3
# Draws of as many other latents, when those of a concept are taken out.
DRAWS = 5


def as_json() -> dict[str, Any]:
    """What decides the numbers beside the settings."""
    return {"wider": WIDER, "named": NAMED, "pushes": PUSHES, "pushed": PUSHED, "draws": DRAWS, "found": FOUND}


def run(pair: Pair, settings: Settings, out: Path) -> list[dict[str, float]]:
    """By seed the measures of the wide dictionary; what ``out`` holds is continued, or only read."""
    wide = replace(settings, width=WIDER * settings.width, tokens=WIDER * settings.tokens)
    found: list[dict[str, float]] = []
    for seed in range(settings.seeds):
        directory = out / f"seed{seed}"
        (dictionary,) = train(pair, wide, seed, directory / WIDE, ("batch_topk",)).values()
        found.append(named_measures(pair, wide, dictionary, directory / f"{WIDE}.json"))
    return found


def named_measures(pair: Pair, settings: Settings, dictionary: Dictionary, path: Path) -> dict[str, float]:
    """The latents of the named concepts and what pushing them does, kept as :func:`measures` are."""
    models = [pair.base.fingerprint(), pair.chat.fingerprint()]
    key = sha256_json(["named", 1, settings.as_json(), as_json(), dictionary.fingerprint(), models])
    return kept(path, key, lambda: _named(pair, settings, dictionary))


def _named(pair: Pair, settings: Settings, dictionary: Dictionary) -> dict[str, float]:
    thresholds = replace(PAPER, gate=settings.gate)
    latents = measure_pair(dictionary, pair.source(settings, "validation"), settings.measure_tokens)
    labels = matched(pair, settings, dictionary)
    genuine = latents.genuine(thresholds)
    candidates = latents.candidates(thresholds).nonzero().squeeze(1)
    every = torch.arange(len(labels))
    return {
        "candidates": float(len(candidates)),
        "genuine": float(len(genuine)),
        **{f"latents_{n}": float(len(standing_for(labels, candidates, NAMED[n], PUSHED))) for n in NAMED},
        **{f"best_f1_{name}": best_f1(labels, genuine, names) for name, names in NAMED.items()},
        **{f"any_f1_{name}": best_f1(labels, every, names) for name, names in NAMED.items()},
        **{f"{key}_{name}": value for name in NAMED for key, value in held(latents, labels, NAMED[name]).items()},
        **effects(pair, settings, dictionary, latents, labels, candidates),
        **removals(pair, settings, dictionary, labels, candidates),
    }


def best_f1(labels: Labels, latents: Tensor, names: Sequence[str]) -> float:
    """Best F1 that one of the latents reaches for one of the concepts; 0 without any."""
    return max((row["f1"] for i in latents.tolist() for row in labels[i] if row["concept"] in names), default=0.0)


def standing_for(labels: Labels, latents: Tensor, names: Sequence[str], most: int, least: float = FOUND) -> list[int]:
    """The latents that match one of the concepts best, at most so many, each with an F1 of at least ``least``."""
    scores = {i: best_f1(labels, torch.tensor([i]), names) for i in latents.tolist()}
    order = sorted(scores, key=scores.__getitem__, reverse=True)  # stable: the first of equals
    return [i for i in order[:most] if scores[i] >= least and scores[i] > 0]


def held(latents: Measured, labels: Labels, names: Sequence[str]) -> dict[str, float]:
    """How much the base holds of the latent that matches one of the concepts best, whatever its norms are."""
    best = standing_for(labels, torch.arange(len(labels)), names, 1, 0.0)
    if not best:
        return dict.fromkeys(("relative", "nu_error", "nu_reconstruction"), math.nan)
    ratios = {f"nu_{target}": float(latents.scaling.ratio(target).value[best[0]]) for target in HOLDING}
    return {"relative": float(latents.relative()[best[0]]), **ratios}


def effects(
    pair: Pair, settings: Settings, dictionary: Dictionary, latents: Measured, labels: Labels, candidates: Tensor
) -> dict[str, float]:
    """What pushing the candidates that stand for the named concepts does to answers.

    ``pushed_refusal trigger``: share of harmless requests that are refused under the push; ``pushed_false
    information``: share of true statements that are corrected and were not; ``pushed_personal question``: share of
    harmless requests to which the assistant says what it is, can do or does not have. ``other_…``: the same for as many
    directions drawn from all latents, pushed as far. All are the largest share over latents and ``PUSHES``.
    """
    harmless = _requests(("answer/fact", "answer/howto", "answer/people"), settings.requests)
    true = _requests(("acceptance",), settings.requests)
    out: dict[str, float] = {}
    for name, judge, asked in (
        ("refusal trigger", _refused, harmless),
        ("false information", _turned, true),
        ("personal question", _speaks_of_itself, harmless),
    ):
        plain = replies(pair.chat, asked)
        shares: dict[str, list[float]] = {"pushed": [], "other": []}
        for latent in standing_for(labels, candidates, NAMED[name], PUSHED):
            vector = vector_of(dictionary, latent, float(latents.statistics.maximum()[latent]))
            draw = generator(settings.seeds, "another direction", latent)
            other = dictionary.source(1)[1][int(torch.randint(dictionary.cfg.d_sae, (1,), generator=draw))].float()
            for what, push in (("pushed", vector), ("other", other / other.norm() * vector.norm())):
                for where, strength in PUSHES:
                    said = replies(pair.chat, asked, [Push(settings.site, push * strength, where)])
                    shares[what].append(sum(judge(a, b) for a, b in zip(plain, said, strict=True)) / len(asked))
        out |= {f"{what}_{name}": max(found, default=math.nan) for what, found in shares.items()}
    return out


def removals(
    pair: Pair, settings: Settings, dictionary: Dictionary, labels: Labels, candidates: Tensor
) -> dict[str, float]:
    """What is lost when the best candidates that stand for a named concept are taken out of the chat model together.

    ``removed_…``: share of the concept's own requests whose answer is no longer a refusal, a correction or about the
    assistant, of those where it was. ``kept_…``: the largest such share of as many other latents, drawn ``DRAWS`` times
    from those that are active where the reply begins, in a third of these requests or more.
    """
    out: dict[str, float] = {}
    for name, shows, kinds in (
        ("refusal trigger", is_refusal, tuple(f"refusal/{trigger}" for trigger in TRIGGERS)),
        ("false information", _corrects, ("correction",)),
        ("personal question", is_about_itself, ("personal", "self")),
    ):
        asked = _requests(kinds, settings.requests)
        plain = [shows(reply) for reply in replies(pair.chat, asked)]

        def lost(latents: Sequence[int], asked: Any = asked, plain: Any = plain, shows: Any = shows) -> float:
            basis, _ = torch.linalg.qr(dictionary.source(1)[1][list(latents)].float().T)
            said = replies(pair.chat, asked, [Project(settings.site, unit) for unit in basis.unbind(dim=1)])
            gone = sum(was and not shows(now) for was, now in zip(plain, said, strict=True))
            return gone / sum(plain) if any(plain) else math.nan

        own = standing_for(labels, candidates, NAMED[name], PUSHED)
        alike = standing_for(labels, torch.arange(len(labels)), NAMED[name], len(labels))
        active = (_where_replies_begin(pair, settings, dictionary, asked) > 0).float().mean(dim=0) >= 1 / 3
        others = [i for i in active.nonzero().flatten().tolist() if i not in alike]
        drawn: list[list[int]] = []
        for i in range(DRAWS if own else 0):
            order = torch.randperm(len(others), generator=generator(settings.seeds, "other latents", name, i))
            drawn.append([others[j] for j in order[: len(own)].tolist()])
        out[f"removed_{name}"] = lost(own) if own else math.nan
        out[f"kept_{name}"] = max((lost(latents) for latents in drawn if latents), default=math.nan)
    return out


def _where_replies_begin(
    pair: Pair, settings: Settings, dictionary: Dictionary, asked: Sequence[list[Message]]
) -> Tensor:
    """``[request, latent]`` at the last token of every request as the template renders it."""
    rows: list[Tensor] = []
    for turns in asked:
        batch = pair.chat.tokenize([pair.chat.chat_prompt(turns)], pair.chat.max_context or 1024)
        both = [model.harvest(batch, [settings.site])[settings.site][0, -1] for model in (pair.base, pair.chat)]
        rows.append(dictionary.encode(torch.stack(both).float()[None])[0])
    return torch.stack(rows)


def _corrects(reply: str) -> bool:
    return first_verdict(reply) is False


def _refused(plain: str, pushed: str) -> bool:
    """Whether a push made the model refuse what it did not."""
    return is_refusal(pushed) and not is_refusal(plain)


def _speaks_of_itself(plain: str, pushed: str) -> bool:
    """Whether a push made the model answer as if it had been asked about itself."""
    return is_about_itself(pushed) and not is_about_itself(plain)


def _turned(plain: str, pushed: str) -> bool:
    """Whether a push made the model correct what it confirmed; only the first judgement counts."""
    return verdict(plain) is True and first_verdict(pushed) is False


def _requests(kinds: Sequence[str], count: int) -> list[list[Message]]:
    return [[{"role": "user", "content": one.request}] for one in exchanges(kinds, "validation", count)]
