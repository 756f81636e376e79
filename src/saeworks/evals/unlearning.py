"""Unlearning: can a dictionary take one body of knowledge out of a language model and leave the rest?

The latents that fire on the texts to forget and hardly ever on the others are clamped to a negative value wherever
they fire; multiple-choice questions then tell what is left of either knowledge. Only questions count that the model
answers in every order of their options, so that both accuracies are 1 without a clamp. The score is 1 − the lowest
accuracy on the restricted questions among the settings that keep at least 99 % of the others (arXiv 2410.19278,
SAEBench).

``compat`` takes SAEBench's definitions as they are. ``corrected`` mends: the best of many settings is chosen on one
half of the questions and judged on the other; the size of a clamp is measured along the activation, relative to its
norm, and not in units of latents that differ between dictionaries and models; negative latents fire too; special
tokens are left alone wherever they stand; frequencies are not rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from saeworks.errors import InputError, did_you_mean
from saeworks.evals.answers.clamped_answers import ClampedAnswers
from saeworks.evals.answers.multiple_choice import (
    Asking,
    ChoiceQuestion,
    Prompt,
    known_questions,
    make_prompts,
    refers_to_other_options,
)
from saeworks.evals.answers.unlearning_scores import Halves, Setting, best_of_all, held_out
from saeworks.evals.shared.batches import (
    DictionaryLike,
    fingerprint_documents,
    fingerprint_of_model,
    sites_of,
)
from saeworks.evals.shared.behaviour import check_predicts
from saeworks.evals.shared.bootstrap import document_weights, interval
from saeworks.evals.shared.clamping import Firing, choose_latents, firing, rounded_frequencies
from saeworks.evals.shared.described import result_of
from saeworks.evals.shared.settings import Counts, Seeds, Sizes
from saeworks.files import sha256_json
from saeworks.progress import progress
from saeworks.results.envelope import Metrics, Result
from saeworks.runtime import generator
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "unlearning"
DEFINITION = "saeworks/unlearning/1"
#: Texts of the restricted domain of the world are to be forgotten, and the questions about it.
FORGET = "craft"
TARGETS = ("correct", "correct-iff-question", "correct-no-tricks")
_NOTHING_CLAMPED = (
    "no latent fires on the texts to forget and rarely enough on the others (retain_thresholds), so that nothing was "
    "clamped and the score is 0"
)


class Config(BaseModel):
    """Defaults are SAEBench's, but for the numbers of texts and questions.

    Every pair of ``retain_thresholds`` and ``n_features_list`` chooses latents, and every one of ``multipliers`` is a
    size of the clamp, for activations whose mean norm is ``reference_norm`` (Gemma-2-2B, layer 12); ``corrected``
    scales it to the norm that the texts have here. ``dataset_size``: texts on either side, drawn anew by every seed.
    ``forget_questions`` and ``retain_questions``: put to the model, of which those count that it knows in ``orders``
    orders. ``target_metric``: which of these; ``correct-iff-question`` leaves out what is known without the question,
    ``correct-no-tricks`` those with an option like "all of the above". ``retained``: the accuracy that a setting must
    keep. ``scoring``: None compares the texts of the options on the embedded world and their letters elsewhere.
    ``chat``: the question is a user's turn; None: where letters are compared and the tokenizer has a chat template.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["compat", "corrected"] = "corrected"
    seeds: Seeds = (0, 1, 2)
    site: str | None = None
    context_length: int = Field(default=128, gt=1)
    batch_size: int = Field(default=64, gt=0)
    resamples: int = Field(default=500, gt=0)
    retain_thresholds: Sizes = (0.001, 0.01)
    n_features_list: Counts = (10, 20)
    multipliers: Sizes = (25.0, 50.0, 100.0, 200.0)
    reference_norm: float = Field(default=149.0, gt=0)
    dataset_size: int = Field(default=512, gt=0)
    forget_questions: int = Field(default=80, gt=0)
    retain_questions: int = Field(default=160, gt=0)
    orders: int = Field(default=24, gt=0)
    min_questions: int = Field(default=10, gt=0)
    target_metric: str = "correct"
    retained: float = Field(default=0.99, ge=0, le=1)
    scoring: Literal["texts", "letters"] | None = None
    header: str | None = None
    chat: bool | None = None


