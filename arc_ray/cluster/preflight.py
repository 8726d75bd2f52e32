"""Before work on a cluster: can it be reached, do its nodes run the same versions and see the same storage, has it the GPUs.

Every node is asked by a task of its own that takes no CPU, so that heads and busy nodes answer too. Findings are lines.
"""

import importlib.metadata
import os
import platform
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from arc_ray.cluster.roles import reachable
from arc_ray.config import Config
from arc_ray.errors import UserError
from arc_ray.runs import PACKAGES
from arc_ray.storage import Folder

REACH_SECONDS = 5.0
NFS_SECONDS = 10.0
NODE_SECONDS = 120.0
"""A node's first task starts a worker process and imports our package."""


@dataclass(frozen=True)
class NodeReport:
    """What a node says about itself."""

    host: str
    address: str
    versions: dict[str, str]
    num_gpus: int
    failure: str = ""
    """Why nothing could be written to the storage from here."""

    @property
    def name(self) -> str:
        """Host name and address, for messages."""
        return f"{self.host} ({self.address})"


def check_address(address: str) -> None:
    """Find out within seconds that nobody can be reached, where Ray itself would try for minutes. Raises UserError."""
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address}: this is the address for jobs; run the command there as one:"
            f" ray job submit --address {address} --working-dir . -- arc-ray ... (without --address)"
        )
    parts = urlsplit(address if "://" in address else f"ray-gcs://{address}")
    if parts.hostname is None or parts.port is None:
        return  # "auto" and "local"
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: nobody answers ({error}); is the cluster up (ray up), and is this machine in its network?"
            f" From outside, submit the command as a job: ray job submit ... -- arc-ray ..."
        ) from error


def ask_nodes(storage: str, token: str) -> list[NodeReport]:
    """Let every live node describe itself and write a file of its own into the storage folder."""
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    asked = {i: _run_on(i, _describe_node, storage, f"{_trace(token)}/{i}") for i in nodes}
    return [_answer(nodes[i]["NodeManagerHostname"], nodes[i]["NodeManagerAddress"], asked[i]) for i in nodes]


def check_cluster(config: Config) -> Iterator[str]:
    """Yield a line for each node and what else is good to know; Ray must be connected. Raises UserError with all faults."""
    token = uuid.uuid4().hex[:8]
    try:
        nodes = ask_nodes(config.storage, token)
        seen = who_sees_what(config.storage, token)
    finally:
        ray.get([_run_on(n["NodeID"], _delete, config.storage, _trace(token)) for n in ray.nodes() if n["Alive"]])
    for node in nodes:
        yield f"node {node.name}: ray {node.versions['ray']}, torch {node.versions['torch']}, {node.num_gpus} GPUs"
    gpus, cpus = ray.cluster_resources().get("GPU", 0.0), reachable("CPU")
    faults = [
        *storage_faults(config.storage, nodes, seen),
        *version_faults(nodes),
        *size_faults(config, reachable("GPU"), cpus, can_tell_growth()),
    ]
    if faults:
        raise UserError("\n       ".join(faults))
    yield f"storage {config.storage}: each of {len(nodes)} nodes reads what the others write"
    if config.scaling.use_gpu and least_workers(config) > gpus:
        yield f"{gpus:g} GPUs now; nodes for {least_workers(config)} are started when training asks for them"


def who_sees_what(storage: str, token: str) -> dict[str, list[str]]:
    """Return for each live node (its address) the addresses whose files it can read in the storage folder."""
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    asked = {i: _run_on(i, _names, storage, _trace(token), len(nodes)) for i in nodes}
    return {nodes[i]: [nodes[name] for name in ray.get(names) if name in nodes] for i, names in asked.items()}


