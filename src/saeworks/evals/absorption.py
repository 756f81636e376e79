"""The absorption eval: does "starts with S" have latents that fire on all words with S, or do others step in?

A linear probe on the activations of words gives the direction of each first letter. The latents of a letter are those
that tell it best (one, or several into which it is split). Absorbed is a word on which they are silent, or too weak,
while some other latent, often one of that word alone, carries the letter's direction.

``compat`` follows SAEBench (arXiv 2503.09532) with what it does beside the point: prompts drawn anew between probing
and scoring, a fixed token position, the residual stream whatever the dictionary reads, contributions that presume unit
decoder rows, silence that includes negative activations. ``corrected`` reads every word once, at its own token and the
dictionary's site, splits the words letter by letter, and depends neither on decoder norms nor on the order of latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.errors import InputError
from saeworks.evals.letters.absorption_results import LetterScores, Measured, SeedScores, make_result
from saeworks.evals.letters.absorption_scores import Mode, WordScores, score_words
from saeworks.evals.letters.letter_probes import (
    LETTERS,
    LinearProbe,
    Schedule,
    columns_of,
    f1_score,
    fit_latents,
    fit_letters,
    k_sparse_f1,
    one_hot,
    order_latents,
    rows_of,
    split_count,
)
from saeworks.evals.letters.letter_words import (
    Prompt,
    Reading,
    alphabetical_entries,
    letters_of,
    make_prompts,
    read_words,
    single_token_words,
    split_words,
)
from saeworks.evals.shared.batches import DictionaryLike, fingerprint_of_model, sites_of
from saeworks.evals.shared.settings import Seeds
from saeworks.files import sha256_json
from saeworks.results.envelope import Result
from saeworks.runtime import derive_seed

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "absorption_first_letter"
DEFINITION = "saeworks/absorption_first_letter/1"
#: Steps that corrected trains a probe on activations for at least: those of SAEBench with a thousand words.
PROBE_STEPS = 800


class Config(BaseModel):
    """Names and defaults are SAEBench's where it has the field.

    ``examples`` lines about other words stand before the word's own. ``test_share`` of the words are for testing, drawn
    by every one of ``seeds``; with ``max_words`` no more words than that are read (evenly over the vocabulary).
    ``vocabulary``: ``lexicon`` are the words whose spelling the embedded world teaches, ``tokenizer`` the words of the
    model's own vocabulary, ``auto`` the former for the embedded models and the latter for all others.
    A letter counts when its probe on the activations reaches ``min_GT_probe_f1``; with fewer than
    ``min_feats_for_eval`` such letters nothing is measured. ``prompt_token_pos`` and the batch size and epochs of the
    probe on latents are used in compat alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["compat", "corrected"] = "corrected"
    seeds: Seeds = (0, 1, 2)
    site: str | None = None
    context_length: int = Field(default=128, gt=1)
    batch_size: int = Field(default=64, gt=0)
    resamples: int = Field(default=500, gt=0)
    vocabulary: Literal["auto", "lexicon", "tokenizer"] = "auto"
    max_words: int | None = Field(default=None, gt=0)
    test_share: float = Field(default=0.2, gt=0, lt=1)
    examples: int = Field(default=10, ge=0)
    prompt_template: str = "{word} has the first letter:"
    prompt_token_pos: int = Field(default=-6, lt=0)
    f1_jump_threshold: float = Field(default=0.03, ge=0)
    max_k_value: int = Field(default=10, gt=0)
    k_sparse_probe_l1_decay: float = Field(default=0.01, ge=0)
    k_sparse_probe_batch_size: int = Field(default=4096, gt=0)
    k_sparse_probe_num_epochs: int = Field(default=50, gt=0)
    min_GT_probe_f1: float = 0.6
    min_feats_for_eval: int = Field(default=20, gt=0)

    @field_validator("prompt_template")
    @classmethod
    def _one_word(cls, template: str) -> str:
        if template.count("{word}") != 1 or template.replace("{word}", "").count("{"):
            raise ValueError("a template has {word} once and no other braces")
        return template


@dataclass(frozen=True)
class Data:
    """Words to read, and whether a space stands before them (their tokens are then those of words inside a text)."""

    words: tuple[str, ...]
    space: bool = True


