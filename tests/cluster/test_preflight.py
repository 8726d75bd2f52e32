"""The check before work on a cluster, as far as it is arithmetic; tests/cluster/test_jobs.py runs it on real nodes."""

import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from arc_ray.cluster.preflight import (
    NodeReport,
    check_address,
    describe_placement,
    num_replicas,
    placement,
    size_faults,
    storage_faults,
    version_faults,
)
from arc_ray.cluster.roles import NodeKind, Room, launch_of_ray_cluster, read_launch, room_with
from arc_ray.config import Config, config_from
from arc_ray.errors import UserError


def node(number: int, failure: str = "", **versions: str) -> NodeReport:
    return NodeReport(f"host{number}", f"10.0.0.{number}", {"ray": "2.60.0", "torch": "2.13.0", **versions}, 0, failure)


def test_an_address_that_nobody_listens_at_is_found_out_at_once() -> None:
    """Catches Ray's own minutes of trying, and a trace instead of a message."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(UserError, match=f"127.0.0.1:{port}: nobody answers"):
        check_address(f"127.0.0.1:{port}")
    assert time.monotonic() - begun < 6


def test_the_address_for_jobs_is_explained() -> None:
    """Catches a user who gives the dashboard's address, which Ray would answer with a protocol error."""
    with pytest.raises(UserError, match=r"ray job submit --address http://127\.0\.0\.1:8265"):
        check_address("http://127.0.0.1:8265")


def test_storage_that_is_not_shared_names_both_nodes() -> None:
    """Catches a run whose checkpoints lie on one node's disk, and a false alarm where all see all."""
    nodes = [node(1), node(2), node(3)]
    everybody = [n.address for n in nodes]
    assert storage_faults("/shared", nodes, dict.fromkeys(everybody, everybody)) == []
    seen = {"10.0.0.1": everybody, "10.0.0.2": ["10.0.0.2"], "10.0.0.3": everybody}
    (fault,) = storage_faults("/shared", nodes, seen)
    assert "host2 (10.0.0.2) does not see what host1 (10.0.0.1) wrote" in fault
    assert "\n" not in fault


def test_a_node_that_cannot_write_is_named_once() -> None:
    """Catches the same cause told twice: what was not written is not seen either."""
    nodes = [node(1), node(2, failure="storage: cannot write /shared: permission denied")]
    faults = storage_faults("/shared", nodes, {"10.0.0.1": ["10.0.0.1"], "10.0.0.2": ["10.0.0.1"]})
    assert faults == ["host2 (10.0.0.2): storage: cannot write /shared: permission denied"]


def test_versions_that_differ_are_named_with_their_nodes() -> None:
    """Catches a node that was set up a month ago."""
    assert version_faults([node(1), node(2)]) == []
    (fault,) = version_faults([node(1), node(2, torch="2.11.0")])
    assert fault.startswith("torch differs between nodes: 2.11.0 on host2 (10.0.0.2); 2.13.0 on host1 (10.0.0.1)")


def cluster(*kinds: tuple[NodeKind, int], most: int = 100, alone: bool = False) -> Room:
    return Room(dict(kinds), most, is_one_machine=alone)


def config_of(**sections: dict[str, object]) -> Config:
    return Config.model_validate({"train": {"batch_rows": 16}, **sections})


CPU = {"use_gpu": False}
GPU = {"use_gpu": True}
MACHINE = cluster((NodeKind(4), 1), alone=True)
H100 = NodeKind(96, 8, "train", "H100")
HEAD, DATA = NodeKind(0, 0, "head", is_head=True), NodeKind(16, 0, "data")


@pytest.mark.parametrize(
    ("scaling", "room", "said"),
    [
        (
            {**GPU, "num_workers": 16},
            cluster((H100, 1)),
            "needs 16, the cluster has or can start 8; lower scaling.num_w",
        ),
        ({**GPU, "num_workers": [2, 16]}, cluster((H100, 1), (DATA, 1)), None),
        ({**GPU, "num_workers": 8}, cluster((H100, 1), (DATA, 1)), None),
        ({**GPU, "num_workers": 1}, MACHINE, "this machine has 0; set scaling.use_gpu=auto"),
        ({**CPU, "num_workers": 4}, cluster((NodeKind(8), 1)), None),
        (
            {**CPU, "num_workers": 8},
            cluster((NodeKind(8), 1)),
            "8 workers x scaling.cpus_per_worker=1 and scaling.data_c",
        ),
        # The three that hung for ever on a machine with 4 logical CPUs.
        (
            {**CPU, "num_workers": 4},
            MACHINE,
            "scaling.data_cpus=0.5 for rows, this machine has 4; lower scaling.num_work",
        ),
        ({**CPU, "num_workers": 1, "cpus_per_worker": 4}, MACHINE, "1 worker x scaling.cpus_per_worker=4 and"),
        ({**CPU, "num_workers": 1}, cluster((NodeKind(1), 1), alone=True), "or raise ray.num_cpus"),
        ({**CPU, "num_workers": 2, "data_cpus": 2}, MACHINE, None),
        # 16 CPUs in all, but no node that holds a worker of 8.
        ({**CPU, "num_workers": 1, "cpus_per_worker": 8}, cluster((NodeKind(4), 4)), "can start 16, at most 4 a node"),
        # Of a divided cluster data nodes alone take data tasks.
        (
            {**GPU, "num_workers": 8},
            cluster((HEAD, 1), (H100, 1)),
            "scaling.data_cpus=0.5 for rows on nodes labelled data",
        ),
    ],
)
def test_size(scaling: dict[str, object], room: Room, said: str | None) -> None:
    """Catches a training that would wait for ever, and an elastic one refused though its least number fits."""
    faults = size_faults(config_of(scaling=scaling), room)
    assert len(faults) == (said is not None)
    assert said is None or said in faults[0]


