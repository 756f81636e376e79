"""Chat transcripts as tokens: rendered once by the chat model's template, with marks for template and answers.

What belongs to the template is told by the places of the message contents in the rendered text, so no template needs a
second rendering. The base model reads the same token ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from saeworks.activations.contexts import ContextReader, Window, read_frame
from saeworks.activations.texts import FILE_SPLITS, TextSource, in_split, open_texts
from saeworks.errors import InputError, did_you_mean
from saeworks.files import sha256_file, sha256_json
from saeworks.world.documents import Document

Message = dict[str, str]
ANSWERING = "assistant"
# Transcripts that are tried before anything is done.
CHECKED = 100


@dataclass(frozen=True, slots=True)
class MarkedWindow(Window):
    """A transcript cut to the context, with one mark per token.

    Attributes:
        is_template: whether a token belongs to the template. BOS does not.
        answer_index: k at the token that predicts the k-th token of an assistant's turn, −1 elsewhere.
    """

    is_template: list[bool]
    answer_index: list[int]


class Transcripts(TextSource):
    """Transcripts held in memory.

    Args:
        transcripts: each a list of ``{"role": "system" | "user" | "assistant", "content": text}``.
    """

    def __init__(self, transcripts: Sequence[Sequence[Mapping[str, str]]], name: str = "a list of transcripts") -> None:
        self.name = name
        self._texts = [json.dumps(_checked(turns, f"{name}, number {i}")) for i, turns in enumerate(transcripts)]
        if not self._texts:
            raise InputError(f"{name} holds no transcript; give at least one.")

    @property
    def size(self) -> int | None:
        """Number of transcripts."""
        return len(self._texts)

    def fingerprint(self) -> str:
        """Digest of all turns."""
        return sha256_json(["transcripts", self._texts])

    def documents(self, start: int = 0, limit: int | None = None) -> Iterator[Document]:
        """The transcripts as JSON."""
        yield from (Document(text) for text in islice(self._texts, start, None if limit is None else start + limit))


class TranscriptFile(TextSource):
    """A file with one JSON object a line, whose ``column`` is the list of messages.

    ``split`` is told by the messages alone, as for files of texts: ``validation`` has 5 %, ``train`` the others,
    ``all`` everything.
    """

    def __init__(self, path: Path, column: str = "messages", split: str = "all") -> None:
        if split not in FILE_SPLITS:
            raise InputError(f"'{path}' has no split '{split}'.{did_you_mean(split, FILE_SPLITS)}")
        self.name, self._path, self._column, self._split, self._size = str(path), path, column, split, None

    @property
    def size(self) -> int | None:
        """None: the file is read as it is needed."""
        return self._size

    def fingerprint(self) -> str:
        """Digest of the file."""
        return sha256_json(["transcript file", sha256_file(self._path), self._column, self._split])

    def documents(self, start: int = 0, limit: int | None = None) -> Iterator[Document]:
        """The transcripts as JSON."""
        stop = None if limit is None else start + limit
        yield from islice(self._all(), start, stop)

    def _all(self) -> Iterator[Document]:
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"'{self._path}', line {number}"
                try:  # a first line may begin with a byte-order mark
                    row: object = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError as e:
                    raise InputError(f"{where} is not UTF-8 ({e.reason}); save the file as UTF-8.") from e
                except ValueError as e:
                    raise InputError(f"{where} is no JSON ({e}); give one object a line.") from e
                if not isinstance(row, dict):
                    raise InputError(f"{where} is a {type(row).__name__}; give one JSON object a line.")
                if self._column not in row:
                    keys = ", ".join(cast("dict[str, Any]", row)) or "nothing"
                    raise InputError(f"{where} has no '{self._column}', only {keys}; name the column of the messages.")
                text = json.dumps(_checked(cast("dict[str, Any]", row)[self._column], where))
                if in_split(text, self._split):
                    yield Document(text)


def open_transcripts(data: str, column: str = "messages", split: str = "train", seed: int = 0) -> TextSource:
    """Open transcripts by name.

    Args:
        data: ``world`` for the transcripts of the embedded world, or a file with one JSON object a line.
        column: of the file, that holds the list of ``{"role", "content"}``.
        split: ``train`` or ``validation``; a file holds out 5 % of its transcripts, and has ``all`` as well.
        seed: of the world.

    Raises:
        InputError: no such file, or another split than the world has.
    """
    if data in ("world", "world:chat"):
        return open_texts(("world:chat",), split=split, seed=seed)
    path = Path(data).expanduser()
    if not path.is_file():
        raise InputError(f"There is no file of transcripts '{data}'; give one with a JSON object a line, or 'world'.")
    return TranscriptFile(path, column, split)


def messages_of(text: str) -> list[Message]:
    """The turns of a document: JSON, or a transcript of the embedded world."""
    if text.lstrip().startswith("["):
        return _checked(json.loads(text), "A transcript")
    from saeworks.world.domains.chat import messages

    return messages(text)


def check_template(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot render transcripts, or cannot tell the places of its tokens."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "The chat model's tokenizer has no chat template, so transcripts cannot be rendered; compare texts alone, "
            "or give the tokenizer its template."
        )
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("The chat model's tokenizer cannot tell where its tokens stand in the text; use a fast one.")


def check_transcripts(tokenizer: Any, source: TextSource, count: int = CHECKED) -> str:
    """Render the first transcripts of a source; returns a sentence on those that the template refuses, or nothing.

    Raises:
        InputError: the source has no transcript, or the template refuses all of these.
    """
    check_template(tokenizer)
    seen, reasons = 0, list[str]()
    for document in source.documents(0, count):
        seen += 1
        try:
            render(tokenizer, messages_of(document.text))
        except InputError as e:
            reasons.append(str(e))
    if not seen:
        raise InputError(f"'{source.name}' holds no transcript; give one JSON object a line.")
    if len(reasons) == seen:
        raise InputError(
            f"None of the first {seen} transcripts of '{source.name}' can be rendered. {reasons[0]} "
            "Give others, or compare texts alone."
        )
    return (
        f"Of the first {seen} transcripts {len(reasons)} cannot be rendered, and such are left out. {reasons[0]}"
        if reasons
        else ""
    )


def render(tokenizer: Any, turns: Sequence[Message]) -> tuple[list[int], list[bool], list[int]]:
    """Token ids of a transcript, which of them are template, and ``answer_index`` (see :class:`MarkedWindow`).

    A token that shares a character with the content of a message belongs to it. BOS comes first exactly once if the
    template or the tokenizer puts it there.

    Raises:
        InputError: the tokenizer has no chat template or cannot tell the places of its tokens, the template refuses the
            transcript, or changes what was said.
    """
    check_template(tokenizer)
    try:
        text: str = tokenizer.apply_chat_template([dict(turn) for turn in turns], tokenize=False)
    except Exception as e:  # templates raise errors of their own, of jinja's kinds
        raise InputError(f"The chat template refuses a transcript: {str(e).rstrip('.')}.") from e
    spans = _places(tokenizer, text, turns)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = list(encoded["input_ids"])
    places: list[tuple[int, int]] = list(encoded["offset_mapping"])
    bos: int | None = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos] and bos in read_frame(tokenizer, True).before:
        ids, places = [bos, *ids], [(0, 0), *places]
    template, answers = [True] * len(ids), [-1] * len(ids)
    token = 0
    for start, stop, role in spans:
        while token < len(ids) and places[token][1] <= start:
            token += 1
        number = 0
        while token < len(ids) and places[token][0] < stop:
            template[token] = False
            if role == ANSWERING and token > 0:
                answers[token - 1], number = number, number + 1
            token += 1
    if ids[:1] == [bos]:
        template[0] = False
    return ids, template, answers


def _places(tokenizer: Any, text: str, turns: Sequence[Message]) -> list[tuple[int, int, str]]:
    """Where every message stands in a rendered transcript: ``(start, stop, role)``.

    A short message may also be found inside the template ("user", "no", "2"), so that the template is rendered once
    more around words that stand nowhere else, which tells what lies between the messages. Where a template changes with
    what is said, each message is looked for behind the one before.
    """
    if found := _between(tokenizer, text, turns):
        return found
    spans: list[tuple[int, int, str]] = []
    at = 0
    for turn in turns:
        content = turn["content"] if turn["content"] in text[at:] else turn["content"].strip()
        start = text.find(content, at)
        if start < 0:
            raise InputError(f"The chat template does not repeat the message '{content[:40]}' as it was written.")
        at = start + len(content)
        spans.append((start, at, turn["role"]))
    return spans


def _between(tokenizer: Any, text: str, turns: Sequence[Message]) -> list[tuple[int, int, str]] | None:
    """The places of the messages by what the template writes between others; None where that differs."""
    words = [f"placeholder{i}word" for i in range(len(turns))]
    other = [{**turn, "content": word} for turn, word in zip(turns, words, strict=True)]
    try:
        rest: str = tokenizer.apply_chat_template(other, tokenize=False)
    except Exception:  # a template may refuse words that are not those of the transcript
        return None
    spans: list[tuple[int, int, str]] = []
    at = 0
    for turn, word in zip(turns, words, strict=True):
        before, found, rest = rest.partition(word)
        if not found or not text.startswith(before, at):
            return None
        start = at + len(before)
        content = turn["content"] if text.startswith(turn["content"], start) else turn["content"].strip()
        if not text.startswith(content, start):
            return None
        at = start + len(content)
        spans.append((start, at, turn["role"]))
    return spans if text[at:] == rest else None


class TranscriptReader(ContextReader):
    """A :class:`ContextReader` of transcripts: one row each, cut to the context.

    Attributes:
        refused: transcripts that the template refused, met so far. cut: those that were longer than the context.
    """

    refused: int = 0
    cut: int = 0

    def windows(self, texts: list[str], first: int) -> list[Window]:
        """One marked window per transcript; those that the template refuses are counted and left out."""
        found: list[Window] = []
        for number, text in enumerate(texts, first):
            turns = messages_of(text)
            try:
                ids, template, answers = render(self._model.tokenizer, turns)
            except InputError:
                self.refused += 1
                continue
            self.cut += len(ids) > self._context_length
            n = self._context_length
            found.append(MarkedWindow(ids[:n], number, 0, template[:n], answers[:n]))
        return found


def _checked(turns: Any, where: str) -> list[Message]:
    """The messages, if they are a list of roles and contents; half a surrogate pair becomes U+FFFD."""
    fits = isinstance(turns, list | tuple) and len(cast("list[Any]", turns)) > 0
    for turn in cast("list[Any]", turns) if fits else ():
        named = cast("dict[str, Any]", turn) if isinstance(turn, Mapping) else {}
        fits = fits and isinstance(named.get("role"), str) and isinstance(named.get("content"), str)
    if not fits:
        raise InputError(
            f"{where}: a list of messages {{'role': …, 'content': …}} is expected, but {str(turns)[:60]} came."
        )
    return [{key: _whole(turn[key]) for key in ("role", "content")} for turn in cast("list[Message]", turns)]


def _whole(text: str) -> str:
    """Text without halves of characters, which JSON may hold and no tokenizer takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
