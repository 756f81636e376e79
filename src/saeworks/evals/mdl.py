"""Minimal description length: how many bits per token do the latents of a dictionary take? Lower is better.

Latents are cut to the k largest of a token and quantised to a few bins; of the settings whose reconstruction stays good
enough, the one with the fewest bits counts. The bits of two dictionaries compare at equal fidelity only, so that
``corrected`` also gives the bits of a whole description, in which what the latents lack is sent too.

``compat`` takes SAEBench's definitions as they are: bins reach at least to 100 whatever the activations are, zeros are
counted as values of the first bin and rebuilt as half a bin, bits do not depend on k, entropies are those of the texts
they describe, and what is good enough depends on the scale of the activations. ``corrected``: bins end at each latent's
largest activation, a latent that does not fire costs what it takes to say so and is rebuilt as 0, bits are those of the
k largest and of a code learnt on other texts, and a setting is good enough when it loses at most ``mse_epsilon`` of the
variance that the dictionary explains with all its latents unquantised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from saeworks.dictionaries.codes import Codes, offsets_of
from saeworks.errors import InputError
from saeworks.evals.shared.batches import (
    DictionaryLike,
    document_batches,
    fingerprint_documents,
    fingerprint_of_model,
    harvest,
    kept_activations,
    sites_of,
    to_dictionary,
)
from saeworks.evals.shared.bootstrap import Resampling, interval
from saeworks.evals.shared.clamping import codes_of
from saeworks.evals.shared.described import result_of
from saeworks.evals.shared.settings import Counts, Seeds
from saeworks.evals.structure import description_length as bits_of
from saeworks.progress import progress
from saeworks.results.envelope import Metrics, Result
from saeworks.runtime import generator
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "mdl"
DEFINITION = "saeworks/mdl/1"


class Config(BaseModel):
    """``num_bins`` and ``k`` are tried in all pairs (k None: all latents of a token). ``mse_epsilon`` is the loss that
    is good enough, and the share of the variance that a whole description may lose. Every seed divides the ``texts``
    anew into those that bins and code are taken from and the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["compat", "corrected"] = "corrected"
    seeds: Seeds = (0, 1, 2)
    site: str | None = None
    context_length: int = Field(default=128, gt=1)
    batch_size: int = Field(default=64, gt=0)
    resamples: int = Field(default=500, gt=0)
    num_bins: Counts = (4, 6, 8, 12, 16, 32)
    k: Annotated[tuple[Annotated[int, Field(gt=0)] | None, ...], Field(min_length=1)] = (16, 24, 32, None)
    mse_epsilon: float = Field(default=0.01, gt=0)
    texts: int = Field(default=256, gt=1)


@dataclass(frozen=True)
class Data:
    """Texts whose activations are described."""

    texts: Sequence[Document]


@dataclass(frozen=True)
class Described:
    """One setting of one seed.

    Attributes:
        length: bits per token. loss: what is compared with the threshold. within: whether it is good enough.
        whole: bits per token with the residual; NaN in ``compat``.
        sums: ``bits``, ``tokens``, ``rss`` and ``tss`` of every judged text, [document] each; empty in ``compat``.
    """

    num_bins: int
    k: int | None
    length: float
    loss: float
    within: bool
    whole: float = math.nan
    sums: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def default_data(model: LanguageModel, config: Config) -> Data:
    """Validation texts of the world's mixture."""
    from saeworks.world import corpus

    return Data(list(corpus.documents(None, "validation", count=config.texts)))


def from_documents(sets: Mapping[str, Sequence[Document]], label: str, model: LanguageModel, config: Config) -> Data:
    """Your own texts, ``texts`` of each set; their labels do not matter."""
    return Data([document for documents in sets.values() for document in documents[: config.texts]])


def data_hashes(data: Data, config: Config) -> dict[str, str]:
    """``data:texts`` → content hash."""
    return {"data:texts": fingerprint_documents(data.texts)}


