"""Faults, by kill -9 of real processes: a worker, a checkpoint half written, all processes of a node; and an elastic run.

Each compares with an unbroken run of the same config: on the CPU, with the same number of workers, every loss and the
final adapter are bit-equal, which they could not be if any step had seen other rows. tests/train/test_train.py kills
the driver.
"""

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from training import (
    PATIENCE,
    adapter,
    counting_tree,
    descendants,
    ends_well,
    press_ctrl_c,
    records,
    running,
    title_of,
    wait_for,
)

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with an unbroken run to compare with."""
    path = tmp_path_factory.mktemp("faults")
    (path / "config.yaml").write_text(yaml.safe_dump({**TREE, "storage": str(path / "runs")}))
    with training(path, "name=unbroken") as run:
        ends_well(run)
    return path


def training(folder: Path, *words: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return running("train", str(folder / "config.yaml"), *words)


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


OWN = "arc_ray.train.alone"
"""In the title of a worker's process that is not Ray's."""


def workers_of(parent: int, title: str = "TrainWorker") -> list[psutil.Process]:
    """The training workers, or other processes of a title, among those that a driver, or a raylet, has started."""
    return [process for process in descendants(parent) if title in title_of(process)]


def test_a_killed_worker_an_interrupted_run_and_a_torn_checkpoint_lose_nothing(folder: Path) -> None:
    """Catches a fault that ends the run, or a worker that comes back at another step, with other moments or other rows.

    And a torn checkpoint that is taken for a whole one, a run that cannot go on beside it, and time forgotten.
    First the worker is killed and must be replaced, then Ctrl-C ends the run. Called again, worker and driver are killed
    as soon as a checkpoint's folder is there without its marker, which is written last; a checkpoint that was quicker
    than the kill is no loss: the run goes on, and is killed at the next.
    """

    def torn() -> list[Path]:
        return [p for p in (folder / "runs" / "hurt").glob("checkpoint-*") if not (p / "arc_ray.json").exists()]

    with training(folder, "name=hurt") as run:
        wait_for(lambda: steps_saved(folder, "hurt"), run)
        (worker,) = workers_of(run.pid, OWN)
        assert not workers_of(run.pid, "raylet"), "a training of one worker on the CPU needs no Ray"
        worker.kill()
        saved = steps_saved(folder, "hurt")[-1]
        wait_for(lambda: steps_saved(folder, "hurt")[-1] > saved, run)
        assert worker.pid not in [process.pid for process in workers_of(run.pid, OWN)]
        press_ctrl_c(run)
    for _ in range(4):
        assert not (folder / "runs" / "hurt" / "result.json").exists(), "it had ended already, so nothing was tested"
        with training(folder, "name=hurt") as run:
            (worker,) = wait_for(lambda run=run: workers_of(run.pid, OWN), run)
            wait_for(torn, run)
            worker.kill()
            os.killpg(run.pid, signal.SIGKILL)
        if torn():
            break
    assert torn(), "every checkpoint was complete before the kill, so nothing was tested"
    spent = records(folder, "hurt")[-1]["seconds"]
    with training(folder, "name=hurt") as run:
        ends_well(run)
    assert_bit_equal(folder, "hurt")
    seconds = [record["seconds"] for record in records(folder, "hurt")]
    assert seconds == sorted(seconds), "its clock went back"
    total = json.loads((folder / "runs" / "hurt" / "result.json").read_text())["seconds"]
    assert total >= seconds[-1] > spent


NODE = {"num_cpus": 3, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that works on nothing; nodes of it are processes of this machine as well."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as path:  # sockets need a short path
        # Ray looks for dead nodes every three seconds, and believes it the fifth time.
        looks = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
        head = {**NODE, "num_cpus": 0, "temp_dir": path, "include_dashboard": False, "_system_config": looks}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def nodes(cluster: Any) -> list[Any]:
    """Two living nodes with room for one worker each."""
    living = [node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.poll() is None]
    return [*living, *(cluster.add_node(**NODE) for _ in range(2 - len(living)))]


def raylet_of(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def kill_machine(node: Any) -> None:
    """Kill a node's raylet and all that it started, at once, as when a machine is switched off.

    The raylet is waited for: its workers would take a zombie for a living raylet and train on.
    """
    raylet = psutil.Process(raylet_of(node))
    for process in [raylet, *descendants(raylet.pid)]:
        with suppress(psutil.NoSuchProcess):  # a fork ends with the process that waits for it
            process.kill()
    node.all_processes["raylet"][0].process.wait()


def test_a_node_that_dies_is_left_behind(folder: Path, cluster: Any, nodes: list[Any]) -> None:
    """Catches a run that hangs, or ends, with the machine its worker was on."""
    with training(folder, "name=node", "--address", cluster.address) as run:
        wait_for(lambda: steps_saved(folder, "node"), run)
        (node,) = [node for node in nodes if workers_of(raylet_of(node))]
        kill_machine(node)
        assert steps_saved(folder, "node")[-1] < 40, "the training had ended already, so nothing was tested"
        ends_well(run)
    assert_bit_equal(folder, "node")


def test_a_trial_goes_on_when_its_node_dies(folder: Path, cluster: Any, nodes: list[Any]) -> None:
    """Catches a search that hangs, or ends, with the machine of a trial that trains in Tune's process, without a group."""
    trial, space = "search/trials/lr-0.001", "tune.space={train.lr: {grid: [0.001]}}"
    validation = ["data.validation=[counting]", "data.allow_overlap=true", "train.eval_every=40"]
    words = [str(folder / "config.yaml"), "name=search", space, *validation, "--address", cluster.address]
    with running("tune", *words) as run:
        wait_for(lambda: steps_saved(folder, trial), run)
        (node,) = [node for node in nodes if workers_of(raylet_of(node), "ray::ImplicitFu")]
        kill_machine(node)
        assert steps_saved(folder, trial)[-1] < 40, "the trial had ended already, so nothing was tested"
        ends_well(run)
    assert_bit_equal(folder, trial)


