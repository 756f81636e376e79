"""Automatic interpretability: can a latent be explained so that the explanation tells where it is active?

A judge sees windows of text with the latent's active tokens marked and writes one sentence; then it sees the sentence
and other windows, unmarked, and names those where the latent should be active (detection scoring, arXiv 2410.13928).
The score is the share of windows it judges rightly. Mode ``compat`` is SAEBench's protocol with its faults;
``corrected`` mends them: random windows have their true labels, no window shares a token or its text with another,
rare latents keep what examples they have, answers that were cut off or refused are not read, and everything can be
drawn again to the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from saeworks.errors import InputError
from saeworks.evals.interpretation.detection import explanation_question
from saeworks.evals.interpretation.latent_examples import ExamplePlan
from saeworks.evals.interpretation.latent_sample import Sample, sample_latents
from saeworks.evals.interpretation.latent_scores import Case, Scored, draw_cases, interpret
from saeworks.evals.judges.opening import JudgeConfig, identity_of, open_asker
from saeworks.evals.judges.protocol import Question
from saeworks.evals.shared.batches import (
    DictionaryLike,
    fingerprint_documents,
    fingerprint_of_model,
    sites_of,
)
from saeworks.evals.shared.bootstrap import Resampling
from saeworks.evals.shared.described import result_of
from saeworks.evals.shared.settings import Seeds
from saeworks.evals.shared.token_rows import TokenRows, document_rows, packed_rows
from saeworks.results.envelope import Metrics, Result
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "autointerp"
DEFINITION = "saeworks/autointerp/1"


class Config(JudgeConfig):
    """``n_latents`` of the latents that fire more than ``dead_latent_threshold`` times in ``total_tokens`` tokens are
    drawn (``override_latents``: these and no others). Windows are ``buffer`` tokens to either side of a centre; a token
    is active above ``act_threshold_frac`` of the strongest activation. The ``n_…`` counts are SAEBench's: windows of
    each kind to explain from (``generation``) and to test on (``scoring``).

    ``use_demos_in_explanation``: show the judge some explanations. ``swapped``: test every latent with another's
    explanation as well, the floor of the score; None: where judging costs nothing. ``show``: latents of which the
    windows are written out.

    SAEBench reads 2,000,000 tokens and 1000 latents with one seed; the defaults here are for the embedded world.
    """

    mode: Literal["compat", "corrected"] = "corrected"
    seeds: Seeds = (0, 1, 2)
    site: str | None = None
    context_length: int = Field(default=128, gt=1)
    batch_size: int = Field(default=64, gt=0)
    resamples: int = Field(default=500, gt=0)
    total_tokens: int = Field(default=100_000, gt=0)
    n_latents: int = Field(default=200, gt=0)
    override_latents: tuple[int, ...] | None = None
    dead_latent_threshold: int = Field(default=15, ge=0)
    buffer: int = Field(default=10, ge=0)
    act_threshold_frac: float = Field(default=0.01, ge=0, lt=1)
    max_tokens_in_explanation: int = Field(default=30, gt=0)
    use_demos_in_explanation: bool = True
    n_top_ex_for_generation: int = Field(default=10, gt=0)
    n_iw_sampled_ex_for_generation: int = Field(default=5, ge=0)
    n_top_ex_for_scoring: int = Field(default=2, ge=0)
    n_random_ex_for_scoring: int = Field(default=10, ge=0)
    n_iw_sampled_ex_for_scoring: int = Field(default=2, ge=0)
    swapped: bool | None = None
    show: int = Field(default=20, ge=0)

    def plan(self) -> ExamplePlan:
        """The examples of one latent."""
        return ExamplePlan(
            self.buffer,
            self.act_threshold_frac,
            self.n_top_ex_for_generation,
            self.n_iw_sampled_ex_for_generation,
            self.n_top_ex_for_scoring,
            self.n_iw_sampled_ex_for_scoring,
            self.n_random_ex_for_scoring,
            self.mode == "compat",
        )


@dataclass(frozen=True)
class Texts:
    """The texts that latents are looked at on; their spans are read by the world's judge alone."""

    documents: tuple[Document, ...]


def default_data(model: LanguageModel, config: Config) -> Texts:
    """Validation texts of the embedded world's mixture, as many as give ``total_tokens`` tokens."""
    from saeworks.world import corpus

    return _enough(corpus.documents(None, "validation", config.seeds[0]), model, config)


def from_documents(sets: Mapping[str, Sequence[Document]], label: str, model: LanguageModel, config: Config) -> Texts:
    """The texts of a user's sets, one set after another; their labels are not needed."""
    return _enough((document for documents in sets.values() for document in documents), model, config)


