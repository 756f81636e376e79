"""Hub names without a network: one request, then a sentence; the hub client's settings are left as they were."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from saeworks.models import hub

constants = pytest.importorskip("huggingface_hub.constants")

_SCRIPT = """
import json, sys
port, attempts = int(sys.argv[3]), []

def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        attempts.append(args[1][1])

sys.addaudithook(watch)
from saeworks.errors import InputError
try:
    if sys.argv[1] == "model":
        from saeworks.models.language_model import load_language_model
        load_language_model(sys.argv[2], device="cpu")
    else:
        from saeworks.activations.texts import open_texts
        open_texts([sys.argv[2]])
except InputError as e:
    print(json.dumps({"error": str(e), "attempts": attempts.count(port), "elsewhere": len(set(attempts) - {port})}))
"""


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections: taken, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    ("kind", "words"), [("model", ("cannot be reached", "--model world")), ("data", ("could not be opened", "local"))]
)
def test_a_hub_that_refuses_is_asked_once(kind: str, words: tuple[str, ...], closed_port: int, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    source = str(Path(sys.modules["saeworks"].__file__ or "").parents[1])
    env |= {"HF_ENDPOINT": f"http://127.0.0.1:{closed_port}", "HF_HOME": str(tmp_path), "PYTHONPATH": source}
    command = [sys.executable, "-c", _SCRIPT, kind, "somebody/something", str(closed_port)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["attempts"], found["elsewhere"]) == (1, 0)
    for word in ("'somebody/something'", *words):
        assert word in found["error"]


@pytest.mark.parametrize(("was_offline", "answers"), [(False, True), (False, False), (True, True)])
def test_offline_mode_lasts_as_long_as_the_block(
    was_offline: bool, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", was_offline)
    monkeypatch.setattr(hub, "_answers", lambda: asked.append(answers) or answers)
    seen: list[bool] = []

    def fail_inside() -> None:
        with hub.offline_unless_reachable():
            seen.append(constants.HF_HUB_OFFLINE)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert seen == [was_offline or not answers]
    assert constants.HF_HUB_OFFLINE is was_offline
    assert len(asked) == (0 if was_offline else 1)


@pytest.mark.parametrize(("status", "reachable"), [(200, True), (404, True), (405, True), (500, True), (503, False)])
def test_error_pages_are_answers_but_not_those_of_gateways(
    status: int, reachable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answering(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    try:
        assert hub._answers() is reachable
    finally:
        server.shutdown()
        server.server_close()


def test_a_refused_connection_is_no_answer(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    assert not hub._answers()