def run(
    dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, data: Data, config: Config
) -> dict[str, Result]:
    """Measure every dictionary on the activations of one pass over the texts; returns name → result.

    Raises:
        InputError: fewer than two texts, a site whose width differs from the dictionary's, or a dictionary whose output
            is no sum of latents and rows.
    """
    sites = sites_of(dictionaries, model, config.site)
    for name, dictionary in dictionaries.items():
        if getattr(dictionary.cfg, "input_op", "none") != "none":
            raise InputError(
                f"Dictionary '{name}' rescales every token, which takes bits that are not counted here; leave it out."
            )
    if len(data.texts) < 2:
        raise InputError(f"A code is learnt on some texts and judged on others, but {len(data.texts)} came; give more.")
    documents, activations = _activations(model, data.texts, sorted(set(sites.values())), config)
    hashes = {"model": fingerprint_of_model(model), **data_hashes(data, config)}
    results: dict[str, Result] = {}
    for name, dictionary in dictionaries.items():
        x = to_dictionary(activations[sites[name]], dictionary)
        codes = _encoded(dictionary, x)
        table: dict[int, list[Described]] = {}
        bar = progress(len(config.seeds), f"describing {name}", unit="seed")
        for seed in config.seeds:
            learn, judge = divided(len(data.texts), seed)
            if config.mode == "corrected":
                table[seed] = _describe(dictionary, x, codes, documents, learn, judge, config)
            else:
                table[seed] = _describe_compat(dictionary, x, codes, documents, learn, judge, config)
            bar.update()
        bar.close()
        results[name] = _result(name, dictionary, table, len(documents), config, hashes)
    return results


