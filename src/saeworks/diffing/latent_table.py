"""One row per latent: decoder norms, nu and beta with their errors, densities, class and verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.diffing.classes import CLASSES, PAPER, Thresholds, classes, decoder_cosine, flags, relative_norm
from saeworks.diffing.latent_stats import GROUPS, LatentStatistics
from saeworks.diffing.paired_batches import CHAT, SOURCES, TEXTS
from saeworks.diffing.scaling import LatentScaling
from saeworks.diffing.scaling_estimates import Estimator, Ratio
from saeworks.diffing.twins import Twins
from saeworks.errors import InputError

Columns = dict[str, list[Any]]
#: Columns that hold words, and those that hold whole numbers; all others hold numbers, NaN where there is none.
TEXT_COLUMNS = ("class", "flags")
WHOLE_COLUMNS = ("latent", "active_tokens", "twin")
#: Targets whose nu has an interval as well as a standard error: those that the verdicts are made of.
INTERVALS = ("error", "reconstruction")


def latent_table(
    dictionary: Dictionary,
    scaling: LatentScaling,
    statistics: LatentStatistics,
    *,
    twins: Twins | None = None,
    thresholds: Thresholds = PAPER,
    estimator: Estimator = "centered",
    penalty: float | None = None,
) -> Columns:
    """Columns of equal length by name, in a fixed order.

    For a crosscoder of two sources: ``latent``, ``relative_decoder_norm`` (1 chat-only, 0 base-only), the norms of
    decoder and encoder in both sources, ``decoder_cosine``, ``class``, ``flags``; ``nu_error``, ``nu_reconstruction``
    and ``nu_activation`` (base over chat, along the chat decoder), ``nu_error_of_base`` and
    ``nu_reconstruction_of_base`` (chat over base, along the base decoder), ``detection_ceiling``, ``saturation``;
    ``beta_base_*`` and ``beta_chat_*`` along the chat decoder; every nu and beta has a column with ``_se``, and
    ``nu_error`` and ``nu_reconstruction`` have ``_low`` and ``_high``, the ends of 95 % intervals from a bootstrap of
    blocks. Then what was counted: ``active_tokens``, ``density`` and ``max``, the same and ``mean_active`` for every
    data set, the density on every group of tokens (``density_base`` and ``density_chat`` are those on plain texts and
    on transcripts, NaN where there were none), ``template_share``; and ``twin`` with ``twin_cosine``.

    Latents that look base-only get the verdict of the mirrored question, so that ``flags`` reads the same for both.
    For any other dictionary the columns of decoders and of the targets error and reconstruction are left out.

    Args:
        scaling, statistics: of this dictionary. twins: for the columns of that name.
        thresholds: of classes and flags. estimator: of nu and beta. penalty: see ``LatentScaling.detection_ceiling``.

    Raises:
        InputError: a crosscoder of more than two sources, or measurements of another number of latents.
    """
    n = dictionary.cfg.d_sae
    if (scaling.latents, statistics.latents) != (n, n):
        raise InputError(
            f"The dictionary has {n} latents, but {scaling.latents} and {statistics.latents} were measured; "
            "measure this dictionary."
        )
    table: Columns = {"latent": list(range(n))}
    if dictionary.cfg.sources is not None:
        if len(dictionary.cfg.sources) != 2:
            raise InputError(
                f"The table is that of a base and a chat model, but the dictionary has {len(dictionary.cfg.sources)} "
                "sources; use LatentScaling.beta and source_shares() for more."
            )
        table |= _of_decoders(dictionary, thresholds)
        table |= _of_ratios(scaling, estimator, penalty)
        table["flags"] = verdicts(relative_norm(dictionary.decoder_norms()), scaling, thresholds, estimator)
    else:
        table |= _ratio_columns("nu_activation", scaling.ratio("activation", estimator))
    table |= _of_betas(scaling, estimator)
    table |= _of_counts(statistics)
    return table | _of_twins(n, twins)


def verdicts(
    relative: Tensor, scaling: LatentScaling, thresholds: Thresholds = PAPER, estimator: Estimator = "centered"
) -> list[str]:
    """The flags of every latent in words; those of base-only latents answer the question with the models exchanged."""
    chat = flags(
        relative.cpu(),
        scaling.ratio("error", estimator).cpu(),
        scaling.ratio("reconstruction", estimator).cpu(),
        thresholds,
    )
    mirrored = {"probe": 0, "numerator": 1, "denominator": 0}
    base = flags(
        1 - relative.cpu(),
        scaling.ratio("error", estimator, **mirrored).cpu(),
        scaling.ratio("reconstruction", estimator, **mirrored).cpu(),
        thresholds,
    )
    return [one or other for one, other in zip(chat.words(), base.words(), strict=True)]


def _of_decoders(dictionary: Dictionary, thresholds: Thresholds) -> Columns:
    norms = dictionary.decoder_norms()
    relative = relative_norm(norms)
    parts = [dictionary.source(m) for m in range(2)]
    columns: Columns = {"relative_decoder_norm": _numbers(relative)}
    for m, name in enumerate(SOURCES):
        columns[f"decoder_norm_{name}"] = _numbers(norms[m])
        columns[f"encoder_norm_{name}"] = _numbers(parts[m][0].norm(dim=0))
    columns["decoder_cosine"] = _numbers(decoder_cosine(parts[0][1], parts[1][1]))
    columns["class"] = [CLASSES[i] for i in classes(relative, thresholds).tolist()]
    return columns


def _of_ratios(scaling: LatentScaling, estimator: Estimator, penalty: float | None) -> Columns:
    columns: Columns = {"flags": []}  # filled by the caller; the place of the column is here
    for target in scaling.targets():
        found = scaling.ratio(target, estimator)
        columns |= _ratio_columns(f"nu_{target}", found)
        if target in INTERVALS:
            low, high = scaling.ratio_interval(target, estimator)
            columns[f"nu_{target}_low"] = _usable(low, found)
            columns[f"nu_{target}_high"] = _usable(high, found)
    for target in ("error", "reconstruction"):
        mirrored = scaling.ratio(target, estimator, probe=0, numerator=1, denominator=0)
        columns |= _ratio_columns(f"nu_{target}_of_base", mirrored)
    columns["detection_ceiling"] = _numbers(scaling.detection_ceiling(estimator, penalty))
    columns["saturation"] = _numbers(scaling.saturation(estimator, penalty))
    return columns


def _of_betas(scaling: LatentScaling, estimator: Estimator) -> Columns:
    columns: Columns = {}
    for target in scaling.targets():
        beta = scaling.beta(target, estimator)[-1]
        for m, name in enumerate(SOURCES):
            columns[f"beta_{name}_{target}"] = _numbers(beta.value[m])
            columns[f"beta_{name}_{target}_se"] = _numbers(beta.standard_error[m])
    return columns


def _of_counts(statistics: LatentStatistics) -> Columns:
    columns: Columns = {
        "active_tokens": statistics.active().tolist(),
        "density": _numbers(statistics.density()),
        "max": _numbers(statistics.maximum()),
    }
    for name in statistics.data_sets:
        columns[f"density_{name}"] = _numbers(statistics.density(name))
        columns[f"max_{name}"] = _numbers(statistics.maximum(name))
        columns[f"mean_active_{name}"] = _numbers(statistics.mean_active(name))
    # Under the names of the models whose texts these are, and whatever the data sets: plain texts are what the base was
    # made for, transcripts what the chat model was.
    for model, data_set in (("base", TEXTS), ("chat", CHAT)):
        seen = data_set in statistics.data_sets
        columns[f"density_{model}"] = _numbers(
            statistics.density(data_set) if seen else torch.full((statistics.latents,), torch.nan)
        )
    for group in GROUPS:
        columns[f"density_on_{group}"] = _numbers(statistics.density(group=group))
    columns["template_share"] = _numbers(statistics.template_share())
    return columns


def _of_twins(latents: int, twins: Twins | None) -> Columns:
    twin: list[int | None] = [None] * latents
    cosine = [float("nan")] * latents
    for chat, base, value in zip(*_lists(twins), strict=True):
        twin[chat], twin[base] = base, chat
        cosine[chat] = cosine[base] = value
    return {"twin": twin, "twin_cosine": cosine}


def _lists(twins: Twins | None) -> tuple[Sequence[int], Sequence[int], Sequence[float]]:
    return ([], [], []) if twins is None else (twins.chat.tolist(), twins.base.tolist(), twins.cosine.tolist())


def _ratio_columns(name: str, ratio: Ratio) -> Mapping[str, list[Any]]:
    """Value and error, NaN where the ratio may not be used."""
    return {name: _usable(ratio.value, ratio), f"{name}_se": _usable(ratio.standard_error, ratio)}


def _usable(values: Tensor, ratio: Ratio) -> list[float]:
    """``values [latent]``, NaN where the ratio may not be used."""
    return _numbers(values.masked_fill(~ratio.defined, torch.nan))


def _numbers(values: Tensor) -> list[float]:
    return values.double().cpu().tolist()
