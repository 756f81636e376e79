"""SCR: can a spurious cue be removed from a probe by ablating a few latents?

A probe is trained on texts in which class and cue always go together. The latents whose activations tell the cue apart
for a probe of the cue, |δ_i (w·d_i)|, are removed from the activations of balanced test texts, and the probe is asked
for the class again: a score of 1 means that it judges as well as a probe trained on balanced texts, 0 that nothing was
gained. The same is done with the roles of class and cue exchanged.

Source: the SHIFT evaluation of arXiv 2411.18895, in the form that SAEBench (arXiv 2503.09532) gave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor

from saeworks.evals.probes.linear_probes import ProbeSettings
from saeworks.evals.removal import spurious_texts
from saeworks.evals.removal.probe_attribution import effects, mean_differences, select_latents
from saeworks.evals.removal.removal_scores import SetRemovals
from saeworks.evals.removal.spurious_removal import (
    DIRECTIONS,
    Choosing,
    measure_set,
    nothing_to_probe,
    removal_result,
    remove,
)
from saeworks.evals.removal.spurious_texts import SpuriousSet
from saeworks.evals.shared.batches import DictionaryLike, fingerprint_of_model
from saeworks.evals.shared.pooling import TextPool
from saeworks.evals.shared.settings import Names
from saeworks.results.envelope import Result
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "scr"
DEFINITION = "saeworks/scr/1"
Data = Mapping[str, SpuriousSet]


class Config(ProbeSettings):
    """``min_gap``: a pair of classes of which bias costs less accuracy than this has nothing to restore and is left out
    (``corrected``). ``domains``: those of the embedded world, where no other data are given."""

    min_gap: float = Field(default=0.05, gt=0, lt=1)
    domains: Names = ("biographies", "reviews")


def default_data(model: LanguageModel, config: Config) -> Data:
    """Biographies with a planted correlation of profession and gender, reviews with one of category and sentiment."""
    return spurious_texts.world_sets(config.domains, config)


def data_hashes(data: Data, config: Config) -> dict[str, str]:
    """``data:NAME`` → content hash."""
    return spurious_texts.data_hashes(data)


def from_documents(sets: Mapping[str, Sequence[Document]], label: str, model: LanguageModel, config: Config) -> Data:
    """Somebody's texts with two labels each; see :func:`saeworks.evals.removal.spurious_texts.labelled_sets`."""
    return spurious_texts.labelled_sets(sets, label)


def run(
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    data: Data,
    config: Config,
    pool: TextPool | None = None,
) -> dict[str, Result]:
    """Score every dictionary on every pair of classes of ``data``; returns name → result.

    ``pool`` has texts that were pooled before, and takes those that are pooled now.

    Raises :class:`saeworks.evals.probes.problems.NothingToProbe` when no pair has enough texts of every combination of
    class and cue.
    """
    pool = pool or TextPool()
    skipped: dict[str, str] = {}
    tables: dict[str, list[SetRemovals]] = {name: [] for name in dictionaries}
    for dataset, one in data.items():
        measured = measure_set(dictionaries, model, one, dataset, config, skipped, pool)
        if measured is None:
            continue
        for name in dictionaries:
            removals = remove(measured, name, config, by_attribution)
            tables[name].append(SetRemovals(dataset, removals, measured.groups))
    if not any(tables.values()):
        raise nothing_to_probe(skipped)
    hashes = {"model": fingerprint_of_model(model), **data_hashes(data, config)}
    return {
        name: removal_result(
            EVAL_TYPE, DEFINITION, name, dictionaries[name], sets, config, config.min_gap, hashes, skipped
        )
        for name, sets in tables.items()
    }


def by_attribution(seen: Choosing, direction: int, most: int) -> Tensor:
    """The ``most`` latents with the largest |effect| for the probe of the label whose influence is to be removed."""
    key = DIRECTIONS[direction][0]
    found = effects(mean_differences(seen.latents, [seen.case.train[key]])[0], seen.weights[key], seen.directions)
    return select_latents(found.abs(), most, "corrected")
