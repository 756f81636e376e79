"""Write a dictionary in another format, and prove that it still computes the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary

HINTS = ("model_name", "site", "site_out", "transcoder", "norm_scaling_factor")


def convert(
    source: str,
    destination: Path,
    to: str,
    sae_id: str | None = None,
    format: str | None = None,
    hints: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Read ``source`` (anything that :func:`saeworks.load` reads) and write it to ``destination`` as ``to``.

    What was written is read again and compared on tokens that make the latents active; a copy that computes something
    else is not kept.

    Returns:
        ``{"source", "destination", "from", "to", "files", "difference", "tokens", "dictionary"}``: ``difference`` is
        the largest one of reconstructions, relative to the largest value.

    Raises:
        InputError: what cannot be read, cannot be said exactly in the other format, or would overwrite something.
    """
    from saeworks.dictionaries.formats import load
    from saeworks.dictionaries.formats.registry import format_named, write

    format_named(to)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"'{destination}' exists already; choose another place, or remove it first.")
    dictionary = load(source, sae_id=sae_id, format=format, hints=known(hints))
    parity = write(dictionary, destination, to)
    return {
        "source": source if sae_id is None else f"{source}:{sae_id}",
        "destination": str(destination),
        "from": dictionary.cfg.metadata.get("format", "saeworks"),
        "to": to,
        "files": sorted(str(f.relative_to(destination)) for f in destination.rglob("*") if f.is_file()),
        "difference": parity.reconstruction,
        "tokens": parity.tokens,
        "dictionary": summary(dictionary),
    }


def known(hints: Mapping[str, Any] | None) -> dict[str, Any]:
    """The hints that were given (None means not)."""
    given = {key: value for key, value in (hints or {}).items() if value is not None}
    factor = given.get("norm_scaling_factor")
    if isinstance(factor, (int, float)) and not 0 < factor < math.inf:
        raise InputError(f"norm_scaling_factor is {factor:g}, but activations are multiplied by a positive number.")
    return given


def summary(dictionary: Dictionary) -> dict[str, Any]:
    """What a dictionary is, in one flat row: its architecture, sizes, and where it comes from."""
    cfg = dictionary.cfg
    kind = "transcoder" if cfg.d_out is not None else "crosscoder" if cfg.sources is not None else "autoencoder"
    return {
        "kind": kind,
        "architecture": cfg.architecture,
        "d_in": cfg.d_in,
        "d_out": cfg.output_width,
        "d_sae": cfg.d_sae,
        "k": cfg.k,
        "skip": cfg.skip,
        "input_op": cfg.input_op,
        "model": cfg.metadata.get("model_name"),
        "site": cfg.metadata.get("site"),
        "site_out": cfg.metadata.get("site_out") or cfg.metadata.get("target_site"),
        "origin": cfg.metadata.get("origin"),
    }