def test_size_of_what_makes_no_rows_with_ray() -> None:
    """Catches CPUs that are kept free for data tasks that never come: trl makes its rows itself, answering needs none."""
    whole = {**CPU, "num_workers": 4}
    assert size_faults(config_of(scaling=whole, train={"engine": "trl", "batch_rows": 16}), MACHINE) == []
    assert size_faults(config_of(scaling={**CPU, "num_workers": 4, "cpus_per_worker": 4}), MACHINE, trains=False) == []
    (fault,) = size_faults(config_of(scaling={**CPU, "num_workers": 1, "cpus_per_worker": 5}), MACHINE, trains=False)
    assert fault.startswith(
        "too few CPUs: 1 worker x scaling.cpus_per_worker=5, this machine has 4; lower scaling.cpus"
    )


def test_size_of_trials_that_run_at_once() -> None:
    """Catches a search whose trials take the CPUs of their own data tasks: three wait for rows, the fourth for a CPU."""
    config = config_of(scaling={**CPU, "num_workers": 1, "data_cpus": 1})
    assert size_faults(config, MACHINE, trials=2) == []
    (fault,) = size_faults(config, MACHINE, trials=3)
    assert fault.startswith("too few CPUs: 3 trials x 1 worker x scaling.cpus_per_worker=1 and scaling.data_cpus=1 for")
    assert "lower tune.max_concurrent or scaling.cpus_per_worker" in fault
    one_gpu = cluster((NodeKind(4, 1), 1), alone=True)
    assert size_faults(config_of(scaling={**GPU, "num_workers": 1}), one_gpu, trials=8) == [], "they wait for the GPU"
    assert size_faults(config_of(scaling={**CPU, "num_workers": 2, "data_cpus": 2}), MACHINE, trials=0) == []
    assert size_faults(config_of(scaling={**CPU, "num_workers": 2, "data_cpus": 2}), MACHINE, trials=1) != []


P4, P5 = NodeKind(96, 8, "train", "A100"), NodeKind(192, 8, "train", "H100")
CLOUD = cluster((HEAD, 1), (DATA, 4), (P4, 8), (P5, 4), most=17)


@pytest.mark.parametrize(
    ("room", "train", "scaling", "on_gpu", "workers"),
    [
        (MACHINE, {}, {}, False, 1),
        (cluster((NodeKind(16, 4), 1), alone=True), {}, {}, True, 4),
        (cluster((NodeKind(16, 3), 1), alone=True), {}, {}, True, 2),  # 3 do not divide 16 rows
        (cluster((NodeKind(16, 8), 1), alone=True), {"micro_rows": 4}, {}, True, 4),
        (cluster((NodeKind(16, 8), 1), alone=True), {"batch_rows": 7}, {}, True, 7),
        (cluster((NodeKind(8, 8), 1), alone=True), {}, {}, True, 4),  # a CPU each, and one for rows
        (cluster((NodeKind(8, 8), 1), alone=True), {"engine": "trl"}, {}, True, 8),
        (CLOUD, {}, {}, True, 16),
        (CLOUD, {"batch_rows": 4096}, {}, True, 64),  # of one type, not 96 of two
        (CLOUD, {"batch_rows": 4096}, {"use_gpu": False}, False, 1),
        (CLOUD, {}, {"num_workers": 2}, True, 2),
        (cluster((HEAD, 1), (DATA, 1), (P5, 0)), {}, {}, False, 1),  # a type of which none may be started
        (cluster((NodeKind(16, 8), 1)), {}, {"num_workers": [1, 8]}, True, (1, 8)),
        # Elastic on one machine: Ray would give all CPUs to workers, and rows would never be made.
        (MACHINE, {}, {"num_workers": [1, 4]}, False, (1, 3)),
    ],
)
def test_what_is_auto_is_chosen_by_what_there_is(
    room: Room, train: dict[str, object], scaling: dict[str, object], on_gpu: bool, workers: object
) -> None:
    """Catches a study on a cluster of H100s that asks for CPU nodes, and shares of a batch that are not equal."""
    config = config_of(train={"batch_rows": 16, **train}, scaling=scaling)
    chosen = config_from(config.model_dump(mode="json"), placement(config, room, lambda: True))
    assert (chosen.scaling.use_gpu, chosen.scaling.num_workers) == (on_gpu, workers)
    assert chosen.model.dtype == ("bfloat16" if on_gpu else "float32")
    assert size_faults(chosen, room) == []


