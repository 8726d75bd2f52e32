"""Faults, by kill -9 of real processes: a worker, a checkpoint half written, all processes of a node; and an elastic run.

Each compares with an unbroken run of the same config: on the CPU, with the same number of workers, every loss and the
final adapter are bit-equal, which they could not be if any step had seen other rows. tests/train/test_train.py kills
the driver.
"""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from training import adapter, counting_tree, environment, records, train_command

pytestmark = pytest.mark.slow

TREE = counting_tree(
    examples=200,
    hidden_size=64,
    layers=2,
    train={"lr": 1e-3, "row_tokens": 384, "batch_rows": 4, "epochs": 4, "max_steps": 40, "tracker": "none"}
    | {"checkpoint_every": 4, "keep_checkpoints": 99, "zero_stage": 1},
    # A node of the clusters below has three CPUs: room for one worker and its data tasks.
    scaling={"threads": 1, "cpus_per_worker": 2, "data_cpus": 0.5, "resize_seconds": 3},
)

PATIENCE = 300.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with an unbroken run to compare with."""
    path = tmp_path_factory.mktemp("faults")
    (path / "config.yaml").write_text(yaml.safe_dump({**TREE, "storage": str(path / "runs")}))
    with training(path, "name=unbroken") as run:
        ends_well(run)
    return path


@contextmanager
def training(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`arc-ray train` in a process group of its own, which is gone at the end."""
    pipe, command = subprocess.PIPE, train_command(folder, *words)
    run = subprocess.Popen(
        command, env=environment(), stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield run
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def ends_well(run: subprocess.Popen[str]) -> None:
    said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, said


def wait_for(there: Callable[[], Any], run: subprocess.Popen[str]) -> Any:
    """Poll until `there` returns something, while the run goes on."""
    deadline = time.monotonic() + PATIENCE
    while not (found := there()):
        assert run.poll() is None, f"the run ended too early:\n{run.stdout.read() if run.stdout else ''}"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    return found


def steps_saved(folder: Path, name: str) -> list[int]:
    markers = (folder / "runs" / name).glob("checkpoint-*/arc_ray.json")
    return sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in markers)


def assert_bit_equal(folder: Path, name: str) -> None:
    """Every step's loss and every tensor of the last adapter are those of the unbroken run, to the last bit."""
    unbroken, found = records(folder, "unbroken"), records(folder, name)
    assert [r["step"] for r in found] == [r["step"] for r in unbroken] == list(range(1, 41))
    assert [r["train/loss"] for r in found] == [r["train/loss"] for r in unbroken]
    adapters = [adapter(folder, run) for run in ("unbroken", name)]
    assert adapters[0].keys() == adapters[1].keys() != set()
    for key, tensor in adapters[0].items():
        assert tensor.tobytes() == adapters[1][key].tobytes(), key


