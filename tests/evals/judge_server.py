"""An OpenAI-compatible server on a loopback port that answers as told, and misbehaves as told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: What one request gets: status, headers, body, and what else is to be done ("slow", "trickle", "cut", "drop").
Reply = tuple[int, dict[str, str], bytes, str]


def said(text: str | None, finish: str = "stop", prompt: int = 10, completion: int = 5, **message: object) -> Reply:
    body = {
        "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }
    return 200, {}, json.dumps(body).encode(), ""


def refused(status: int, message: str = "no", code: str = "", **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body, ""


def raw(body: bytes, trouble: str = "", status: int = 200) -> Reply:
    return status, {}, body, trouble


class Server:
    """``script`` holds the replies to come; when it is empty, ``otherwise`` answers. ``asked`` has what came."""

    def __init__(self, *script: Reply, otherwise: Callable[[dict], Reply] = lambda _: said("1, 2")) -> None:
        self.script = list(script)
        self.otherwise = otherwise
        self.asked: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.url = ""
        self._lock = threading.Lock()

    def reply(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        with self._lock:
            question = json.loads(body)
            self.paths.append(path)
            self.headers.append(headers)
            self.asked.append(question)
            return self.script.pop(0) if self.script else self.otherwise(question)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, data, trouble = server.reply(self.path, dict(self.headers), body)
            if trouble == "drop":
                self.close_connection = True
                return
            if trouble == "slow":
                done.wait(0.8)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            # A body that is cut off promises more than it holds.
            self.send_header("Content-Length", str(len(data) + (50 if trouble == "cut" else 0)))
            self.end_headers()
            try:
                for i in range(0, len(data), 8 if trouble == "trickle" else max(1, len(data))):
                    self.wfile.write(data[i : i + (8 if trouble == "trickle" else len(data))])
                    self.wfile.flush()
                    if trouble == "trickle":
                        time.sleep(0.05)
            except (BrokenPipeError, ConnectionResetError):
                pass
            self.close_connection = trouble != ""

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        done.set()
        http.shutdown()
        http.server_close()
        thread.join(5)
