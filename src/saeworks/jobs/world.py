"""What the embedded world holds: its concepts, samples of its texts, and building its models again."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saeworks.errors import InputError, did_you_mean
from saeworks.files import atomic_write_text

KNOWN_TO = ("base", "chat", "both")
PARTS = ("base", "chat")
MIXTURE = "world"


def at_least(least: int, **values: int | None) -> None:
    """``InputError`` for the first of the named values that is below ``least``; None is not checked."""
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}, but it must be at least {least}.")


def concepts(
    prefix: str | None = None, domain: str | None = None, known_to: str | None = None, depth: int | None = None
) -> dict[str, Any]:
    """The tree of concepts, or the part of it that is asked for.

    Args:
        prefix: id of a concept: it and everything below it.
        domain: only concepts of this domain (``shared``: those that several domains emit).
        known_to: ``both``, or ``base`` or ``chat`` for what only that model is expected to know.
        depth: levels shown, counted from ``prefix`` or else from the roots; None is all of them.

    Returns:
        ``{"count", "concepts": [{"id", "description", "domain", "parent", "known_to", "hidden"}]}``, parents before
        their children; ``hidden`` counts the concepts below one that ``depth`` leaves out.

    Raises:
        InputError: an unknown concept, domain or model.
    """
    from saeworks.world.concepts import concepts as table

    at_least(1, depth=depth)
    everything = table()
    domains = list(dict.fromkeys(one.domain for one in everything.values()))
    if domain is not None and domain not in domains:
        raise InputError(f"No concepts belong to a domain '{domain}'.{did_you_mean(domain, domains)}")
    if known_to is not None and known_to not in KNOWN_TO:
        raise InputError(f"--known-to is '{known_to}'.{did_you_mean(known_to, KNOWN_TO)}")
    top = prefix.strip("/") if prefix else ""
    if top and top not in everything:
        raise InputError(f"There is no concept '{prefix}'.{_nearest(top, everything)}")
    above = top.count("/") + 1 if top else 0
    found = [
        one
        for one in everything.values()
        if (not top or one.id == top or one.id.startswith(top + "/"))
        and (domain is None or one.domain == domain)
        and (known_to is None or one.known_to == known_to)
    ]
    levels = depth + max(above - 1, 0) if depth is not None else None
    shown = [one for one in found if levels is None or one.id.count("/") < levels]
    ids = {one.id for one in shown}
    hidden = Counter("/".join(one.id.split("/")[:levels]) for one in found if one.id not in ids)
    return {"count": len(found), "concepts": [asdict(one) | {"hidden": hidden[one.id]} for one in _as_tree(shown)]}


def _as_tree(found: Sequence[Any]) -> list[Any]:
    """Depth first, brothers and sisters in the order of the list; a concept whose parent is left out is a root."""
    present = {one.id for one in found}
    below: dict[str | None, list[Any]] = {}
    for one in found:
        below.setdefault(one.parent if one.parent in present else None, []).append(one)

    def walk(parent: str | None) -> Iterator[Any]:
        for one in below.get(parent, []):
            yield one
            yield from walk(one.id)

    return list(walk(None))


def _nearest(given: str, known: Any) -> str:
    """A suggestion: the id whose last segment was given (``dog``), else the nearest id."""
    named = [key for key in known if key.rpartition("/")[2] == given]
    return f" Did you mean '{named[0]}'?" if named else did_you_mean(given, known)


def sample(
    domain: str = MIXTURE,
    split: str = "validation",
    count: int = 5,
    seed: int = 0,
    start: int = 0,
    spurious: str | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Documents ``start`` … ``start + count - 1`` of a domain and split.

    Args:
        domain: a domain, or ``world`` for the mixture.
        spurious: ``LABEL:STRENGTH``, a correlation to plant.
        out: a JSON-lines file to write, which :func:`saeworks.activations.texts.open_texts` reads back with its labels
            and spans.

    Returns:
        ``{"domain", "split", "count", "documents"}``; with ``out``, ``{"domain", "split", "count", "out"}``.

    Raises:
        InputError: an unknown domain, split or correlation, or a file name that is not ``.jsonl``.
    """
    from saeworks.activations.world_texts import parse_spurious
    from saeworks.progress import progress
    from saeworks.world.corpus import DOMAINS, document

    at_least(1, count=count)
    at_least(0, start=start, seed=seed)
    if domain not in (MIXTURE, *DOMAINS):
        raise InputError(f"The world has no domain '{domain}'.{did_you_mean(domain, (MIXTURE, *DOMAINS))}")
    if out is not None and out.suffix.lower() != ".jsonl":
        raise InputError(f"--out '{out}' must end in .jsonl: the documents are written as lines of JSON.")
    if out is not None and out.is_dir():
        raise InputError(f"--out '{out}' is a directory; give a file.")
    planted = parse_spurious(spurious) if spurious is not None else None
    rows: list[dict[str, Any]] = []
    with progress(count, "writing documents", "doc", disable=True if out is None else None) as bar:
        for index in range(start, start + count):
            made = document(None if domain == MIXTURE else domain, split, index, seed, planted)
            spans = [[span.start, span.end, span.concept] for span in made.spans]
            rows.append({"id": made.id, "text": made.text, "labels": dict(made.labels), "spans": spans})
            bar.update()
    summary: dict[str, Any] = {"domain": domain, "split": split, "count": count}
    if out is None:
        return summary | {"documents": rows}
    atomic_write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return summary | {"out": str(out)}