def default_data(model: LanguageModel, config: Config) -> Data:
    """The words of the embedded world's spelling texts that are single tokens for ``model``, or all single-token words
    of the model's own vocabulary (compat: all of its alphabetical entries). ``InputError`` when there are none."""
    from saeworks.world.knowledge import lexicon
    from saeworks.world.model_files import NAMES

    taught = config.vocabulary == "lexicon" or (config.vocabulary == "auto" and model.name in NAMES)
    space = taught or config.mode == "corrected"
    words = list(lexicon()) if taught else alphabetical_entries(model.tokenizer)
    if space:
        words = single_token_words(model.tokenizer, words)
    if not words:
        source = "words of the embedded world" if taught else "entries of A to Z alone"
        raise InputError(
            f"The vocabulary of model '{model.name}' has no {source} that are single tokens, so there are no words to "
            "read; leave the absorption eval out for this model."
        )
    if config.max_words is not None and len(words) > config.max_words:
        words = [words[i * len(words) // config.max_words] for i in range(config.max_words)]
    return Data(tuple(words), space)


def data_hashes(data: Data, config: Config) -> dict[str, str]:
    """``data:words`` → hash of the words in order."""
    return {"data:words": sha256_json([list(data.words), data.space])}


def run(
    dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, data: Data, config: Config
) -> dict[str, Result]:
    """Measure every dictionary on the same words, splits and probes; returns name → result.

    Raises:
        InputError: no words, prompts that do not fit into the context, sites whose width differs from a dictionary's.
    """
    if len(data.words) < 2:
        raise InputError(f"Absorption was asked of {len(data.words)} words; give at least two for some letters.")
    sites = read_sites(dictionaries, model, config)
    letters = letters_of(data.words)
    found: dict[str, list[SeedScores]] = {name: [] for name in dictionaries}
    # Nothing that corrected reads depends on the split, so one pass over the vocabulary serves all seeds.
    whole = _read_all(dictionaries, sites, model, data, config) if config.mode == "corrected" else None
    for seed in config.seeds:
        train, test = split_words(data.words, config.test_share, seed, config.mode == "corrected")
        if whole is None:
            probed, scored = _read_anew(dictionaries, sites, model, data, (train, test), seed, config)
        else:
            probed, scored = whole, _part(whole, test)
        schedule = probe_schedule(len(train), config.mode)
        probes = {site: fit_letters(x[train], letters[train], seed, schedule) for site, x in probed.activations.items()}
        for name, dictionary in dictionaries.items():
            site = sites[name]
            task = _Task(
                probes[site],
                _rows_used(dictionary, config.mode),
                probed.activations[site][test],
                scored.activations[site],
                rows_of(probed.codes[name], train),
                rows_of(probed.codes[name], test),
                scored.codes[name],
                letters[train],
                letters[test],
            )
            found[name].append(_measure(task, test, seed, config))
    hashes = {"model": fingerprint_of_model(model), **data_hashes(data, config)}
    return {
        name: make_result(
            Measured(name, dictionary, sites[name], found[name], data.words), EVAL_TYPE, DEFINITION, config, hashes
        )
        for name, dictionary in dictionaries.items()
    }


def read_sites(dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, config: Config) -> dict[str, str]:
    """Dictionary → site: its own, or in compat the output of that site's layer, as SAEBench reads always.

    Raises:
        InputError: a width that does not fit, or (compat) a site outside the layers.
    """
    sites = sites_of(dictionaries, model, config.site)
    if config.mode == "corrected":
        return sites
    out: dict[str, str] = {}
    for name, site in sites.items():
        layer = model.site(site).layer
        if layer < 0:
            raise InputError(f"Site '{site}' belongs to no layer, and compat reads the output of one; use corrected.")
        out[name] = f"layers.{layer}.resid_post"
        width, d_in = model.site(out[name]).width, int(dictionaries[name].W_dec.shape[-1])
        if width != d_in:
            raise InputError(
                f"In compat the eval reads '{out[name]}' of width {width}, but dictionary '{name}' was made for width "
                f"{d_in} at '{site}'; use corrected, which reads that site."
            )
    return out


def probe_schedule(words: int, mode: Mode) -> Schedule:
    """The schedule of the probes on activations: 50 epochs, and in corrected as many as make :data:`PROBE_STEPS` steps
    where ``words`` are few; in fewer steps than that weights hardly leave their random beginnings."""
    schedule = Schedule()
    if mode == "compat":
        return schedule
    steps = -(-words // schedule.batch_size)
    return replace(schedule, epochs=max(schedule.epochs, -(-PROBE_STEPS // steps)))


@dataclass(frozen=True)
class _Task:
    """What one seed measures of one dictionary. ``x_test`` and the codes of train and test are what probes see;
    ``x_scored`` and ``scored``, also of the test words, are what is scored (the same in corrected)."""

    probe: LinearProbe
    W_dec: Tensor
    x_test: Tensor
    x_scored: Tensor
    train: Codes
    test: Codes
    scored: Codes
    train_letters: Tensor
    test_letters: Tensor


def _measure(task: _Task, test: Tensor, seed: int, config: Config) -> SeedScores:
    """``test``: [test word] place of each test word in the vocabulary."""
    predicted = task.probe.logits(task.x_test).T > 0
    probe_f1 = f1_score(predicted, one_hot(task.test_letters).T.bool())
    kept = (probe_f1 > config.min_GT_probe_f1).nonzero().squeeze(1).tolist()
    if len(kept) < config.min_feats_for_eval:
        return SeedScores(seed, probe_f1, None, [])
    order = _order(task, seed, config)
    f1 = k_sparse_f1(task.train, task.test, task.train_letters, task.test_letters, order)
    letters: list[LetterScores] = []
    for c in kept:
        count = split_count(f1[c].tolist(), config.f1_jump_threshold)
        main = [latent for latent in order[c, :count].tolist() if latent >= 0]
        rows = ((task.test_letters == c) & predicted[c]).nonzero().squeeze(1)
        scores = _score(task, rows, task.probe.weights[c], main, config.mode)
        letters.append(
            LetterScores(LETTERS[c], float(probe_f1[c]), float(f1[c, count - 1]), count, main, test[rows], scores)
        )
    return SeedScores(seed, probe_f1, f1[:, 0], letters)


def _order(task: _Task, seed: int, config: Config) -> Tensor:
    """[letter, max_k_value] the latents that tell each letter, by the weights of one L1 probe."""
    compat = config.mode == "compat"
    epochs, words = config.k_sparse_probe_num_epochs, config.k_sparse_probe_batch_size
    schedule = Schedule(epochs, words, 0.01, 1e-5, 1e-6) if compat else None
    probe = fit_latents(task.train, task.train_letters, config.k_sparse_probe_l1_decay, schedule, seed)
    sign = None
    negative = task.train.indices[task.train.values < 0].unique()
    if len(negative) and not compat:
        # A latent of both signs tells a letter as well by being negative: turn it towards the letter's direction.
        towards = (task.probe.weights @ task.W_dec[negative].T).sign()
        sign = torch.ones_like(probe.weights)
        sign[:, negative] = torch.where(towards == 0, 1.0, towards)
    return order_latents(probe, config.max_k_value, sign)


def _score(task: _Task, rows: Tensor, direction: Tensor, main: list[int], mode: Mode) -> WordScores:
    """Scores of some test words. Latents that are silent on all of them change nothing and are left out."""
    codes = rows_of(task.scored, rows)
    latents = torch.cat([codes.indices, torch.tensor(main, dtype=torch.int64)]).unique()
    if not len(latents):
        latents = torch.zeros(1, dtype=torch.int64)
    present = task.x_scored[rows].double() @ torch.nn.functional.normalize(direction.double(), dim=0)
    own = torch.searchsorted(latents, torch.tensor(main, dtype=torch.int64)).tolist()
    scores = score_words(present, columns_of(codes, latents), task.W_dec[latents], direction, own, mode)
    return replace(scores, absorber=torch.where(scores.absorber >= 0, latents[scores.absorber], -1))


def _rows_used(dictionary: DictionaryLike, mode: Mode) -> Tensor:
    """Decoder rows [latent, d] on the CPU; of length 1 in corrected, whose codes carry the lengths."""
    rows = dictionary.W_dec.detach().float().cpu()
    return rows if mode == "compat" else torch.nn.functional.normalize(rows, dim=-1)


def _read_all(
    dictionaries: Mapping[str, DictionaryLike],
    sites: Mapping[str, str],
    model: LanguageModel,
    data: Data,
    config: Config,
) -> Reading:
    """Every word once, with examples from the whole vocabulary; codes in units of the activations (f_i times the length
    of d_i), so that neither probes nor scores depend on how a dictionary divides scale between encoder and decoder."""
    prompts = make_prompts(data.words, data.words, config.prompt_template, config.examples, config.seeds[0], data.space)
    reading = read_words(dictionaries, sites, model, prompts, config.context_length, config.batch_size)
    codes: dict[str, Codes] = {}
    for name, raw in reading.codes.items():
        norms = dictionaries[name].W_dec.detach().float().norm(dim=-1).cpu()
        codes[name] = raw.with_values(raw.values * norms[raw.indices])
    return Reading(reading.activations, codes)


def _read_anew(
    dictionaries: Mapping[str, DictionaryLike],
    sites: Mapping[str, str],
    model: LanguageModel,
    data: Data,
    parts: tuple[Tensor, Tensor],
    seed: int,
    config: Config,
) -> tuple[Reading, Reading]:
    """As SAEBench: all words with examples from their own part, and the test words once more with examples from the
    whole vocabulary; the token is ``prompt_token_pos`` from the end."""
    prompts: list[Prompt | None] = [None] * len(data.words)
    for number, rows in enumerate(parts):
        words = [data.words[row] for row in rows.tolist()]
        made = make_prompts(
            words, words, config.prompt_template, config.examples, derive_seed(seed, "part", number), data.space
        )
        for row, prompt in zip(rows.tolist(), made, strict=True):
            prompts[row] = prompt
    test_words = [data.words[row] for row in parts[1].tolist()]
    fresh = make_prompts(
        test_words, data.words, config.prompt_template, config.examples, derive_seed(seed, "fresh"), data.space
    )
    probed, scored = (
        read_words(
            dictionaries,
            sites,
            model,
            some,
            config.context_length,
            config.batch_size,
            config.prompt_token_pos,
        )
        for some in ([p for p in prompts if p is not None], fresh)
    )
    return probed, scored


def _part(reading: Reading, rows: Tensor) -> Reading:
    return Reading(
        {site: x[rows] for site, x in reading.activations.items()},
        {name: rows_of(codes, rows) for name, codes in reading.codes.items()},
    )
