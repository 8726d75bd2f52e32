"""Before work: where it will run and whether it fits; can a cluster be reached, do its nodes agree and share the storage.

Every node is asked by a task of its own that takes no CPU, so that heads and busy nodes answer too. Findings are lines.
"""

import platform
import socket
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError

from arc_ray.cluster.roles import TRIAL_CPUS, Room, live_nodes, run_on
from arc_ray.cluster.speed import Speed, measure
from arc_ray.config import Config
from arc_ray.errors import UserError
from arc_ray.runs.machine import PACKAGES, version_of
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
    if address in ("auto", "local"):
        return
    parts = urlsplit(address if "://" in address else f"ray-gcs://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise UserError(f"--address {address}: write host:port, such as 10.0.0.1:6379, or auto for this machine's Ray")
    try:
        socket.create_connection((host, port), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: nobody answers ({error}); is the cluster up (ray up), and is this machine in its network?"
            f" From outside, submit the command as a job: ray job submit ... -- arc-ray ..."
        ) from error


def check_cluster(config: Config, room: Room, note: Callable[[str], None]) -> Speed:
    """Note a line for each node and what else is good to know, and measure the nodes' speed; Ray must be connected.

    Raises UserError with all faults.
    """
    storage, trace = config.storage, f".check-{uuid.uuid4().hex[:8]}"
    try:
        nodes = [_answer(node, report) for node, report in _ask_all(_describe_node, storage, trace)]
        asked = _ask_all(_names, storage, trace, len(nodes))
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node, _ in asked}
        seen = {
            addresses[node["NodeID"]]: [addresses.get(name, "") for name in ray.get(names)] for node, names in asked
        }
        for node in nodes:
            note(f"node {node.name}: ray {node.versions['ray']}, torch {node.versions['torch']}, {node.num_gpus} GPUs")
        faults = [
            *storage_faults(storage, nodes, seen),
            *version_faults(nodes),
            *(size_faults(config, room) if room.is_limit_known else []),
        ]
        if faults:
            raise UserError("\n       ".join(faults))
        note(f"storage {storage}: each of {len(nodes)} nodes reads what the others write")
        speed = measure(storage, trace, config.scaling.on_gpu, config.scaling.workers[1])
    finally:
        ray.get([done for _, done in _ask_all(_delete, storage, trace)])
    for line in speed.lines():
        note(line)
    return speed


def _ask_all(function: Callable[..., Any], *arguments: Any) -> list[tuple[dict[str, Any], "ray.ObjectRef[Any]"]]:
    """Call a function on every live node; return Ray's description of each, and what it will answer."""
    return [(node, run_on(node["NodeID"], function, *arguments)) for node in live_nodes()]


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


def placement(config: Config, room: Room, has_bfloat16: Callable[[], bool], is_search: bool = False) -> dict[str, Any]:
    """Choose what is `auto` in a config, as dotted overrides; an elastic run on one machine leaves room for data tasks.

    `is_search` is true where the config is that of many trials. GPUs of one node type are taken: those of another would
    wait for the slowest. `has_bfloat16` tells whether GPUs compute in it, and is asked only where that matters.
    """
    scaling, chosen = config.scaling, dict[str, Any]()
    on_gpu = bool(room.gpu_kinds()) if scaling.use_gpu == "auto" else scaling.use_gpu
    if scaling.use_gpu == "auto":
        chosen["scaling.use_gpu"] = on_gpu
    if scaling.num_workers == "auto":
        chosen["scaling.num_workers"] = _workers_that_fit(config, room) if on_gpu and not is_search else 1
    elif isinstance(scaling.num_workers, tuple) and room.is_one_machine:
        low, high = scaling.num_workers
        fitting = room.holds(scaling.cpus_per_worker, float(on_gpu), _cpus_for_data(config))
        chosen["scaling.num_workers"] = (low, max(low, min(high, fitting)))
    if config.model.dtype == "auto":
        chosen["model.dtype"] = "bfloat16" if on_gpu and has_bfloat16() else "float32"
    return chosen


def describe_placement(config: Config, room: Room, is_search: bool, trains: bool = True) -> str:
    """Say in a line where a settled config runs, with how many workers, and in what arithmetic."""
    low, high = config.scaling.workers
    workers = f"{low} worker{'s' * (low > 1)}" if low == high else f"{low} to {high} workers"
    each = f", {workers}{' a trial' if is_search else ''}{' with a GPU each' if config.scaling.on_gpu else ''}"
    if not trains:
        replicas, share = num_replicas(config, room), config.evaluate.gpus
        each = f", {replicas} replica{'s' * (replicas > 1)} with {share:g} GPU each" if config.scaling.on_gpu else ""
    unknown = "" if room.gpu_kinds() or room.is_limit_known else " (no GPU is there; whether one may come is not known)"
    device = "GPUs" if config.scaling.on_gpu else f"the CPU{unknown}"
    return f"runs on {device}{each}, in {config.model.dtype}"


