"""A hub on a loopback port: the part of its protocol that listing, downloading and committing files needs."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest


class Hub:
    """Repositories by name; each is a mapping from paths to contents. ``asked`` has every request that came."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, object]] = []
        self.refuse: dict[str, int] = {}
        self.asked: list[str] = []
        self.endpoint = ""

    def add(self, repo: str, folder: Path, path: str = "") -> None:
        files = self.repositories.setdefault(repo, {})
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                files[f"{path}/{file.relative_to(folder).as_posix()}".lstrip("/")] = file.read_bytes()

    def commit(self, repo: str) -> str:
        parts = sorted((name, hashlib.sha256(data).hexdigest()) for name, data in self.repositories[repo].items())
        return hashlib.sha1(json.dumps(parts).encode()).hexdigest()

    def tree(self, repo: str, folder: str) -> list[dict[str, object]] | None:
        start = f"{folder}/" if folder else ""
        below = {name[len(start) :]: data for name, data in self.repositories[repo].items() if name.startswith(start)}
        rows: list[dict[str, object]] = []
        for name, data in below.items():
            if "/" not in name or name.startswith(".."):
                rows.append({"type": "file", "path": start + name, "size": len(data), "oid": "0" * 40})
        for name in sorted({name.split("/")[0] for name in below if "/" in name and not name.startswith("..")}):
            rows.append({"type": "directory", "path": start + name, "oid": "0" * 40})
        return rows or None


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer requests on a loopback port while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, value: object) -> None:
            self.send(200, json.dumps(value).encode(), Content_Type="application/json")

        def missing(self, what: str) -> None:
            self.send(404, b"{}", X_Error_Code=what)

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(self.path.split("?")[0]).strip("/")
            hub.asked.append(f"{self.command} {path}")
            parts = path.split("/")
            if path == "":
                return self.send(200, b"")
            if path == "api/validate-yaml":  # of the card, before it is sent
                return self.json({"errors": [], "warnings": []})
            if path == "api/repos/create":
                return self.create(json.loads(body))
            repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            if repo in hub.refuse:
                code = {"X-Error-Code": "GatedRepo"} if hub.refuse[repo] == 403 else {}
                return self.send(hub.refuse[repo], b"{}", **{k.replace("-", "_"): v for k, v in code.items()})
            if repo not in hub.repositories:
                return self.missing("RepoNotFound")
            rest = parts[4:] if parts[0] == "api" else parts[2:]
            return self.inside(repo, rest, body)

        def inside(self, repo: str, rest: list[str], body: bytes) -> None:
            commit = hub.commit(repo)
            if len(rest) > 1 and rest[1] not in ("main", commit):
                return self.missing("RevisionNotFound")
            kind = rest[0] if rest else "revision"
            if kind == "revision":
                return self.json({"id": repo, "modelId": repo, "sha": commit, "siblings": [], "private": False})
            if kind == "tree":
                rows = hub.tree(repo, "/".join(rest[2:]))
                return self.missing("EntryNotFound") if rows is None else self.json(rows)
            if kind == "resolve":
                data = hub.repositories[repo].get("/".join(rest[2:]))
                if data is None:
                    return self.missing("EntryNotFound")
                tag = hashlib.sha256(data).hexdigest()
                return self.send(200, data, ETag=f'"{tag}"', X_Repo_Commit=commit)
            if kind == "preupload":
                names = [file["path"] for file in json.loads(body)["files"]]
                return self.json(
                    {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
                )
            for line in filter(None, body.decode().splitlines()):
                item = json.loads(line)
                if item["key"] == "file":
                    value = item["value"]
                    hub.repositories[repo][value["path"]] = base64.b64decode(value["content"])
            now = hub.commit(repo)
            url = f"{hub.endpoint}/{repo}/commit/{now}"
            return self.json({"success": True, "commitOid": now, "commitUrl": url, "hookOutput": ""})

        def create(self, asked: dict[str, object]) -> None:
            repo = "/".join(str(part) for part in (asked.get("organization"), asked["name"]) if part)
            hub.created.append(asked)
            hub.repositories.setdefault(repo, {})
            self.json({"url": f"{hub.endpoint}/{repo}", "name": repo, "id": repo})

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub_in_use(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub that the client of this process asks, with an empty cache of its own."""
    from huggingface_hub import constants

    with serving(Hub()) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setenv("HF_TOKEN", "hf_loopback")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield hub
