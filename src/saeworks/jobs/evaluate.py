"""Measure dictionaries: the evals of a run, and ``saeworks eval`` for dictionaries from anywhere."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from saeworks.errors import InputError, did_you_mean
from saeworks.jobs.config import EvaluateConfig, Inputs, RunConfig, resolve
from saeworks.jobs.inputs import is_store, open_model, open_source

if TYPE_CHECKING:
    from saeworks.activations.texts import TextSource
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.models.language_model import LanguageModel
    from saeworks.results.envelope import Result

Item = TypeVar("Item")

# Column of the summary table → (eval, category, metric).
COLUMNS = {
    "l0": ("core", "sparsity", "l0"),
    "explained_variance": ("core", "reconstruction_quality", "explained_variance"),
    "ce_loss_score": ("core", "model_performance_preservation", "ce_loss_score"),
    "probe_k5": ("sparse_probing", "sae", "sae_top_5_test_accuracy"),
    "probe_dense": ("sparse_probing", "llm", "llm_test_accuracy"),
}


@dataclass(frozen=True)
class Measured:
    """Results by eval and dictionary, evals that were skipped with the reason, and what a reader should know."""

    results: dict[str, dict[str, Result]]
    skipped: dict[str, str]
    notes: list[str]


def evaluate(overrides: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """Measure dictionaries on disk and return ``{"out", "seconds", "files", "table", "skipped", "notes"}``.

    ``overrides`` are keys of :class:`saeworks.jobs.config.EvaluateConfig`. Without ``model`` and ``site`` the ones
    that the dictionaries were trained on are used. Raises ``InputError`` for bad input.
    """
    started = time.monotonic()
    config = resolve(EvaluateConfig, overrides, file)
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"--out '{config.out}' is a file; give a directory.")
    dictionaries = load_dictionaries(config.dictionary, config.device)
    model = open_model(config, config.model or trained_model(dictionaries))
    measured = run_evals(config.names, dictionaries, model, config, config.out, config.site)
    done = measured.results
    if not done:
        raise InputError("None of the dictionaries can be measured: " + "; ".join(measured.skipped.values()) + ".")
    return {
        "out": str(config.out),
        "seconds": round(time.monotonic() - started, 2),
        "files": [str(result.path) for results in done.values() for result in results.values()],
        "table": summary_rows(dictionaries, done),
        "skipped": measured.skipped,
        "notes": measured.notes,
    }


def run_evals(
    names: Sequence[str],
    dictionaries: Mapping[str, Dictionary],
    model: LanguageModel,
    config: RunConfig | EvaluateConfig,
    out: Path,
    site: str | None = None,
) -> Measured:
    """Run the named evals and write ``out/EVAL/*.json``.

    What was measured before on the same bytes is not measured again. An eval that the data do not allow (probing
    without labels, or with labels too rare to probe) is skipped with its reason when several were named, and an
    ``InputError`` when no other was. Transcoders and crosscoders are skipped with their reason.
    """
    from saeworks.evals import runner
    from saeworks.evals.batches import why_not_one_site
    from saeworks.evals.problems import NothingToProbe

    check_evals(names, config)
    skipped = {name: reason for name, d in dictionaries.items() if (reason := why_not_one_site(d))}
    for name, reason in skipped.items():
        sys.stderr.write(f"{name} is not measured: {reason}.\n")
    dictionaries = {name: d for name, d in dictionaries.items() if name not in skipped}
    if not dictionaries:
        return Measured({}, skipped, [])
    configs = eval_configs(config, site)
    text, note = held_out(config) if set(names) & {"core", "latents"} else (None, None)
    notes = [*foreign_models(dictionaries, model), *([note] if note else [])]
    for sentence in notes:
        sys.stderr.write(sentence + "\n")
    done: dict[str, dict[str, Result]] = {}
    for name in dict.fromkeys(names):
        reason = _why_not(name, config)
        try:
            if reason is None:
                labelled = labelled_sets(config, configs[name]) if name == "sparse_probing" else None
                done |= runner.run_evals([name], dictionaries, model, runner.Data(text, labelled), out, configs)
                continue
        except NothingToProbe as e:
            if len(set(names)) == 1:
                raise
            reason = str(e)
        skipped[name] = reason
        sys.stderr.write(f"{name} is skipped: {reason}\n")
    return Measured(done, skipped, notes)


def check_evals(names: Sequence[str], config: Inputs) -> None:
    """Refuse what could not be measured later: activations without texts, no labels at all, an unknown label."""
    if is_store(config):
        raise InputError(
            f"--data '{config.data[0]}' is an activation store, which holds no text to measure on; "
            "use 'saeworks train' with it, then 'saeworks eval' with texts."
        )
    reasons = [reason for name in names if (reason := _why_not(name, config))]
    if len(reasons) == len(names):
        raise InputError(reasons[0])
    if "sparse_probing" in names and _is_world(config) and config.label_column is not None:
        from saeworks.activations.world_texts import parse_world
        from saeworks.world import corpus

        label = config.label_column
        chosen = _domains([parse_world(item).domain for item in config.data])
        known = sorted({name for domain in chosen for name in corpus.label_names(domain)})
        if label not in known:
            elsewhere = [f"--data world:{domain}" for domain in corpus.DOMAINS if label in corpus.label_names(domain)]
            hint = f" Name a domain that has it: {', '.join(elsewhere)}." if elsewhere else did_you_mean(label, known)
            raise InputError(f"The domains to probe ({', '.join(chosen)}) have no label '{label}'.{hint}")


def eval_configs(config: RunConfig | EvaluateConfig, site: str | None) -> dict[str, Any]:
    """Configurations of all evals that follow from a job's own. Probing counts texts instead of tokens."""
    from saeworks.evals import core, latents, sparse_probing

    common: dict[str, Any] = {"context_length": config.context_length, "site": site}
    rows = config.harvest_batch_size
    return {
        # Logits are far wider than activations: a quarter of the rows at a time.
        "core": core.Config(**common, seed=config.seed, tokens=config.eval_tokens, batch_size=max(1, rows // 4)),
        "latents": latents.Config(**common, seed=config.seed, tokens=2 * config.eval_tokens, batch_size=rows),
        "sparse_probing": sparse_probing.Config(
            **common,
            seeds=tuple(range(config.seed, config.seed + 3)),
            batch_size=rows,
            train_texts=config.probe_texts,
            test_texts=max(config.probe_texts // 2, 1),
        ),
    }


def load_dictionaries(paths: Sequence[str], device: str) -> dict[str, Dictionary]:
    """Load dictionaries by name. A path may be a dictionary, a folder of dictionaries, or a workspace."""
    from saeworks.dictionaries.formats import load
    from saeworks.dictionaries.formats.registry import is_dictionary
    from saeworks.runtime import resolve_device

    where = str(resolve_device(device))
    found: dict[str, Dictionary] = {}
    for path in (Path(p) for p in paths):
        folders = [path] if not path.is_dir() or is_dictionary(path) else _inside(path)
        if not folders:
            raise InputError(f"'{path}' holds no dictionary; expected a folder with cfg.json and weights.safetensors.")
        for folder in folders:
            name = folder.resolve().name
            if name in found:
                # Two runs may name their dictionaries alike; the result files must still differ.
                name = f"{folder.resolve().parent.parent.name}_{name}"
            if name in found:
                raise InputError(f"Two dictionaries are called '{name}'; rename one, or measure them one by one.")
            found[name] = load(folder, where)
    return found


def trained_model(dictionaries: Mapping[str, Dictionary]) -> str:
    """Name of the language model that all dictionaries were trained on; ``InputError`` unless it is exactly one."""
    names = {str(d.cfg.metadata.get("model_name")) for d in dictionaries.values() if d.cfg.metadata.get("model_name")}
    if len(names) != 1:
        what = f"come from several models ({', '.join(sorted(names))})" if names else "do not say which model they read"
        raise InputError(f"The dictionaries {what}; give one with --model.")
    return names.pop()


def summary_rows(
    dictionaries: Mapping[str, Dictionary], done: Mapping[str, Mapping[str, Result]]
) -> list[dict[str, Any]]:
    """One row per dictionary with the main number of each eval that was run.

    L0 and explained variance of what was not measured are those recorded when it was saved.
    """
    rows: list[dict[str, Any]] = []
    for name, dictionary in dictionaries.items():
        recorded = dictionary.cfg.metadata.get("recorded") or {}
        measured = any(name in results for results in done.values())
        row: dict[str, Any] = {"dictionary": name, "latents": dictionary.cfg.d_sae}
        for column, (which, category, metric) in COLUMNS.items():
            if measured and which in done and name in done[which]:
                row[column] = done[which][name].metric(category, metric)
            elif not measured and (which in done or column in recorded):
                row[column] = recorded.get(column)
        rows.append(row)
    return rows


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


def foreign_models(dictionaries: Mapping[str, Dictionary], model: LanguageModel) -> list[str]:
    """A sentence for every dictionary that was trained on a model with other weights than this one."""
    notes: list[str] = []
    for name, dictionary in dictionaries.items():
        trained_on = dictionary.cfg.metadata.get("model_fingerprint")
        if trained_on is not None and trained_on != model.fingerprint():
            notes.append(f"'{name}' was trained on another model, or other weights, than '{model.name}' has.")
    return notes


def labelled_sets(config: Inputs, settings: Any) -> dict[str, Any]:
    """Data set name → labelled texts: the world's own labels per domain, or one set per file with ``label_column``."""
    from saeworks.evals.sparse_probing import LabelledSet

    if _is_world(config):
        sets = _world_sets(config, settings)
        if config.label_column is None:
            return sets
        label = (config.label_column,)
        return {name: LabelledSet(s.train, s.test, label) for name, s in sets.items() if label[0] in (s.labels or ())}
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


def _is_world(config: Inputs) -> bool:
    return all(item == "world" or item.startswith("world:") for item in config.data)


def _why_not(name: str, config: Inputs) -> str | None:
    if name == "sparse_probing" and config.label_column is None and not _is_world(config):
        return "sparse_probing needs labels: name the column that holds them with --label-column."
    return None


def _inside(path: Path) -> list[Path]:
    from saeworks.dictionaries.formats.registry import is_dictionary

    below = path / "dictionaries" if (path / "dictionaries").is_dir() else path
    return sorted(folder for folder in below.iterdir() if folder.is_dir() and is_dictionary(folder))
