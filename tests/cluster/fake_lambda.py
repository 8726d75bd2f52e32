"""Lambda Cloud's API 1.10 as far as a launcher uses it: refuses what the published description refuses, and paces.

Instances become `active` when `boot` says so; without one, at once.
"""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lab import NET, Lab

KEYS = {
    "region_name",
    "instance_type_name",
    "ssh_key_names",
    "file_system_names",
    "name",
    "tags",
    "image",
    "user_data",
    "hostname",
    "firewall_rulesets",
}
"""Keys of a launch; `quantity` was one in older versions."""


class FakeLambda:
    """The account: its instances, and what was asked of it."""

    def __init__(self, between: float = 0.0, boot: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.instances: dict[str, dict[str, Any]] = {}
        self.refused: list[str] = []
        self.num_throttled = 0
        self._between, self._boot, self._last_launch = between, boot, -1e9
        self._addresses = iter(range(4, 250))
        self.ended: Callable[[dict[str, Any]], None] = lambda instance: None

    def faults(self, body: dict[str, Any]) -> list[str]:
        """List what the description of a launch forbids."""
        found = [f"unknown {key}" for key in sorted(set(body) - KEYS)]
        found += [f"missing {k}" for k in ("region_name", "instance_type_name", "ssh_key_names") if not body.get(k)]
        found += ["more than one ssh key"] if len(body.get("ssh_key_names", [])) != 1 else []
        found += ["name too long"] if len(body.get("name", "")) > 64 else []
        for tag in body.get("tags", []):
            if not re.fullmatch(r"[a-z][a-z0-9-:]{1,54}", tag["key"]) or len(tag["value"]) > 128:
                found.append(f"tag {tag}")
        return found

    def launch(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Answer a launch: (status, body)."""
        now = time.monotonic()
        if now - self._last_launch < self._between:
            self.num_throttled += 1
            return 429, {"error": {"code": "global/rate-limited", "message": "Too many requests", "suggestion": None}}
        if found := self.faults(body):
            self.refused += found
            return 400, {
                "error": {"code": "global/invalid-parameters", "message": "; ".join(found), "suggestion": None}
            }
        self._last_launch = now
        address = f"10.77.0.{next(self._addresses)}"
        instance = {
            **{"id": uuid.uuid4().hex, "name": body.get("name"), "status": "booting", "tags": body.get("tags", [])},
            **{"ip": address, "private_ip": address, "instance_type": {"name": body["instance_type_name"]}},
        }
        self.instances[instance["id"]] = instance
        threading.Timer(0.2, self._start, [instance]).start()
        return 200, {"data": {"instance_ids": [instance["id"]]}}

    def terminate(self, ids: list[str]) -> tuple[int, Any]:
        """Answer the end of instances."""
        for name in ids:
            self.ended(self.instances.pop(name))
        return 200, {"data": {"terminated_instances": []}}

    def _start(self, instance: dict[str, Any]) -> None:
        if self._boot:
            self._boot(instance)
        instance["status"] = "active"


def serve(account: FakeLambda, address: tuple[str, int], key: str) -> ThreadingHTTPServer:
    """Make a server of the API at an address; the caller runs and closes it."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _is_allowed(self) -> bool:
            if self.headers["Authorization"] == f"Bearer {key}":
                return True
            self._answer(401, {"error": {"code": "global/invalid-api-key", "message": "API key was invalid"}})
            return False

        def do_GET(self) -> None:
            if self._is_allowed():
                assert self.path == "/api/v1/instances", self.path
                self._answer(200, {"data": list(account.instances.values())})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self._is_allowed():
                what = self.path.rsplit("/", 1)[-1]
                self._answer(*(account.launch(body) if what == "launch" else account.terminate(body["instance_ids"])))

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent."""

    return ThreadingHTTPServer(address, Handler)


@contextmanager
def fake_lambda(lab: Lab) -> Iterator[FakeLambda]:
    """An account of Lambda Cloud whose instances are hosts of the lab."""

    def number(instance: dict[str, Any]) -> int:
        return int(instance["private_ip"].rsplit(".", 1)[1])

    account = FakeLambda(between=1.0, boot=lambda instance: lab.boot(number(instance)))
    account.ended = lambda instance: lab.kill(number(instance))
    url = f"http://{NET}.1:5002/api/v1"
    lab.environment = {**lab.environment, "LAMBDA_API_URL": url, "LAMBDA_API_KEY": "testing"}
    lab.bashrc += f"export LAMBDA_API_URL={url} LAMBDA_API_KEY=testing\n"
    (lab.home / ".lambda_cloud").mkdir()
    (lab.home / ".lambda_cloud" / "lambda_keys").write_text("api_key = testing\n")
    servers = []
    ready = threading.Event()

    def run() -> None:
        lab.enter()
        servers.append(serve(account, (f"{NET}.1", 5002), "testing"))
        ready.set()
        servers[0].serve_forever()

    threading.Thread(target=run, daemon=True).start()
    assert ready.wait(10)
    try:
        yield account
    finally:
        servers[0].shutdown()
        servers[0].server_close()