def build(
    out: Path,
    parts: Sequence[str] = PARTS,
    steps: int | None = None,
    more_steps: int | None = None,
    chat_steps: int | None = None,
    judging_steps: int | None = None,
    settling_steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    measure: bool = True,
) -> dict[str, Any]:
    """Make tokenizer, models and cards again from the seed; a killed build goes on from its last checkpoint.

    Args:
        out: working directory; the models lie in ``out/base`` and ``out/chat`` in the end.
        parts: ``base``, ``chat`` or both.
        steps, more_steps: of the base model's two cycles; chat_steps, judging_steps, settling_steps:
            of the chat model's three. None: as for the shipped ones.
        threads: of the CPU; None leaves the choice to torch. Other numbers of threads may give other last bits.
        measure: measure the abilities and write the cards.

    Returns:
        ``{"out", "seconds", "models": {part: directory}}``.

    Raises:
        InputError: an unknown part, numbers of steps that are not positive, or a checkpoint of another recipe.
    """
    for part in parts:
        if part not in PARTS:
            raise InputError(f"There is no part '{part}'.{did_you_mean(part, PARTS)}")
    if not parts:
        raise InputError("No part was named; give --part base, --part chat or leave it out.")
    at_least(1, steps=steps, chat_steps=chat_steps, threads=threads)
    at_least(0, more_steps=more_steps, judging_steps=judging_steps, settling_steps=settling_steps, seed=seed)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out '{out}' is a file; give a directory.")
    from saeworks.runtime import resolve_device

    where = resolve_device(device)
    import torch

    from saeworks.world.build import build as job
    from saeworks.world.chat_tuning import ChatTuningConfig
    from saeworks.world.pretraining import PretrainingConfig

    started = time.monotonic()
    base = PretrainingConfig(seed=seed, **_given(steps=steps, more_steps=more_steps))
    cycles = _given(steps=chat_steps, judging_steps=judging_steps, settling_steps=settling_steps)
    chat = ChatTuningConfig(seed=seed, **cycles)
    with _threads(threads, torch.get_num_threads, torch.set_num_threads):
        written = job(out, base, chat, where, parts, measure)
    models = {part: str(directory) for part, directory in written.items()}
    return {"out": str(out), "seconds": round(time.monotonic() - started, 1), "models": models}


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


class _threads:
    """Within the block, that many threads; None changes nothing."""

    def __init__(self, count: int | None, get: Callable[[], int], put: Callable[[int], None]) -> None:
        self._count, self._put, self._before = count, put, get()

    def __enter__(self) -> None:
        if self._count is not None:
            self._put(self._count)

    def __exit__(self, *exception: object) -> None:
        self._put(self._before)
