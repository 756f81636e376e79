"""Publish a dictionary on a hub with its card, and fetch one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeworks.errors import InputError
from saeworks.files import atomic_write_text
from saeworks.jobs.convert import convert, known


def push(
    path: str,
    repo: str,
    to: str = "saeworks",
    licence: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    sae_id: str | None = None,
    format: str | None = None,
    hints: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the dictionary ``path`` as the format ``to``, with a card, and send both in one commit.

    Args:
        repo: ``owner/name``, or ``owner/name/folder`` where several dictionaries share a repository. It is made when it
            does not exist.
        licence: identifier for the card, such as ``mit``; nothing is assumed when it is not given.
        dry_run: write and compare, show the card, send nothing.

    Returns:
        ``{"repo", "path", "format", "files", "difference", "card", "notes", "commit"}``; ``commit`` is the address of
        the commit, None after a dry run.

    Raises:
        InputError: what cannot be read or written exactly, no login, no hub.
    """
    from saeworks.dictionaries.formats import load
    from saeworks.dictionaries.formats.hub import upload
    from saeworks.dictionaries.formats.reading import check_name
    from saeworks.dictionaries.formats.registry import format_named, write
    from saeworks.dictionaries.formats.releases import place_of
    from saeworks.jobs.dictionary_card import card, local_paths, measured_in_workspace

    format_named(to)
    place = place_of(repo)
    if place is None:
        raise InputError(f"'{repo}' is no place on a hub; write owner/name, or owner/name/folder.")
    if place.path:
        check_name(place.path, place.repo)
    dictionary = load(path, sae_id=sae_id, format=format, hints=known(hints))
    # The card must not repeat names of places on this machine, but the settings hold what was recorded.
    notes = [
        f"'{key}' in the settings names a place on this machine, which will be published."
        for key in local_paths(dictionary.cfg.metadata)
    ]
    if licence is None:
        notes.append("No licence was given, and the card says so; give one with --licence, for example mit.")
    title = place.path.split("/")[-1] or place.repo.split("/")[-1]
    local = Path(path).expanduser()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "dictionary"
        parity = write(dictionary, folder, to)
        results = measured_in_workspace(local) if local.is_dir() else {}
        text = card(dictionary, title, repo.removeprefix("hf://"), folder, licence, results)
        atomic_write_text(folder / "README.md", text)
        files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        commit = None if dry_run else upload(folder, place, private, f"Add the dictionary {title}")
    return {
        "repo": place.repo,
        "path": place.path,
        "format": to,
        "files": files,
        "difference": parity.reconstruction,
        "card": text,
        "notes": notes,
        "commit": commit,
    }


def pull(
    source: str,
    destination: Path,
    to: str = "saeworks",
    sae_id: str | None = None,
    format: str | None = None,
    hints: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fetch a dictionary from the hub into the new folder ``destination``, in our format, with its card if it has one.

    Returns:
        What :func:`saeworks.jobs.convert.convert` returns, and ``"card"``: whether there was one.

    Raises:
        InputError: as there.
    """
    from saeworks.dictionaries.formats.hub import fetch_card
    from saeworks.dictionaries.formats.releases import place_of, resolve

    if sae_id is None and Path(source).expanduser().exists():
        raise InputError(f"'{source}' is here already; copy it, or use 'saeworks convert'.")
    done = convert(source, destination, to, sae_id, format, hints)
    release, colon, rest = source.partition(":")
    place = resolve(source, sae_id) if sae_id else resolve(release, rest) if colon else place_of(source)
    text = fetch_card(place) if place is not None else None
    if text is not None:
        atomic_write_text(destination / "README.md", text)
    return {**done, "card": text is not None}
