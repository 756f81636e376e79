"""Local text files: plain text, JSON lines, CSV, TSV and Parquet, streamed one document at a time.

Plain text: blocks between blank lines are documents; when the first mebibyte has no blank line between two lines of
text, every line is one. All text is UTF-8 with or without a byte-order mark; line ends may be LF or CRLF.
"""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from saeworks.activations.text_rows import Columns, Label, clean, exactly, labels_of, own_labels, spans_of, text_of
from saeworks.activations.texts import TextSource, in_split
from saeworks.errors import InputError, did_you_mean
from saeworks.files import sha256_file, sha256_json
from saeworks.world.documents import Document, Span

SUFFIXES = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar")
BOM = b"\xef\xbb\xbf"
SNIFF_BYTES = 1 << 20
LONGEST_PIECE = 1 << 22  # bytes of plain text without a document boundary that are held at most
PLACE_EVERY = 256  # documents between two remembered places: what a start in the middle re-reads at most


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next record begins: bytes into the file (rows for Parquet), and the records before it."""

    offset: int = 0
    row: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file: its text (empty when there is none), where the next one begins, its labels and spans."""

    text: str
    next: Place
    labels: dict[str, Label] = field(default_factory=dict[str, Label])
    spans: tuple[Span, ...] = ()


@dataclass
class _Marks:
    """Places remembered while reading, so that a later start need not read from the first byte."""

    indices: list[int] = field(default_factory=lambda: [0])
    places: list[tuple[int, Place]] = field(default_factory=lambda: [(0, Place())])

    def before(self, index: int) -> tuple[int, int, Place]:
        at = bisect_right(self.indices, index) - 1
        return (self.indices[at], *self.places[at])

    def add(self, index: int, file: int, place: Place) -> None:
        if index >= self.indices[-1] + PLACE_EVERY:
            self.indices.append(index)
            self.places.append((file, place))


class FileTexts(TextSource):
    """Documents of local files, one file after another, in the order given (directories: sorted by path)."""

    def __init__(
        self,
        paths: Sequence[Path],
        text_column: str,
        label_column: str | None,
        split: str,
        spurious_label_column: str | None = None,
    ) -> None:
        self.name = ", ".join(str(path) for path in paths)
        self.files = [file for path in paths for file in _expand(path)]
        self._columns, self._split = Columns(text_column, label_column, spurious_label_column), split
        for file in self.files:
            _check_readable(file)
            # The first record shows a wrong column now rather than hours later.
            next(iter(read_file(file, self._columns)), None)
        self._marks = _Marks()
        self._furthest: tuple[int, int] = (0, 0)
        self._size: int | None = None
        self._fingerprint: str | None = None

    @property
    def size(self) -> int | None:
        """Number of documents, once a pass has reached the end; None before."""
        return self._size

    def fingerprint(self) -> str:
        """Digest of the bytes of all files and of columns and split; reads the files once."""
        if self._fingerprint is None:
            digests = [sha256_file(file) for file in self.files]
            asked = [self._columns.text, self._columns.label, self._split]
            asked += [self._columns.spurious] if self._columns.spurious else []
            self._fingerprint = sha256_json(["files", digests, asked])
        return self._fingerprint

    def documents(self, start: int = 0, limit: int | None = None) -> Iterator[Document]:
        """Documents from index ``start``; re-reads at most 256 documents where the place was passed before.

        Raises:
            InputError: bytes that are not UTF-8 text, a malformed row, a missing column, or no document at all.
        """
        index, first_file, place = self._marks.before(start)
        stop = None if limit is None else start + limit
        if stop is not None and stop <= start:
            return
        for number in range(first_file, len(self.files)):
            file = self.files[number]
            for record in read_file(file, self._columns, place):
                if not record.text:
                    self._count_empty(number, record.next.row)
                elif in_split(record.text, self._split):
                    self._marks.add(index + 1, number, record.next)
                    if index >= start:
                        name = f"{file.name}:{record.next.row}"
                        yield Document(text=record.text, labels=record.labels, spans=record.spans, id=name)
                    index += 1
                    if stop is not None and index >= stop:
                        return
            place = Place()
        self._size = index
        if index == 0:
            raise InputError(self._nothing())

    def _count_empty(self, file: int, row: int) -> None:
        # A row is counted once, however often the file is read again.
        if (file, row) > self._furthest:
            self._furthest = (file, row)
            self.skipped_empty += 1

    def _nothing(self) -> str:
        if self._split == "all":
            return f"'{self.name}' holds no text: every row of it is empty ({self.skipped_empty} rows)."
        return (
            f"'{self.name}' holds no document of the split '{self._split}' ({self.skipped_empty} empty rows were "
            "skipped); 5 % of the documents are held out for 'validation', so give more documents or the split 'all'."
        )


