"""Which nodes there are or may come, what they do, and what fits on them.

Launch files label nodes: data work stays on the nodes that are labelled for it. What an autoscaler may start is known
from the launch file that `ray up` leaves on the head, or from the RayCluster of KubeRay.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from arc_ray.runs.machine import usable_cores

ROLE = "arc-ray-role"
"""Label of a node: `head`, `data` (rows, generated examples) or `train`."""

ALONE = "arc-ray-alone"
"""Label of the node of a Ray that was started for one command, which no launch file of this machine is about."""

LAUNCH_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the launch file on the head, with every node type's resources filled in."""

KUBERNETES = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""There in every pod; KubeRay lets the head's read the RayCluster if it autoscales."""

HEAD_RESOURCE = "node:__internal_head__"
TRIAL_CPUS = 0.01
"""What a trial takes beside its workers: enough to keep it off nodes without CPUs."""

WITHOUT_BFLOAT16 = ("K80", "M60", "P4", "P40", "P100", "V100", "T4")
"""Data-centre cards older than Ampere, as Ray names them: bfloat16 is emulated there."""


@dataclass(frozen=True)
class NodeKind:
    """Nodes that are alike."""

    cpus: float
    gpus: float = 0.0
    role: str | None = None
    accelerator: str | None = None
    """Ray's name for its GPUs, such as H100."""
    is_head: bool = False

    def holds(self, cpus: float, gpus: float = 0.0) -> int:
        """Count the workers that one such node holds at once; `gpus` of each may be a share of one."""
        by_cpu = int(self.cpus / cpus + 1e-6)
        return min(by_cpu, int(self.gpus) * int(1 / gpus + 1e-6)) if gpus else by_cpu


@dataclass(frozen=True)
class Room:
    """What there is to run on."""

    kinds: Mapping[NodeKind, int]
    """How many of each there are, or may be."""
    most_nodes: int
    """How many there may be of all kinds together, heads not counted."""
    is_limit_known: bool = True
    """False where more may come than is known here."""
    num_hosts: int = 0
    """Hosts that are to join by themselves, on-premise, of which nothing else is known."""
    is_one_machine: bool = False
    """Ray was started here for one command: nothing else will come."""

    def holds(self, cpus: float, gpus: float = 0.0, data_cpus: float = 0.0) -> int:
        """Count the workers that run at once, the roomiest nodes first, while a data task has its CPUs beside them."""
        found = int(self._sum(lambda kind: kind.holds(cpus, gpus)))
        if not data_cpus:
            return found
        with_data = [kind for kind in self.kinds if kind.cpus + 1e-6 >= data_cpus]
        if self.is_divided():
            with_data = [kind for kind in with_data if kind.role == "data"]
        lost = (k.holds(cpus, gpus) - replace(k, cpus=k.cpus - data_cpus).holds(cpus, gpus) for k in with_data)
        return max(0, found - min(lost, default=found))

    def gpu_kinds(self) -> dict[NodeKind, int]:
        """Return the kinds that have GPUs."""
        return {kind: number for kind, number in self.kinds.items() if kind.gpus >= 1 and number}

    def is_divided(self) -> bool:
        """Tell whether nodes are labelled for their work."""
        return any(kind.role for kind in self.kinds)

    def most(self, resource: str) -> float:
        """Return how much of `cpus` or `gpus` all nodes have together."""
        return self._sum(lambda kind: getattr(kind, resource))

    def _sum(self, size: Callable[[NodeKind], float]) -> float:
        left, total = self.most_nodes, 0.0
        for kind in sorted(self.kinds, key=size, reverse=True):
            number = self.kinds[kind] if kind.is_head else min(self.kinds[kind], left)
            total, left = total + number * size(kind), left if kind.is_head else left - number
        return total


def data_selector() -> dict[str, str] | None:
    """Return the label selector for data tasks: the `data` nodes of a cluster that labels its nodes, else None.

    One labelled node is enough (the head always is), because data nodes may only come when work asks for them.
    """
    return {ROLE: "data"} if live_room().is_divided() else None


def live_nodes() -> list[dict[str, Any]]:
    """Return what Ray knows of each node that is there now."""
    return [node for node in ray.nodes() if node["Alive"]]


def live_room() -> Room:
    """Return what is there now."""
    nodes = live_nodes()
    kinds = Counter(kind_of(n["Resources"], n["Labels"], HEAD_RESOURCE in n["Resources"]) for n in nodes)
    num_workers = sum(number for kind, number in kinds.items() if not kind.is_head)
    return Room(kinds, num_workers, is_one_machine=any(ALONE in node["Labels"] for node in nodes))


def reachable_room() -> Room:
    """Return what is there, or would be once the autoscaler has started all it may."""
    live = live_room()
    return live if live.is_one_machine else room_with(live, _launch())


def machine_room(num_cpus: int | None) -> Room:
    """Return what a Ray has that is started here; null logical CPUs are the cores, and at least 4."""
    import torch

    return Room({NodeKind(logical_cpus(num_cpus), torch.cuda.device_count()): 1}, 1, is_one_machine=True)


def logical_cpus(num_cpus: int | None) -> int:
    """Return the CPUs of a Ray that is started here: as many as are asked for, or the cores."""
    return num_cpus or max(4, usable_cores())


