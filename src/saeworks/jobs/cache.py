"""Write the activations of one site to a store on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeworks.jobs.config import CacheConfig, resolve
from saeworks.jobs.inputs import choose_site, open_model, open_source


def cache(overrides: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """Harvest ``tokens`` activations into ``out`` and return ``{"out", "site", "width", "tokens", "bytes", …}``.

    One pass over the texts: a source that ends early gives a smaller store. Raises ``InputError`` when ``out`` is not
    fit to write to, and ``RunError`` when the disk cannot hold the store.
    """
    from saeworks.activations.store import ActivationStore
    from saeworks.activations.store_writing import write_store

    started = time.monotonic()
    config = resolve(CacheConfig, overrides, file)
    model = open_model(config)
    site = choose_site(model, config.site)
    written = write_store(
        model,
        open_source(config),
        site,
        config.tokens,
        config.out,
        context_length=config.context_length,
        dtype=config.store_dtype,
        harvest_batch_size=config.harvest_batch_size,
        seed=config.seed,
        resume=config.resume,
    )
    return {
        "out": str(written),
        "site": site,
        "width": model.site(site).width,
        "tokens": len(ActivationStore(written)),
        "bytes": sum(part.stat().st_size for part in written.rglob("*") if part.is_file()),
        "seconds": round(time.monotonic() - started, 2),
    }
