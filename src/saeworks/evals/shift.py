"""SHIFT with a judge: like SCR, but latents are removed because a judge says that they are about the unwanted concept.

SCR chooses latents with a probe of the cue, for which one must know the cue of every text. SHIFT as first proposed
(arXiv 2403.19647, made an eval in arXiv 2411.18895) does without: the latents that move the *biased* probe most are
shown to somebody, who says which of them are about the cue; these are removed. The judge may be a language model, or
the embedded world itself, whose spans say what every token is about.

A latent is shown on texts in which it is strongest, some of them from the kind of text that is being judged: a latent
for pronouns is not strongest in a biography, and where few texts are biographies the judge never sees what it does
there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from saeworks.errors import InputError
from saeworks.evals import scr
from saeworks.evals.interpretation.latent_evidence import (
    Concept,
    LatentEvidence,
    rating_question,
    read_ratings,
    strongest_texts_by_kind,
)
from saeworks.evals.judges.asking import Asker
from saeworks.evals.judges.opening import JudgeConfig, identity_of, open_asker
from saeworks.evals.probes.linear_probes import ProbeSettings
from saeworks.evals.removal import spurious_texts
from saeworks.evals.removal.ablatable_texts import in_units_of_activations
from saeworks.evals.removal.probe_attribution import effects, mean_differences, select_latents
from saeworks.evals.removal.removal_scores import SetRemovals
from saeworks.evals.removal.spurious_removal import (
    DIRECTIONS,
    Choosing,
    MeasuredSet,
    measure_set,
    nothing_to_probe,
    removal_result,
    remove,
    seen_by,
)
from saeworks.evals.removal.spurious_texts import Key, SpuriousSet
from saeworks.evals.shared.batches import DictionaryLike, fingerprint_documents, fingerprint_of_model
from saeworks.evals.shared.pooling import TextPool
from saeworks.evals.shared.settings import Counts, Names
from saeworks.evals.shared.token_rows import TokenRows, document_rows
from saeworks.files import sha256_json
from saeworks.results.envelope import Result
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "shift"
DEFINITION = "saeworks/shift/2"
#: Domain of the world → the concepts that its classes lie below, and the concept of its cue.
_PLACES = {
    "biographies": ("biographies/profession", "person/gender"),
    "portraits": ("biographies/profession", "person/gender"),
    "reviews": ("reviews/category", "reviews/sentiment"),
}
#: A latent is about a concept when its rating, 0 to 4, is above this.
RELATED = 0.5


class Config(ProbeSettings, JudgeConfig):
    """``top_k``: so many latents are judged for each pair of classes and seed, those with the largest |effect| for the
    probe that ``candidates`` names: the ``biased`` one, or, as in SCR, that of the label to be ``removed``.

    ``rule``: remove latents that are about the ``unwanted`` label, or those that are ``not_intended``, not about the
    label that is asked for. ``examples`` texts are shown of each latent, with their ``marked`` strongest tokens marked:
    the strongest ones among ``evidence_texts`` general texts, and ``own_examples`` more from as many texts of the data
    set at hand. Either number of examples may be 0. Both kinds are the embedded world's where no other data are given;
    with other data there is only one kind, and all examples are drawn from it.
    """

    n_values: Counts = (2, 5, 10, 20)
    top_k: int = Field(default=20, gt=0)
    candidates: Literal["biased", "removed"] = "biased"
    rule: Literal["unwanted", "not_intended"] = "unwanted"
    examples: int = Field(default=5, ge=0)
    own_examples: int = Field(default=5, ge=0)
    marked: int = Field(default=5, gt=0)
    evidence_texts: int = Field(default=1000, gt=0)
    min_gap: float = Field(default=0.05, gt=0, lt=1)
    domains: Names = ("biographies", "reviews")


@dataclass(frozen=True)
class Named:
    """What a judge is asked about a set: a concept for each class, and one for the cue."""

    classes: Mapping[str, Concept]
    cue: Concept


@dataclass(frozen=True)
class Data:
    """Sets as for SCR, their concepts, and the texts that latents are looked at on: general ones, and for each set
    texts of its own kind. None of either is a text that a probe is tested on."""

    sets: Mapping[str, SpuriousSet]
    named: Mapping[str, Named]
    evidence: tuple[Document, ...]
    own: Mapping[str, tuple[Document, ...]] = field(default_factory=dict[str, tuple[Document, ...]])


def default_data(model: LanguageModel, config: Config) -> Data:
    """The sets of SCR, and validation texts of the embedded world, whose spans carry the concepts."""
    from saeworks.world import corpus
    from saeworks.world.concepts import concepts

    known = concepts()
    sets = spurious_texts.world_sets(config.domains, config)
    named = dict[str, Named]()
    for name, one in sets.items():
        of_class, cue = _PLACES[name]
        ids = {value: f"{of_class}/{value}" for pair in one.pairs for value in pair}
        classes = {value: Concept(i, known[i].description) for value, i in ids.items()}
        named[name] = Named(classes, Concept(cue, known[cue].description))
    evidence = tuple(corpus.documents(None, "validation", count=config.evidence_texts if config.examples else 0))
    count = config.evidence_texts if config.own_examples else 0
    own = {name: tuple(corpus.documents(name, "validation", count=count)) for name in sets}
    return Data(sets, named, evidence, own)


def from_documents(sets: Mapping[str, Sequence[Document]], label: str, model: LanguageModel, config: Config) -> Data:
    """Somebody's texts with two labels each, which are the evidence too; concepts are named by the labels."""
    made = spurious_texts.labelled_sets(sets, label)
    named = dict[str, Named]()
    for name, one in made.items():
        values = dict.fromkeys(value for pair in one.pairs for value in pair)
        classes = {value: Concept(value, f"what tells that a text is of the class {value}") for value in values}
        cue = Concept(" or ".join(one.cue), f"what tells whether a text is {one.cue[0]} or {one.cue[1]}")
        named[name] = Named(classes, cue)
    own = {name: tuple(one.train)[: config.evidence_texts] for name, one in made.items()}
    return Data(made, named, (), own)