def test_an_elastic_run_loses_a_node_and_gains_another(folder: Path, cluster: Any, nodes: list[Any]) -> None:
    """Catches a run that cannot change its number of workers, or whose batches change with it.

    The run has more steps than pass until Ray notices that the node is dead, and that there is another. It is ended as
    soon as both workers of the new pair have trained, and compared with as many steps of a run of one worker.
    """
    words = ["train.epochs=1000", "train.max_steps=7500", "train.checkpoint_every=25", "train.keep_checkpoints=2"]
    elastic = [*words, "name=elastic", "scaling.num_workers=[1, 2]"]
    with training(folder, *elastic, "--address", cluster.address) as run:
        wait_for(lambda: steps_saved(folder, "elastic"), run)
        assert all(workers_of(raylet_of(node)) for node in nodes)
        before = steps_saved(folder, "elastic")[-1]
        kill_machine(nodes[1])
        wait_for(lambda: steps_saved(folder, "elastic")[-1] > before, run)
        cluster.add_node(**NODE)
        alone = len(records(folder, "elastic"))
        wait_for(lambda: [r["train/workers"] for r in records(folder, "elastic")[alone:]].count(2) > 25, run, 0.5)
    found = records(folder, "elastic")
    workers = [int(record["train/workers"]) for record in found]
    assert [number for i, number in enumerate(workers) if i == 0 or workers[i - 1] != number] == [2, 1, 2]
    with training(folder, *words, "name=fixed", "scaling.num_workers=1") as run:
        wait_for(lambda: len(records(folder, "fixed")) >= len(found), run, 0.5)
    losses = [np.array([record["train/loss"] for record in of]) for of in (found, records(folder, "fixed"))]
    np.testing.assert_allclose(losses[0], losses[1][: len(found)], rtol=1e-5)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk_ends_the_run_at_once_and_with_room_it_goes_on(folder: Path, tmp_path: Path) -> None:
    """Catches three restarts and a hundred lines before the reason, and what is left over from the first call."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]).returncode:
        pytest.skip("a container that may not mount")
    try:
        whole = ["model.base=null", "model.scratch={hidden_size: 64, layers: 2, heads: 2, intermediate_size: 128}"]
        words = ["name=full", f"storage={disk}", "train.max_steps=2", "train.full=true", *whole]
        with training(folder, *words) as run:
            said, _ = run.communicate(timeout=PATIENCE)
            assert run.returncode == 2, said
        error = said.splitlines()[-1]
        assert re.match(r"error: .*(No space left on device|a disk is full).*free some space", error), said
        assert "Traceback" not in said
        assert not list(disk.rglob("*.tmp-*"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        with training(folder, *words) as run:
            ends_well(run)
        assert (disk / "full" / "result.json").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
