"""The card of a dictionary: what it is, what it reads, how it was trained, what was measured, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.files import sha256_file
from saeworks.version import __version__

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary

_KINDS = {
    "topk": "the {k} largest pre-activations of every token",
    "groupmax": "the largest pre-activation of each of {k} groups",
    "jumprelu": "pre-activations above a threshold of their own",
    "relu": "every positive pre-activation",
}
# Keys of the metadata that are told, in this order, with what they are called.
_TRAINING = {
    "recipe": "recipe",
    "k": "active latents aimed at",
    "penalty": "weight of the penalty",
    "tokens": "tokens",
    "data": "texts",
    "context_length": "tokens per context",
    "learning_rate": "learning rate",
    "seed": "seed",
    "group_sizes": "sizes of the nested groups",
    "normalization": "scale of the input in training, folded into the weights",
}


def card(
    dictionary: Dictionary,
    title: str,
    where: str,
    files: Path,
    licence: str | None = None,
    results: Mapping[str, float | None] | None = None,
) -> str:
    """Markdown with the header that a hub reads.

    Args:
        title: name of the dictionary. where: what to give to ``saeworks.load``.
        files: folder with what is published; its files are listed with their digests.
        licence: identifier such as ``mit``; None is said to be unstated.
        results: measured numbers by name, besides those recorded in the dictionary.
    """
    known, cfg = dictionary.cfg.metadata, dictionary.cfg
    target = known.get("site_out") or known.get("target_site")
    kind = "transcoder" if cfg.d_out is not None else "crosscoder" if cfg.sources else "sparse autoencoder"
    what = [
        f"A {kind} with {cfg.d_sae:,} latents. Active are {_KINDS[cfg.architecture].format(k=cfg.k)}.",
        _reads(dictionary, target),
    ]
    if cfg.input_op != "none":
        what.append(f"Every token is put through `{cfg.input_op}` first, which is undone at the end.")
    if cfg.skip:
        what.append("A linear map of the input is added to the output.")
    training = {_TRAINING[key]: known[key] for key in _TRAINING if known.get(key) is not None}
    measured = {**_recorded(known), **{name: value for name, value in (results or {}).items() if value is not None}}
    parts = [
        _header(dictionary, licence),
        f"# {title}\n\n{' '.join(what)}",
        f'## Use\n\n```python\nimport saeworks\n\nsae = saeworks.load("{where}")\n'
        f"f = sae.encode(x)  # [..., {cfg.d_in}] -> [..., {cfg.d_sae}]\n```\n\n"
        f"Check it against its model with `saeworks verify {where}`.",
    ]
    if training:
        parts.append("## Training\n\n" + _table("setting", "value", training))
    if measured:
        parts.append("## Measured\n\n" + _table("metric", "value", measured))
    parts.append("## Files\n\n" + _table("file", "sha256", _digests(files)))
    if origin := _origin(known):
        parts.append(f"## Origin\n\n{origin}")
    said = f"`{licence}`" if licence else "Not stated by whoever published this; ask before using it."
    parts.append(f"## Licence\n\n{said}\n\nWritten by saeworks {__version__}.")
    return "\n\n".join(parts) + "\n"


def measured_in_workspace(path: Path) -> dict[str, float | None]:
    """The main numbers of all evals, when ``path`` is ``WORKSPACE/dictionaries/NAME``; otherwise none."""
    from saeworks.jobs.evaluate import SHOWN
    from saeworks.results.envelope import read_result, result_path
    from saeworks.results.headlines import headline

    folder = path.resolve()
    results = folder.parent.parent / "results"
    if folder.parent.name != "dictionaries" or not results.is_dir():
        return {}
    found: dict[str, float | None] = {}
    for one in map(headline, SHOWN):
        file = result_path(results, one.eval, folder.name)
        if file.is_file():
            found[one.column] = read_result(file).metric(one.category, one.metric)
    return found


def local_paths(known: Mapping[str, Any]) -> list[str]:
    """Entries of the metadata that name a place on this machine, which nobody else can use and some may not see."""
    return sorted(key for key, value in known.items() if _names_place(value))


def _names_place(value: Any) -> bool:
    """Whether a value, or anything in it, is an absolute path."""
    if isinstance(value, Mapping):
        return any(_names_place(item) for item in value.values())  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return any(_names_place(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
    return isinstance(value, str) and Path(value).is_absolute()


def _header(dictionary: Dictionary, licence: str | None) -> str:
    import yaml

    model = str(dictionary.cfg.metadata.get("model_name") or "")
    recipe = str(dictionary.cfg.metadata.get("recipe") or dictionary.cfg.architecture)
    fields: dict[str, Any] = {"library_name": "saeworks"}
    if licence:
        fields["license"] = licence
    if model.count("/") == 1 and not model.startswith("/"):
        fields["base_model"] = model
    fields["tags"] = list(dict.fromkeys(["saeworks", "sparse-autoencoder", "interpretability", recipe]))
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _reads(dictionary: Dictionary, target: Any) -> str:
    known, cfg = dictionary.cfg.metadata, dictionary.cfg
    model = str(known.get("model_name") or "")
    of = f" of `{Path(model).name if Path(model).is_absolute() else model}`" if model else ""
    if cfg.sources is not None:
        named = ", ".join(f"`{name}` ({width})" for name, width in zip(cfg.sources, cfg.widths, strict=True))
        return f"It reads {named}{of} side by side and writes all of them."
    site = f"`{known['site']}`" if known.get("site") else "a site that its files do not name"
    if cfg.d_out is not None:
        return f"It reads {site}{of} (width {cfg.d_in}) and predicts `{target or 'another site'}` (width {cfg.d_out})."
    return f"It reads and writes {site}{of} (width {cfg.d_in})."


def _recorded(known: Mapping[str, Any]) -> dict[str, Any]:
    recorded = known.get("recorded") or {}
    claimed = known.get("claimed") or {}
    return {**{f"{key} (claimed by its publisher)": value for key, value in claimed.items()}, **recorded}


def _origin(known: Mapping[str, Any]) -> str:
    origin, written = known.get("origin") or {}, known.get("format")
    if {"repo", "path", "revision"} <= set(origin):
        return f"Read from `{origin['repo']}`, `{origin['path'] or '.'}`, commit `{origin['revision']}` ({written})."
    return f"Read from files of the format `{written}`." if written else ""


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256_file(file) for file in files}


def _table(left: str, right: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items())])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
    return str(value).replace("|", "\\|").replace("\n", " ")