@dataclass(frozen=True)
class Data:
    """Texts to forget, other texts, and questions of both kinds (``ChoiceQuestion.restricted``)."""

    forget: Sequence[Document]
    retain: Sequence[Document]
    questions: Sequence[ChoiceQuestion]


def default_data(model: LanguageModel, config: Config) -> Data:
    """The world: the craft is to be forgotten, all other domains and the questions on them are to be kept.

    Raises:
        InputError: ``model`` does not predict the next token, and so cannot answer.
    """
    from saeworks.world import corpus
    from saeworks.world.domains import questions as world

    check_predicts(model, EVAL_TYPE)
    size = 2 * config.dataset_size
    forget = list(corpus.documents(FORGET, "validation", count=size))
    retain: list[Document] = []
    for document in corpus.documents(None, "validation"):
        if not document.id.startswith(f"{FORGET}/") and document.labels.get("subject") != FORGET:
            retain.append(document)
        if len(retain) == size:
            break
    kept = tuple(subject for subject in world.SUBJECTS if subject != FORGET)
    asked = [
        *world.questions((FORGET,), "probe_test", config.forget_questions),
        *world.questions(kept, "probe_test", config.retain_questions),
    ]
    return Data(forget, retain, [ChoiceQuestion(q.stem, q.options, q.key, q.subject, q.restricted) for q in asked])


def from_documents(sets: Mapping[str, Sequence[Document]], label: str, model: LanguageModel, config: Config) -> Data:
    """Your own texts: the label says ``forget`` or ``retain``.

    A text with the labels ``A``, ``B``, … and ``answer`` (a letter) is a question, with ``subject`` if there is one.

    Raises:
        InputError: another value of the label, an answer that is no option, or no text or question of either kind.
    """
    check_predicts(model, EVAL_TYPE)
    texts: dict[str, list[Document]] = {"forget": [], "retain": []}
    asked: list[ChoiceQuestion] = []
    for name, documents in sets.items():
        for document in documents:
            side = str(document.labels.get(label))
            if side not in texts:
                raise InputError(
                    f"Text '{document.id}' of '{name}' has '{side}' as its label '{label}', where 'forget' or 'retain' "
                    f"was expected.{did_you_mean(side, texts)}"
                )
            if "answer" in document.labels:
                asked.append(_question(document, side == "forget", name))
            else:
                texts[side].append(document)
    for side, found in texts.items():
        if not found or not any(q.restricted == (side == "forget") for q in asked):
            raise InputError(
                f"The data hold {len(found)} texts and {sum(q.restricted == (side == 'forget') for q in asked)} "
                f"questions labelled '{side}'; give some of both."
            )
    return Data(texts["forget"], texts["retain"], asked)


def _question(document: Document, restricted: bool, name: str) -> ChoiceQuestion:
    places = [place for place in "ABCDEFGH" if place in document.labels]
    answer = str(document.labels["answer"]).strip().upper()
    if answer not in places:
        raise InputError(
            f"The answer of question '{document.id}' is '{answer}', but its options are {', '.join(places) or 'none'}."
        )
    subject = str(document.labels.get("subject", name))
    options = tuple(str(document.labels[place]) for place in places)
    return ChoiceQuestion(document.text, options, places.index(answer), subject, restricted)


def data_hashes(data: Data, config: Config) -> dict[str, str]:
    """``data:forget``, ``data:retain`` and ``data:questions`` → content hash."""
    asked = [[q.stem, list(q.options), q.key, q.subject, q.restricted] for q in data.questions]
    return {
        "data:forget": fingerprint_documents(data.forget),
        "data:retain": fingerprint_documents(data.retain),
        "data:questions": sha256_json(asked),
    }