def data_hashes(data: Data, config: Config) -> dict[str, str]:
    """Hashes of the sets, of the texts shown and the concepts asked for, and of the judge."""
    asked = [
        [name, n.cue.name, n.cue.description, *([v, c.name, c.description] for v, c in n.classes.items())]
        for name, n in data.named.items()
    ]
    own = {name: fingerprint_documents(texts) for name, texts in data.own.items()}
    evidence = sha256_json([fingerprint_documents(data.evidence), own, asked])
    return {**spurious_texts.data_hashes(data.sets), "data:evidence": evidence, "judge": identity_of(config)}


def run(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    data: Data,
    config: Config,
    pool: TextPool | None = None,
) -> dict[str, Result]:
    """Score every dictionary on every pair of classes; returns name → result.

    ``pool`` has texts that were pooled before, and takes those that are pooled now.

    Raises:
        InputError: widths that do not fit, a judge that cannot be asked, texts that do not say what the world's judge
            is asked, or more questions than the judge's budget has requests.
        saeworks.evals.probes.problems.NothingToProbe: no pair has enough texts.
        saeworks.errors.RunError: the budget is spent or the judge does not answer any more; its answers are kept.
    """
    if config.judge == "world":
        _check_spans(data)
    pool = pool or TextPool()
    skipped: dict[str, str] = {}
    measured: dict[str, MeasuredSet] = {}
    for dataset, one in data.sets.items():
        found = measure_set(dictionaries, model, one, dataset, config, skipped, pool)
        if found is not None:
            measured[dataset] = found
    if not measured:
        raise nothing_to_probe(skipped)
    candidates = {name: _candidates(measured, name, config) for name in dictionaries}
    inner = in_units_of_activations(dictionaries)
    sites = next(iter(measured.values())).pooled.sites
    rows, evidence = _evidence(inner, model, data, candidates, sites, config)
    hashes = {"model": fingerprint_of_model(model), **data_hashes(data, config)}
    out: dict[str, Result] = {}
    with open_asker(config) as asker:
        for name, dictionary in dictionaries.items():
            shown = {dataset: found[name] for dataset, found in evidence.items()}
            verdicts = _ask(candidates[name], shown, data.named, rows, asker, config)
            sets = [
                SetRemovals(dataset, remove(found, name, config, verdicts.choice(dataset, config)), found.groups)
                for dataset, found in measured.items()
            ]
            result = removal_result(
                EVAL_TYPE, DEFINITION, name, dictionary, sets, config, config.min_gap, hashes, skipped
            )
            out[name] = verdicts.told(result, asker)
    return out


