"""What each eval reads: the world's own labels and prompts, or a user's texts and the column that labels them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from saeworks.errors import InputError, did_you_mean
from saeworks.jobs.config import Inputs
from saeworks.jobs.inputs import is_store, open_source

if TYPE_CHECKING:
    from saeworks.activations.texts import TextSource
    from saeworks.models.language_model import LanguageModel

Item = TypeVar("Item")

#: Evals that read plain texts.
TEXT_EVALS = ("core", "latents")
#: Evals that bring their own data and read a user's texts without their labels.
LABEL_FREE = ("autointerp", "meta_structure", "mdl")
#: Evals of a dictionary's weights, whatever sites it reads and writes; all others measure one site.
WEIGHTS_ALONE = ("meta_structure",)


def check_evals(names: Sequence[str], config: Inputs) -> None:
    """Refuse what could not be measured later: activations without texts, no labels at all, an unknown label."""
    if is_store(config):
        raise InputError(
            f"--data '{config.data[0]}' is an activation store, which holds no text to measure on; "
            "use 'saeworks train' with it, then 'saeworks eval' with texts."
        )
    reasons = [reason for name in names if (reason := why_not(name, config))]
    if len(reasons) == len(names):
        raise InputError(reasons[0])
    if "sparse_probing" in names and is_world(config) and config.label_column is not None:
        from saeworks.activations.world_texts import parse_world
        from saeworks.world import corpus

        label = config.label_column
        chosen = _domains([parse_world(item).domain for item in config.data])
        known = sorted({name for domain in chosen for name in corpus.label_names(domain)})
        if label not in known:
            elsewhere = [f"--data world:{domain}" for domain in corpus.DOMAINS if label in corpus.label_names(domain)]
            hint = f" Name a domain that has it: {', '.join(elsewhere)}." if elsewhere else did_you_mean(label, known)
            raise InputError(f"The domains to probe ({', '.join(chosen)}) have no label '{label}'.{hint}")


def why_not(name: str, config: Inputs) -> str | None:
    """Why an eval cannot be run on these data, judged before anything is loaded; None when it can."""
    if is_world(config) or name in TEXT_EVALS or name in LABEL_FREE:
        return None
    from saeworks.evals.runner import eval_module

    if name != "sparse_probing" and not hasattr(eval_module(name), "from_documents"):
        return (
            f"{name} asks questions of its own making, which --data cannot replace; leave --data out to ask those of "
            "the embedded world."
        )
    if config.label_column is None:
        return f"{name} needs labels: name the column that holds them with --label-column."
    return None


def is_world(config: Inputs) -> bool:
    """Whether all data are the embedded world's."""
    return all(item == "world" or item.startswith("world:") for item in config.data)


def held_out(config: Inputs) -> tuple[TextSource, str | None]:
    """Texts that were not trained on; a file too small to hold any out is measured on itself, which is noted."""
    source = open_source(config, "validation")
    try:
        if next(source.documents(limit=1), None) is not None:
            return source, None
    except InputError:
        # Nothing was held out. A file that is bad in another way will say so again when it is read as a whole.
        pass
    note = "The data are too few to hold any out: core and latents were measured on the texts of training."
    return open_source(config, "train"), note


def labelled_sets(config: Inputs, settings: Any) -> dict[str, Any]:
    """Data set name → labelled texts: the world's own labels per domain, or one set per file with ``label_column``."""
    from saeworks.evals.sparse_probing import LabelledSet

    if is_world(config):
        sets = _world_sets(config, settings)
        if config.label_column is None:
            return sets
        label = (config.label_column,)
        return {name: replace(s, labels=label) for name, s in sets.items() if label[0] in (s.labels or ())}
    out: dict[str, Any] = {}
    for item in config.data:
        one = config.model_copy(update={"data": (item,)})
        # Probing takes the first texts of each part, and files are often sorted by label: a random sample of the
        # whole file goes there. Of a hub data set no more is fetched than is kept.
        most = 10 * (settings.train_texts + settings.test_texts)
        local = Path(item).expanduser().exists()
        source = open_source(one, "all" if local else "train")
        documents = sample(source.documents(limit=None if local else most), most, config.seed)
        name = Path(item).stem
        # A text may bring further labels of its own; only the column that was named is asked for.
        out[name if name not in out else item] = LabelledSet(documents, None, ("label",))
    return out


def _world_sets(config: Inputs, settings: Any) -> dict[str, Any]:
    """The labelled sets of the domains asked for; planted correlations are in both parts."""
    from saeworks.activations.world_texts import parse_world
    from saeworks.evals.sparse_probing import LabelledSet, world_sets
    from saeworks.world import corpus

    parts = {item: parse_world(item) for item in config.data}
    sets = world_sets(_domains([part.domain for part in parts.values() if part.spurious is None]), settings)
    counts = {"probe_train": settings.train_texts, "probe_test": settings.test_texts}
    for item, part in parts.items():
        if part.spurious is not None and part.domain is not None:
            train, test = (
                list(corpus.documents(part.domain, split, count=count, spurious=part.spurious))
                for split, count in counts.items()
            )
            sets[item.partition(":")[2]] = LabelledSet(train, test, corpus.label_names(part.domain))
    return sets


def own_data(name: str, config: Inputs, model: LanguageModel, settings: Any) -> Any:
    """The data of an eval that brings its own: the embedded world's, or made from a user's labelled texts.

    Raises ``InputError`` where :func:`why_not` has a reason, and where the eval finds one in the texts.
    """
    from saeworks.evals.runner import eval_module

    module = eval_module(name)
    if is_world(config):
        return module.default_data(model, settings)
    if reason := why_not(name, config):
        raise InputError(reason)
    sets = {
        item: list(open_source(config.model_copy(update={"data": (item,)}), "all").documents()) for item in config.data
    }
    return module.from_documents(sets, "label", model, settings)


def _domains(named: Iterable[str | None]) -> list[str]:
    """The domains to probe, each once: those named, and for the mixture (None) the usual ones."""
    from saeworks.evals.sparse_probing import WORLD_DOMAINS

    return list(dict.fromkeys(d for domain in named for d in (WORLD_DOMAINS if domain is None else (domain,))))


def sample(items: Iterable[Item], most: int, seed: int) -> list[Item]:
    """At most ``most`` of ``items`` in random order, every one equally likely; holds no more than that."""
    rng = random.Random(seed)
    kept: list[Item] = []
    for number, item in enumerate(items):
        place = rng.randrange(number + 1)
        if number < most:
            kept.append(item)
            kept[place], kept[-1] = kept[-1], kept[place]
        elif place < most:
            kept[place] = item
    return kept
