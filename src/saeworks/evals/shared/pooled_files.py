"""Pooled texts on disk: safetensors files under the hashes of all that they were made from.

``directory/AB/SHELF/PART.safetensors``: a shelf is what is the same for all texts (model, site, rule, dictionary), a
part is what one pass added to it. Both names are content hashes, so a file is never changed, only added or removed; two
processes that write at once write different files, or the same texts under the same name.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from saeworks.errors import RunError
from saeworks.evals.shared.pooled_rows import Rows
from saeworks.files import atomic_write_bytes, sha256_bytes

FORM = "1"
_KIND = "saeworks pooled texts"
_PART = re.compile(r"[0-9a-f]{64}\.safetensors")
_SHELF = re.compile(r"[0-9a-f]{64}")
#: Seconds after which a half-written file is nobody's work in progress any more.
_ABANDONED = 3600


@dataclass(frozen=True)
class Part:
    """Some texts of a shelf: their keys, how many tokens of each were averaged [text] int64, and their means."""

    keys: list[bytes]
    tokens: Tensor
    rows: Rows

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers and keys."""
        return self.rows.nbytes + 40 * len(self.keys)


class PooledFiles:
    """The files below ``directory``. When they take more than ``limit`` bytes, those go that were not used for longest.

    A file that is cut off, or holds anything but what its name says, is told of on standard error, removed, and taken
    for absent. Files with other names are nobody's business here. Where nothing can be written, the work goes on
    without.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self.limit = Path(directory), limit
        self._writes = True

    def find(self, shelf: str, width: int, wanted: Collection[bytes]) -> Iterator[Part]:
        """The parts of a shelf that hold any of the ``wanted`` keys."""
        for path in sorted((self.directory / shelf[:2] / shelf).glob("*.safetensors")):
            if not _PART.fullmatch(path.name):
                continue
            try:
                part = _read(path, shelf, width, wanted)
            except FileNotFoundError:
                continue  # another process took it away for room
            except Exception as e:  # whatever a damaged file makes the reader say
                sys.stderr.write(f"'{path}' is damaged ({' '.join(str(e).split())}); it is made anew.\n")
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                continue
            if part is not None:
                with suppress(OSError):
                    path.touch()  # the time of its last use
                yield part

    def add(self, shelf: str, part: Part) -> None:
        """Write a part, and make room for it."""
        if not self._writes or part.nbytes > self.limit:
            return
        path = self.directory / shelf[:2] / shelf / f"{_name(shelf, part.keys)}.safetensors"
        try:
            atomic_write_bytes(path, _written(shelf, part))
            self._make_room(path)
        except (RunError, OSError) as e:
            self._writes = False
            sys.stderr.write(f"Pooled texts are not kept: {e}\n")

    def files(self) -> list[Path]:
        """All files that are kept, the one that was not used for longest first."""
        found = list[tuple[float, Path]]()
        for path in self.directory.glob("*/*/*.safetensors"):
            if _PART.fullmatch(path.name) and _SHELF.fullmatch(path.parent.name):
                with suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def _make_room(self, newest: Path) -> None:
        sizes = dict[Path, int]()
        for path in self.files():
            with suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self.limit:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size
        for path in self.directory.glob("*/*/.*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink(missing_ok=True)


def _name(shelf: str, keys: Sequence[bytes]) -> str:
    return sha256_bytes(FORM.encode(), bytes.fromhex(shelf), *keys)


def _written(shelf: str, part: Part) -> bytes:
    from safetensors.torch import save

    keys = torch.frombuffer(bytearray(b"".join(part.keys)), dtype=torch.uint8).view(len(part.keys), 32)
    tensors = {"keys": keys, "tokens": part.tokens, **part.rows.tensors()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    head = {"kind": _KIND, "form": FORM, "shelf": shelf, "content": _content(tensors)}
    return save(tensors, metadata=head)


def _read(path: Path, shelf: str, width: int, wanted: Collection[bytes]) -> Part | None:
    """A part, or None where it holds nothing that is wanted. Raises whatever shows that the file is not what it is
    called."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        head = file.metadata() or {}
        if head.get("kind") != _KIND or head.get("form") != FORM or head.get("shelf") != shelf:
            raise ValueError("it does not hold pooled texts of this kind")
        keys_tensor = file.get_tensor("keys")
        flat = keys_tensor.numpy().tobytes()
        keys = [flat[i : i + 32] for i in range(0, len(flat), 32)]
        if f"{_name(shelf, keys)}.safetensors" != path.name:
            raise ValueError("its texts are not those that its name stands for")
        if not any(key in wanted for key in keys):
            return None
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    if head.get("content") != _content(tensors):
        raise ValueError("its numbers are not those that were written")
    rows = Rows(width, tensors["values"], tensors.get("columns"), tensors.get("offsets"))
    if not rows.fits(len(keys)) or tensors["tokens"].shape != (len(keys),):
        raise ValueError(f"it is no table of {len(keys)} texts and {width} columns")
    return Part(keys, tensors["tokens"], rows)


def _content(tensors: dict[str, Tensor]) -> str:
    """Content hash of named tensors."""
    parts = list[bytes]()
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), tensor.numpy().tobytes()]
    return sha256_bytes(*parts)