#: Data set, pair of classes, latent.
Candidate = tuple[str, tuple[str, str], int]


def _check_spans(data: Data) -> None:
    """The world's judge looks concepts up in the spans of the texts."""
    for name, asked in data.named.items():
        texts = (*data.evidence, *data.own.get(name, ()))
        carried = {span.concept for document in texts for span in document.spans}
        if not any(c == asked.cue.name or c.startswith(f"{asked.cue.name}/") for c in carried):
            raise InputError(
                f"The world's judge reads concepts from the spans of the texts, and none of the {len(texts)} "
                f"texts shown for '{name}' has a span of '{asked.cue.name}'; name another judge, such as local:DIR."
            )


def _candidates(measured: Mapping[str, MeasuredSet], name: str, config: Config) -> list[Candidate]:
    found = dict[Candidate, None]()
    for dataset, one in measured.items():
        for seen in seen_by(one, name):
            for direction in (0, 1):
                for latent in candidate_latents(seen, direction, config).tolist():
                    found[dataset, seen.case.pair, latent] = None
    return list(found)


#: Set → dictionary → latent → what the judge is shown of it.
Evidence = dict[str, dict[str, dict[int, LatentEvidence]]]


def _evidence(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    data: Data,
    candidates: Mapping[str, Sequence[Candidate]],
    sites: Mapping[str, str],
    config: Config,
) -> tuple[TokenRows, Evidence]:
    """The texts shown of every candidate, general ones first, and the rows that they stand in; from one pass."""
    datasets = list(dict.fromkeys(dataset for found in candidates.values() for dataset, _, _ in found))
    kinds = [data.evidence, *(data.own.get(dataset, ()) for dataset in datasets)]
    of_text = torch.tensor([kind for kind, texts in enumerate(kinds) for _ in texts], dtype=torch.int64)
    if not len(of_text) or not config.examples + config.own_examples:
        raise InputError("A judge must see a latent on at least one text; raise examples, own_examples or the texts.")
    rows = document_rows(model, [document for texts in kinds for document in texts], config.context_length)
    of_row = of_text[rows.document.amax(1).long()]
    both = config.examples + config.own_examples
    # Where there is but one kind of text, all examples are of it.
    counts = [config.examples if any(kinds[1:]) else both]
    counts += [(config.own_examples if data.evidence else both) if texts else 0 for texts in kinds[1:]]
    latents = {name: sorted({i for (_, _, i) in found}) for name, found in candidates.items()}
    general, *own = strongest_texts_by_kind(
        dictionaries, model, rows, sites, latents, of_row, counts, config.batch_size
    )
    return rows, {
        dataset: {
            name: {i: one.joined(found[name][i]) for i, one in of_latent.items()} for name, of_latent in general.items()
        }
        for dataset, found in zip(datasets, own, strict=True)
    }


def candidate_latents(seen: Choosing, direction: int, config: Config) -> Tensor:
    """The latents of one case that are judged, those with the largest |effect| first."""
    if config.candidates == "removed":
        return scr.by_attribution(seen, direction, config.top_k)
    delta = mean_differences(seen.latents, [seen.case.train["biased"]])[0]
    found = effects(delta, seen.weights["biased"], seen.directions)
    return select_latents(found.abs(), config.top_k, "corrected")