def divided(texts: int, seed: int) -> tuple[Tensor, Tensor]:
    """[text] bool twice: a random half, and the others."""
    first = torch.zeros(texts, dtype=torch.bool)
    first[torch.randperm(texts, generator=generator(seed, "texts"))[: texts // 2]] = True
    return first, ~first


def _activations(
    model: LanguageModel, texts: Sequence[Document], sites: list[str], config: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """[token] number of the text of every kept token, and site → [token, d]."""
    documents: list[Tensor] = []
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    with torch.no_grad():
        for batch in document_batches(model, texts, config.context_length, config.batch_size):
            for site, activations in harvest(model, batch, sites).items():
                kept = kept_activations(activations, batch)
                found[site].append(kept.x)
                if site == sites[0]:
                    documents.append(torch.tensor(batch.index)[kept.rows.cpu()])
    return torch.cat(documents), {site: torch.cat(parts) for site, parts in found.items()}


@torch.no_grad()
def _encoded(dictionary: DictionaryLike, x: Tensor, size: int = 4096) -> Codes:
    """Codes of all tokens, encoded in parts; negative latents are no zeros either."""
    codes = Codes.joined([codes_of(dictionary, part) for part in x.split(size)])
    return codes.with_values(codes.values.float())


def rows_of(codes: Codes, tokens: Tensor) -> Codes:
    """The codes of some tokens, ``tokens`` [token] bool."""
    tokens = tokens.to(codes.offsets.device)
    kept = tokens[codes.rows()]
    return Codes(codes.values[kept], codes.indices[kept], offsets_of(codes.counts()[tokens]), codes.width)


def _describe(
    dictionary: DictionaryLike,
    x: Tensor,
    codes: Codes,
    documents: Tensor,
    learn: Tensor,
    judge: Tensor,
    config: Config,
) -> list[Described]:
    """Every setting of one seed, ``corrected``: learnt on one half of the texts, judged on the other."""
    decoder, b_dec = dictionary.W_dec.float(), dictionary.b_dec.float()
    training, judged = rows_of(codes, learn[documents]), rows_of(codes, judge[documents])
    target = x[judge[documents].to(x.device)].double()
    text = documents[judge[documents]]

    def by_text(per_token: Tensor) -> Tensor:
        return torch.zeros(len(judge), dtype=torch.float64).index_add_(0, text, per_token.double().cpu())

    def errors(shown: Codes) -> Tensor:
        return (target - (bits_of.decode_sums(shown, decoder) + b_dec).double()).square().sum(1)

    tokens, tss = by_text(torch.ones(len(text))), by_text((target - target.mean(0)).square().sum(1))
    total = max(float(tss.sum()), 1e-30)
    unquantised = float(errors(judged).sum()) / total
    out: list[Described] = []
    for k, num_bins in product(config.k, config.num_bins):
        shown = bits_of.largest_per_token(judged, k)
        coder = bits_of.learn_code(bits_of.largest_per_token(training, k), num_bins)
        bits = by_text(bits_of.coded_bits(shown, coder))
        rss = by_text(errors(bits_of.quantised(shown, coder.bins)))
        sums = {"bits": bits, "tokens": tokens, "rss": rss, "tss": tss}
        loss = float(rss.sum()) / total - unquantised
        totals = {name: value.sum() for name, value in sums.items()}
        length, whole = (float(f(totals)) for f in (_latent_bits, _all_bits(config.mse_epsilon, x.shape[1])))
        out.append(Described(num_bins, k, length, loss, loss <= config.mse_epsilon, whole, sums))
    return out


def _latent_bits(sums: Mapping[str, Tensor]) -> Tensor:
    return sums["bits"] / sums["tokens"]


def _all_bits(distortion: float, width: int) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda s: _latent_bits(s) + bits_of.residual_bits(s["rss"] / s["tss"], distortion, width)


def _describe_compat(
    dictionary: DictionaryLike,
    x: Tensor,
    codes: Codes,
    documents: Tensor,
    learn: Tensor,
    judge: Tensor,
    config: Config,
) -> list[Described]:
    """Every setting of one seed, ``compat``: bins, loss and entropies are each taken from other texts."""
    decoder, b_dec = dictionary.W_dec.float(), dictionary.b_dec.float()
    order = judge.nonzero().squeeze(1)
    checked = torch.zeros_like(judge)
    checked[order[: max(1, len(order) // 2)]] = True
    counted = judge & ~checked if len(order) > 1 else judge
    high = bits_of.bounds(rows_of(codes, learn[documents]))[1]
    to_check, to_count = rows_of(codes, checked[documents]), rows_of(codes, counted[documents])
    target = x[checked[documents].to(x.device)].float()
    out: list[Described] = []
    for num_bins, k in product(config.num_bins, config.k):
        bins = bits_of.compat_bins(high, num_bins)
        shown = bits_of.largest_per_token(to_check, k)
        loss = bits_of.compat_mse_loss(target, bits_of.compat_reconstruction(shown, bins, decoder, b_dec))
        length = bits_of.compat_description_length(to_count, bins)
        out.append(Described(num_bins, k, length, loss, loss < config.mse_epsilon))
    return out


def chosen_setting(settings: Sequence[Described], mode: Literal["compat", "corrected"]) -> Described | None:
    """The setting that counts: the fewest bits among those that are good enough.

    Where none is, ``compat`` takes the fewest bits of all, ``corrected`` none.
    """
    if mode == "corrected" and not any(one.within for one in settings):
        return None
    return settings[bits_of.minimum_viable([one.length for one in settings], [one.within for one in settings])]


def _result(
    name: str,
    dictionary: DictionaryLike,
    table: Mapping[int, list[Described]],
    tokens: int,
    config: Config,
    hashes: dict[str, str],
) -> Result:
    chosen = {seed: chosen_setting(settings, config.mode) for seed, settings in table.items()}
    found = [one for one in chosen.values() if one is not None]
    # The whole description has no threshold to reach: any setting will do, and the shortest is taken.
    shortest = [min(settings, key=lambda one: one.whole) for settings in table.values()]
    corrected = config.mode == "corrected"

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if len(values) == len(table) else None

    metrics: Metrics = {
        "mdl": {
            "description_length": mean([one.length for one in found]),
            "mse_loss": mean([one.loss for one in found]),
            "num_bins": mean([float(one.num_bins) for one in found]),
            "description_length_with_residual": mean([one.whole for one in shortest]) if corrected else None,
            "frac_settings_within_threshold": sum(one.within for settings in table.values() for one in settings)
            / sum(map(len, table.values())),
        }
    }
    ci95: dict[str, tuple[float, float] | None] = {}
    kinds = {
        "description_length": (found, _latent_bits),
        "description_length_with_residual": (shortest, _all_bits(config.mse_epsilon, int(dictionary.W_dec.shape[1]))),
    }
    for key, (settings, statistic) in kinds.items():
        drawn = [
            statistic(Resampling(len(one.sums["bits"]), config.resamples, config.seeds[0]).sums(one.sums))
            for one in settings
            if one.sums
        ]
        ci95[f"mdl.{key}"] = interval(torch.stack(drawn).mean(0)) if len(drawn) == len(table) else None
    details: list[dict[str, Any]] = [
        {
            "seed": seed,
            "num_bins": one.num_bins,
            "bins": [],
            "k": one.k,
            "description_length": one.length,
            "description_length_with_residual": one.whole,
            "within_threshold": one.within,
            "mse_loss": one.loss,
            "chosen": one is chosen[seed],
        }
        for seed, settings in table.items()
        for one in settings
    ]
    if len(found) < len(table):
        why = f"for some seed no setting loses at most {config.mse_epsilon:g} of the variance; allow more (mse_epsilon)"
        details.append({"not_measured": ["description_length"], "reason": why})
    return result_of(
        name,
        dictionary,
        config,
        hashes,
        eval_type=EVAL_TYPE,
        definition=DEFINITION,
        metrics=metrics,
        details=details,
        n=tokens,
        ci95=ci95,
        unstructured={
            "by_seed": {
                str(seed): {"description_length": None if one is None else one.length, "with_residual": whole.whole}
                for (seed, one), whole in zip(chosen.items(), shortest, strict=True)
            },
            "direction": "lower is better; description_length at equal fidelity",
        },
    )
