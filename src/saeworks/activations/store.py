"""An activation store: a directory of safetensors shards and a manifest (see ``store_layout``), memory-mapped.

All shards but the last hold the same number of rows. Rows were shuffled within windows of several shards when they were
written (see ``store_writing``), so reading them in order gives well mixed batches at the speed of the disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from saeworks.activations.batches import ActivationBatch, Layout, concatenate
from saeworks.activations.store_layout import MANIFEST, PARTS, SCHEMA_VERSION, STATISTICS, UNFINISHED, read_header
from saeworks.activations.store_writing import write_store
from saeworks.errors import InputError
from saeworks.files import read_json, sha256_file, sha256_json
from saeworks.progress import progress

__all__ = ["ActivationStore", "write_store"]

OPEN_SHARDS = 64  # memory maps held at once: a store may have more shards than a process may have open files


class ActivationStore:
    """Random and sequential access to the rows of a store. Only the rows that are asked for are read from disk.

    Sizes and shapes of all shards are checked when the store is opened; contents by :meth:`verify`.

    Attributes:
        directory, manifest: where it lies and what it says of itself.
        width: floats per row.
        site: canonical site name.
        layout: what a row consists of. Rows of several sources are handed out as ``[row, width]`` by the store itself.
        dtype: how rows are stored; they are handed out as float32.

    Raises:
        InputError: no store there, one that was not finished, of a newer version, or with a missing or damaged shard.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest: dict[str, Any] = _read_manifest(self.directory)
        self.width = int(self.manifest["width"])
        self.site = str(self.manifest["site"])
        sources, widths = self.manifest.get("sources"), self.manifest.get("source_widths")
        self.layout = Layout(self.width, sources and tuple(sources), widths and tuple(widths))
        self.dtype: torch.dtype = getattr(torch, self.manifest["dtype"])
        self._rows_per_shard = int(self.manifest["shard_rows"])
        self._shards: list[dict[str, Any]] = list(self.manifest["shards"])
        self._count = int(self.manifest["count"])
        if sum(int(shard["rows"]) for shard in self._shards) != self._count:
            raise InputError(f"The manifest of '{self.directory}' contradicts itself; write the store again.")
        for shard in self._shards:
            self._check_size(shard)
        self._open: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: int | slice | Sequence[int] | npt.NDArray[np.int64] | Tensor) -> ActivationBatch:
        """The rows of the given indices, in the given order; negative ones count from the end.

        Raises:
            InputError: an index beyond the store.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self._count)
            if step == 1:
                return self.rows(start, max(start, stop))
            rows = list(range(start, stop, step))
        if isinstance(rows, int):
            rows = [rows]
        index = torch.as_tensor(rows, dtype=torch.int64).flatten()
        if index.numel() and not (-self._count <= int(index.min()) and int(index.max()) < self._count):
            bad = int(index.max()) if int(index.max()) >= self._count else int(index.min())
            raise InputError(f"Row {bad} was asked for, but the store '{self.directory}' has {self._count} rows.")
        index = torch.where(index < 0, index + self._count, index)
        batch = self._empty(index.numel())
        shards = index // self._rows_per_shard
        for number in shards.unique().tolist():
            where = (shards == number).nonzero()[:, 0]
            found = self._shard(number)
            inside = index[where] - number * self._rows_per_shard
            batch.activations[where] = found["acts"][inside].to(torch.float32)
            batch.token_ids[where] = found["token_id"][inside].to(torch.int64)
            batch.document_ids[where] = found["document_id"][inside].to(torch.int64)
            batch.positions[where] = found["position"][inside].to(torch.int64)
        return batch

    def rows(self, start: int, stop: int) -> ActivationBatch:
        """The contiguous rows ``start … stop − 1``: one sequential read per shard, copied."""
        if not 0 <= start <= stop <= self._count:
            raise InputError(f"Rows {start} to {stop} were asked for, but '{self.directory}' has {self._count} rows.")
        parts: list[ActivationBatch] = []
        while start < stop:
            number, inside = divmod(start, self._rows_per_shard)
            take = min(stop - start, self._rows_per_shard - inside)
            found = {name: part[inside : inside + take] for name, part in self._shard(number).items()}
            parts.append(
                ActivationBatch(
                    found["acts"].to(torch.float32, copy=True),
                    found["token_id"].to(torch.int64),
                    found["document_id"].to(torch.int64, copy=True),
                    found["position"].to(torch.int64),
                )
            )
            start += take
        return concatenate(parts) if parts else self._empty(0)

    def statistics(self) -> Mapping[str, Tensor]:
        """``mean [d]`` and ``m2 [d]`` (sum of squared deviations) over all stored rows, float64."""
        from safetensors.torch import load_file

        try:
            return load_file(self.directory / STATISTICS)
        except Exception as e:  # missing, truncated, another format: the library has its own exception for each
            raise InputError(f"'{self.directory / STATISTICS}' cannot be read ({e}); write the store again.") from e

    def fingerprint(self) -> str:
        """Digest of the contents, by the checksums of the manifest."""
        return sha256_json([self.manifest["config"], [shard["sha256"] for shard in self._shards]])

    def verify(self) -> None:
        """Read every byte and compare checksums; ``InputError`` naming the first shard that differs."""
        for shard in progress(None, "verify", unit="shard", iterable=self._shards):
            path = self.directory / str(shard["file"])
            if sha256_file(path) != shard["sha256"]:
                raise InputError(
                    f"Shard '{path.name}' of '{self.directory}' is damaged: its checksum differs from the manifest's. "
                    "Copy it again from where the store was made, or write the store again."
                )

    def _empty(self, count: int) -> ActivationBatch:
        ids = [torch.empty(count, dtype=torch.int64) for _ in range(3)]
        return ActivationBatch(torch.empty(count, self.width), *ids)

    def _check_size(self, shard: dict[str, Any]) -> None:
        path = self.directory / str(shard["file"])
        try:
            found = path.stat().st_size
        except FileNotFoundError as e:
            raise InputError(
                f"Shard '{path.name}' of '{self.directory}' is missing; copy it there, or write the store again."
            ) from e
        if found != int(shard["bytes"]):
            raise InputError(
                f"Shard '{path.name}' of '{self.directory}' has {found} bytes instead of {shard['bytes']}: it was cut "
                "short or changed. Copy it again, or write the store again."
            )
        parts = read_header(path)
        rows = int(shard["rows"])
        shapes = {name: parts[name].shape if name in parts else None for name in PARTS}
        expected = {"acts": (rows, self.width), "token_id": (rows,), "document_id": (rows,), "position": (rows,)}
        if shapes != expected or parts["acts"].dtype != self.dtype:
            raise InputError(
                f"Shard '{path.name}' of '{self.directory}' holds {shapes}, but the manifest promises {expected} in "
                f"{self.manifest['dtype']}; write the store again."
            )

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        path = self.directory / str(self._shards[number]["file"])
        # Copy-on-write: torch wants memory that it may write to, and the file stays as it is.
        whole = np.memmap(path, dtype=np.uint8, mode="c")
        parts: dict[str, Tensor] = {}
        for name, part in read_header(path).items():
            size = int(np.prod(part.shape)) * np.dtype(part.read).itemsize
            array = whole[part.offset : part.offset + size].view(part.read).reshape(part.shape)
            parts[name] = torch.from_numpy(array).view(part.dtype)
        self._open[number] = parts
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return parts


def _read_manifest(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise InputError(f"There is no activation store at '{directory}': no such directory.")
    if not (directory / MANIFEST).is_file():
        if (directory / UNFINISHED).is_file():
            raise InputError(
                f"The activation store '{directory}' is not finished; run the command that writes it again with resume."
            )
        raise InputError(f"'{directory}' is no activation store: it has no {MANIFEST}.")
    manifest = read_json(directory / MANIFEST)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None  # pyright: ignore[reportUnknownMemberType]
    if version != SCHEMA_VERSION:
        raise InputError(
            f"The activation store '{directory}' has layout version {version}; this version reads {SCHEMA_VERSION}. "
            "Write the store again, or use the version of saeworks that wrote it."
        )
    return manifest