def room_with(live: Room, launch: Mapping[str, Any] | None) -> Room:
    """Add to the live nodes what a launch description may start; None is one that cannot be read.

    Types without resources are on-premise hosts, of which Ray knows nothing until they join.
    """
    if launch is None:
        return replace(live, is_limit_known=False)
    most, head = launch.get("max_workers", 0), launch.get("head_node_type")
    known, hosts = Counter[NodeKind](), list[int]()
    for name, about in launch.get("available_node_types", {}).items():
        number = min(about.get("max_workers", 0 if name == head else most), most)
        if number and about.get("resources"):
            known[kind_of(about["resources"], about.get("labels", {}))] += number
        elif number:
            hosts.append(about.get("min_workers", 0))
    if not known and not hosts:
        return live
    # Nodes that are there are counted among their type, except where nothing tells of which type they are.
    there = {kind: n for kind, n in live.kinds.items() if kind.is_head or (hosts and kind not in known)}
    return Room({**known, **there}, max(most, live.most_nodes), not hosts, sum(hosts))


def kind_of(resources: Mapping[str, float], labels: Mapping[str, str], is_head: bool = False) -> NodeKind:
    """Describe a node, or a node type, by the resources and labels that Ray knows of it."""
    accelerators = [name.split(":", 1)[1] for name in resources if name.startswith("accelerator_type:")]
    cpus, gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    return NodeKind(cpus, gpus, labels.get(ROLE), min(accelerators, default=None), is_head)


def compute_in_bfloat16(room: Room) -> bool:
    """Tell whether all GPUs of a room do; nodes that are there are asked, of others the name of the card tells."""
    with_gpus = [node["NodeID"] for node in live_nodes() if node["Resources"].get("GPU")]
    asked, there = [run_on(name, has_bfloat16, max_calls=1) for name in with_gpus], live_room().gpu_kinds()
    to_come = {kind.accelerator for kind in room.gpu_kinds() if kind not in there}
    return bool(asked or to_come) and all(ray.get(asked)) and not to_come & set(WITHOUT_BFLOAT16)


def has_bfloat16() -> bool:
    """Tell whether this machine has GPUs that compute in bfloat16 themselves."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def least_gpu_memory() -> int:
    """Return the bytes of the smallest GPU of all nodes; where none is there yet, of the first one that comes."""
    names = [node["NodeID"] for node in live_nodes() if node["Resources"].get("GPU")]
    if not names:
        return ray.get(ray.remote(num_gpus=1, num_cpus=0, max_calls=1)(gpu_memory).remote())
    if names == [ray.get_runtime_context().get_node_id()] and (here := gpu_memory()):
        return here  # a process of its own would take seconds to start
    return min(ray.get([run_on(name, gpu_memory, max_calls=1) for name in names]))


def gpu_memory() -> int:
    """Return the bytes of the smallest GPU that this process sees; 0 where it sees none."""
    import torch

    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return min(sizes, default=0)


def hidden_gpus(on_gpu: bool) -> dict[str, str]:
    """Return the environment of workers that are to leave GPUs alone; nothing where they may use them, or there are none.

    Ray hides no GPU from a worker that asked for none, and DeepSpeed and peft take what they see. An environment of its
    own costs a worker half a second at its start.
    """
    if on_gpu or not reachable_room().gpu_kinds():
        return {}
    return {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def run_on(node_id: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> "ray.ObjectRef[Any]":
    """Call a function on a node, in a task that takes no CPU; return the reference of its result."""
    here: Any = NodeAffinitySchedulingStrategy(node_id, soft=False)
    remote = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here, **options)(function)
    return remote.remote(*arguments)


def _launch() -> Mapping[str, Any] | None:
    """Read what the autoscaler was told, here or else on the head; {} where there is none."""
    if found := read_launch():
        return found
    head = next((node["NodeID"] for node in live_nodes() if HEAD_RESOURCE in node["Resources"]), None)
    if head is None or head == ray.get_runtime_context().get_node_id():
        return found
    return ray.get(run_on(head, read_launch))


def read_launch() -> Mapping[str, Any] | None:
    """Read this machine's launch file, or its pod's RayCluster; {} where there is none, None if it cannot be read."""
    path = LAUNCH_FILE.expanduser()
    if path.exists():
        return yaml.safe_load(path.read_text())
    if not KUBERNETES.exists() or "RAY_CLUSTER_NAME" not in os.environ:
        return {}
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient  # as Ray's own autoscaler does

    try:
        kubernetes = KubernetesHttpApiClient(KUBERNETES.read_text().strip())
        return launch_of_ray_cluster(kubernetes.get(f"rayclusters/{os.environ['RAY_CLUSTER_NAME']}"))
    except OSError:  # of the network, or refused: the operator lets only pods that autoscale read it
        return None


def launch_of_ray_cluster(cluster: dict[str, Any]) -> Mapping[str, Any]:
    """Describe a RayCluster of KubeRay as a launch file would; {} if it does not autoscale."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    return _derive_autoscaling_config_from_ray_cr(cluster) if cluster["spec"].get("enableInTreeAutoscaling") else {}
