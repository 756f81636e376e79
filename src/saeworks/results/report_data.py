"""What a report knows: everything is read from files of one workspace, nothing is computed anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError
from saeworks.files import read_json
from saeworks.results.envelope import Result, read_results
from saeworks.results.plots import RECIPES


@dataclass(frozen=True)
class Entry:
    """One dictionary: its name, config, and results by eval."""

    name: str
    cfg: dict[str, Any]
    results: dict[str, Result]
    label: str = ""

    @property
    def metadata(self) -> dict[str, Any]:
        """``cfg.metadata``, empty where there is none."""
        value = self.cfg.get("metadata")
        return cast("dict[str, Any]", value) if isinstance(value, dict) else {}

    @property
    def recipe(self) -> str:
        """Recipe, or the architecture of a dictionary from elsewhere; of a control its kind."""
        if self.metadata.get("control"):
            return f"control_{self.metadata['control']}"
        return str(self.metadata.get("recipe") or self.cfg.get("architecture") or "unknown")

    @property
    def width(self) -> int | None:
        """Number of latents."""
        value = self.cfg.get("d_sae")
        return int(value) if isinstance(value, (int, float)) else None

    @property
    def k(self) -> float | None:
        """Active latents per token asked for in training."""
        value = self.metadata.get("k") or self.cfg.get("k")
        return float(value) if isinstance(value, (int, float)) else None

    def metric(self, eval_type: str, category: str, name: str) -> float | None:
        """A number of one eval, None when it was not measured."""
        result = self.results.get(eval_type)
        return None if result is None else result.metric(category, name)

    def interval(self, eval_type: str, key: str) -> tuple[float, float] | None:
        """A 95 % interval, None when there is none."""
        result = self.results.get(eval_type)
        return None if result is None else result.ci95.get(key)


@dataclass(frozen=True)
class Workspace:
    """All that the report shows."""

    path: Path
    run: dict[str, Any]
    entries: list[Entry]
    log: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, "list[dict[str, Any]]"])

    @property
    def config(self) -> dict[str, Any]:
        """The run's settings."""
        value = self.run.get("config", self.run)
        return cast("dict[str, Any]", value) if isinstance(value, dict) else {}

    def common(self, key: str) -> str:
        """The value of a metadata key if all dictionaries agree, else all values."""
        values = sorted({str(e.metadata[key]) for e in self.entries if e.metadata.get(key) is not None})
        return ", ".join(values)


def read_workspace(path: Path) -> Workspace:
    """Read ``run.json``, ``dictionaries/*/cfg.json``, ``train_log.jsonl`` and ``results/**`` below ``path``.

    Any of them may be absent. Raises ``InputError`` when the directory holds none, or a file is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"'{path}' is not a directory; give the workspace of a run.")
    run = _mapping(path / "run.json")
    results = read_results(path / "results")
    configs = {file.parent.name: _mapping(file) for file in sorted(path.glob("dictionaries/*/cfg.json"))}
    by_name: dict[str, dict[str, Result]] = {name: {} for name in configs}
    for result in results:
        by_name.setdefault(result.sae_lens_id or "custom_sae", {})[result.eval_type_id] = result
    entries: list[Entry] = []
    for name, found in by_name.items():
        cfg = configs.get(name) or next((r.sae_cfg_dict for r in found.values() if r.sae_cfg_dict), None) or {}
        entries.append(Entry(name, cfg, found))
    if not run and not entries:
        raise InputError(f"'{path}' holds neither dictionaries nor results; give the workspace of a run.")
    order = {recipe: i for i, recipe in enumerate(RECIPES)}
    entries.sort(key=lambda e: (order.get(e.recipe, len(order)), e.recipe, e.width or 0, e.k or 0, e.name))
    return Workspace(path, run, _labelled(entries), _read_log(path / "train_log.jsonl"))


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = read_json(path)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _labelled(entries: list[Entry]) -> list[Entry]:
    """Short labels: recipe and k, plus whatever else differs between dictionaries."""
    widths = {e.width for e in entries}
    seeds = {str(e.metadata.get("seed")) for e in entries}
    labels: list[str] = []
    for e in entries:
        parts = [e.recipe]
        if e.width is not None and len(widths) > 1:
            parts.append(f"n={e.width}")
        if e.k is not None:
            parts.append(f"k={e.k:g}")
        if len(seeds) > 1:
            parts.append(f"seed {e.metadata.get('seed')}")
        labels.append(" ".join(parts))
    unique = [label if labels.count(label) == 1 else e.name for label, e in zip(labels, entries, strict=True)]
    return [Entry(e.name, e.cfg, e.results, label) for e, label in zip(entries, unique, strict=True)]


def _read_log(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Log lines by dictionary. A line cut off by a kill is left out; so is what is no log line."""
    out: dict[str, list[dict[str, Any]]] = {}
    if not path.is_file():
        return out
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            try:
                value: object = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(value, Mapping) and "dictionary" in value:
                record = dict(cast("Mapping[str, Any]", value))
                out.setdefault(str(record["dictionary"]), []).append(record)
    return out


def thinned(records: list[dict[str, Any]], most: int = 200) -> list[dict[str, Any]]:
    """At most ``most`` records, evenly spaced, the last one included."""
    if len(records) <= most:
        return records
    return [records[round(i * (len(records) - 1) / (most - 1))] for i in range(most)]
