"""The one result file: the fields of SAEBench's JSON envelope, plus what makes a number citable.

A result is one JSON file per (eval, dictionary). Numbers that would be NaN or infinite are written as ``null``
(SAEBench writes -1, which a reader cannot tell from a measured -1). Arrays with one entry per latent go to a
safetensors file beside the JSON, named in ``details_file``, so that a dictionary with a million latents still has
a result file of a few kilobytes.
"""

from __future__ import annotations

import math
import platform
import re
import time
import uuid
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from saeworks.errors import InputError
from saeworks.files import atomic_write_bytes, read_json, sha256_bytes, write_json
from saeworks.version import __version__

SCHEMA_VERSION = 1
SUFFIX = "_eval_results.json"

Metrics = dict[str, dict[str, float | int | None]]
Arrays = dict[str, NDArray[Any]]


class Result(BaseModel):
    """One eval of one dictionary.

    ``eval_result_metrics`` is category → flat record of numbers; ``ci95`` maps ``category.metric`` to the two ends of
    its 95 % interval; ``n`` is the number of units measured (tokens for core and latents, texts for probing);
    ``definition_id`` names the version of the metric definitions (see docs/metrics.md); ``provenance`` holds content
    hashes of dictionary, model and data, library versions, and the time. Files without our additions, as SAEBench
    writes them, are read too: the additions then have their defaults.
    """

    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=True)

    eval_type_id: str
    eval_config: dict[str, Any]
    eval_id: str = Field(default_factory=lambda: str(uuid.uuid4()))
    datetime_epoch_millis: int = Field(default_factory=lambda: int(time.time() * 1000))
    eval_result_metrics: Metrics
    eval_result_details: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    sae_bench_commit_hash: str = f"saeworks {__version__}"
    sae_lens_id: str | None = None
    sae_lens_release_id: str | None = None
    sae_lens_version: str | None = None
    sae_cfg_dict: dict[str, Any] | None = None
    eval_result_unstructured: Any = None

    tool_version: str = __version__
    seed: int | None = None
    n: int | None = None
    ci95: dict[str, tuple[float, float] | None] = Field(default_factory=dict[str, "tuple[float, float] | None"])
    provenance: dict[str, Any] = Field(default_factory=dict[str, Any])
    definition_id: str = ""
    schema_version: int = SCHEMA_VERSION
    details_file: str | None = None

    _arrays: Arrays = PrivateAttr(default_factory=dict)
    _path: Path | None = PrivateAttr(default=None)

    @property
    def path(self) -> Path | None:
        """Where the result was read from or written to."""
        return self._path

    def metric(self, category: str, name: str) -> float | None:
        """The number, or None where it is absent or null."""
        value = self.eval_result_metrics.get(category, {}).get(name)
        return None if value is None else float(value)

    def attach(self, arrays: Mapping[str, NDArray[Any]]) -> Result:
        """Keep ``arrays`` with the result; :meth:`write` stores them in the side file."""
        self._arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        return self

    def arrays(self) -> Arrays:
        """The arrays of the side file (read on first use); empty when there is none or it is gone."""
        if not self._arrays and self.details_file and self._path:
            file = self._path.parent / Path(self.details_file).name
            if file.is_file():
                from safetensors.numpy import load_file

                self._arrays = load_file(file)
        return self._arrays

    def write(self, directory: Path) -> Path:
        """Write ``directory/EVAL/ID_eval_results.json`` (and the side file before it); return the JSON's path."""
        target = result_path(directory, self.eval_type_id, self.sae_lens_id or "custom_sae")
        if self._arrays:
            from safetensors.numpy import save

            side = target.with_name(target.name.removesuffix(".json") + "_details.safetensors")
            atomic_write_bytes(side, save(self._arrays))
            self.details_file = side.name
        write_json(target, without_nan(self.model_dump(mode="python")))
        self._path = target
        return target


# Bytes of a name that its file keeps; systems allow 255 for the whole.
LONGEST_NAME = 200


def result_path(directory: Path, eval_type: str, name: str) -> Path:
    """Where the result of one eval on one dictionary lives, another place for every name.

    Characters that are unsafe in file names become ``_``, and what is too long is cut; such a name then ends in ``~``
    and a digest of what it was, since several names could become one. ``~`` is unsafe, so no other name ends like that.
    """
    safe = re.sub(r"[^\w.=+-]", "_", name).encode("utf-8")[:LONGEST_NAME].decode("utf-8", "ignore")
    if safe != name:
        safe += "~" + sha256_bytes(name.encode("utf-8", "surrogatepass"))[:8]
    return Path(directory) / eval_type / (safe + SUFFIX)


def read_result(path: Path) -> Result:
    """Read one result file; ``InputError`` naming the file and field when it is not one."""
    value = read_json(path)
    try:
        result = Result.model_validate(value)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"'{path}' is not a result file: {where}: {first['msg']}; remove it or run the eval again."
        ) from e
    result._path = Path(path)  # pyright: ignore[reportPrivateUsage]
    return result


def read_results(directory: Path) -> list[Result]:
    """All results below ``directory``, ordered by path. An absent directory gives an empty list."""
    return [read_result(path) for path in sorted(Path(directory).rglob(f"*{SUFFIX}"))]


def without_nan(value: Any) -> Any:
    """A JSON value in which NaN and infinities are None; numpy scalars and arrays become plain numbers and lists."""
    if isinstance(value, Mapping):
        return {str(k): without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    if isinstance(value, np.ndarray):
        return without_nan(value.tolist())
    if isinstance(value, np.generic):
        return without_nan(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def provenance(**hashes: str | None) -> dict[str, Any]:
    """Content hashes by name, versions of what computed the numbers, and the UTC time."""
    versions: dict[str, str] = {"python": platform.python_version(), "saeworks": __version__}
    for package in ("torch", "transformers", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "hashes": {name: value for name, value in hashes.items() if value},
        "versions": versions,
        "platform": platform.system().lower() + "-" + platform.machine(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
