"""A model hub on this machine that speaks what huggingface_hub asks: revisions, files, lists and refusals.

Its models are plain folders; a revision is the digest of one's files.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


def revision_of(folder: Path) -> str:
    """Name what a folder holds as a commit is named, by 40 hexadecimal digits."""
    digest = hashlib.sha1()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class Hub:
    """What a running hub holds and was asked."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.models: dict[str, Path] = {}
        """Folders by owner/name."""
        self.gated: set[str] = set()
        self.asked: list[str] = []
        """Paths of requests."""


@contextmanager
def running_hub(**models: Path) -> Iterator[Hub]:
    """Serve models, named owner__name, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, with_body: bool) -> None:
            url = urlsplit(self.path)
            hub.asked.append(self.path)
            words = unquote(url.path).strip("/").split("/")
            if words == ["api", "models"]:
                query = {key: values[0] for key, values in parse_qs(url.query).items()}
                names = [
                    n for n in hub.models if n.startswith(query.get("author", "")) and query.get("search", "") in n
                ]
                return self.send(200, json.dumps([{"id": name, "modelId": name} for name in names]).encode(), with_body)
            is_about = words[:2] == ["api", "models"]
            owner, name, verb, revision, *rest = [*(words[2:] if is_about else words), "", ""][:6]
            repository = f"{owner}/{name}"
            if (folder := hub.models.get(repository)) is None:
                return self.send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
            sha = revision_of(folder)
            if revision not in ("main", sha):
                return self.send(404, b"{}", with_body, {"X-Error-Code": "RevisionNotFound"})
            if not is_about:
                if repository in hub.gated:
                    return self.send(403, b"{}", with_body, {"X-Error-Code": "GatedRepo"})
                content = (folder / "/".join(filter(None, rest))).read_bytes()
                about = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
                return self.send(200, content, with_body, about)
            files = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40} for p in folder.iterdir()
            ]
            siblings = [{"rfilename": file["path"]} for file in files]
            told: Any = files if verb == "tree" else {"id": repository, "sha": sha, "siblings": siblings}
            return self.send(200, json.dumps(told).encode(), with_body)

        def send(self, status: int, content: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    hub.models = {name.replace("__", "/"): folder for name, folder in models.items()}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
