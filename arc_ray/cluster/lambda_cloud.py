"""Ray's node provider for Lambda Cloud: `provider: {type: external, module: arc_ray.cluster.lambda_cloud.LambdaNodeProvider}`.

The API (version 1.10, https://docs.lambda.ai) starts and ends instances, has neither stop nor spot, and allows one
request a second and one launch in twelve. Ray's tags that must outlive the process are the instance's own; those that Ray
writes while it sets a node up are in a file beside it.
"""

import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

API = "https://cloud.lambda.ai/api/v1"
INSTANCES, LAUNCH, TERMINATE = "/instances", "/instance-operations/launch", "/instance-operations/terminate"
KEYS = Path("~/.lambda_cloud/lambda_keys")
TAG_FILE = Path("~/.cache/arc_ray")

LIVE = frozenset({"booting", "active", "unhealthy"})
"""The states of an instance that is paid for and not on its way out."""

SECONDS_BETWEEN = {"launch": 12.0, "other": 1.0}
"""Lambda's limits: a launch every 12 s, any other request every second."""

MOST_ATTEMPTS = 6


class LambdaCloudError(RuntimeError):
    """Lambda refused a request; the message is Lambda's own and what to do about it."""


class LambdaCloud:
    """The API, paced to its limits and asked again when it says "too many requests"."""

    def __init__(self, url: str, key: str, between: Mapping[str, float] | None = None) -> None:
        self._url, self._key = url, key
        self._between = between or SECONDS_BETWEEN
        self._free_at = dict.fromkeys(self._between, 0.0)
        self._lock = threading.Lock()

    def call(self, path: str, body: dict[str, Any] | None = None, attempts: int = MOST_ATTEMPTS) -> Any:
        """GET a path, or POST a body there; return the answer's data. Raises LambdaCloudError, for one without capacity."""
        pace = "launch" if path == LAUNCH else "other"
        self._wait_for_turn(pace)
        request = urllib.request.Request(
            self._url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 429 and attempts > 1:
                time.sleep(float(error.headers.get("Retry-After") or self._between[pace]))
                return self.call(path, body, attempts - 1)
            raise LambdaCloudError(_explain(path, error)) from error

    def _wait_for_turn(self, pace: str) -> None:
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at[pace])
            self._free_at[pace] = start + self._between[pace]
        time.sleep(start - now)


class LambdaNodeProvider(NodeProvider):
    """Instances as Ray's nodes. An instance belongs to a cluster by its name, `ray-<cluster>-...`."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._cloud = LambdaCloud(os.environ.get("LAMBDA_API_URL", API), read_key())
        self._prefix = f"ray-{cluster_name}-"
        self._file = TAG_FILE.expanduser() / f"lambda-{cluster_name}.json"
        self._lock = threading.RLock()
        self._nodes: dict[str, dict[str, Any]] = {}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """List the ids of live instances whose tags match; the one place that asks Lambda anew."""
        return [i for i, node in self._refresh().items() if tag_filters.items() <= node["tags"].items()]

    def is_running(self, node_id: str) -> bool:
        """Tell whether the instance has booted."""
        return self._node(node_id)["status"] == "active"

    def is_terminated(self, node_id: str) -> bool:
        """Tell whether the instance is gone or going."""
        return node_id not in self._refresh()

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Return Ray's tags of an instance."""
        return self._node(node_id)["tags"]

    def external_ip(self, node_id: str) -> str | None:
        """Return the public address; None while it has none."""
        return self._address(node_id, "ip")

    def internal_ip(self, node_id: str) -> str | None:
        """Return the address within the region; None while it has none."""
        return self._address(node_id, "private_ip")

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        """Start instances, one request each (the API knows no number)."""
        name = f"{self._prefix}{tags[TAG_RAY_NODE_KIND]}-{tags[TAG_RAY_USER_NODE_TYPE]}"[:64]
        for _ in range(count):
            launched = self._cloud.call(
                LAUNCH,
                {
                    "region_name": self.provider_config["region"],
                    "instance_type_name": node_config["instance_type"],
                    "ssh_key_names": [self.provider_config["ssh_key_name"]],
                    "file_system_names": node_config.get("file_systems", []),
                    "name": name,
                    "tags": [{"key": key, "value": str(value)[:128]} for key, value in tags.items() if _is_tag(key)],
                },
            )
            self._remember(dict.fromkeys(launched["instance_ids"], tags))

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Change Ray's tags of an instance; Lambda's own cannot be changed after the launch."""
        with self._lock:
            self._remember({node_id: tags})
            self._node(node_id)["tags"].update(tags)

    def terminate_node(self, node_id: str) -> None:
        """End an instance; its disk is deleted, file systems stay."""
        self._cloud.call(TERMINATE, {"instance_ids": [node_id]})

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Return the launch file as it is: nothing has to be made in the account first."""
        return cluster_config

    def _refresh(self) -> dict[str, dict[str, Any]]:
        written, nodes = self._written_tags(), {}
        for node in self._cloud.call(INSTANCES):
            if node["status"] in LIVE and (node.get("name") or "").startswith(self._prefix):
                own = {tag["key"]: tag["value"] for tag in node.get("tags") or []}
                nodes[node["id"]] = {**node, "tags": own | written.get(node["id"], {})}
        with self._lock:
            self._nodes = nodes
        return nodes

    def _node(self, node_id: str) -> dict[str, Any]:
        return self._nodes.get(node_id) or self._refresh()[node_id]

    def _address(self, node_id: str, key: str) -> str | None:
        return self._node(node_id).get(key) or self._refresh()[node_id].get(key)

    def _written_tags(self) -> dict[str, dict[str, str]]:
        return json.loads(self._file.read_text()) if self._file.exists() else {}

    def _remember(self, tags: Mapping[str, Mapping[str, str]]) -> None:
        with self._lock:
            written = self._written_tags()
            for node_id, added in tags.items():
                written[node_id] = {**written.get(node_id, {}), **added}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            half = self._file.with_suffix(".tmp")
            half.write_text(json.dumps(written))
            half.replace(self._file)


def read_key(path: Path = KEYS) -> str:
    """Return the API key: LAMBDA_API_KEY, else the line `api_key = ...` of the file. Raises LambdaCloudError."""
    if key := os.environ.get("LAMBDA_API_KEY"):
        return key
    file = path.expanduser()
    found = re.search(r"^\s*api_key\s*=\s*(\S+)", file.read_text(), re.MULTILINE) if file.exists() else None
    if found is None:
        raise LambdaCloudError(f"no API key: set LAMBDA_API_KEY, or write a line `api_key = ...` into {file}")
    return found[1]


def _is_tag(key: str) -> bool:
    """Lambda's rule for the keys of tags."""
    return bool(re.fullmatch(r"[a-z][a-z0-9-:]{1,54}", key))


def _explain(path: str, error: urllib.error.HTTPError) -> str:
    body = error.read().decode(errors="replace")
    try:
        told = json.loads(body)["error"]
        said = f"{told.get('message', '')} {told.get('suggestion') or ''}".strip()
    except (ValueError, KeyError, TypeError):
        said = body[:300]
    return f"Lambda Cloud refused {path} ({error.code}): {said}"