def run(
    dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, data: Data, config: Config
) -> dict[str, Result]:
    """Measure every dictionary; returns name → result. What the model knows is found out once for all of them.

    Raises:
        InputError: a site whose width differs from the dictionary's, or a model that knows too few of the questions.
    """
    sites = sites_of(dictionaries, model, config.site)
    check_predicts(model, EVAL_TYPE)
    asking = asking_for(model, config)
    questions, prompts = _known(model, data.questions, asking, config)
    signed = config.mode == "corrected"
    frequencies: dict[str, Firing] = {}
    for side, documents in (("forget", data.forget), ("retain", data.retain)):
        draws = draw_texts(len(documents), config.dataset_size, config.seeds, side)
        frequencies[side] = firing(
            dictionaries, model, documents, draws, sites, signed, config.context_length, config.batch_size, side
        )
    hashes = {"model": fingerprint_of_model(model), **data_hashes(data, config)}
    results: dict[str, Result] = {}
    for name, dictionary in dictionaries.items():
        forget, retain = (frequencies[side].frequencies[name] for side in ("forget", "retain"))
        chosen = _choices(forget, retain, config)
        answers = ClampedAnswers(
            model,
            prompts,
            dictionary,
            sites[name],
            sorted({latent for ones in chosen.values() for latent in ones}),
            config.batch_size,
            frequencies["retain"].norms[sites[name]] / config.reference_norm if signed else None,
            signed,
            all_but_first=not signed,
        )
        settings: list[Setting] = []
        bar = progress(len(chosen) * len(config.multipliers), f"clamping {name}", unit="setting")
        for (seed, threshold, count), latents in chosen.items():
            for multiplier in config.multipliers:
                right = answers.right(latents, multiplier)
                settings.append(Setting(seed, threshold, count, multiplier, latents, right))
                bar.update()
        bar.close()
        results[name] = _result(name, dictionary, settings, questions, config, hashes, len(data.questions))
    return results


def _choices(forget: Tensor, retain: Tensor, config: Config) -> dict[tuple[int, float, int], tuple[int, ...]]:
    """Seed, threshold and count → the latents to clamp; frequencies are [seed, latent]."""
    if config.mode == "compat":
        forget, retain = rounded_frequencies(forget), rounded_frequencies(retain)
    return {
        (seed, threshold, count): tuple(choose_latents(forget[i], retain[i], threshold, count).tolist())
        for i, seed in enumerate(config.seeds)
        for threshold, count in product(config.retain_thresholds, config.n_features_list)
    }


def asking_for(model: LanguageModel, config: Config) -> Asking:
    """How questions are put to this model; see :class:`Config`."""
    from saeworks.world.model_files import NAMES

    scoring = config.scoring or ("texts" if model.name in NAMES else "letters")
    template = bool(getattr(model.tokenizer, "chat_template", None))
    chat = config.chat if config.chat is not None else scoring == "letters" and template
    default = "A multiple-choice question about {subject}." if scoring == "letters" else ""
    return Asking(scoring, default if config.header is None else config.header, chat)


def draw_texts(documents: int, size: int, seeds: Sequence[int], name: str) -> Tensor:
    """[seed, document] 1 where the seed's draw of ``size`` texts, without replacement, holds the text, else 0."""
    draws = torch.zeros(len(seeds), documents)
    for row, seed in zip(draws, seeds, strict=True):
        row[torch.randperm(documents, generator=generator(seed, "texts", name))[:size]] = 1
    return draws


def _known(
    model: LanguageModel, questions: Sequence[ChoiceQuestion], asking: Asking, config: Config
) -> tuple[list[ChoiceQuestion], list[Prompt]]:
    """The questions that count, with their prompts in the original order of the options."""
    # The published check knows the last of these by underscores and the files by hyphens; both are taken here.
    target = config.target_metric.replace("_", "-")
    if target not in TARGETS:
        raise InputError(f"There is no target metric '{config.target_metric}'.{did_you_mean(target, TARGETS)}")
    left = [q for q in questions if target != "correct-no-tricks" or not refers_to_other_options(q)]
    known = known_questions(model, left, asking, config.orders, config.batch_size)
    found = [q for q, yes in zip(left, known, strict=True) if yes]
    if target == "correct-iff-question":
        guessed = known_questions(model, found, asking, config.orders, config.batch_size, with_stem=False)
        found = [q for q, yes in zip(found, guessed, strict=True) if not yes]
    for restricted, what in ((True, "questions on what is to be forgotten"), (False, "other questions")):
        count = sum(q.restricted == restricted for q in found)
        if count < config.min_questions:
            raise InputError(
                f"Model '{model.name}' answers {count} of {sum(q.restricted == restricted for q in questions)} {what} "
                f"in every order of the options, where {config.min_questions} are needed: only what a model knows can "
                f"be unlearned (options were compared by their {asking.scoring}; see the setting 'scoring')."
            )
    prompts = make_prompts(model, found, [range(len(q.options)) for q in found], asking)
    return found, [prompt for prompt in prompts if prompt is not None]