def data_hashes(data: Texts, config: Config) -> dict[str, str]:
    """Hashes of the texts with their spans, and of the judge."""
    return {"data:texts": fingerprint_documents(data.documents), "judge": identity_of(config)}


def run(
    dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, data: Texts, config: Config
) -> dict[str, Result]:
    """Explain and score latents of every dictionary on the same texts; returns name → result.

    Raises:
        InputError: widths that do not fit, data without a token, a judge that cannot be asked, or more questions than
            its budget has requests.
        RunError: the judge's budget is spent or it does not answer any more; its answers so far are kept.
    """
    sites = sites_of(dictionaries, model, config.site)
    rows = read_rows(model, data.documents, config)
    hashes = {"model": fingerprint_of_model(model), **data_hashes(data, config)}
    compat, swapped = config.mode == "compat", config.judge == "world" if config.swapped is None else config.swapped
    samples = sample_latents(dictionaries, model, rows, sites, config)
    out: dict[str, Result] = {}
    with open_asker(config) as asker:
        cases = {name: draw_cases(samples[name].found, rows, config.plan(), config.seeds) for name in dictionaries}
        questions = {name: _explanation_questions(cases[name], config) for name in dictionaries}
        asker.check_room([q for asked in questions.values() for q in asked], times=3 if swapped else 2)
        for name, dictionary in dictionaries.items():
            scored = interpret(name, cases[name], questions[name], asker, compat, swapped)
            details = [
                {"site": sites[name], "arrays": "one entry per latent that was drawn in details_file"},
                {"judge": asker.judge.name, "read_from_disk": asker.cached, **asker.judge.usage()},
            ]
            out[name] = _result(name, dictionary, samples[name], scored, details, config, hashes)
    return out


def read_rows(model: LanguageModel, documents: Sequence[Document], config: Config) -> TokenRows:
    """The texts as rows of tokens: one text a row, or in ``compat`` one stream cut into rows."""
    if config.mode == "corrected":
        return document_rows(model, documents, config.context_length)
    rows = packed_rows(model, documents, config.context_length, config.total_tokens)
    if rows.columns <= 2 * config.buffer:
        raise InputError(
            f"Rows of {rows.columns} tokens have no centre that is {config.buffer} tokens from both ends; "
            "raise context_length or lower buffer."
        )
    return rows


def _explanation_questions(cases: Sequence[Case], config: Config) -> list[Question]:
    demos, most = config.use_demos_in_explanation, config.max_tokens_in_explanation
    return [explanation_question(case.examples.explain, demos, most) for case in cases if case.examples is not None]


def _result(
    name: str,
    dictionary: DictionaryLike,
    sample: Sample,
    scored: Scored,
    details: list[dict[str, Any]],
    config: Config,
    hashes: Mapping[str, str],
) -> Result:
    metrics: Metrics = {
        **scored.metrics(),
        "latents": {
            "n_latents": len(sample.fired),
            "frac_alive": float(sample.alive.double().mean()),
            "n_drawn": len(sample.found),
            "n_scored": len(scored.latents()),
        },
    }
    details += [{"seed": seed, **scored.of_seed(seed)} for seed in config.seeds]
    if note := scored.note():
        details.append({"note": note})
    return result_of(
        name,
        dictionary,
        config,
        hashes,
        eval_type=EVAL_TYPE,
        definition=DEFINITION,
        metrics=metrics,
        details=details,
        n=len(scored.latents()),
        ci95=scored.intervals(Resampling(len(scored.latents()), config.resamples, config.seeds[0])),
        unstructured=scored.written_out(config.seeds[0], config.show),
    ).attach(scored.arrays(list(sample.found), config.seeds))


def _enough(documents: Iterable[Document], model: LanguageModel, config: Config) -> Texts:
    """Documents until they hold ``total_tokens`` tokens, in ``compat`` and a row more: the stream is cut into rows."""
    wanted = config.total_tokens + (config.context_length + 1 if config.mode == "compat" else 0)
    most = min(config.context_length, model.max_context or config.context_length)
    chosen: list[Document] = []
    count, source = 0, iter(documents)
    while count < wanted and (waiting := list(islice(source, 64))):
        sizes = model.tokenize([document.text for document in waiting], most).keep.sum(1)
        before = sizes.cumsum(0) - sizes + count
        chosen += waiting[: int((before < wanted).sum())]
        count += int(sizes.sum())
        if not count and len(chosen) >= 512:
            # The world never ends, and neither would this.
            break
    if not count:
        raise InputError(
            f"Model '{model.name}' reads no token in {len(chosen)} texts; give texts that its tokenizer knows."
        )
    return Texts(tuple(chosen))
