"""Where text comes from: the embedded world, local files, or a hub dataset, all behind one ``TextSource``.

A source is read by document index: ``documents(start)`` yields document ``start``, ``start + 1``, … of one pass, so
that an index is all a reader needs to remember. The corpus is never held in memory.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from saeworks.errors import InputError, did_you_mean
from saeworks.files import sha256_json
from saeworks.world.documents import Document

WORLD_SPLITS = ("train", "validation", "probe_train", "probe_test")
FILE_SPLITS = ("train", "validation", "all")
HELD_OUT_PERCENT = 5


class TextSource(ABC):
    """A sequence of documents, read in order from any index; one pass, unless the source is endless.

    Attributes:
        name: what a person would call it, for messages and provenance.
        skipped_empty: rows without text met so far; they have no index.
    """

    name: str = ""
    skipped_empty: int = 0

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Number of documents; None when the source is endless, or not yet read to its end."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest that changes whenever any document of the source could change."""

    @abstractmethod
    def documents(self, start: int = 0, limit: int | None = None) -> Iterator[Document]:
        """Yield documents ``start``, ``start + 1``, …: at most ``limit`` of them, to the end of the pass otherwise."""


def open_texts(
    data: Sequence[str] = ("world",),
    text_column: str = "text",
    label_column: str | None = None,
    split: str = "train",
    seed: int = 0,
    spurious_label_column: str | None = None,
) -> TextSource:
    """Open texts by name.

    Args:
        data: all of one kind. ``world`` (the mixture of domains) or ``world:DOMAIN``; several take turns.
            ``world:DOMAIN?spurious=LABEL:STRENGTH`` plants a correlation between the domain's labels.
            Local ``.txt``, ``.jsonl``/``.json`` (one object a line), ``.csv``, ``.tsv``, ``.parquet`` files,
            directories of these, or one written by ``Dataset.save_to_disk``; several are read one after another.
            Otherwise a hub dataset, ``owner/name``, ``owner/name:config`` or ``owner/name@revision``, streamed.
        text_column: column (or JSON key) that holds the text. Plain text files have none.
        label_column: column whose value goes to ``Document.labels["label"]``; for the world, the name of a label.
            A document that lacks it has no ``"label"``.
        split: ``train`` or ``validation`` (for the world also ``probe_train`` and ``probe_test``; for files also
            ``all``). Files and hub datasets without a validation split of their own hold out 5 % of their documents,
            chosen by a hash of the text: a repeated text never lies on both sides.
        seed: seed of the world's generator; other texts keep their order.
        spurious_label_column: the same for ``Document.labels["spurious_label"]``; where a correlation is planted in
            the world, its label when not given.

    Lines of JSON may bring ``labels``, an object, and ``spans``, a list of ``[start, end, concept]``, as
    ``saeworks world sample --out`` writes them; such a text is kept to the character, others are stripped.

    Raises:
        InputError: a file that is missing, empty, binary, or lacks the column; an unknown domain, split or dataset.
    """
    items = [data] if isinstance(data, str) else list(data)
    if not items:
        raise InputError("No text was named; give 'world', a file, a directory or a hub dataset.")
    kinds = {item: _kind(item) for item in items}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"'{item}' ({kind})" for item, kind in kinds.items())
        raise InputError(f"Texts of different kinds cannot be read as one source: {listed}; name texts of one kind.")
    kind = kinds[items[0]]
    _check_split(split, WORLD_SPLITS if kind == "world" else FILE_SPLITS, items[0])
    if kind == "world":
        from saeworks.activations.world_texts import WorldTexts

        return WorldTexts(items, split, seed, label_column, spurious_label_column)
    if kind == "file":
        from saeworks.activations.text_files import FileTexts

        paths = [Path(item).expanduser() for item in items]
        return FileTexts(paths, text_column, label_column, split, spurious_label_column)
    from saeworks.activations.text_datasets import open_dataset

    if len(items) > 1:
        raise InputError(f"One dataset can be streamed at a time, but {len(items)} were named: {', '.join(items)}.")
    return open_dataset(items[0], text_column, label_column, split, spurious_label_column)


def in_split(text: str, split: str) -> bool:
    """Whether a document of a local file belongs to ``split``: decided by its text alone, ``validation`` gets 5 %."""
    if split == "all":
        return True
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    held_out = int.from_bytes(digest, "little") % 100 < HELD_OUT_PERCENT
    return held_out == (split == "validation")


def without_surrogates(text: str) -> str:
    """Text that is Unicode: halves of surrogate pairs, which JSON can hold and no tokenizer reads, become U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class ListTexts(TextSource):
    """Documents already in memory (or bare strings): for tests, notebooks and small evaluation sets."""

    def __init__(self, documents: Sequence[Document | str], name: str = "a list") -> None:
        self.name = name
        given = [Document(text=item) if isinstance(item, str) else item for item in documents]
        self._documents = [replace(d, text=without_surrogates(d.text)) for d in given if d.text.strip()]
        self.skipped_empty = len(given) - len(self._documents)
        if not self._documents:
            raise InputError(f"{name} holds no text: {len(given)} documents were given, all of them empty.")

    @property
    def size(self) -> int | None:
        """Number of documents with text."""
        return len(self._documents)

    def fingerprint(self) -> str:
        """Digest of all texts and labels."""
        return sha256_json(["list", [[item.text, item.labels] for item in self._documents]])

    def documents(self, start: int = 0, limit: int | None = None) -> Iterator[Document]:
        """Yield a slice of the list."""
        yield from islice(self._documents, start, None if limit is None else start + limit)


def _kind(item: str) -> str:
    if item == "world" or item.startswith("world:"):
        return "world"
    path = Path(item).expanduser()
    try:
        found = path.exists()
    except OSError as e:
        raise InputError(f"'{item[:80]}…' is no name of a file or dataset ({e.strerror}); give one of these.") from e
    if found:
        from saeworks.activations.text_datasets import is_saved_dataset

        return "dataset" if is_saved_dataset(path) else "file"
    from saeworks.activations.text_files import SUFFIXES

    looks_local = path.suffix.lower() in SUFFIXES or item.startswith((".", "/", "~", "\\")) or item.count("/") > 1
    if looks_local or "\\" in item:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"The file '{item}' does not exist.{did_you_mean(path.name, siblings) if siblings else ''}")
    if item.lower().startswith("worl"):
        raise InputError(f"'{item}' is not a text source; the embedded world is called 'world' or 'world:DOMAIN'.")
    return "dataset"


def _check_split(split: str, known: Sequence[str], item: str) -> None:
    if split not in known:
        raise InputError(f"'{item}' has no split '{split}'.{did_you_mean(split, known)}")
