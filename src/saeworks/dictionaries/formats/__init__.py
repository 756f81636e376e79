"""Reading and writing dictionaries. ``load`` finds out which format a path holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary


def load(
    path: str | Path,
    device: str = "cpu",
    *,
    sae_id: str | None = None,
    format: str | None = None,
    hints: Mapping[str, Any] | None = None,
) -> Dictionary:
    """Load a dictionary of any format that ``docs/formats.md`` lists, from disk or from the hub.

    Args:
        path: folder of a dictionary or its file of weights; where neither exists, ``owner/name/folder`` of the hub
            (``owner/name@revision/folder`` of one revision), or the name of a release.
        device: see :func:`saeworks.runtime.resolve_device`.
        sae_id: the name of one dictionary of the release ``path``; ``release:sae_id`` in ``path`` is the same.
        format: name of the format; None finds out. What was found stands in ``cfg.metadata["format"]``, except for
            our own files, and where it came from in ``cfg.metadata["origin"]``.
        hints: what some files do not say: ``model_name``, ``site``, ``site_out``, ``transcoder`` (true where an output
            as wide as the input is another site), ``norm_scaling_factor`` (of SAELens).

    Raises:
        InputError: the path does not exist, is not a dictionary, or is damaged; the sentence says which.
    """
    from saeworks.dictionaries.formats.registry import open_dictionary
    from saeworks.runtime import resolve_device

    where = resolve_device(device)
    return open_dictionary(str(path), sae_id, format, hints).to(where)


def save(dictionary: Dictionary, path: str | Path, format: str) -> float:
    """Write a dictionary in another format into the new folder ``path``, read it again and compare.

    Returns:
        The largest difference of reconstructions, relative to the largest value.

    Raises:
        InputError: the format cannot say exactly what the dictionary does, or ``path`` holds something already.
    """
    from saeworks.dictionaries.formats.registry import write

    return write(dictionary, Path(path).expanduser(), format).reconstruction
