"""The check before work on a cluster, as far as it is arithmetic; tests/cluster/test_jobs.py runs it on real nodes."""

import socket
import time

import pytest
import yaml

from arc_ray.cluster.preflight import NodeReport, check_address, size_faults, storage_faults, version_faults
from arc_ray.cluster.roles import most_of
from arc_ray.config import Config
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


@pytest.mark.parametrize(
    ("scaling", "gpus", "cpus", "said"),
    [
        ({"num_workers": 16, "use_gpu": True}, 8, 96, "needs 16, the cluster has or can start 8"),
        ({"num_workers": [2, 16], "use_gpu": True}, 8, 96, None),
        ({"num_workers": 8, "use_gpu": True}, 8, 96, None),
        ({"num_workers": 8}, 0, 8, "too few CPUs: 8 workers x scaling.cpus_per_worker=1 and scaling.data_cpus=0.5"),
        ({"num_workers": 4}, 0, 8, None),
    ],
)
def test_size(scaling: dict[str, object], gpus: float, cpus: float, said: str | None) -> None:
    """Catches a training that would wait for ever, and an elastic one refused though its least number fits."""
    config = Config.model_validate({"scaling": scaling, "train": {"batch_rows": 16}})
    faults = size_faults(config, gpus, cpus, is_limit_known=True)
    assert len(faults) == (said is not None)
    assert said is None or said in faults[0]
    assert size_faults(config, 0, 0, is_limit_known=False) == []


def test_what_an_autoscaler_may_start_counts() -> None:
    """Catches a check that calls a cluster of spot nodes from 0 too small, and one that counts beyond max_workers."""
    launch = yaml.safe_load(
        """
        max_workers: 5
        head_node_type: head
        available_node_types:
          head: {resources: {CPU: 4, GPU: 1}, max_workers: 0}
          big: {resources: {GPU: 8, CPU: 96}, max_workers: 4}
          small: {resources: {GPU: 1, CPU: 16}, max_workers: 8}
        """
    )
    assert most_of("GPU", launch) == 4 * 8 + 1
    assert most_of("CPU", launch) == 4 * 96 + 16
    assert most_of("TPU", launch) == 0
