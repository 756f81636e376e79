"""Which latents are looked at, and every place where they fire: one pass over the texts for all dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.evals.interpretation.windows import Firings, firings
from saeworks.evals.shared.batches import DictionaryLike, encode_codes, harvest
from saeworks.progress import progress
from saeworks.runtime import generator

if TYPE_CHECKING:
    from saeworks.evals.autointerp import Config
    from saeworks.evals.shared.token_rows import TokenRows
    from saeworks.models.language_model import LanguageModel


@dataclass(frozen=True)
class Sample:
    """``found``: latent → its firings, for the latents that were drawn. ``fired`` [latent] counts the tokens on which
    each latent of the dictionary fires, ``alive`` [latent] says whether these are enough."""

    found: dict[int, Firings]
    fired: Tensor
    alive: Tensor


def sample_latents(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    rows: TokenRows,
    sites: Mapping[str, str],
    config: Config,
) -> dict[str, Sample]:
    """Draw the latents of every dictionary and collect where they fire. A latent fires where it is above 0."""
    orders = {name: _order(name, d, config) for name, d in dictionaries.items()}
    # Firings of twice the latents wanted are kept while all are counted. A dictionary with so many dead latents that
    # these do not suffice is read once more, for the latents that are then known to be alive.
    most = None if config.override_latents else 2 * config.n_latents
    wanted = {name: order[:most] for name, order in orders.items()}
    collected = _collect(dictionaries, model, rows, sites, wanted, config.batch_size)
    valid = int(rows.valid.sum())
    alive = {name: is_alive(found.fired, valid, config) for name, found in collected.items()}
    chosen = {name: choose(orders[name], alive[name], config) for name in dictionaries}
    again = {name: chosen[name] for name in chosen if set(chosen[name].tolist()) - set(wanted[name].tolist())}
    if again:
        missed = {name: dictionaries[name] for name in again}
        collected |= _collect(missed, model, rows, sites, again, config.batch_size)
    return {
        name: Sample(collected[name].of(chosen[name], rows.columns), collected[name].fired, alive[name])
        for name in dictionaries
    }


def is_alive(fired: Tensor, valid_tokens: int, config: Config) -> Tensor:
    """[latent] bool: more firings than ``dead_latent_threshold``.

    ``compat`` scales the count from the valid tokens up to ``total_tokens``, however many were read.
    """
    if config.mode == "compat":
        return fired.double() / valid_tokens * config.total_tokens > config.dead_latent_threshold
    return fired > config.dead_latent_threshold


def choose(order: Tensor, alive: Tensor, config: Config) -> Tensor:
    """The first ``n_latents`` latents of ``order`` that are alive, ascending; with ``override_latents`` all of them."""
    kept = order if config.override_latents else order[alive[order]][: config.n_latents]
    return kept.sort().values


def _order(name: str, dictionary: DictionaryLike, config: Config) -> Tensor:
    width = int(dictionary.W_dec.shape[0])
    if config.override_latents:
        outside = [i for i in config.override_latents if not 0 <= i < width]
        if outside:
            raise InputError(
                f"Dictionary '{name}' has {width} latents, numbered from 0; there is no latent {outside[0]}."
            )
        return torch.tensor(sorted(set(config.override_latents)))
    return torch.randperm(width, generator=generator(config.seeds[0], "latents to explain"))


@dataclass
class _Collected:
    """Firings batch by batch: ``numbers`` count the wanted latents, whose number is at ``place`` [latent]."""

    fired: Tensor
    place: Tensor
    values: list[Tensor] = field(default_factory=list[Tensor])
    numbers: list[Tensor] = field(default_factory=list[Tensor])
    tokens: list[Tensor] = field(default_factory=list[Tensor])

    def add(self, dictionary: DictionaryLike, x: Tensor, flat: Tensor) -> None:
        """Encode activations ``x`` [token, d] at the places ``flat`` [token]."""
        step = max(1, (1 << 24) // len(self.fired))
        for start in range(0, len(x), step):
            codes = encode_codes(dictionary, x[start : start + step])
            fires = codes.values > 0
            latents, token = codes.indices[fires].cpu(), codes.rows()[fires].cpu() + start
            self.fired += torch.bincount(latents, minlength=len(self.fired))
            number = self.place[latents]
            kept = number >= 0
            self.values.append(codes.values[fires].float().cpu()[kept])
            self.numbers.append(number[kept])
            self.tokens.append(flat[token[kept]])

    def of(self, latents: Tensor, columns: int) -> dict[int, Firings]:
        """Latent → firings."""
        values, numbers, tokens = torch.cat(self.values), torch.cat(self.numbers), torch.cat(self.tokens)
        order = numbers.argsort(stable=True)
        counts = torch.bincount(numbers, minlength=int(self.place.max()) + 1).tolist()
        parts = list(zip(tokens[order].split(counts), values[order].split(counts), strict=True))
        return {i: firings(*parts[int(self.place[i])], columns) for i in latents.tolist()}


def _collect(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    rows: TokenRows,
    sites: Mapping[str, str],
    wanted: Mapping[str, Tensor],
    batch_size: int,
) -> dict[str, _Collected]:
    """One pass over the rows: firings of the ``wanted`` latents, and the count of all."""
    out: dict[str, _Collected] = {}
    for name, dictionary in dictionaries.items():
        width = int(dictionary.W_dec.shape[0])
        place = torch.full((width,), -1, dtype=torch.int64)
        place[wanted[name]] = torch.arange(len(wanted[name]))
        out[name] = _Collected(torch.zeros(width, dtype=torch.int64), place)
    unique = sorted({sites[name] for name in dictionaries})
    bar = progress(len(rows.token_ids), "autointerp", unit="row")
    with torch.no_grad():
        for batch, chosen, valid in rows.batches(model, batch_size):
            flat = (chosen[:, None] * rows.columns + torch.arange(valid.shape[1]))[valid]
            for site, activations in harvest(model, batch, unique).items():
                x = activations[valid.to(activations.device)]
                for name, dictionary in dictionaries.items():
                    if sites[name] == site:
                        out[name].add(dictionary, x, flat)
            bar.update(len(chosen))
    bar.close()
    return out
