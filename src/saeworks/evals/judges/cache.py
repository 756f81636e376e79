"""Answers on disk, one JSON file each, under the hash of what was asked of whom.

A file holds the question too, so that the cache is also the record of all prompts. No key or password is in it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from saeworks.errors import InputError
from saeworks.evals.judges.protocol import LASTING, Answer, Judge, Question
from saeworks.files import read_json, sha256_json, write_json

_FORM = 1


def default_directory() -> Path:
    """``saeworks/judge`` in the user's cache directory (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "saeworks" / "judge"


class AnswerCache:
    """Answers of one judge below ``directory``. Files are written whole or not at all; a damaged one is a miss."""

    def __init__(self, directory: Path, judge: Judge) -> None:
        self.directory = Path(directory)
        self._identity = judge.identity()

    def path(self, question: Question) -> Path:
        """Where the answer lies, whether there is one or not."""
        key = sha256_json({**self._asked(question), "form": _FORM})
        return self.directory / key[:2] / f"{key}.json"

    def get(self, question: Question) -> Answer | None:
        """The kept answer, or None."""
        path = self.path(question)
        if not path.is_file():
            return None
        try:
            kept = read_json(path)
        except InputError:
            return None
        fields = cast("dict[str, Any]", kept) if isinstance(kept, dict) else {}
        text, outcome = fields.get("text"), fields.get("outcome")
        if not isinstance(text, str) or outcome not in LASTING:
            return None
        counts = [fields.get(name) for name in ("prompt_tokens", "answer_tokens")]
        prompt_tokens, answer_tokens = (count if isinstance(count, int) else None for count in counts)
        reason = str(fields.get("reason") or "")
        return Answer(text, outcome, reason, prompt_tokens, answer_tokens, cached=True)

    def put(self, question: Question, answer: Answer) -> None:
        """Keep an answer that asking again would give again; any other is not kept."""
        if answer.outcome not in LASTING:
            return
        kept = {name: getattr(answer, name) for name in ("text", "outcome", "reason", "prompt_tokens", "answer_tokens")}
        write_json(self.path(question), {**self._asked(question), **kept})

    def _asked(self, question: Question) -> dict[str, Any]:
        asked = {"system": question.system, "user": question.user, "max_tokens": question.max_tokens}
        return {"judge": self._identity, **asked}
