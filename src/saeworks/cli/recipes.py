"""``saeworks recipes``: what can be trained, and where its settings come from."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from saeworks.cli.flags import JsonFlag
from saeworks.cli.output import print_json, print_line, print_table


def recipes(
    name: Annotated[str | None, Parameter(help="A recipe or a preset; without it, all are listed.")] = None,
    /,
    *,
    json: JsonFlag = False,
) -> None:
    """List recipes and published presets, or show every setting of one with its source."""
    from saeworks.jobs.recipes import recipes as job

    found = job(name)
    if json:
        return print_json(found)
    if name is None:
        print_table("Recipes (--recipe)", found["recipes"])
        print_table("Presets (--preset; their recipes alone with --recipe)", found["presets"])
        print_line("Every setting and its source: saeworks recipes NAME")
        return None
    print_line(found["about"])
    print_table("Run", found["run"])
    if found["recipes"] != [name]:
        print_line("Recipes: " + ", ".join(found["recipes"]) + " (saeworks recipes NAME shows one)")
    print_table("Recipe", found["settings"])
    return None
