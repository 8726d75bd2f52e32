"""Which nodes do what: launch files label nodes, and data work stays on the nodes that are labelled for it."""

from pathlib import Path
from typing import Any

import ray
import yaml

ROLE = "arc-ray-role"
"""Label of a node: `head`, `data` (rows, generated examples) or `train`."""

AUTOSCALER_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the launch file on the head, with every node type's resources filled in."""


def data_selector() -> dict[str, str] | None:
    """Return the label selector for data tasks: the `data` nodes of a cluster that labels its nodes, else None.

    One labelled node is enough (the head always is), because data nodes may only come when work asks for them.
    """
    is_divided = any(ROLE in node["Labels"] for node in ray.nodes() if node["Alive"])
    return {ROLE: "data"} if is_divided else None


def reachable(resource: str, bootstrap: Path = AUTOSCALER_FILE) -> float:
    """Return how much of a resource (`CPU`, `GPU`) there is, or would be once the autoscaler has started all it may."""
    now = ray.cluster_resources().get(resource, 0.0)
    path = bootstrap.expanduser()
    return max(now, most_of(resource, yaml.safe_load(path.read_text()))) if path.exists() else now


def most_of(resource: str, launch: dict[str, Any]) -> float:
    """Return the most of a resource that a launch file allows: its largest node types first, up to `max_workers` nodes."""
    workers, most = launch.get("max_workers", 0), 0.0
    types = launch.get("available_node_types", {})
    sizes = sorted(
        (
            (kind.get("resources", {}).get(resource, 0), kind.get("max_workers", workers))
            for name, kind in types.items()
            if name != launch.get("head_node_type")
        ),
        reverse=True,
    )
    for size, at_most in sizes:
        number = min(at_most, workers)
        most, workers = most + size * number, workers - number
    return float(most)
