"""Texts read through the ``datasets`` library: streamed from the hub, or saved to disk by ``save_to_disk``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saeworks.activations.text_rows import Columns, labels_of, text_of
from saeworks.activations.texts import TextSource, in_split
from saeworks.errors import InputError, did_you_mean
from saeworks.files import sha256_file, sha256_json
from saeworks.models.hub import offline_unless_reachable, quiet_hub_client
from saeworks.world.documents import Document


class DatasetTexts(TextSource):
    """Documents of one split of a dataset, in its own order.

    ``rows`` is a ``datasets.Dataset`` or ``IterableDataset``. ``hashed_split`` is ``all`` when the dataset brings the
    split itself, else the part of the hash split to keep (5 % held out).
    """

    def __init__(self, rows: Any, name: str, columns: Columns, hashed_split: str, identity: list[Any]) -> None:
        self.name = name
        self._rows, self._columns, self._hashed = rows, columns, hashed_split
        self._identity = identity
        self._size: int | None = None
        self._furthest = -1
        names: list[str] | None = rows.column_names
        if names is not None:
            for column in (columns.text, *columns.labels.values()):
                if column not in names:
                    raise InputError(f"The dataset '{name}' has no column '{column}'.{did_you_mean(column, names)}")

    @property
    def size(self) -> int | None:
        """Number of documents, once a pass has reached the end; None before."""
        return self._size

    def fingerprint(self) -> str:
        """Digest of the dataset's identity (content hash of files on disk, ``repository@revision`` on the hub)."""
        asked = [self._columns.text, self._columns.label, self._hashed]
        asked += [self._columns.spurious] if self._columns.spurious else []
        return sha256_json(["dataset", self._identity, *asked])

    def documents(self, start: int = 0, limit: int | None = None) -> Iterator[Document]:
        """Documents from index ``start``. Earlier rows are passed over without tokenising them."""
        stop = None if limit is None else start + limit
        index = 0
        if stop is not None and stop <= start:
            return
        for row, fields in enumerate(self._iterate()):
            where = f"The dataset '{self.name}', row {row}"
            column = self._columns.text
            if column not in fields:
                raise InputError(f"{where} has no column '{column}'.{did_you_mean(column, fields)}")
            text = text_of(fields[column], where, column)
            if not text:
                if row > self._furthest:
                    self._furthest, self.skipped_empty = row, self.skipped_empty + 1
                continue
            if not in_split(text, self._hashed):
                continue
            if index >= start:
                yield Document(text=text, labels=labels_of(fields, where, self._columns), id=f"{self.name}:{row}")
            index += 1
            if stop is not None and index >= stop:
                return
        self._size = index
        if index == 0:
            raise InputError(f"The dataset '{self.name}' holds no text for the split asked for; every row is empty.")

    def _iterate(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._rows
        except (OSError, ConnectionError) as e:
            raise InputError(_unreachable(self.name, e)) from e


def is_saved_dataset(path: Path) -> bool:
    """Whether a directory was written by ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``."""
    return path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file())


def open_dataset(
    item: str, text_column: str, label_column: str | None, split: str, spurious_label_column: str | None = None
) -> DatasetTexts:
    """Open a saved dataset directory, or stream ``owner/name[:config][@revision]`` from the hub.

    Raises:
        InputError: ``datasets`` is not installed, the dataset cannot be reached, or it has neither split nor column.
    """
    try:
        import datasets
    except ImportError as e:
        raise InputError(f"Reading the dataset '{item}' needs the datasets library; install saeworks[hf].") from e
    path = Path(item).expanduser()
    if is_saved_dataset(path):
        files = sorted(path.rglob("*.arrow"))
        identity: list[Any] = [sha256_file(file) for file in files]
        try:
            loaded: Any = datasets.load_from_disk(str(path))
        except Exception as e:  # the library raises many kinds for a damaged directory
            raise InputError(f"The saved dataset '{item}' cannot be read ({_first_line(e)}); save it again.") from e
    else:
        bare, _, revision = item.partition("@")
        repository, _, config = bare.partition(":")
        try:
            with quiet_hub_client(), offline_unless_reachable():
                loaded = datasets.load_dataset(repository, config or None, revision=revision or None, streaming=True)
        except Exception as e:  # connection, permission, unknown name: the library raises many kinds
            raise InputError(_unreachable(item, e)) from e
        identity = [f"{repository}@{_commit(loaded, revision)}", config]
    rows, hashed = _choose_split(loaded, item, split)
    return DatasetTexts(rows, item, Columns(text_column, label_column, spurious_label_column), hashed, identity)


def _choose_split(loaded: Any, item: str, split: str) -> tuple[Any, str]:
    """The rows to read and the part of the hash split to keep of them."""
    if not isinstance(loaded, dict):
        return loaded, split
    parts: dict[str, Any] = loaded  # pyright: ignore[reportUnknownVariableType]
    if split in parts and (split == "validation" or "validation" in parts):
        return parts[split], "all"
    if "train" in parts:
        return parts["train"], split
    if len(parts) == 1:
        return next(iter(parts.values())), split
    raise InputError(
        f"The dataset '{item}' has no split 'train'; it has {', '.join(parts)}, of which none can be chosen."
    )


def _commit(loaded: Any, revision: str) -> str:
    """The commit that was resolved, where the library tells it; else the revision asked for."""
    part: Any = next(iter(loaded.values())) if isinstance(loaded, dict) else loaded  # pyright: ignore[reportUnknownArgumentType]
    sums: Any = getattr(getattr(part, "info", None), "download_checksums", None) or {}
    for address in map(str, sums):
        _, found, commit = address.partition("@")
        if found:
            return commit.partition("/")[0]
    return revision or "main"


def _unreachable(item: str, error: Exception) -> str:
    return (
        f"The dataset '{item}' could not be opened from the hub ({_first_line(error)}), and no local file or directory "
        "has this name; check name and connection, or give a local file, or a directory saved with save_to_disk."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines()[0][:160] if text else type(error).__name__).rstrip(".")
