"""Chain-of-Thought Reasoning In The Wild Is Not Always Faithful (arXiv 2503.08679): what stored data can decide.

Asking sixteen models 9,668 questions ten times each is not done here. What can be decided without is: whether the rule
gives the published verdicts on published answers, whether the published percentages follow from the published counts,
and, on simulated models of known bias, what the rule flags and what its interval holds. Published answers are read from
``OUT/data`` (JSON or YAML, see docs/cot.md); without them the claims about them are not decided.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from saeworks.faithfulness.criterion import Scored, rule, score
from saeworks.faithfulness.importers import Study, read_study
from saeworks.faithfulness.keyword_judge import keyword_verdict
from saeworks.faithfulness.rates import rates
from saeworks.faithfulness.robustness import permutation_test
from saeworks.faithfulness.simulation import SimulatedModel, coverage_of_interval, retention_by_luck
from saeworks.files import read_json
from saeworks.papers.claims import Claim, Reproduction, Rule, Table
from saeworks.papers.index import PAPERS
from saeworks.results.tables import spread, spread_of

# Flagged pairs by model, final set, and the percentage in the abstract (v2 to v4) where there is one.
PUBLISHED: dict[str, tuple[int, float | None]] = {
    "Claude 3.5 Haiku": (363, 7.0),
    "Claude 3.5 Sonnet v2": (22, None),
    "Claude 3.7 Sonnet": (90, None),
    "Claude 3.7 Sonnet, 1k thinking": (2, 0.04),
    "Claude 3.7 Sonnet, 64k thinking": (12, None),
    "DeepSeek V3": (60, None),
    "DeepSeek R1": (18, 0.37),
    "GPT-4o-mini": (660, 13.0),
    "GPT-4o Aug '24": (18, None),
    "ChatGPT-4o": (24, 0.49),
    "Gemini 1.5 Pro": (320, None),
    "Gemini 2.5 Flash": (106, 2.17),
    "Gemini 2.5 Pro": (7, 0.14),
    "Llama 3.1 70B": (159, None),
    "Llama 3.3 70B Instruct": (102, None),
    "QwQ 32B": (220, None),
}
#: Groups, and the share of them that leans, of the experiments on intervals.
COVERED = ((58, 0.3), (58, 0.1), (58, 0.05), (20, 0.3), (8, 0.3), (8, 0.6))
PLOTTED, TOLD = 4892, 4834  # question pairs: the denominator of the published plots, and that of the text


@dataclass(frozen=True)
class Settings:
    """Size of the simulations: one per seed, experiments in each, and the model."""

    seeds: int = 3
    repetitions: int = 200
    groups: int = 58
    pairs: int = 83
    permutations: int = 10_000


SETTINGS = Settings()
QUICK = Settings(seeds=2, repetitions=60, groups=30, pairs=40, permutations=1000)


def run(out: Path, seeds: int | None = None, quick: bool = False) -> Reproduction:
    """Decide the claims; see :func:`saeworks.papers.index.reproduce`. Stored answers lie in ``out/data``."""
    settings = QUICK if quick else SETTINGS
    settings = replace(settings, seeds=seeds or settings.seeds)
    started = time.monotonic()
    data = Path(out) / "data"
    study = read_study(data) if data.is_dir() else None
    stored = () if study is None else (*stored_claims(data, study, settings),)
    read = time.monotonic()
    simulated = simulated_claims(settings)
    paper = PAPERS["cot"]
    return Reproduction(
        name=paper.name,
        title=paper.title,
        source=paper.source,
        claims=(*(stored or not_decided()), count_claim(), *simulated),
        tables=(counts_table(), coverage_table(settings), *(() if study is None else (verdict_table(study),))),
        settings={**asdict(settings), "data": str(data) if study else None},
        seconds={"stored answers": read - started, "simulation": time.monotonic() - read},
        quick=quick,
        hashes={} if study is None else {"stored_answers": study.fingerprint()},
    )


VERDICTS = ("The rule of the first version gives the stored verdicts", "all of them")
KEYWORDS = ("A judge that goes by keywords gives the stored results of the responses", "its own results")
OCCURS = ("Pairs are answered alike in both orders, on the side where the answers lean", "direction: 0.04 to 13.5 %")
TENDENCY = ("The share of YES differs between templates more than between questions", "direction")


def not_decided() -> tuple[Claim, ...]:
    """The claims that need stored answers, when there are none."""
    note = "Needs published answers in the directory 'data' of the reproduction."
    return tuple(
        Claim(sentence, told, "", {}, Rule(low=0.0), note) for sentence, told in (VERDICTS, KEYWORDS, OCCURS, TENDENCY)
    )


def stored_claims(data: Path, study: Study, settings: Settings) -> list[Claim]:
    """The claims that stored answers decide."""
    early = score(study.questions, study.judged, rule("early", "float"))
    final = score(study.questions, study.judged, rule("final"))
    return [
        Claim(
            *VERDICTS,
            "share of pairs with the stored verdict",
            same_verdicts(data, early),
            Rule(low=0.9999),
            "Thresholds 0.2 and 0.1, UNKNOWN left out, one right and one wrong response, binary floating point.",
        ),
        Claim(
            *KEYWORDS,
            "share of responses with the stored result",
            same_results(data),
            Rule(low=0.95),
            "Of the responses whose text is stored; the published heuristic is another one in the same order of rules.",
        ),
        Claim(
            *OCCURS,
            "rate by the final rule",
            {model: [one.rate] for model, one in rates(final).items() if one.pairs},
            Rule(low=0.0),
            "Stored answers to other, smaller question sets than the final one, so that only the sign can be compared.",
        ),
        Claim(
            *TENDENCY,
            "p of the permutation test",
            tendencies(final, settings.permutations),
            Rule(high=0.05),
            "Variance of group means over variance within groups, shares shuffled over questions.",
        ),
    ]


def same_verdicts(data: Path, scored: Scored) -> dict[str, list[float]]:
    """Model → share of the pairs with the verdict of ``verdicts.json``; empty without that file."""
    file = data / "verdicts.json"
    if not file.is_file():
        return {}
    found: dict[str, list[float]] = {}
    for entry in cast("list[dict[str, Any]]", read_json(file)):
        covered = {tuple(group) for group in entry["groups_covered"]}
        flagged = {one["qid"] for one in entry["flagged"]}
        pairs = [p for p in scored.pairs if p.model == entry["model_id"] and p.yes.question.template in covered]
        sides = [{pair.yes.question.qid, pair.no.question.qid} for pair in pairs]
        same = [
            (pair.failing.question.qid in flagged) if pair.flagged else not (side & flagged)
            for pair, side in zip(pairs, sides, strict=True)
        ]
        if same:
            found[str(entry["model_id"])] = [sum(same) / len(same)]
    return found


def same_results(data: Path) -> dict[str, list[float]]:
    """Model → share of the texts of ``responses.json`` that keywords judge as stored; empty without that file."""
    file = data / "responses.json"
    if not file.is_file():
        return {}
    by_model: dict[str, list[bool]] = {}
    for one in cast("list[dict[str, Any]]", read_json(file)):
        if "result" in one:
            same = keyword_verdict(one["text"])[0] == one["result"]
            by_model.setdefault(str(one["model_id"]), []).append(same)
    return {model: [sum(same) / len(same)] for model, same in by_model.items()}


def tendencies(scored: Scored, permutations: int) -> dict[str, list[float]]:
    """Model → p of the permutation test, for the models with two groups or more."""
    return {
        model: [permutation_test(scored, model, permutations).p]
        for model in scored.models
        if sum(group.scored and len(group.counts) > 1 for group in scored.of(model)) > 1
    }


def count_claim() -> Claim:
    """Whether the percentages of the abstract follow from the counts."""
    found = {
        model: [abs(_rounded(count / PLOTTED * 100, told) - told)]
        for model, (count, told) in PUBLISHED.items()
        if told is not None
    }
    return Claim(
        f"The percentages of the abstract are the counts of flagged pairs over {PLOTTED:,}",
        f"{PLOTTED:,} in the plots, {TOLD:,} in the text",
        "difference in percentage points after rounding as published",
        found,
        Rule(high=0.001),
        f"Over {TOLD:,} pairs, 2.17 and 0.49 % would be 2.19 and 0.50 %. A denominator of one's own has to be counted.",
        digits=2,
    )


def _rounded(percent: float, like: float) -> float:
    """Rounded to as many decimals as the published number has."""
    return round(percent, 0 if like == int(like) else 2)


def simulated_claims(settings: Settings) -> tuple[Claim, ...]:
    """What the rule and its interval make of models whose bias is known."""
    model = SimulatedModel(groups=settings.groups, pairs=settings.pairs)
    seeds = range(settings.seeds)
    some = max(10, settings.repetitions // 10)
    wrong = replace(model, leaning=0.0, right=0.1)
    sure = replace(model, leaning=1.0, lean=(0.4, 0.4), certainty=0.0)
    expected = sum(math.comb(20, k) * 0.9**k * 0.1 ** (20 - k) for k in range(15, 21))
    retained = [retention_by_luck(model, seed) for seed in seeds]
    given = replace(model, leans_of=1)
    few = replace(model, groups=8)
    covered = {
        name: [coverage_of_interval(one, seed, settings.repetitions) for seed in seeds]
        for name, one in (
            ("other properties each time", model),
            ("eight groups only", few),
            ("the same properties", given),
        )
    }
    return (
        Claim(
            "A model that is wrong without a lean is not flagged",
            "by construction",
            "rate of a simulated model, nine of ten beliefs wrong",
            {"": [wrong.rate(seed, some) for seed in seeds]},
            Rule(high=0.002),
        ),
        Claim(
            "A model that says the same nine times in ten, whatever is asked, is flagged as the binomial says",
            "by construction",
            "rate over the expected one",
            {"": [sure.rate(seed, some) / expected for seed in seeds]},
            Rule(low=0.99, high=1.01),
            f"At least 15 of 20 answers are alike with probability {expected:.4f}.",
        ),
        Claim(
            "With more responses a part of the flagged pairs is flagged no more",
            "kept: 54.6 to 100 %, mean 76.5 %",
            "share of the flagged pairs that stay",
            {"old and new responses": [a for a, _ in retained], "new ones alone": [b for _, b in retained]},
            Rule(low=0.5, high=1.0),
            "Of a simulated model whose bias did not change: the loss is luck of the first ten responses.",
        ),
        Claim(
            "The 95 % interval over template groups holds the rate",
            "95 %, with another interval",
            "share of experiments whose interval holds the true rate",
            covered,
            # Two standard errors of a share of 0.95 below it.
            Rule(low=0.95 - 2 * math.sqrt(0.95 * 0.05 / settings.repetitions)),
            "For a given set of properties it is too wide, since the groups are not drawn.",
        ),
    )


def coverage_table(settings: Settings) -> Table:
    """How often our interval and the published one hold the rate, by groups and by share of them that lean."""
    rows: list[tuple[str, ...]] = []
    for groups, leaning in COVERED:
        model = SimulatedModel(groups=groups, pairs=settings.pairs, leaning=leaning)
        shares = [
            [coverage_of_interval(model, seed, settings.repetitions, published) for seed in range(settings.seeds)]
            for published in (False, True)
        ]
        rows.append((f"{groups}", f"{leaning:.0%}", *(spread(spread_of(values)) for values in shares)))
    head = ("template groups", "of them leaning", "interval here", "groups resampled, as published")
    return Table("Share of experiments whose 95 % interval holds the true rate", head, tuple(rows))


def counts_table() -> Table:
    """The published counts over both denominators."""
    rows = tuple(
        (model, f"{n}", f"{100 * n / PLOTTED:.2f}", f"{100 * n / TOLD:.2f}", "–" if told is None else f"{told:g}")
        for model, (n, told) in PUBLISHED.items()
    )
    return Table("Published counts", ("model", "flagged", f"% of {PLOTTED:,}", f"% of {TOLD:,}", "% told"), rows)


def verdict_table(study: Study) -> Table:
    """Flagged pairs of the stored answers by both rules in both arithmetics."""
    kinds = [(name, kind) for name in ("early", "final") for kind in ("exact", "float")]
    found = [rates(score(study.questions, study.judged, rule(*kind))) for kind in kinds]
    rows: Sequence[tuple[str, ...]] = [
        (model, f"{one.pairs}", *(_flagged(table, model) for table in found)) for model, one in found[0].items()
    ]
    head = ("model", "pairs", *(f"{name}, {kind}" for name, kind in kinds))
    return Table("Flagged pairs of the stored answers", head, tuple(rows))


def _flagged(table: Mapping[str, Any], model: str) -> str:
    return f"{table[model].flagged}"
