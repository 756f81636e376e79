"""``saeworks verify``: is a dictionary what its files claim?"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from saeworks.cli.convert import ReadingFlags
from saeworks.cli.flags import JsonFlag
from saeworks.cli.output import print_json, print_line, print_table


def verify(
    path: Annotated[str, Parameter(help="Folder, file, owner/name/folder of the hub, or RELEASE:SAE_ID.")],
    /,
    *,
    model: Annotated[str | None, Parameter(help="Language model; the one that the files name when not given.")] = None,
    data: Annotated[list[str] | None, Parameter(consume_multiple=True, help="Texts to measure on.")] = None,
    text_column: Annotated[str, Parameter(help="Column that holds the text.")] = "text",
    tokens: Annotated[int, Parameter(help="Tokens to measure on.")] = 4096,
    context_length: Annotated[int, Parameter(help="Tokens per context.")] = 128,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    reading: ReadingFlags | None = None,
    json: JsonFlag = False,
) -> int:
    """Check a dictionary: norms of its directions, L0 and explained variance at its site and near it, its claims.

    Exit code 0 when nothing speaks against it, 1 when something does.
    """
    from saeworks.jobs.verify import Reading
    from saeworks.jobs.verify import verify as job

    texts = Reading(tuple(data or ("world",)), text_column, tokens, context_length)
    found = (reading or ReadingFlags()).arguments()
    report = job(path, model=model, reading=texts, device=device, **found)  # pyright: ignore[reportArgumentType]
    if json:
        print_json(report)
    else:
        print_table(f"{report['path']} ({report['format']})", [report["dictionary"]])
        print_table("Norms of directions", [report["decoder_norm"]])
        if report["measured"]:
            row = {key: report["measured"][key] for key in ("l0", "explained_variance", "tokens")}
            print_table("Measured", [row])
            print_table("Explained variance by site", [{"site": s, "value": v} for s, v in report["sites"].items()])
        for sentence in report["notes"]:
            print_line(f"Note: {sentence}")
        for sentence in report["problems"]:
            print_line(f"Problem: {sentence}")
        print_line("Nothing speaks against it." if report["ok"] else "It is not what its files claim.")
    return 0 if report["ok"] else 1