def storage_faults(storage: str, nodes: Sequence[NodeReport], seen: Mapping[str, Sequence[str]]) -> list[str]:
    """Say which nodes cannot write, or do not see what another one wrote."""
    faults = [f"{node.name}: {node.failure}" for node in nodes if node.failure]
    wrote = [node for node in nodes if not node.failure]
    for reader in nodes:
        missing = [writer.name for writer in wrote if writer.address not in seen.get(reader.address, ())]
        if missing:
            faults.append(
                f"storage {storage} is not shared: {reader.name} does not see what {missing[0]} wrote;"
                f" use s3://, gs:// or a folder mounted on all nodes"
            )
            break
    return faults


def version_faults(nodes: Sequence[NodeReport]) -> list[str]:
    """Say which packages have different versions on different nodes."""
    faults = []
    for package in sorted({name for node in nodes for name in node.versions}):
        where = defaultdict(list)
        for node in nodes:
            where[node.versions.get(package, "missing")].append(node.name)
        if len(where) > 1:
            told = "; ".join(f"{version} on {', '.join(names[:3])}" for version, names in sorted(where.items()))
            faults.append(f"{package} differs between nodes: {told}; run the same setup_commands on all (ray up again)")
    return faults


def size_faults(config: Config, most_gpus: float, most_cpus: float, is_limit_known: bool) -> list[str]:
    """Say whether the workers of a training could ever start; `most_*` count what the autoscaler may still add."""
    workers, scaling = least_workers(config), config.scaling
    if not is_limit_known:
        return []
    if scaling.use_gpu and most_gpus < workers:
        return [
            f"too few GPUs: scaling.num_workers={workers} needs {workers}, the cluster has or can start {most_gpus:g};"
            f" lower scaling.num_workers, or raise max_workers in the launch file"
        ]
    if most_cpus < workers * scaling.cpus_per_worker + scaling.data_cpus:
        return [
            f"too few CPUs: {workers} workers x scaling.cpus_per_worker={scaling.cpus_per_worker:g} and"
            f" scaling.data_cpus={scaling.data_cpus:g} for rows, the cluster has or can start {most_cpus:g}"
        ]
    return []


def least_workers(config: Config) -> int:
    """Return the number of workers without which a training does not start."""
    workers = config.scaling.num_workers
    return workers if isinstance(workers, int) else workers[0]


def can_tell_growth() -> bool:
    """Tell whether what the autoscaler may add is known here: Kubernetes alone does not say."""
    return "KUBERNETES_SERVICE_HOST" not in os.environ


def _answer(host: str, address: str, reference: "ray.ObjectRef[NodeReport]") -> NodeReport:
    try:
        return ray.get(reference, timeout=NODE_SECONDS)
    except RayError as error:
        reason = str(error).strip().splitlines()[-1][:300] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{host} ({address}) cannot run a task: {reason}; is arc_ray installed there (setup_commands)?"
        ) from error


def _describe_node(storage: str, name: str) -> NodeReport:
    failure = ""
    try:
        Folder.at(storage).write_bytes(name, b"")
    except UserError as error:
        failure = str(error)
    versions = {"python": platform.python_version(), **{name: _version(name) for name in (*PACKAGES, "arc_ray")}}
    context = ray.get_runtime_context()
    mine = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    gpus = int(mine["Resources"].get("GPU", 0))
    return NodeReport(socket.gethostname(), mine["NodeManagerAddress"], versions, gpus, failure)


def _names(storage: str, folder: str, expected: int) -> list[str]:
    """List the files, after a while if some are missing: NFS clients remember for seconds what was not there."""
    deadline = time.monotonic() + NFS_SECONDS
    while len(names := (Folder.at(storage) / folder).names()) < expected and time.monotonic() < deadline:
        time.sleep(0.5)
    return names


def _delete(storage: str, folder: str) -> None:
    Folder.at(storage).delete(folder)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _trace(token: str) -> str:
    return f".check-{token}"


def _run_on(node_id: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on a node, in a task that takes no CPU; return the reference of its result."""
    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote(*arguments)
