"""``saeworks papers``: reproductions of papers, claim by claim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from saeworks.cli.flags import JsonFlag
from saeworks.cli.output import print_json, print_line, print_table


def papers(
    name: Annotated[str | None, Parameter(help="A paper; without it, all are listed.")] = None,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Directory to write; runs/papers/NAME when not given.")] = None,
    seeds: Annotated[int | None, Parameter(help="Number of seeds; the paper's default when not given.")] = None,
    quick: Annotated[bool, Parameter(help="Shorter runs, within three minutes; their verdicts are their own.")] = False,
    json: JsonFlag = False,
) -> None:
    """List the papers that are reproduced, or run one and hold its claims against what was measured.

    What --out already holds is continued, or only read.
    """
    from saeworks.papers.index import PAPERS, reproduce

    if name is None:
        rows = [
            {"paper": p.name, "title": p.title, "source": p.source, "what is run": p.about} for p in PAPERS.values()
        ]
        if json:
            return print_json({"papers": rows})
        print_table("Papers", rows)
        print_line("Run one with: saeworks papers NAME")
        return None
    directory = out or Path("runs", "papers", f"{name}-quick" if quick else name)
    reproduction = reproduce(name, directory, seeds, quick)
    if json:
        return print_json({"out": str(directory), **reproduction.as_json()})
    print_table(f"{reproduction.title} ({reproduction.source})", reproduction.rows())
    print_line(f"{reproduction.summary()}. Rules, notes and tables: {directory / 'claims.md'}")
    return None
