"""Run several evals on several dictionaries; what was measured before, on the same bytes, is not measured again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

from saeworks.errors import InputError, did_you_mean
from saeworks.evals.shared.batches import DictionaryLike, fingerprint_of, fingerprint_of_model
from saeworks.evals.shared.pooling import TextPool
from saeworks.results.envelope import Result, read_result, result_path

if TYPE_CHECKING:
    from saeworks.activations.texts import TextSource
    from saeworks.evals.sparse_probing import LabelledSet
    from saeworks.models.language_model import LanguageModel

#: Name → module with ``Config``, ``EVAL_TYPE`` (the result files' ``eval_type_id``), ``DEFINITION`` and ``run``. A
#: module may have ``default_data(model, config)``, its data on the embedded world; ``from_documents(sets, label,
#: model, config)``, its data from labelled texts; and ``data_hashes(data, config)``.
REGISTRY = {
    "core": "saeworks.evals.core",
    "sparse_probing": "saeworks.evals.sparse_probing",
    "latents": "saeworks.evals.latents",
    "scr": "saeworks.evals.scr",
    "tpp": "saeworks.evals.tpp",
    "shift": "saeworks.evals.shift",
    "absorption": "saeworks.evals.absorption",
    "autointerp": "saeworks.evals.autointerp",
    "ravel": "saeworks.evals.ravel",
    "unlearning": "saeworks.evals.unlearning",
    "meta_structure": "saeworks.evals.meta_structure",
    "mdl": "saeworks.evals.mdl",
}


@dataclass(frozen=True)
class Data:
    """What the evals read: ``text`` for core and latents, ``labelled`` (name → set) for sparse probing, and ``own``
    (eval → its data) for all others."""

    text: TextSource | None = None
    labelled: Mapping[str, LabelledSet] | None = None
    own: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def of(self, name: str) -> Any:
        """The data of one eval; ``InputError`` when it was not given."""
        found = {"core": self.text, "latents": self.text, "sparse_probing": self.labelled}.get(name, self.own.get(name))
        if not found:
            what = {"core": "texts", "latents": "texts", "sparse_probing": "labelled texts"}.get(name, "own data")
            raise InputError(f"The eval '{name}' needs {what}, but none were given; add them or leave the eval out.")
        return found


def run_evals(
    names: Sequence[str],
    dictionaries: Mapping[str, DictionaryLike],
    model: LanguageModel,
    data: Data,
    out: Path,
    configs: Mapping[str, BaseModel] | None = None,
    force: bool = False,
    pool: TextPool | None = None,
) -> dict[str, dict[str, Result]]:
    """Run the named evals, write ``out/EVAL/*.json`` after each, and return eval → dictionary → result.

    A dictionary whose result exists with the same config, definition and content hashes of dictionary, model and data
    is not measured again unless ``force``; all others of an eval share one harvest.

    ``pool`` is what the evals that pool texts share, with earlier and later calls too; None: one for this call.
    """
    configs, pool = configs or {}, pool or TextPool()
    modules = {name: eval_module(name) for name in names}
    done: dict[str, dict[str, Result]] = {}
    for name, module in modules.items():
        config = configs.get(name) or module.Config()
        source = data.of(name)
        prints = {} if force else {key: fingerprint_of(dictionary) for key, dictionary in dictionaries.items()}
        kept = finished(name, prints, model, data, out, config)
        left = {key: dictionary for key, dictionary in dictionaries.items() if key not in kept}
        run = cast("Callable[..., dict[str, Result]]", module.run)
        shared = {"pool": pool} if "pool" in signature(run).parameters else {}
        fresh = run(left, model, source, config, **shared) if left else {}
        for result in fresh.values():
            result.write(out)
        done[name] = {key: kept.get(key) or fresh[key] for key in dictionaries}
    return done


def eval_module(name: str) -> Any:
    """The module of an eval; ``InputError`` with a suggestion for an unknown name."""
    if name not in REGISTRY:
        raise InputError(f"There is no eval '{name}'.{did_you_mean(name, REGISTRY)}")
    return import_module(REGISTRY[name])


def _data_hashes(module: Any, source: Any, config: Any) -> dict[str, str]:
    own = getattr(module, "data_hashes", None)
    return {"data": source.fingerprint()} if own is None else own(source, config)


def finished(
    name: str,
    fingerprints: Mapping[str, str],
    model: LanguageModel,
    data: Data,
    out: Path,
    config: BaseModel,
) -> dict[str, Result]:
    """Dictionary → result of those that one eval need not measure again.

    ``fingerprints`` maps the name of a dictionary to its content hash. A result below ``out`` counts when it has the
    same config, definition and content hashes of dictionary, model and data.
    """
    module, found = eval_module(name), dict[str, Result]()
    if not fingerprints:
        return found
    hashes = {"model": fingerprint_of_model(model), **_data_hashes(module, data.of(name), config)}
    for key, fingerprint in fingerprints.items():
        path = result_path(out, module.EVAL_TYPE, key)
        if not path.is_file():
            continue
        try:
            result = read_result(path)
        except InputError:
            continue  # a damaged or foreign file is measured anew and replaced
        same = result.eval_config == config.model_dump(mode="json") and result.definition_id == module.DEFINITION
        if same and result.provenance.get("hashes") == {**hashes, "dictionary": fingerprint}:
            found[key] = result
    return found
