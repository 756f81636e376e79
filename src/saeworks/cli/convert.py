"""``saeworks convert``: write a dictionary in another format."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from saeworks.cli.flags import JsonFlag
from saeworks.cli.output import print_json, print_line

READING = Group("What the files may not say", sort_key=2)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ReadingFlags:
    """How a dictionary is found and read."""

    sae_id: str | None = None
    "Name of one dictionary of a release; RELEASE:SAE_ID as its path is the same."
    format: Annotated[str | None, Parameter(name="--from")] = None
    "Its format; found out when not given."
    model_name: Annotated[str | None, Parameter(group=READING)] = None
    "The language model it reads, as a hub name."
    site: Annotated[str | None, Parameter(group=READING)] = None
    "The site it reads, for example layers.12.resid_post."
    site_out: Annotated[str | None, Parameter(group=READING)] = None
    "The site a transcoder predicts."
    transcoder: Annotated[bool | None, Parameter(group=READING)] = None
    "It predicts another site, although that is as wide as the one it reads."
    norm_scaling_factor: Annotated[float | None, Parameter(group=READING)] = None
    "What SAELens's table of releases says its activations were multiplied by."

    def arguments(self) -> dict[str, object]:
        """The arguments of the jobs that read a dictionary."""
        hints = asdict(self)
        return {"sae_id": hints.pop("sae_id"), "format": hints.pop("format"), "hints": hints}


def convert(
    source: Annotated[str, Parameter(help="Folder, file, owner/name/folder of the hub, or RELEASE:SAE_ID.")],
    destination: Annotated[Path, Parameter(help="New folder to write.")],
    /,
    *,
    to: Annotated[str, Parameter(help="saeworks, saelens, dictionary_learning, sparsify, gemma_scope, …")],
    reading: ReadingFlags | None = None,
    json: JsonFlag = False,
) -> None:
    """Write a dictionary in another format; refused, with the reason, where that format cannot say the same.

    The copy is read again and compared before it is kept. Formats: docs/formats.md.
    """
    from saeworks.jobs.convert import convert as job

    done = job(source, destination, to, **(reading or ReadingFlags()).arguments())  # pyright: ignore[reportArgumentType]
    if json:
        return print_json(done)
    print_line(f"{done['source']} ({done['from']}) → {done['destination']} ({done['to']}): {', '.join(done['files'])}")
    print_line(f"Reconstructions differ by {done['difference']:.1e} at most, relative to the largest value.")
    return None
