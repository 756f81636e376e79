"""Releases: ``(release, sae_id)`` as other tools write it, resolved to a repository of the hub and a place in it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from saeworks.dictionaries.formats.reading import read_yaml
from saeworks.errors import InputError, did_you_mean

TABLES = "SAEWORKS_RELEASES"
_KEYS = {"release", "id", "repo", "path", "nearest", "hints"}


@dataclass(frozen=True)
class Place:
    """Where a dictionary lies on the hub.

    Attributes:
        repo: ``owner/name``.
        path: folder or file in it; empty for the repository itself. May hold one ``*`` when ``nearest`` is given.
        revision: branch, tag or commit; None for the main branch.
        nearest: the folder is the one whose number in place of ``*`` is nearest to this.
        hints: what the files do not say.
    """

    repo: str
    path: str = ""
    revision: str | None = None
    nearest: float | None = None
    hints: Mapping[str, Any] = field(default_factory=dict[str, Any])


def resolve(release: str, sae_id: str) -> Place:
    """The place of one dictionary of a release.

    Releases are looked up in the files that ``SAEWORKS_RELEASES`` names (separated like ``PATH``), then in the table
    that comes with saeworks, ``releases.yaml``, whose head explains the keys. A release that is ``owner/name`` is a
    repository, and the id a folder in it.

    Raises:
        InputError: unknown release, an id that the release cannot have, or a table that makes no sense.
    """
    known: list[str] = []
    for file, entry in _entries():
        found = _fullmatch(file, entry["release"], release)
        if found is None:
            known.append(str(entry["release"]))
            continue
        one = _fullmatch(file, str(entry.get("id", ".+")), sae_id)
        if one is not None:
            return _place(file, entry, found, one)
        known.append(release)
    if release in known:
        raise InputError(f"The release '{release}' has no dictionary called '{sae_id}'; look at its repository.")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", release):
        return Place(release, sae_id)
    plain = [re.sub(r"[()?:\\]", "", name) for name in known]
    raise InputError(
        f"There is no release '{release}'.{did_you_mean(release, plain)} Others can be added to a file "
        f"that the variable {TABLES} names."
    )


def is_release(name: str) -> bool:
    """Whether some table has a release of this name."""
    return any(_fullmatch(file, entry["release"], name) for file, entry in _entries())


def place_of(name: str) -> Place | None:
    """The place that ``owner/name``, ``owner/name/folder`` or ``owner/name@revision/folder`` means; None otherwise."""
    found = re.fullmatch(r"(?:hf:/{1,2})?([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?", name)
    if found is None or name.startswith((".", "/", "~")) or found[1].endswith("/.."):
        return None
    return Place(found[1], (found[3] or "").strip("/"), found[2])


def _entries() -> list[tuple[Path, dict[str, Any]]]:
    """All entries of all tables, in order, each with the file it stands in."""
    files = [Path(item).expanduser() for item in os.environ.get(TABLES, "").split(os.pathsep) if item]
    for file in files:
        if not file.is_file():
            raise InputError(f"'{file}', named by {TABLES}, does not exist; correct the name or remove it.")
    tables = [*files, Path(__file__).with_name("releases.yaml")]
    return [(file, entry) for file in tables for entry in _table(file, file.stat().st_mtime_ns)]


@lru_cache(maxsize=8)
def _table(file: Path, changed: int) -> list[dict[str, Any]]:
    """The entries of one file, which is read again after it ``changed``."""
    del changed
    rows: object = read_yaml(file)
    if not isinstance(rows, list):
        raise InputError(f"'{file}' must hold a list of releases; see releases.yaml in saeworks.")
    out: list[dict[str, Any]] = []
    for row in cast("list[object]", rows):
        if not isinstance(row, dict) or not {"release", "repo"} <= set(cast("dict[object, object]", row)):
            raise InputError(f"'{file}' has an entry without 'release' and 'repo': {row!r}.")
        entry = cast("dict[str, Any]", row)
        if unknown := {str(key) for key in entry} - _KEYS:
            name = min(unknown)
            raise InputError(f"'{file}' has the key '{name}' for a release.{did_you_mean(name, _KEYS)}")
        out.append(entry)
    return out


def _fullmatch(file: Path, pattern: str, name: str) -> re.Match[str] | None:
    try:
        return re.fullmatch(str(pattern), name)
    except re.error as e:
        raise InputError(f"'{file}' has the expression '{pattern}', which is none ({e}).") from e


def _place(file: Path, entry: Mapping[str, Any], release: re.Match[str], one: re.Match[str]) -> Place:
    groups = [release[0], *(group or "" for group in (*release.groups(), *one.groups()))]

    def fill(template: Any) -> Any:
        if not isinstance(template, str):
            return template
        try:
            return re.sub(r"\{(\d+|id)\}", lambda m: one[0] if m[1] == "id" else groups[int(m[1])], template)
        except IndexError as e:
            raise InputError(f"'{file}' asks for more groups in '{template}' than its expressions have.") from e

    hints = cast("dict[str, Any]", entry.get("hints") or {})
    return Place(
        repo=fill(entry["repo"]),
        path=fill(entry.get("path", "{id}")),
        nearest=entry.get("nearest"),
        hints={key: fill(value) for key, value in hints.items()},
    )
