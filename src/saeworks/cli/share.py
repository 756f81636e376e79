"""``saeworks push`` and ``saeworks pull``: dictionaries on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from saeworks.cli.convert import ReadingFlags
from saeworks.cli.flags import JsonFlag
from saeworks.cli.output import print_json, print_line


def push(
    path: Annotated[str, Parameter(help="The dictionary: folder, file, or what else 'saeworks convert' reads.")],
    repo: Annotated[str, Parameter(help="owner/name, or owner/name/folder; made when it does not exist.")],
    /,
    *,
    to: Annotated[str, Parameter(help="Format to publish; other libraries read saelens, sparsify, …")] = "saeworks",
    licence: Annotated[str | None, Parameter(name=["--licence", "--license"], help="For the card, e.g. mit.")] = None,
    private: Annotated[bool, Parameter(help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, Parameter(help="Show the card and the files; send nothing.")] = False,
    reading: ReadingFlags | None = None,
    json: JsonFlag = False,
) -> None:
    """Publish a dictionary with a card: licence, site, recipe, metrics, digests. Log in first with 'hf auth login'."""
    from saeworks.jobs.share import push as job

    found = (reading or ReadingFlags()).arguments()
    done = job(path, repo, to, licence, private, dry_run, **found)  # pyright: ignore[reportArgumentType]
    if json:
        return print_json(done)
    if dry_run:
        print_line(done["card"])
    for sentence in done["notes"]:
        print_line(f"Note: {sentence}")
    place = f"{done['repo']}/{done['path']}".rstrip("/")
    print_line(f"{'Would send' if dry_run else 'Sent'} to {place}: {', '.join(done['files'])}")
    if done["commit"]:
        print_line(done["commit"])
    return None


def pull(
    source: Annotated[str, Parameter(help="owner/name/folder of the hub, or RELEASE:SAE_ID.")],
    destination: Annotated[Path, Parameter(help="New folder to write.")],
    /,
    *,
    to: Annotated[str, Parameter(help="Format to write.")] = "saeworks",
    reading: ReadingFlags | None = None,
    json: JsonFlag = False,
) -> None:
    """Fetch a dictionary of any known format from the hub, with its card."""
    from saeworks.jobs.share import pull as job

    found = (reading or ReadingFlags()).arguments()
    done = job(source, destination, to, **found)  # pyright: ignore[reportArgumentType]
    if json:
        return print_json(done)
    card = "with its card" if done["card"] else "without a card"
    print_line(f"{done['source']} ({done['from']}) → {done['destination']} ({done['to']}), {card}")
    return None