def test_a_search_takes_one_gpu_a_trial_and_old_cards_float32() -> None:
    """Catches trials that wait for each other's GPUs, and bfloat16 emulated on a V100; what was given stays."""
    chosen = placement(config_of(), CLOUD, lambda: False, is_search=True)
    assert chosen == {"scaling.use_gpu": True, "scaling.num_workers": 1, "model.dtype": "float32"}
    given = config_of(scaling={"use_gpu": False, "num_workers": 2}, model={"dtype": "bfloat16"})
    assert placement(given, CLOUD, lambda: True) == {}


LAUNCH = """
    max_workers: 5
    head_node_type: head
    available_node_types:
      head: {resources: {CPU: 4, GPU: 1}, max_workers: 0}
      big: {resources: {GPU: 8, CPU: 96, "accelerator_type:H100": 1}, labels: {arc-ray-role: train}, max_workers: 4}
      small: {resources: {GPU: 1, CPU: 16}, max_workers: 8}
    """


def test_what_an_autoscaler_may_start_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that calls a cluster of spot nodes from 0 too small, and one that counts beyond max_workers."""
    assert read_launch() == {}, "no cluster was started from this machine"
    monkeypatch.setattr("arc_ray.cluster.roles.LAUNCH_FILE", tmp_path / "launch.yaml")
    (tmp_path / "launch.yaml").write_text(LAUNCH)
    room = room_with(Room({NodeKind(0, 0, "head", is_head=True): 1}, 1), read_launch())
    assert room.most("gpus") == 4 * 8 + 1
    assert room.most("cpus") == 4 * 96 + 16
    assert room.kinds[NodeKind(96, 8, "train", "H100")] == 4
    assert room.holds(16, 1) == 4 * 6 + 1
    assert room.holds(1, 0.5) == 4 * 16 + 2


def test_hosts_that_ray_knows_nothing_of_yet_leave_the_limit_open() -> None:
    """Catches an on-premise cluster that is called too small before its hosts have joined."""
    live = Room({NodeKind(0, is_head=True): 1}, 0)
    types = {"local.cluster.node": {"resources": {}, "min_workers": 2, "max_workers": 2}}
    onprem = {"max_workers": 2, "head_node_type": "local.cluster.node", "available_node_types": types}
    assert room_with(live, onprem) == replace(live, most_nodes=2, is_limit_known=False, num_hosts=2)
    joined = Room({**live.kinds, H100: 2}, 2)
    assert room_with(joined, onprem) == replace(joined, is_limit_known=False, num_hosts=2)
    some = {"max_workers": 4, "available_node_types": {"data": {"resources": {}}, "h100": {"resources": {"GPU": 8}}}}
    found = room_with(live, some)
    assert (found.most("gpus"), found.is_limit_known, found.num_hosts) == (32, False, 0)
    assert room_with(live, None) == replace(live, is_limit_known=False)
    assert room_with(live, {}) == live


def test_kuberay_tells_what_it_may_start() -> None:
    """Catches a RayJob on Kubernetes that never asks for a GPU: there is no launch file, its RayCluster says it all."""
    text = (Path(__file__).parents[2] / "cluster" / "kuberay.yaml").read_text()
    job = next(d for d in yaml.safe_load_all(text) if d["kind"] == "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    ray_cluster = {"metadata": {"name": "arc", "namespace": "default"}, "spec": spec}
    room = room_with(Room({HEAD: 1}, 1), launch_of_ray_cluster(ray_cluster))
    assert room.kinds == {HEAD: 1, NodeKind(16, 0, "data"): 4, NodeKind(96, 8, "train"): 4}
    assert launch_of_ray_cluster({**ray_cluster, "spec": {**spec, "enableInTreeAutoscaling": False}}) == {}


def test_replicas_that_share_a_gpu() -> None:
    """Catches an evaluation that answers by one process on a GPU that one Python thread leaves idle, or that is refused."""
    room = cluster((NodeKind(8, 2, accelerator="H100"), 1))
    cases: list[tuple[dict[str, object], int]] = [({}, 2), ({"gpus": 0.25}, 8), ({"gpus": 0.5, "num_actors": 3}, 3)]
    for evaluate, number in cases:
        config = config_of(scaling={**GPU, "num_workers": 1, "cpus_per_worker": 1}, evaluate=evaluate)
        assert num_replicas(config, room) == number
        assert size_faults(config, room, trains=False) == []
        assert f"GPUs, {number} replicas with {config.evaluate.gpus:g} GPU each, in" in describe_placement(
            config, room, is_search=False, trains=False
        )
    on_cpu = config_of(scaling={**CPU, "num_workers": 1}, evaluate={"gpus": 0.25})
    assert num_replicas(on_cpu, room) == 1
    assert describe_placement(on_cpu, room, is_search=False, trains=False).startswith("runs on the CPU, in")
