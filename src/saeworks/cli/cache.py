"""``saeworks cache``: write activations to disk."""

from __future__ import annotations

from saeworks.cli.flags import CacheFlags, JsonFlag, given
from saeworks.cli.output import print_json, print_table


def cache(
    flags: CacheFlags | None = None,
    *,
    json: JsonFlag = False,
) -> None:
    """Harvest activations of one site into a store on disk, memory-mapped and readable at random."""
    from saeworks.jobs.cache import cache as job

    summary = job(given(flags), flags.config if flags else None)
    if json:
        return print_json(summary)
    print_table("Store", [summary])
    return None
