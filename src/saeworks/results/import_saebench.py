"""Read a folder of SAEBench's result files, so that published results stand beside one's own.

SAEBench writes ``{release}_{id}_eval_results.json`` into a folder per eval. Its files come in several vintages: fields
are missing, one eval is spelled in two ways, NaN stands bare in the JSON or as -1, and the config of a dictionary has
the field names of whatever wrote it. Every file that holds numbers becomes a :class:`Result`; for every other there is
a sentence that says why it was left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from saeworks.errors import InputError
from saeworks.files import read_json, sha256_file
from saeworks.results.envelope import SUFFIX, Metrics, Result

SOURCE = "SAEBench"
#: Category of metrics → the eval that has it, for files that do not say which they are.
_EVAL_OF_CATEGORY = {
    "model_behavior_preservation": "core",
    "model_performance_preservation": "core",
    "reconstruction_quality": "core",
    "scr_metrics": "scr",
    "tpp_metrics": "tpp",
    "mean": "absorption_first_letter",
    "autointerp": "autointerp",
    "ravel": "ravel",
    "unlearning": "unlearning",
    "meta_structure": "meta_structure_decoder_variance",
}
#: Other spellings of evals, and the names of the folders that hold them.
_EVAL_NAMES = {
    "absorption": "absorption_first_letter",
    "meta_structure": "meta_structure_decoder_variance",
    "sae_probes": "sparse_probing_sae_probes",
}
#: Evals that write -1 for what could not be computed or was not asked for; no number of theirs is -1 otherwise.
_MINUS_ONE_IS_NOTHING = ("core", "sparse_probing", "sparse_probing_sae_probes")
_ARCHITECTURES = {
    "standard": "relu",
    "vanilla": "relu",
    "relu_sae": "relu",
    "standard_april_update": "relu_april",
    "april_update": "relu_april",
    "panneal": "p_anneal",
    "batchtopk": "batch_topk",
    "matryoshka": "matryoshka_batch_topk",
    "matryoshkabatchtopk": "matryoshka_batch_topk",
    "matryoshka_batchtopk": "matryoshka_batch_topk",
}


@dataclass(frozen=True)
class Imported:
    """``results`` in the order of the files, and in ``problems`` a sentence for every file that could not be used and
    for every thing in one that a reader should know."""

    results: list[Result]
    problems: list[str]


def import_saebench(directory: Path, details: bool = False) -> Imported:
    """Read every ``*_eval_results.json`` below ``directory`` (or the one file that it is).

    Where two files measure the same dictionary with the same eval, the later one counts.

    Args:
        details: keep the details; those of core have an entry per latent and take tens of megabytes.

    Raises:
        InputError: no such file or folder, no result file below it, or none that can be used.
    """
    directory = Path(directory)
    if not directory.exists():
        raise InputError(f"'{directory}' does not exist; give a folder of SAEBench's result files.")
    files = [directory] if directory.is_file() else sorted(directory.rglob(f"*{SUFFIX}"))
    if not files:
        raise InputError(
            f"Below '{directory}' there is no file that ends in '{SUFFIX}'; give the folder into which SAEBench wrote "
            "its results, or one with a folder per eval."
        )
    return import_files(files, f"below '{directory}'", details)


def import_files(files: Sequence[Path], where: str, details: bool = False) -> Imported:
    """As :func:`import_saebench`, of these files, which lie ``where`` errors say."""
    found: dict[tuple[str, str], Result] = {}
    problems: list[str] = []
    for file in files:
        try:
            result, notes = read_saebench(file, details)
        except InputError as e:
            problems.append(str(e))
            continue
        problems += notes
        key = (result.eval_type_id, result.sae_lens_id or "")
        earlier = found.get(key)
        if earlier is not None:
            kept, left = sorted((earlier, result), key=lambda r: r.datetime_epoch_millis, reverse=True)
            problems.append(f"'{left.path}' measures '{key[1]}' with {key[0]} as '{kept.path}' does; the later counts.")
            result = kept
        found[key] = result
    if not found:
        raise InputError(f"None of the {len(files)} files {where} can be used: {' '.join(problems)}")
    return Imported(list(found.values()), problems)


def read_saebench(path: Path, details: bool = False) -> tuple[Result, list[str]]:
    """One file and sentences about what is odd in it; ``InputError`` when it holds no result.

    The dictionary is named ``release/id`` (by its release alone where it was measured as an object), its architecture
    and site get our names, and numbers that were NaN become None.
    """
    path = Path(path)
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"'{path}' holds no JSON object, so it is no result of SAEBench; leave it out.")
    record = cast("dict[str, Any]", value)
    if isinstance(record.get("eval_results"), list):
        raise InputError(f"'{path}' is a description-length (MDL) record, which has no table of metrics; leave it out.")
    given = record.get("eval_result_metrics")
    if not isinstance(given, dict) or not given:
        raise InputError(
            f"'{path}' has no 'eval_result_metrics', the table of numbers that every result of SAEBench has; "
            "it is cut short or another kind of file."
        )
    eval_type = _eval_type(record, cast("dict[str, Any]", given), path)
    metrics, notes = _metrics(cast("dict[str, Any]", given), eval_type, path)
    if not any(v is not None for row in metrics.values() for v in row.values()):
        raise InputError(f"'{path}' holds no number at all; the eval must have failed.")
    release, identifier = _text(record.get("sae_lens_release_id")), _text(record.get("sae_lens_id"))
    details_list = record.get("eval_result_details") if details else None
    config = record.get("eval_config")
    fields: dict[str, Any] = {
        "eval_type_id": eval_type,
        "eval_config": config if isinstance(config, dict) else {},
        "eval_id": _text(record.get("eval_id")) or "",
        "datetime_epoch_millis": _whole(record.get("datetime_epoch_millis")),
        "eval_result_metrics": metrics,
        "eval_result_details": details_list if isinstance(details_list, list) else [],
        "sae_bench_commit_hash": _text(record.get("sae_bench_commit_hash")) or "Unknown",
        "sae_lens_id": _name(release, identifier, path),
        "sae_lens_release_id": release,
        "sae_lens_version": _text(record.get("sae_lens_version")),
        "sae_cfg_dict": _config(record.get("sae_cfg_dict"), f"{release}/{identifier}/{path.name}"),
        "eval_result_unstructured": record.get("eval_result_unstructured") if details else None,
        "tool_version": "",
        "seed": _seed(config),
        "definition_id": f"saebench/{eval_type}",
        "provenance": {"source": SOURCE, "file": path.name, "hashes": {"file": sha256_file(path)}},
    }
    try:
        result = Result.model_validate(fields)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"'{path}' cannot be read as a result: {where}: {first['msg']}; leave it out.") from e
    result._path = path  # pyright: ignore[reportPrivateUsage]
    return result, notes


def _eval_type(record: Mapping[str, Any], metrics: Mapping[str, Any], path: Path) -> str:
    """What the file says, else what its metrics show, else the folder it lies in."""
    named = _text(record.get("eval_type_id"))
    if named:
        return _EVAL_NAMES.get(named.lower(), named.lower())
    for category, eval_type in _EVAL_OF_CATEGORY.items():
        if category in metrics:
            return eval_type
    if isinstance(metrics.get("sae"), dict):
        auc = any(str(key).endswith("_auc") for key in metrics["sae"])
        return "sparse_probing_sae_probes" if auc else "sparse_probing"
    known = {*_EVAL_OF_CATEGORY.values(), "sparse_probing", "sparse_probing_sae_probes"}
    for folder in path.parents:
        name = _EVAL_NAMES.get(folder.name.lower(), folder.name.lower())
        if name in known:
            return name
    raise InputError(
        f"'{path}' does not say which eval it belongs to ('eval_type_id' is missing), and its metrics "
        f"({', '.join(map(str, metrics))}) are those of none; put it into a folder named after the eval."
    )


def _metrics(given: Mapping[str, Any], eval_type: str, path: Path) -> tuple[Metrics, list[str]]:
    """Numbers by category; what is no number is left out with a sentence."""
    out: Metrics = {}
    odd: list[str] = []
    for category, record in given.items():
        if not isinstance(record, dict):
            odd.append(str(category))
            continue
        out[str(category)] = {}
        for name, value in cast("dict[str, Any]", record).items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                odd.append(f"{category}.{name}")
                continue
            nothing = value is None or not _finite(value)
            nothing = nothing or (value == -1 and eval_type in _MINUS_ONE_IS_NOTHING)
            out[str(category)][name] = None if nothing else value
    notes = [f"'{path}': what stands under {', '.join(odd)} is no number and was left out."] if odd else []
    return out, notes


def _name(release: str | None, identifier: str | None, path: Path) -> str:
    parts = [part for part in (release, identifier) if part and part != "custom_sae"]
    return "/".join(parts) or path.name.removesuffix(SUFFIX)


def _config(given: Any, names: str) -> dict[str, Any]:
    """The dictionary's config with our names beside those it came with: ``architecture``, ``d_sae``, ``metadata``.

    SAELens moved the model and the site into ``metadata``; some files have no config, and then the name of a release
    often tells width and architecture.
    """
    config = dict(cast("dict[str, Any]", given)) if isinstance(given, dict) else {}
    inner = config.get("metadata")
    metadata = dict(cast("dict[str, Any]", inner)) if isinstance(inner, dict) else {}
    both = {**metadata, **config}
    # What is no name or number is left out: tables are sorted by these.
    config = {key: value for key, value in config.items() if key not in ("architecture", "d_sae")}
    architecture = _text(both.get("architecture_str")) or _text(both.get("architecture")) or _architecture_in(names)
    if architecture:
        config["architecture"] = _architecture(architecture)
        metadata.setdefault("recipe", config["architecture"])
    width = _whole(both.get("d_sae")) or _width_in(names)
    if width:
        config["d_sae"] = width
    if site := _site(_text(both.get("hook_name"))):
        metadata.setdefault("site", site)
    for ours, theirs in (("model_name", "model_name"), ("tokens", "training_tokens"), ("k", "k")):
        # SAEBench writes a negative number of tokens where it does not know it.
        value = both.get(theirs)
        if value is not None and not (isinstance(value, (int, float)) and value < 0):
            metadata.setdefault(ours, value)
    config["metadata"] = metadata
    return config


def _architecture(name: str) -> str:
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    return _ARCHITECTURES.get(plain, plain)


def _architecture_in(names: str) -> str | None:
    """The architecture that a release or file is named after; the longest name that fits."""
    plain = re.sub(r"[\s-]+", "_", names.lower())
    known = {*_ARCHITECTURES, *_ARCHITECTURES.values(), "topk", "gated", "jumprelu"}
    fits = [name for name in known if re.search(rf"(?<![a-z]){name}(?![a-z])", plain)]
    return max(fits, key=len) if fits else None


def _width_in(names: str) -> int | None:
    """``width-2pow14`` or ``width_65k``, the first that is there. Rounded widths are powers of two: 65k is 2^16."""
    match = re.search(r"width-2pow(\d{1,2})(?!\d)|width_([1-9]\d*)(k|m)?(?![a-z0-9])", names)
    if match is None:
        return None
    if match[1]:
        return 1 << int(match[1])
    unit = {"k": 1e3, "m": 1e6}.get(match[3] or "")
    return int(match[2]) if unit is None else 1 << round(math.log2(int(match[2]) * unit))


def _site(hook: str | None) -> str | None:
    match = re.fullmatch(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|mlp_out|attn_out)", hook or "")
    return f"layers.{match[1]}.{match[2]}" if match else hook


def _seed(config: Any) -> int | None:
    value = cast("dict[str, Any]", config).get("random_seed") if isinstance(config, dict) else None
    return value if isinstance(value, int) else None


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value) else 0


def _finite(value: float) -> bool:
    """Whether a number is one that fits into a float; JSON may hold integers of any length."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
