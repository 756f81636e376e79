"""Writing an activation store, resumable: a write killed at any moment goes on to the same bytes.

Rows are collected into a window of several shards, shuffled there, and written shard by shard; what decides a window
(where it starts in the text, the running statistics) is on disk before its first shard is. After a kill the unfinished
window is harvested again: shards of finished windows, and shards of this one that are whole, are not written again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from saeworks.activations.batches import ActivationBatch
from saeworks.activations.buffered import Harvesting
from saeworks.activations.harvest import Harvestable, Harvester
from saeworks.activations.store_layout import MANIFEST, SCHEMA_VERSION, STATISTICS, UNFINISHED, shard_name
from saeworks.activations.texts import TextSource
from saeworks.errors import InputError, RunError
from saeworks.files import atomic_write_bytes, read_json, sha256_bytes, sha256_file, sha256_json, write_json
from saeworks.progress import progress
from saeworks.runtime import generator, resolve_dtype

MASK_RULE = "keep: padding and special tokens dropped"


def write_store(
    model: Harvestable,
    source: TextSource,
    site: str,
    tokens: int,
    directory: str | Path,
    *,
    context_length: int = 128,
    dtype: str = "bfloat16",
    shard_rows: int = 65536,
    window_shards: int = 4,
    harvest_batch_size: int = 64,
    max_norm_ratio: float | None = None,
    seed: int = 0,
    resume: bool = False,
) -> Path:
    """Harvest ``tokens`` rows of one pass over ``source`` and store them. Returns the directory.

    Args:
        tokens: rows to store; fewer, with a warning, when the texts end before.
        directory: new, empty, or (with ``resume``) an unfinished store written with the same arguments.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        shard_rows: rows of a shard.
        window_shards: shards whose rows are shuffled together. Memory: ``shard_rows × window_shards`` stored rows.
        resume: go on with an unfinished store; a finished one with the same arguments is left as it is.

    Raises:
        InputError: a directory with something else in it, an unfinished store without ``resume``, or one that was begun
            with other arguments; whatever harvesting raises.
        RunError: not enough space on the disk, before or while writing.
    """
    if tokens < 1 or shard_rows < 1 or window_shards < 1:
        raise InputError(
            f"tokens {tokens}, shard_rows {shard_rows} and window_shards {window_shards} must all be at least 1."
        )
    harvester = Harvester(model, source, site, context_length, harvest_batch_size, seed, max_norm_ratio)
    config: dict[str, Any] = {
        "model": model.name,
        "model_fingerprint": model.fingerprint(),
        "tokenizer_sha256": tokenizer_digest(model.tokenizer),
        "site": harvester.site,
        "text": source.name,
        "text_fingerprint": source.fingerprint(),
        "context_length": context_length,
        "mask_rule": MASK_RULE,
        "max_norm_ratio": max_norm_ratio,
        "requested_tokens": tokens,
        "dtype": dtype,
        "shard_rows": shard_rows,
        "window_shards": window_shards,
        "harvest_batch_size": harvest_batch_size,
        "seed": seed,
    }
    return write_rows(harvester, source.name, config, directory, resume)


class Storable(Harvesting, Protocol):
    """Rows in one vector per token, whose state holds ``statistics``."""


def write_rows(rows: Storable, name: str, config: dict[str, Any], directory: str | Path, resume: bool = False) -> Path:
    """Store one pass of whatever harvests rows ``[token, width]``; see :func:`write_store`.

    Args:
        rows: where they come from. name: of the texts, for messages.
        config: what decides the rows, with ``model``, ``model_fingerprint``, ``site``, ``requested_tokens``, ``dtype``,
            ``shard_rows``, ``window_shards`` and ``seed``.
    """
    where, tokens = Path(directory), int(config["requested_tokens"])
    writer = _Writer(where, rows, name, config, resolve_dtype(str(config["dtype"])))
    if _prepare(where, config, resume):
        return where
    _check_space(where, tokens, rows.width, writer.dtype)
    writer.resume_or_start()
    writer.run(tokens)
    return where


@dataclass
class Moments:
    """Count, mean and squared deviations per dimension, and sums of norms: all float64, merged block by block."""

    mean: Tensor
    m2: Tensor
    count: int = 0
    norm: float = 0.0
    square: float = 0.0
    fourth: float = 0.0

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Of no rows."""
        return cls(torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    def add(self, rows: Tensor) -> None:
        """Take in ``[row, d]``, block by block, by the pairwise update of Chan, Golub and LeVeque (1979)."""
        for block in rows.split(4096):
            self._add(block.to(torch.float64))

    def _add(self, block: Tensor) -> None:
        count, mean = block.shape[0], block.mean(0)
        delta, total = mean - self.mean, self.count + count
        self.m2 += ((block - mean) ** 2).sum(0) + delta**2 * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total
        squares = (block**2).sum(1)
        self.norm += float(squares.sqrt().sum())
        self.square += float(squares.sum())
        self.fourth += float((squares**2).sum())


@dataclass
class _Writer:
    directory: Path
    harvester: Storable
    name: str
    config: dict[str, Any]
    dtype: torch.dtype
    shards: list[dict[str, Any]] = field(default_factory=list)
    skip: int = 0  # rows of the next harvest batch that belong to an earlier window
    moments: Moments = field(init=False)

    def __post_init__(self) -> None:
        self.moments = Moments.empty(self.harvester.width)

    def resume_or_start(self) -> None:
        """Read the place of the unfinished window, or note the first one."""
        for left in self.directory.glob(".*.tmp"):
            left.unlink()  # half a file of a killed run
        path = self.directory / UNFINISHED
        if not path.is_file():
            self._note_place(self.harvester.state_dict(), 0)
            return
        tensors, state = read_unfinished(path)
        self.harvester.load_state_dict(state["harvester"])
        self.skip, self.shards = int(state["skip"]), list(state["shards"])
        self.moments = Moments(tensors["mean"], tensors["m2"], **state["sums"])
        for shard in self.shards:
            file = self.directory / str(shard["file"])
            if not file.is_file() or sha256_file(file) != shard["sha256"]:
                raise InputError(
                    f"Shard '{file.name}' of the unfinished store '{self.directory}' is missing or damaged; "
                    "delete the directory and write the store again."
                )

    def run(self, tokens: int) -> None:
        """Window after window to the end, then the manifest."""
        window_rows = int(self.config["shard_rows"]) * int(self.config["window_shards"])
        batches = _remember(self.harvester)
        rest: tuple[ActivationBatch, dict[str, Any]] | None = None
        with progress(tokens, "store", unit="tok", initial=self.moments.count) as bar:
            while self.moments.count < tokens:
                want = min(window_rows, tokens - self.moments.count)
                window, filled, rest = self._collect(want, batches, rest, bar)
                if filled:
                    self._write_window({name: part[:filled] for name, part in window.items()})
                if filled < want:
                    break
                # The next window starts inside the batch that was split, or with the batch that comes next.
                self._note_place(rest[1] if rest else self.harvester.state_dict(), self.skip)
        if self.moments.count == 0:
            raise InputError(f"The text '{self.name}' gave no usable token; nothing was stored.")
        if self.moments.count < tokens:
            warnings.warn(
                f"The text '{self.name}' ended after {self.moments.count} of {tokens} tokens; the store holds these.",
                stacklevel=3,
            )
        self._finish()

    def _collect(
        self,
        want: int,
        batches: Iterator[tuple[ActivationBatch, dict[str, Any]]],
        rest: tuple[ActivationBatch, dict[str, Any]] | None,
        bar: Any,
    ) -> tuple[dict[str, Tensor], int, tuple[ActivationBatch, dict[str, Any]] | None]:
        """Fill one window. Returns its parts, the rows filled, and a batch that was only partly used."""
        window = {
            "acts": torch.empty(want, self.harvester.width, dtype=self.dtype),
            "token_id": torch.empty(want, dtype=torch.int32),
            "document_id": torch.empty(want, dtype=torch.int64),
            "position": torch.empty(want, dtype=torch.int32),
        }
        filled = 0
        while filled < want:
            found = rest if rest is not None else next(batches, None)
            rest = None
            if found is None:
                break
            batch, before = found
            take = min(want - filled, len(batch) - self.skip)
            rows = slice(self.skip, self.skip + take)
            into = slice(filled, filled + take)
            window["acts"][into] = batch.activations[rows].to("cpu", self.dtype)
            window["token_id"][into] = batch.token_ids[rows].to(torch.int32)
            window["document_id"][into] = batch.document_ids[rows]
            window["position"][into] = batch.positions[rows].to(torch.int32)
            filled += take
            bar.update(take)
            if self.skip + take < len(batch):
                self.skip, rest = self.skip + take, (batch, before)
            else:
                self.skip = 0
        return window, filled, rest

    def _write_window(self, window: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        rows, size = window["acts"].shape[0], int(self.config["shard_rows"])
        first = len(self.shards)
        order = torch.randperm(rows, generator=generator(int(self.config["seed"]), "window", first))
        for start in range(0, rows, size):
            chosen = order[start : start + size]
            parts = {name: part[chosen].contiguous() for name, part in window.items()}
            self.moments.add(parts["acts"])
            data = save(parts)
            entry = {"file": shard_name(len(self.shards)), "rows": len(chosen), "bytes": len(data)}
            entry["sha256"] = hashlib.sha256(data).hexdigest()
            path = self.directory / str(entry["file"])
            if not (path.is_file() and path.stat().st_size == len(data) and sha256_file(path) == entry["sha256"]):
                atomic_write_bytes(path, data)
            self.shards.append(entry)

    def _note_place(self, harvester: dict[str, Any], skip: int) -> None:
        from safetensors.torch import save

        moments = self.moments
        sums = {"count": moments.count, "norm": moments.norm, "square": moments.square, "fourth": moments.fourth}
        state = {
            "config": self.config,
            "harvester": harvester,
            "skip": skip,
            "shards": self.shards,
            "sums": sums,
        }
        # One file, so that tensors and place can never disagree after a kill.
        data = save({"mean": moments.mean, "m2": moments.m2}, metadata={"state": json.dumps(state)})
        atomic_write_bytes(self.directory / UNFINISHED, data)

    def _finish(self) -> None:
        from safetensors.torch import save

        moments = self.moments
        count = moments.count
        atomic_write_bytes(self.directory / STATISTICS, save({"mean": moments.mean, "m2": moments.m2}))
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "kind": "activation_store",
            **{name: self.config[name] for name in ("model", "model_fingerprint", "site", "dtype", "shard_rows")},
            "width": self.harvester.width,
            "sources": self.harvester.layout.sources,
            "source_widths": self.harvester.layout.source_widths,
            "count": count,
            "mean_norm": moments.norm / count,
            "mean_square_norm": moments.square / count,
            "mean_fourth_power_norm": moments.fourth / count,
            "statistics": STATISTICS,
            "harvest": dict(self.harvester.state_dict()["statistics"]),
            "config": self.config,
            "shards": self.shards,
        }
        write_json(self.directory / MANIFEST, manifest)
        (self.directory / UNFINISHED).unlink(missing_ok=True)


def read_unfinished(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of an unfinished store."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("mean", "m2")}
            return tensors, json.loads(file.metadata()["state"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
        raise InputError(f"'{path}' is damaged ({e}); delete '{path.parent}' and write the store again.") from e


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of a tokenizer's full definition (its vocabulary, where it gives nothing more)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return sha256_bytes(backend.to_str().encode()) if backend is not None else sha256_json(tokenizer.get_vocab())


def _remember(harvester: Storable) -> Iterator[tuple[ActivationBatch, dict[str, Any]]]:
    """Batches of one pass, each with the state from which it can be harvested again."""
    before = harvester.state_dict()
    for batch in harvester.batches(epochs=1):
        yield batch, before
        before = harvester.state_dict()


def _prepare(directory: Path, config: dict[str, Any], resume: bool) -> bool:
    """Whether the store is finished already; ``InputError`` unless the directory is fit to write to."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"'{directory}' is a file; an activation store is a directory, so choose another name.")
    # Half a file is all that a kill before the first note of the place leaves behind.
    if not directory.exists() or all(file.match(".*.tmp") for file in directory.iterdir()):
        return False
    if (directory / MANIFEST).is_file():
        found: dict[str, Any] = read_json(directory / MANIFEST).get("config", {})
        if not resume:
            raise InputError(f"'{directory}' holds a finished activation store; choose another directory or delete it.")
    elif (directory / UNFINISHED).is_file():
        if not resume:
            raise InputError(
                f"'{directory}' holds an unfinished activation store; go on with resume, or delete the directory."
            )
        found = read_unfinished(directory / UNFINISHED)[1]["config"]
    else:
        raise InputError(f"'{directory}' is not empty and holds no activation store; choose another directory.")
    # Names of model and text may be written in several ways; their fingerprints say whether they are the same.
    names = (config.keys() | found.keys()) - {"model", "text"}
    different = sorted(name for name in names if config.get(name) != found.get(name))
    if different:
        shown = ", ".join(f"{name} ({found.get(name)} there, {config.get(name)} now)" for name in different[:3])
        raise InputError(
            f"The store in '{directory}' was begun with other settings: {shown}; use these or another directory."
        )
    return (directory / MANIFEST).is_file()


def _check_space(directory: Path, tokens: int, width: int, dtype: torch.dtype) -> None:
    row = width * dtype.itemsize + 16
    # Shards that are on disk already need no new space.
    present = sum(file.stat().st_size for file in directory.glob("shard-*")) if directory.is_dir() else 0
    needed = int(tokens * row * 1.01) + (1 << 20) - present
    existing = next(parent for parent in [directory.absolute(), *directory.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise RunError(
            f"Storing {tokens:,} tokens of width {width} in '{directory}' takes {needed / 1e9:.1f} GB, but the disk "
            f"has {free / 1e9:.1f} GB free; store fewer tokens, a narrower dtype, or choose another directory."
        )
