"""A judge behind an OpenAI-compatible address: vLLM, llama.cpp, Ollama, a gateway, a vendor.

One request is ``POST BASE/chat/completions`` at temperature 0. Faults that pass (no connection, 429, 5xx, a reply that
breaks off or is no JSON) are tried again with growing pauses; a ``Retry-After`` is obeyed. A request that the server
rejects is not repeated. The key comes from an environment variable, goes into one header, and nowhere else.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any, cast
from urllib.parse import urlsplit

from saeworks.errors import InputError
from saeworks.evals.judges.budget import Budget, Clock, Pace
from saeworks.evals.judges.protocol import Answer, JudgeUnavailable, Outcome, Question

#: Pauses between attempts: ``FIRST_PAUSE``, doubled each time up to ``LONGEST_PAUSE`` seconds, of which up to a quarter
#: is left out at random, so that threads that failed together do not come back together.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: A server that wants us to wait longer than this many seconds is not waited for.
LONGEST_WAIT = 120.0
_LONGEST_REPLY = 8 * 2**20
#: Tokens that a chat template may put around two messages.
_TEMPLATE_TOKENS = 64
_PASSING = frozenset({408, 409, 425, 429})
_REFUSALS = (
    "i'm sorry",
    "i am sorry",
    "sorry, ",
    "i can't ",
    "i cannot ",
    "i can not ",
    "i'm unable",
    "i am unable",
    "i won't ",
    "as an ai",
)


@dataclass(frozen=True)
class _Fault:
    """An attempt that may go better next time. ``pause``: what the server asked for. ``unpaid``: it did no work."""

    reason: str
    pause: float | None = None
    unpaid: bool = False


class HttpJudge:
    """Ask ``model`` at ``base_url``.

    Args:
        base_url: up to and including the version, such as ``http://localhost:8000/v1``.
        key_variable: name of the environment variable that holds the API key; None: no key is sent.
        timeout: seconds that one request may take in all.
        retries: attempts after the first.
        workers: requests at a time.

    Raises:
        InputError: an address that is none or holds a password, or a variable that is not set.
    """

    lasting = True

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str | None = None,
        budget: Budget | None = None,
        per_minute: float | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        workers: int = 4,
        clock: Clock | None = None,
    ) -> None:
        self._base = _checked_address(base_url)
        self._model = model
        self.workers = max(1, workers)
        self._budget = budget or Budget()
        self._clock = clock or Clock()
        self._pace = Pace(per_minute, self._clock)
        self._timeout, self._retries = timeout, retries
        self._random = random.Random(0)
        self.repeated = 0
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key_variable is not None:
            headers["Authorization"] = f"Bearer {_key(key_variable)}"
        self._http: Any = _http_library()
        host = urlsplit(self._base).hostname or ""
        # A proxy of the environment cannot reach this machine's own ports. A redirect could carry the key elsewhere.
        self._client: Any = self._http.Client(
            headers=headers,
            timeout=timeout,
            follow_redirects=False,
            trust_env=host not in ("localhost", "::1") and not host.startswith("127."),
        )

    @property
    def name(self) -> str:
        """Model and address."""
        return f"{self._model} at {self._base}"

    def identity(self) -> dict[str, str]:
        """Address, model and temperature."""
        return {"kind": "openai", "base_url": self._base, "model": self._model, "temperature": "0"}

    def room(self) -> int | None:
        """Requests left in the budget."""
        return self._budget.room()

    def usage(self) -> dict[str, int | float]:
        """Requests sent, of which repeated, tokens charged, and seconds waited for the rate limit."""
        return {
            "requests": self._budget.requests,
            "repeated": self.repeated,
            "tokens": self._budget.tokens,
            "waited_seconds": round(self._pace.waited, 3),
        }

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def answer(self, question: Question) -> Answer:
        """One answer; see :class:`saeworks.evals.judges.protocol.Judge`."""
        body = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.user},
            ],
            "max_tokens": question.max_tokens,
            "temperature": 0,
        }
        payload = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
        # A token is at least one byte, so this is the most that the request can cost.
        most = len(payload) + question.max_tokens + _TEMPLATE_TOKENS
        attempt = 0
        while isinstance(got := self._paid_attempt(payload, most), _Fault):
            if attempt == self._retries:
                return Answer("", "failed", f"{got.reason}, {attempt + 1} attempts")
            self._rest(got, attempt)
            attempt += 1
        return got

    def _paid_attempt(self, payload: bytes, most: int) -> Answer | _Fault:
        """One attempt within budget and rate, charged with what it took."""
        self._pace.wait()
        self._budget.reserve(most)
        spent = most
        try:
            got = self._attempt(payload)
            if isinstance(got, Answer):
                spent = _charged(got, most)
            elif got.unpaid:
                spent = 0
            return got
        finally:
            self._budget.settle(most, spent)

    def _rest(self, fault: _Fault, attempt: int) -> None:
        self.repeated += 1
        if fault.pause is None:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)
            self._clock.sleep(pause * (1 - self._random.random() / 4))
            return
        if fault.pause > LONGEST_WAIT:
            raise JudgeUnavailable(
                f"The judge '{self.name}' asks to wait {fault.pause:.0f} seconds ({fault.reason}). "
                "What it answered is kept: run the same command again then."
            )
        self._pace.hold(fault.pause)

    def _attempt(self, payload: bytes) -> Answer | _Fault:
        try:
            status, headers, data = self._post(payload)
        except (self._http.ConnectError, self._http.ConnectTimeout) as e:
            return _Fault(f"no connection ({_short(str(e))})", unpaid=True)
        except self._http.TimeoutException:
            return _Fault(f"no reply within {self._timeout:g} seconds")
        except self._http.TransportError as e:
            return _Fault(f"the reply broke off ({_short(str(e))})")
        except self._http.DecodingError as e:
            return _Fault(f"the reply cannot be unpacked ({_short(str(e))})")
        if status == 200:
            return read_reply(data)
        return self._rejected(status, headers, data)

    def _post(self, payload: bytes) -> tuple[int, Any, bytes]:
        """Status, headers and body. The timeout holds for the whole reply, however it trickles in."""
        deadline = self._clock.now() + self._timeout
        data = bytearray()
        with self._client.stream("POST", f"{self._base}/chat/completions", content=payload) as response:
            for chunk in response.iter_bytes():
                data += chunk
                if self._clock.now() > deadline:
                    raise self._http.ReadTimeout("the whole reply took too long")
                if len(data) > _LONGEST_REPLY:
                    raise self._http.ReadError(f"more than {_LONGEST_REPLY} bytes")
            return int(response.status_code), response.headers, bytes(data)

    def _rejected(self, status: int, headers: Any, data: bytes) -> Answer | _Fault:
        code, said = _error_of(data)
        reason = f"status {status}" + (f": {said}" if said else "")
        if status in (401, 403):
            raise InputError(
                f"The judge '{self.name}' refuses the key or has none ({reason}); name the environment variable that "
                "holds it with judge_key_variable."
            )
        if status == 404 or 300 <= status < 400:
            raise InputError(
                f"The judge '{self.name}' is not there ({reason}); check the address, which ends in the version "
                "(…/v1), and the name of the model."
            )
        if code == "insufficient_quota":
            raise JudgeUnavailable(f"The account at the judge '{self.name}' has nothing left to spend ({reason}).")
        if status in _PASSING or status >= 500:
            return _Fault(reason, retry_after(headers.get("retry-after"), self._clock), unpaid=status == 429)
        return Answer("", "failed", reason, 0, 0)


def read_reply(data: bytes) -> Answer | _Fault:
    """The answer in the body of a reply with status 200."""
    try:
        reply = json.loads(data)
    except ValueError:
        return _Fault("the reply is no JSON" if data else "the reply is empty")
    if not isinstance(reply, dict):
        return _Fault("the reply is no JSON object")
    fields = cast("dict[str, Any]", reply)
    read, written = (_count(fields.get("usage"), name) for name in ("prompt_tokens", "completion_tokens"))
    choices = fields.get("choices")
    first: Any = cast("list[Any]", choices)[0] if isinstance(choices, list) and choices else None
    message: Any = cast("dict[str, Any]", first).get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict):
        return Answer("", "malformed", "the reply has no message", read, written)
    said = cast("dict[str, Any]", message)
    content: Any = said.get("content")
    text: str = content.strip() if isinstance(content, str) else ""
    outcome, reason = _outcome(cast("dict[str, Any]", first).get("finish_reason"), said.get("refusal"), text)
    return Answer(text, outcome, reason, read, written)


def _outcome(finish: Any, refusal: Any, text: str) -> tuple[Outcome, str]:
    if finish == "content_filter" or refusal:
        return "refused", _short(str(refusal or "withheld by a content filter"))
    if finish == "length":
        return "cut_off", "the answer reached the limit of tokens"
    if not text:
        return "malformed", "the message has no text"
    if text.lower().replace("’", "'").startswith(_REFUSALS):
        return "refused", _short(text)
    return "answered", ""


def retry_after(value: str | None, clock: Clock) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, given as a number or as a date; None where it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - clock.wall()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _charged(answer: Answer, most: int) -> int:
    """Tokens that an answer took; the most possible where the server does not count."""
    if answer.prompt_tokens is None or answer.answer_tokens is None:
        return most
    return answer.prompt_tokens + answer.answer_tokens


def _count(usage: Any, name: str) -> int | None:
    value: Any = cast("dict[str, Any]", usage).get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else None


def _error_of(data: bytes) -> tuple[str, str]:
    """Code and message of an error in OpenAI's form; else the beginning of the body."""
    try:
        reply = json.loads(data)
    except ValueError:
        return "", _short(data.decode("utf-8", "replace"))
    error: Any = cast("dict[str, Any]", reply).get("error") if isinstance(reply, dict) else None
    if isinstance(error, dict):
        fields = cast("dict[str, Any]", error)
        return str(fields.get("code") or ""), _short(str(fields.get("message") or ""))
    return "", _short(str(error or ""))


def _short(text: str, most: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _checked_address(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"'{base_url}' is no address of a judge; write it like http://localhost:8000/v1.")
    if parts.username or parts.password:
        raise InputError(
            f"The address of the judge at '{parts.hostname}' holds a user name or password; put the key into an "
            "environment variable and name that with judge_key_variable."
        )
    if parts.query or parts.fragment:
        raise InputError(f"The address '{base_url}' must end in the version (…/v1), without '?' and '#'.")
    return base_url.rstrip("/").removesuffix("/chat/completions")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"The environment variable '{variable}' should hold the judge's API key, but it is not set.")
    if not key.isascii() or not key.isprintable():
        raise InputError(f"The environment variable '{variable}' holds characters that no API key has; check it.")
    return key


def _http_library() -> Any:
    """httpx2, or httpx, which has the same interface; the hub client brings one of them along."""
    for name in ("httpx2", "httpx"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise InputError("A judge behind an address needs the package httpx, which is missing; run: pip install httpx.")