def read_file(path: Path, columns: Columns, place: Place = Place()) -> Iterator[Record]:
    """Yield the records of one file from ``place`` on."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path, columns, place)
    if kind in (".csv", ".tsv"):
        return _table(path, columns, place, "\t" if kind == ".tsv" else ",")
    if kind in (".jsonl", ".ndjson", ".json"):
        return _json_lines(path, columns, place)
    for column in columns.labels.values():
        raise InputError(f"'{path}' is plain text and has no column '{column}'; labels need jsonl, csv or parquet.")
    return _plain(path, place)


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    inside = (file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
    files = sorted(file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts))
    if not files:
        raise InputError(f"The directory '{path}' holds no text file; expected {', '.join(SUFFIXES)}.")
    return files


def _check_readable(path: Path) -> None:
    if path.suffix.lower() in COMPRESSED:
        raise InputError(f"'{path}' is compressed ({path.suffix}); unpack it and give the text file inside.")
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError as e:
        raise InputError(f"'{path}' cannot be read ({e.strerror}).") from e
    if not head.removeprefix(BOM):
        raise InputError(f"'{path}' is empty; give a file with text in it.")
    if path.suffix.lower() == ".parquet":
        return
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"'{path}' is UTF-16 text; save it as UTF-8 and try again.")
    _check_no_nul(path, head, 0)


def _check_no_nul(path: Path, data: bytes, offset: int) -> None:
    at = data.find(b"\0")
    if at >= 0:
        raise InputError(
            f"'{path}' is a binary file, not text (NUL byte at byte {offset + at}); give a UTF-8 text file."
        )


def _decode(path: Path, data: bytes, offset: int) -> str:
    _check_no_nul(path, data, offset)
    if offset == 0 and data.startswith(BOM):
        data, offset = data[len(BOM) :], len(BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError(
            f"'{path}' is not UTF-8 text (byte 0x{data[e.start]:02x} at byte {offset + e.start}); "
            "save it as UTF-8, or give a text file if this one is binary."
        ) from e


def _plain(path: Path, place: Place) -> Iterator[Record]:
    by_line = not _has_paragraphs(path)
    offset, row, held, size = place.offset, place.row, list[str](), 0
    with open(path, "rb") as file:
        file.seek(offset)
        while data := _whole_characters(file.readline(LONGEST_PIECE), file):
            line = _decode(path, data, offset)
            offset += len(data)
            held.append(line)
            size += len(data)
            if by_line or not line.strip() or size >= LONGEST_PIECE:
                if text := clean("".join(held)):
                    row += 1
                    yield Record(text, Place(offset, row))
                held, size = [], 0
    if text := clean("".join(held)):
        yield Record(text, Place(offset, row + 1))


def _has_paragraphs(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(SNIFF_BYTES)
    lines = [bool(line.strip()) for line in head.strip().split(b"\n")]
    return not all(lines)


def _whole_characters(data: bytes, file: Any) -> bytes:
    """Give back the start of a character that a cut in a very long line left at the end."""
    if len(data) < LONGEST_PIECE or data.endswith(b"\n"):
        return data
    for back in range(1, 4):
        if data[-back] >= 0xC0:
            file.seek(-back, 1)
            return data[:-back]
        if data[-back] < 0x80:
            break
    return data


def _json_lines(path: Path, columns: Columns, place: Place) -> Iterator[Record]:
    offset, row = place.offset, place.row
    with open(path, "rb") as file:
        file.seek(offset)
        for data in file:
            line = _decode(path, data, offset)
            offset, row = offset + len(data), row + 1
            where = f"{path}:{row}"
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as e:
                raise InputError(
                    f"{where} is not valid JSON ({e.msg} at column {e.colno}); expected one object a line."
                ) from e
            except (ValueError, RecursionError) as e:  # a number of thousands of digits, brackets nested without end
                raise InputError(f"{where} cannot be read ({e}); expected one object a line.") from e
            if not isinstance(value, dict):
                hint = " (a JSON array; write one object a line)" if isinstance(value, list) else ""
                raise InputError(
                    f"{where} holds no JSON object{hint}; expected one object a line with '{columns.text}'."
                )
            fields = cast("dict[str, Any]", value)
            yield _record(where, fields, fields.keys(), columns, Place(offset, row))


def _table(path: Path, columns: Columns, place: Place, delimiter: str) -> Iterator[Record]:
    # The csv module refuses fields above 128 KiB unless told otherwise; documents are often longer.
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))
    consumed = 0

    def lines(file: Iterable[bytes], start: int) -> Iterator[str]:
        nonlocal consumed
        consumed = start
        for data in file:
            line = _decode(path, data, consumed)
            consumed += len(data)
            yield line

    with open(path, "rb") as file:
        row = 1
        try:
            header = next(csv.reader(lines(file, 0), delimiter=delimiter, strict=True), [])
            for column in (columns.text, *columns.labels.values()):
                _check_column(str(path), column, header)
            begin = place.offset or consumed
            file.seek(begin)
            row = place.row
            for cells in csv.reader(lines(file, begin), delimiter=delimiter, strict=True):
                row += 1
                fields = dict(zip(header, cells, strict=False))
                yield _record(f"{path}, row {row}", fields, header, columns, Place(consumed, row), sparse=True)
        except csv.Error as e:
            raise InputError(f"'{path}' is not a valid table: {e} after row {row}; check the quotes there.") from e


def _parquet(path: Path, columns: Columns, place: Place) -> Iterator[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise InputError(f"Reading '{path}' needs pyarrow; install saeworks[hf] or convert the file to jsonl.") from e
    try:
        file: Any = parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise InputError(f"'{path}' is not a readable Parquet file ({e}); it is damaged or of another kind.") from e
    names: list[str] = list(file.schema_arrow.names)
    wanted = [columns.text, *columns.labels.values()]
    for column in wanted:
        _check_column(str(path), column, names)
    row, groups = 0, list[int]()
    for group in range(file.metadata.num_row_groups):
        rows: int = file.metadata.row_group(group).num_rows
        if not groups and row + rows <= place.row:
            row += rows
        else:
            groups.append(group)
    if not groups:
        return
    try:
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=wanted):
            for fields in cast("list[dict[str, Any]]", batch.to_pylist()):
                row += 1
                if row > place.row:
                    yield _record(f"{path}, row {row}", fields, names, columns, Place(row, row))
    except (pa.ArrowInvalid, OSError) as e:
        raise InputError(f"'{path}' is damaged after row {row} ({e}); copy or write the file again.") from e


def _check_column(where: str, column: str, names: Sequence[str]) -> None:
    if column not in names:
        raise InputError(f"'{where}' has no column '{column}'.{did_you_mean(column, names)}")


def _record(
    where: str, fields: dict[str, Any], names: Iterable[str], columns: Columns, after: Place, sparse: bool = False
) -> Record:
    """Check one row. ``sparse``: the header was checked, so a missing cell is an empty one."""
    if not sparse:
        _check_column(where, columns.text, list(names))
        # A row that brings an object of labels may lack one of them.
        for column in () if own_labels(fields) is not None else columns.labels.values():
            _check_column(where, column, list(names))
    spans = spans_of(fields, where, columns.text)
    # Spans count characters, so that a text with spans is left as it is.
    text = text_of(fields.get(columns.text), where, columns.text) if spans is None else exactly(fields[columns.text])
    return Record(text, after, labels_of(fields, where, columns), spans or ())