@dataclass(frozen=True)
class Verdicts:
    """Ratings of the class (the larger of the pair's two) and of the cue, for every candidate whose answer could be
    read; ``unread`` are the others, which are never removed."""

    ratings: dict[Candidate, tuple[int, int]]
    unread: list[Candidate] = field(default_factory=list[Candidate])

    def choice(self, dataset: str, config: Config) -> Any:
        """What :func:`saeworks.evals.removal.spurious_removal.remove` asks: which latents to remove."""

        def choose(seen: Choosing, direction: int, most: int) -> Tensor:
            found = candidate_latents(seen, direction, config)
            kept = [self.removable((dataset, seen.case.pair, i), direction, config.rule) for i in found.tolist()]
            return found[kept][:most]

        return choose

    def removable(self, candidate: Candidate, direction: int, rule: str) -> bool:
        """Whether a latent goes: direction 1 removes the cue and asks for the class, direction 2 the reverse."""
        if candidate not in self.ratings:
            return False
        of: dict[Key, int] = {"class": self.ratings[candidate][0], "cue": self.ratings[candidate][1]}
        removed, asked = DIRECTIONS[direction]
        return of[removed] > RELATED if rule == "unwanted" else of[asked] <= RELATED

    def note(self) -> str | None:
        """Why the score says nothing of the latents; None where it does."""
        if not self.ratings:
            return f"no answer of the judge could be used, of {len(self.unread)} latents, so that none was removed"
        if len(self.ratings) > 1 and len(alike := set(self.ratings.values())) == 1:
            ((of_class, of_cue),) = alike
            return (
                f"the judge rated all {len(self.ratings)} latents alike, {of_class} for the classes and {of_cue} for "
                "the cue: it tells none apart"
            )
        return None

    def told(self, result: Result, asker: Asker) -> Result:
        """The result with what the judge said."""
        judged = max(1, len(self.ratings))
        result.eval_result_metrics["judge"] = {
            "n_rated": len(self.ratings),
            "n_unread": len(self.unread),
            "frac_about_class": sum(c > RELATED for c, _ in self.ratings.values()) / judged,
            "frac_about_cue": sum(v > RELATED for _, v in self.ratings.values()) / judged,
        }
        if note := self.note():
            result.eval_result_details.append({"note": note})
        usage = {"judge": asker.judge.name, "read_from_disk": asker.cached, **asker.judge.usage()}
        result.eval_result_details.append(usage)
        written: dict[str, dict[str, dict[str, int]]] = {}
        for (dataset, pair, latent), (of_class, of_cue) in self.ratings.items():
            of_pair = written.setdefault(f"{dataset}_shift_{pair[0]}_{pair[1]}_results", {})
            of_pair[str(latent)] = {"class": of_class, "cue": of_cue}
        result.eval_result_unstructured = written
        return result


def _ask(
    candidates: Sequence[Candidate],
    evidence: Mapping[str, Mapping[int, LatentEvidence]],
    named: Mapping[str, Named],
    rows: TokenRows,
    asker: Asker,
    config: Config,
) -> Verdicts:
    # A latent that is active in no text has no evidence, and nobody is asked about it.
    known = [c for c in candidates if evidence[c[0]][c[2]].texts]
    concepts = [_concepts(named[dataset], pair) for dataset, pair, _ in known]
    questions = [
        rating_question(evidence[dataset][latent], asked, rows, config.marked)
        for (dataset, _, latent), asked in zip(known, concepts, strict=True)
    ]
    asker.check_room(questions)
    ratings: dict[Candidate, tuple[int, int]] = {}
    for candidate, asked, answer in zip(known, concepts, asker.ask(questions), strict=True):
        found = read_ratings(answer, _names(asked))
        if found is not None:
            first, second, cue = (found[name] for name in _names(asked))
            ratings[candidate] = (max(first, second), cue)
    return Verdicts(ratings, [c for c in candidates if c not in ratings])


def _concepts(named: Named, pair: tuple[str, str]) -> list[Concept]:
    return [named.classes[pair[0]], named.classes[pair[1]], named.cue]


def _names(concepts: Iterable[Concept]) -> list[str]:
    return [concept.name for concept in concepts]