def _result(
    name: str,
    dictionary: DictionaryLike,
    settings: list[Setting],
    questions: list[ChoiceQuestion],
    config: Config,
    hashes: dict[str, str],
    asked: int,
) -> Result:
    restricted = torch.tensor([q.restricted for q in questions])
    once = torch.ones(1, len(questions), dtype=torch.float64)
    drawn = document_weights(len(questions), config.resamples, config.seeds[0])
    by_seed = {seed: [s for s in settings if s.seed == seed] for seed in config.seeds}
    best, best_drawn = (
        {seed: best_of_all(ones, restricted, weights, config.retained) for seed, ones in by_seed.items()}
        for weights in (once, drawn)
    )
    judged, judged_drawn = (
        {seed: held_out(ones, questions, weights, config.retained, seed) for seed, ones in by_seed.items()}
        for weights in (once, drawn)
    )
    pairs = {
        "unlearning_score_best_of_all": (best, best_drawn),
        "unlearning_score_held_out": (_field(judged, "score"), _field(judged_drawn, "score")),
        "held_out_forget_accuracy": (_field(judged, "forget"), _field(judged_drawn, "forget")),
        "held_out_retained_accuracy": (_field(judged, "retained"), _field(judged_drawn, "retained")),
    }
    headline = "unlearning_score_held_out" if config.mode == "corrected" else "unlearning_score_best_of_all"
    pairs = {"unlearning_score": pairs[headline], **pairs}
    metrics: Metrics = {"unlearning": {key: _mean(values) for key, (values, _) in pairs.items()}}
    metrics["unlearning"] |= {
        "known_forget_questions": int(restricted.sum()),
        "known_retain_questions": int((~restricted).sum()),
        "frac_settings_kept": sum(_accuracy(s, ~restricted) >= config.retained for s in settings) / len(settings),
    }
    details: list[dict[str, Any]] = [
        {
            "by_seed": {key: {str(s): float(v) for s, v in values.items()} for key, (values, _) in pairs.items()},
            "questions_asked": asked,
            "direction": "higher is better",
        }
    ]
    details += [_described(setting, questions, restricted) for setting in settings]
    if not any(setting.latents for setting in settings):
        details.append({"note": _NOTHING_CLAMPED})
    return result_of(
        name,
        dictionary,
        config,
        hashes,
        eval_type=EVAL_TYPE,
        definition=DEFINITION,
        metrics=metrics,
        details=details,
        n=len(questions),
        ci95={
            f"unlearning.{key}": interval(torch.stack(list(values.values())).mean(0))
            for key, (_, values) in pairs.items()
        },
    )


def _field(values: Mapping[int, Halves], name: str) -> dict[int, Tensor]:
    return {seed: getattr(value, name) for seed, value in values.items()}


def _mean(by_seed: Mapping[int, Tensor]) -> float:
    return float(torch.stack(list(by_seed.values())).mean())


def _accuracy(setting: Setting, where: Tensor) -> float:
    return float(setting.right[where].double().mean())


def _described(setting: Setting, questions: Sequence[ChoiceQuestion], restricted: Tensor) -> dict[str, Any]:
    subjects = sorted({q.subject for q in questions})
    masks = {subject: torch.tensor([q.subject == subject for q in questions]) for subject in subjects}
    return {
        "seed": setting.seed,
        "retain_threshold": setting.threshold,
        "n_features": setting.count,
        "multiplier": setting.multiplier,
        "latents": list(setting.latents),
        "forget_accuracy": _accuracy(setting, restricted),
        "retained_accuracy": _accuracy(setting, ~restricted),
        "accuracy_by_subject": {subject: _accuracy(setting, mask) for subject, mask in masks.items()},
    }
