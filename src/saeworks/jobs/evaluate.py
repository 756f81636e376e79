"""Measure dictionaries: the evals of a run, and ``saeworks eval`` for dictionaries from anywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from saeworks.errors import InputError
from saeworks.jobs.config import EvaluateConfig, RunConfig, checked, resolve
from saeworks.jobs.controls import Controls
from saeworks.jobs.eval_data import TEXT_EVALS, WEIGHTS_ALONE, check_evals, held_out, labelled_sets, own_data, why_not
from saeworks.jobs.inputs import open_model
from saeworks.results.dictionary_table import dictionary_rows
from saeworks.results.headlines import HEADLINES, Headline
from saeworks.results.readings import readings
from saeworks.results.remarks import remarks

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
    from saeworks.evals.shared.batches import DictionaryLike
    from saeworks.models.language_model import LanguageModel
    from saeworks.results.envelope import Result

#: What the summary shows of the evals that every run has, where there are several of them; of all others it shows
#: every headline.
SHOWN = ("l0", "explained_variance", "ce_loss_score", "probe_k5", "probe_dense")
ALWAYS = ("core", "sparse_probing", "latents")


class Described(Protocol):
    """Whatever has the configuration of a dictionary: the dictionary itself, or what is known before it is loaded."""

    @property
    def cfg(self) -> DictionaryConfig: ...


@dataclass(frozen=True)
class Measured:
    """Results by eval and dictionary, evals that were skipped with the reason, and what a reader should know.

    What was skipped in one eval alone stands there as ``EVAL · NAME``. ``notes`` hold what the results say of
    numbers that are missing or mean little.
    """

    results: dict[str, dict[str, Result]]
    skipped: dict[str, str]
    notes: list[str]


def evaluate(overrides: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """Measure dictionaries on disk and return ``{"out", "seconds", "files", "table", "controls", "readings", "skipped",
    "notes"}``: a row per dictionary, one per control, and every number between its floor and its ceiling.

    ``overrides`` are keys of :class:`saeworks.jobs.config.EvaluateConfig`. Without ``model`` and ``site`` the ones
    that the dictionaries were trained on are used. Raises ``InputError`` for bad input.
    """
    from saeworks.evals.shared.batches import why_not_one_site

    started = time.monotonic()
    config = resolve(EvaluateConfig, overrides, file)
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"--out '{config.out}' is a file; give a directory.")
    dictionaries = load_dictionaries(config.dictionary, config.device)
    model = open_model(config, config.model or trained_model(dictionaries))
    single = {name: d for name, d in dictionaries.items() if not why_not_one_site(d)}
    controls = Controls(config, single, model, config.site, config.out / "controls", lambda name: dictionaries[name])
    measured = run_evals(config.names, dictionaries, model, config, config.out, config.site, controls)
    done = measured.results
    if not done:
        raise InputError("None of the dictionaries can be measured: " + "; ".join(measured.skipped.values()) + ".")
    return {
        "out": str(config.out),
        "seconds": round(time.monotonic() - started, 2),
        "files": [str(result.path) for results in done.values() for result in results.values()],
        "table": summary_rows(dictionaries, done),
        "controls": _control_rows(controls, done),
        "readings": readings(dictionary_rows(result for results in done.values() for result in results.values())),
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
    controls: Controls | None = None,
) -> Measured:
    """Run the named evals and write ``out/EVAL/*.json``.

    What was measured before on the same bytes is not measured again. An eval that the data do not allow (probing
    without labels, or with labels too rare to probe) is skipped with its reason when several were named, and an
    ``InputError`` when no other was. Transcoders and crosscoders are skipped with their reason by all evals that
    measure one site; so are ``controls`` that cannot be made or measured.
    """
    from saeworks.evals import runner
    from saeworks.evals.probes.problems import NothingToProbe
    from saeworks.evals.shared.batches import why_not_one_site
    from saeworks.evals.shared.pooling import TextPool

    check_evals(names, config)
    several = {name: reason for name, d in dictionaries.items() if (reason := why_not_one_site(d))}
    single = {name: d for name, d in dictionaries.items() if name not in several}
    weights = [name for name in names if name in WEIGHTS_ALONE]
    left_out = [f"{name} · " for name in names if name not in weights] if weights else [""]
    skipped = {f"{of_eval}{name}": reason for name, reason in several.items() for of_eval in left_out}
    for name, reason in skipped.items():
        sys.stderr.write(f"{name} is not measured: {reason}.\n")
    names = names if single else weights
    if not names:
        return Measured({}, skipped, [])
    configs = {name: eval_config(name, config, site) for name in dict.fromkeys(names)}
    text, note = held_out(config) if set(names) & set(TEXT_EVALS) else (None, None)
    notes = [*foreign_models(single, model), *([note] if note else [])]
    for sentence in notes:
        sys.stderr.write(sentence + "\n")
    made = _made(controls, names, skipped)
    pool = TextPool()
    done: dict[str, dict[str, Result]] = {}
    for name in dict.fromkeys(names):
        measured: dict[str, DictionaryLike] = dict(dictionaries if name in weights else single)
        measured |= {c: made[c] for c in made if controls and not controls.why_not(c, name)}
        reason = why_not(name, config)
        try:
            if reason is None:
                if name in TEXT_EVALS:
                    data = runner.Data(text)
                elif name == "sparse_probing":
                    data = runner.Data(labelled=labelled_sets(config, configs[name]))
                else:
                    data = runner.Data(own={name: own_data(name, config, model, configs[name])})
                done |= runner.run_evals([name], measured, model, data, out, configs, pool=pool)
                for sentence in remarks(done[name].values()):
                    notes.append(sentence)
                    sys.stderr.write(sentence + "\n")
                continue
        except NothingToProbe as e:
            if len(set(names)) == 1:
                raise
            reason = str(e)
        skipped[name] = reason
        sys.stderr.write(f"{name} is skipped: {reason}\n")
    return Measured(done, skipped, notes)


def _made(controls: Controls | None, names: Sequence[str], skipped: dict[str, str]) -> dict[str, DictionaryLike]:
    """The controls that any of the evals measures; the reasons of the others go to ``skipped``."""
    found: dict[str, DictionaryLike] = {}
    if controls is None:
        return found
    for control in controls.plans:
        reasons = {name: controls.why_not(control, name) for name in names}
        try:
            if not all(reasons.values()):
                found[control] = controls.make(control)
        except InputError as e:
            reasons = dict.fromkeys(names, str(e))
        if len(set(reasons.values())) == 1 and all(reasons.values()):
            skipped[control] = str(reasons[names[0]])
        else:
            skipped |= {f"{name} · {control}": reason for name, reason in reasons.items() if reason}
        if control not in found:
            sys.stderr.write(f"{control} is not measured: {skipped.get(control, 'no eval says anything of it')}.\n")
    return found


def eval_config(name: str, config: RunConfig | EvaluateConfig, site: str | None) -> Any:
    """The configuration of an eval that follows from a job's own, with the ``settings`` given for this eval on top.

    Raises ``InputError`` for a setting that the eval has not, or a value that it does not take.
    """
    from saeworks.evals.runner import eval_module

    kind, rows = eval_module(name).Config, config.harvest_batch_size
    chosen: dict[str, Any] = {"context_length": config.context_length, "site": site}
    chosen |= {"mode": config.mode} if "mode" in kind.model_fields else {}
    seeds = tuple(range(config.seed, config.seed + 3))
    if name == "core":  # logits are far wider than activations: a quarter of the rows at a time
        chosen |= {"seed": config.seed, "tokens": config.eval_tokens, "batch_size": max(1, rows // 4)}
    elif name == "latents":
        chosen |= {"seed": config.seed, "tokens": 2 * config.eval_tokens, "batch_size": rows}
    elif name == "sparse_probing":
        texts = config.probe_texts
        chosen |= {"seeds": seeds, "batch_size": rows, "train_texts": texts, "test_texts": max(texts // 2, 1)}
    else:
        chosen |= {"seeds": seeds, "batch_size": rows}
    return checked(kind, {**chosen, **config.settings.get(name, {})}, f"The eval '{name}'")


def load_dictionaries(paths: Sequence[str], device: str) -> dict[str, Dictionary]:
    """Load dictionaries by name. A path may be a dictionary, a folder of dictionaries, or a workspace."""
    from saeworks.dictionaries.formats import load
    from saeworks.runtime import resolve_device

    where = str(resolve_device(device))
    return {name: load(folder, where) for name, folder in dictionary_folders(paths).items()}


def dictionary_folders(paths: Sequence[str]) -> dict[str, Path]:
    """Name → folder of all dictionaries below ``paths``, none loaded; ``InputError`` where there is none."""
    from saeworks.dictionaries.formats.registry import is_dictionary

    found: dict[str, Path] = {}
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
            found[name] = folder
    return found


def trained_model(dictionaries: Mapping[str, Described]) -> str:
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
    found, columns = _by_type(done), _columns(done)
    rows: list[dict[str, Any]] = []
    for name, dictionary in dictionaries.items():
        recorded = dictionary.cfg.metadata.get("recorded") or {}
        measured = any(name in results for results in done.values())
        row: dict[str, Any] = {"dictionary": name, "latents": dictionary.cfg.d_sae}
        for h in columns:
            own = found.get(h.eval, {}).get(name)
            if own is not None:
                row[h.column] = own.metric(h.category, h.metric)
            elif h.eval in found or (not measured and h.column in recorded):
                row[h.column] = recorded.get(h.column)
        rows.append(row)
    return rows


def _control_rows(controls: Controls, done: Mapping[str, Mapping[str, Result]]) -> list[dict[str, Any]]:
    """One row per control that was measured, with the numbers of :func:`summary_rows`."""
    found, columns = _by_type(done), _columns(done)
    rows: list[dict[str, Any]] = []
    for name, plan in controls.plans.items():
        own = {eval_type: results[name] for eval_type, results in found.items() if name in results}
        if own:
            cfg = next(iter(own.values())).sae_cfg_dict or {}
            row: dict[str, Any] = {"dictionary": name, "control": plan.kind, "latents": cfg.get("d_sae")}
            for h in (h for h in columns if h.eval in found):
                row[h.column] = own[h.eval].metric(h.category, h.metric) if h.eval in own else None
            rows.append(row)
    return rows


def _by_type(done: Mapping[str, Mapping[str, Result]]) -> dict[str, Mapping[str, Result]]:
    return {next(iter(results.values())).eval_type_id: results for results in done.values() if results}


def _columns(done: Mapping[str, Mapping[str, Result]]) -> list[Headline]:
    found = _by_type(done)
    brief = ALWAYS if len(set(found) & set(ALWAYS)) > 1 else ()
    return [h for h in HEADLINES if h.column in SHOWN or (h.eval in found and h.eval not in brief)]


def foreign_models(dictionaries: Mapping[str, Described], model: LanguageModel) -> list[str]:
    """A sentence for every dictionary that was trained on a model with other weights than this one."""
    notes: list[str] = []
    for name, dictionary in dictionaries.items():
        trained_on = dictionary.cfg.metadata.get("model_fingerprint")
        if trained_on is not None and trained_on != model.fingerprint():
            notes.append(f"'{name}' was trained on another model, or other weights, than '{model.name}' has.")
    return notes


def _inside(path: Path) -> list[Path]:
    from saeworks.dictionaries.formats.registry import is_dictionary

    below = path / "dictionaries" if (path / "dictionaries").is_dir() else path
    return sorted(folder for folder in below.iterdir() if folder.is_dir() and is_dictionary(folder))