def num_replicas(config: Config, room: Room) -> int:
    """Count the models that answer at once in an evaluation: as many as asked for, or as there are shares of GPUs."""
    if config.evaluate.num_actors or not config.scaling.on_gpu:
        return config.evaluate.num_actors or 1
    return max(1, room.holds(config.scaling.cpus_per_worker, config.evaluate.gpus))


def _workers_that_fit(config: Config, room: Room) -> int:
    """Return the most GPUs of one node type among which the rows of a step can be shared equally."""
    train, cpus = config.train, config.scaling.cpus_per_worker
    by_kind = [number * kind.holds(cpus, 1) for kind, number in room.gpu_kinds().items()]
    most = min(max(by_kind, default=1), room.holds(cpus, 1, _cpus_for_data(config)))
    return max((n for n in range(1, most + 1) if train.batch_rows % (n * train.rows_at_once) == 0), default=1)


def size_faults(config: Config, room: Room, trains: bool = True, trials: int = 0, is_now: bool = False) -> list[str]:
    """Say whether the workers of a training with its data tasks, or else of an evaluation, could ever start.

    `trials` of a search run at the same time. `is_now` is true for a room of what is there now, where more may come.
    """
    scaling, gpus = config.scaling, room.most("gpus")
    workers, data_cpus = (scaling.workers[0], _cpus_for_data(config)) if trains else (1, 0.0)
    share = (1.0 if trains else config.evaluate.gpus) if scaling.on_gpu else 0.0
    has, more = "the cluster has or can start", ", or raise max_workers in the launch file"
    if room.is_one_machine:
        has, more = "this machine has", ", or raise ray.num_cpus"
    if is_now:
        has = "now there are"
    if scaling.on_gpu and gpus < workers:
        hint = "lower scaling.num_workers or set it to auto" if gpus else "set scaling.use_gpu=auto to do without"
        needs = f"too few GPUs: scaling.num_workers={workers} needs {workers}, {has} {gpus:g}"
        return [needs if is_now else f"{needs}; {hint}{'' if room.is_one_machine else more}"]
    # Trials that wait for a GPU take no CPUs.
    at_once = min(workers * max(1, trials), int(gpus) if scaling.on_gpu else sys.maxsize)
    if room.holds(scaling.cpus_per_worker, share, data_cpus + trials * TRIAL_CPUS) < at_once:
        several = f"{trials} trials x " if trials > 1 else ""
        each = f"{workers} worker{'s' * (workers > 1)} x scaling.cpus_per_worker={scaling.cpus_per_worker:g}"
        where = " on nodes labelled data" if room.is_divided() else ""
        beside = f" and scaling.data_cpus={data_cpus:g} for rows{where}" if data_cpus else ""
        largest = max((kind.cpus for kind, number in room.kinds.items() if number), default=0.0)
        at_most = "" if room.is_one_machine else f", at most {largest:g} a node"
        needs = f"too few CPUs: {several}{each}{beside}, {has} {room.most('cpus'):g}{at_most}"
        lower = "tune.max_concurrent or " if trials > 1 else "scaling.num_workers or " if at_once > 1 else ""
        return [needs if is_now else f"{needs}; lower {lower}scaling.cpus_per_worker{more}"]
    return []


def _cpus_for_data(config: Config) -> float:
    """Return the CPUs without which no rows are made; trl's workers make their own."""
    return config.scaling.data_cpus if config.train.engine == "deepspeed" else 0.0


def _answer(node: dict[str, Any], report: "ray.ObjectRef[NodeReport]") -> NodeReport:
    try:
        return ray.get(report, timeout=NODE_SECONDS)
    except RayError as error:
        reason = str(error).strip().splitlines()[-1][:300] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}) cannot run a task: {reason};"
            f" is arc_ray installed there (setup_commands)?"
        ) from error


def _describe_node(storage: str, folder: str) -> NodeReport:
    """Describe this node, and write a file that is named after it."""
    context, failure = ray.get_runtime_context(), ""
    mine = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    try:
        Folder.at(storage).write_bytes(f"{folder}/{mine['NodeID']}", b"")
    except UserError as error:
        failure = str(error)
    installed = {name: version_of(name) or "missing" for name in (*PACKAGES, "arc_ray")}
    versions, gpus = {"python": platform.python_version(), **installed}, int(mine["Resources"].get("GPU", 0))
    return NodeReport(socket.gethostname(), mine["NodeManagerAddress"], versions, gpus, failure)


def _names(storage: str, folder: str, expected: int) -> list[str]:
    """List the files, after a while if some are missing: NFS clients remember for seconds what was not there."""
    deadline = time.monotonic() + NFS_SECONDS
    while len(names := (Folder.at(storage) / folder).names()) < expected and time.monotonic() < deadline:
        time.sleep(0.5)
    return names


def _delete(storage: str, folder: str) -> None:
    Folder.at(storage).delete(folder)
