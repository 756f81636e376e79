"""What a diff would take, before it starts: stages, tokens, parameters, memory, disk, time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeworks.jobs.config import plain
from saeworks.jobs.diff import METHODS, open_diff
from saeworks.jobs.diff_inputs import activations, member, open_pair, take_crosscoder
from saeworks.jobs.doctor import free_disk, free_memory
from saeworks.jobs.plan import CHECKPOINT_BYTES, CHECKPOINTS, LIBRARY_BYTES, TRAINING_BYTES, duration, size


def plan(overrides: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """Resolve the configuration, load both models, measure their speed for about a second, and add everything up.

    Writes nothing. Raises ``InputError`` for a diff that cannot work.
    """
    config, workspace = open_diff(overrides, file)
    opened = open_pair(config)
    workspace.check_site(opened.site)
    full = config.presets == "full"
    d = sum(m.site(opened.site).width for m in (opened.base, opened.chat))
    training = full and config.dictionary is None
    if config.dictionary is not None and full:
        take_crosscoder(config.dictionary, opened)
    weights = config.width * (2 * d + 1) + d if training else 0
    models = {id(m): m for m in (opened.base, opened.chat)}.values()
    memory = {
        "libraries": LIBRARY_BYTES,
        "language_models": sum(p.numel() * p.element_size() for m in models for p in m.module.parameters()),
        "buffer": config.buffer_tokens * (4 * d + 32) if training else 0,
        "crosscoder": TRAINING_BYTES * weights,
        "training_step": 4 * config.batch_size * (3 * config.width + 6 * d) if training else 0,
    }
    disk = {
        "crosscoder": 4 * weights,
        "checkpoints": CHECKPOINTS * (CHECKPOINT_BYTES * weights + config.buffer_tokens * (4 * d + 32)) * training,
        "results": 400 * config.width + 2_000_000,
    }
    passes = config.measure_tokens * (1 if full else len(METHODS[config.presets]))
    harvested = passes + (config.tokens + max(config.tokens // 8, 8192)) * training
    seconds = {"harvesting": round(harvested * _seconds_per_token(config, opened), 2)}
    made = {
        "config": {**plain(config), "site": opened.site},
        "activations": {"site": opened.site, "width": d, "tokens": harvested},
        "dictionary": {"name": member(config).name, "parameters": weights} if training else None,
        "memory_bytes": {**memory, "total": sum(memory.values()), "free": free_memory()},
        "disk_bytes": {**disk, "total": sum(disk.values()), "free": free_disk(config.out)},
        "seconds": seconds,
    }
    return {**made, "rows": _rows(made)}


def _seconds_per_token(config: Any, opened: Any, budget: float = 1.0) -> float:
    """Measured seconds per token of running both models up to the site."""
    start, tokens = time.perf_counter(), 0
    for batch in activations(config, opened, "train").batches(50_000):
        tokens += len(batch)
        if time.perf_counter() - start > budget:
            break
    return (time.perf_counter() - start) / max(tokens, 1)


def _rows(made: Mapping[str, Any]) -> list[dict[str, str]]:
    work, dictionary = made["activations"], made["dictionary"]
    rows = [
        {"what": "site", "value": f"{work['site']} of both models (width {work['width']} together)"},
        {"what": "tokens through both models", "value": f"{work['tokens']:,}"},
    ]
    if dictionary is not None:
        rows.append({"what": "crosscoder", "value": f"{dictionary['name']}, {dictionary['parameters']:,} parameters"})
    for kind in ("memory", "disk"):
        rows += [
            {"what": f"{kind}: {part.replace('_', ' ')}", "value": size(value)}
            for part, value in made[f"{kind}_bytes"].items()
        ]
    rows.append({"what": "time: harvesting alone", "value": duration(made["seconds"]["harvesting"])})
    return rows