def workers_of(parent: int) -> list[psutil.Process]:
    """The training workers among the processes that a driver, or a raylet, has started."""
    found = psutil.Process(parent).children(recursive=True)
    return [process for process in found if "RayTrainWorker" in _title(process)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_killed_worker_is_replaced_within_the_run(folder: Path) -> None:
    """Catches a fault that ends the run, or a worker that comes back at another step, with other moments or other rows."""
    with training(folder, "name=worker") as run:
        wait_for(lambda: steps_saved(folder, "worker"), run)
        (worker,) = workers_of(run.pid)
        worker.kill()
        assert steps_saved(folder, "worker")[-1] < 40, "the training had ended already, so nothing was tested"
        ends_well(run)
    assert_bit_equal(folder, "worker")


def test_killed_while_a_checkpoint_is_written(folder: Path) -> None:
    """Catches a torn checkpoint that is taken for a whole one, and a run that cannot go on beside it.

    Worker and driver are killed as soon as a checkpoint's folder is there without its marker, which is written last. A
    checkpoint that was quicker than the kill is no loss: the run goes on, and is killed at the next.
    """

    def torn() -> list[Path]:
        return [p for p in (folder / "runs" / "torn").glob("checkpoint-*") if not (p / "arc_ray.json").exists()]

    for _ in range(4):
        with training(folder, "name=torn") as run:
            (worker,) = wait_for(lambda run=run: workers_of(run.pid), run)
            wait_for(torn, run)
            worker.kill()
            os.killpg(run.pid, signal.SIGKILL)
        if torn():
            break
    assert torn(), "every checkpoint was complete before the kill, so nothing was tested"
    with training(folder, "name=torn") as run:
        ends_well(run)
    assert_bit_equal(folder, "torn")


@contextmanager
def small_cluster() -> Iterator[Any]:
    """A head that works on nothing and two nodes with room for one worker each, all on this machine."""
    from ray.cluster_utils import Cluster

    store = 100 * 2**20
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as path:  # sockets need a short path
        head = {"num_cpus": 0, "object_store_memory": store, "temp_dir": path, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.nodes_to_use = [cluster.add_node(num_cpus=3, object_store_memory=store) for _ in range(2)]
            cluster.add = lambda: cluster.add_node(num_cpus=3, object_store_memory=store)
            yield cluster
        finally:
            cluster.shutdown()


def raylet_of(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def kill_machine(node: Any) -> None:
    """Kill a node's raylet and all that it started, at once, as when a machine is switched off.

    The raylet is waited for: its workers would take a zombie for a living raylet and train on.
    """
    raylet = psutil.Process(raylet_of(node))
    for process in [raylet, *raylet.children(recursive=True)]:
        process.kill()
    node.all_processes["raylet"][0].process.wait()


def test_a_node_that_dies_is_left_behind(folder: Path) -> None:
    """Catches a run that hangs, or ends, with the machine its worker was on."""
    with small_cluster() as cluster, training(folder, "name=node", "--address", cluster.address) as run:
        wait_for(lambda: steps_saved(folder, "node"), run)
        (node,) = [node for node in cluster.nodes_to_use if workers_of(raylet_of(node))]
        kill_machine(node)
        assert steps_saved(folder, "node")[-1] < 40, "the training had ended already, so nothing was tested"
        ends_well(run)
    assert_bit_equal(folder, "node")


def test_an_elastic_run_loses_a_node_and_gains_another(folder: Path) -> None:
    """Catches a run that cannot change its number of workers, or whose batches change with it.

    The run must last while Ray notices that the node is dead (half a minute) and that there is another.
    """
    length = ["train.epochs=200", "train.max_steps=1500", "train.checkpoint_every=25", "train.keep_checkpoints=2"]
    words = ["name=elastic", "scaling.num_workers=[1, 2]", *length]
    with training(folder, *length, "name=fixed", "scaling.num_workers=1") as run:
        ends_well(run)
    with small_cluster() as cluster, training(folder, *words, "--address", cluster.address) as run:
        wait_for(lambda: steps_saved(folder, "elastic"), run)
        assert all(workers_of(raylet_of(node)) for node in cluster.nodes_to_use)
        before = steps_saved(folder, "elastic")[-1]
        kill_machine(cluster.nodes_to_use[1])
        wait_for(lambda: steps_saved(folder, "elastic")[-1] > before + 50, run)
        cluster.add()
        ends_well(run)
    found, expected = records(folder, "elastic"), records(folder, "fixed")
    workers = [int(record["train/workers"]) for record in found]
    assert [number for i, number in enumerate(workers) if i == 0 or workers[i - 1] != number] == [2, 1, 2]
    losses = [np.array([record["train/loss"] for record in of]) for of in (found, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk_ends_the_run_at_once_and_with_room_it_goes_on(folder: Path, tmp_path: Path) -> None:
    """Catches three restarts and a hundred lines before the reason, and what is left over from the first call."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]).returncode:
        pytest.skip("a container that may not mount")
    try:
        storage = f"storage={disk}"
        with training(folder, "name=full", storage) as run:
            said, _ = run.communicate(timeout=PATIENCE)
            assert run.returncode == 2, said
        error = said.splitlines()[-1]
        assert re.match(r"error: .*(No space left on device|a disk is full).*free some space", error), said
        assert "Traceback" not in said
        assert not list(disk.rglob("*.tmp-*"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        with training(folder, "name=full", storage) as run:
            ends_well(run)
        assert (disk / "full" / "result.json").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
