"""Training under Ray: the same losses on any number of workers and at any ZeRO stage, and bit-equal after a kill -9.

Each run starts processes and imports torch in them, which is why these are marked slow.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from training import adapter, counting_tree, environment, records, train_command

pytestmark = pytest.mark.slow

TINY = counting_tree(
    examples=48,
    hidden_size=32,
    layers=1,
    train={
        "lr": 1e-2,
        "row_tokens": 256,
        "batch_rows": 4,
        "micro_rows": 2,
        "epochs": 2,
        "checkpoint_every": 3,
        "keep_checkpoints": 9,
    },
    scaling={"threads": 1, "data_cpus": 0.25},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with the tiny base already made, shared by the runs of this module."""
    path = tmp_path_factory.mktemp("train")
    (path / "config.yaml").write_text(yaml.safe_dump({**TINY, "storage": str(path / "runs")}))
    deep = path / ("deep" * 16)  # too long for Ray's sockets
    deep.mkdir()
    train(path, "name=unbroken", TMPDIR=str(deep))
    return path


def train(folder: Path, *overrides: str, **variables: str) -> None:
    """Run `arc-ray train` to its end in a process of its own."""
    done = subprocess.run(
        train_command(folder, *overrides), capture_output=True, text=True, env=environment() | variables, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr


def losses(folder: Path, name: str) -> np.ndarray:
    return np.array([record["train/loss"] for record in records(folder, name)])


def test_training_learns_and_leaves_an_adapter_that_is_not_empty(folder: Path) -> None:
    """Catches a silent no-op: losses that do not fall, and the empty adapters that peft writes under ZeRO."""
    found = losses(folder, "unbroken")
    assert found[-3:].mean() < found[:3].mean() - 0.05
    trained = adapter(folder, "unbroken")
    assert trained
    assert all(np.abs(tensor).max() > 0 for name, tensor in trained.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "overrides",
    [
        ["scaling.num_workers=2"],
        ["train.micro_rows=1"],
        ["train.zero_stage=0"],
        ["train.zero_stage=3"],
        ["train.engine=trl"],
        ["train.engine=trl", "scaling.num_workers=2"],
    ],
)
def test_losses_depend_neither_on_workers_nor_micro_batches_nor_zero_stage_nor_engine(
    folder: Path, overrides: list[str]
) -> None:
    """Catches a mean of means, a batch that depends on the cluster, and rows that go to the wrong step."""
    name = "-".join(overrides).replace("=", "-").replace(".", "-")
    train(folder, f"name={name}", *overrides)
    np.testing.assert_allclose(losses(folder, name), losses(folder, "unbroken"), rtol=1e-5)


@pytest.mark.parametrize("engine", ["deepspeed", "trl"])
def test_killed_run_ends_with_the_same_bytes(folder: Path, engine: str) -> None:
    """Catches lost optimizer state, replayed or skipped rows, a torn checkpoint taken for a whole one, and time forgotten."""
    name, whole = f"killed-{engine}", "unbroken" if engine == "deepspeed" else "unbroken-trl"
    if not (folder / "runs" / whole).exists():
        train(folder, f"name={whole}", f"train.engine={engine}")
    running = subprocess.Popen(
        train_command(folder, f"name={name}", f"train.engine={engine}"),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    marker = folder / "runs" / name
    while not list(marker.glob("checkpoint-*/arc_ray.json")):
        assert running.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (marker / "result.json").exists(), "the run had ended already, so nothing was tested"
    spent = [record["seconds"] for record in records(folder, name)][-1]
    train(folder, f"name={name}", f"train.engine={engine}")
    seconds = [record["seconds"] for record in records(folder, name)]
    assert seconds == sorted(seconds), "its clock went back"
    total = json.loads((marker / "result.json").read_text())["seconds"]
    assert total >= seconds[-1] >= spent
    assert total > spent + 1, "starting again took longer"
    np.testing.assert_array_equal(losses(folder, name), losses(folder, whole))
    resumed, unbroken = adapter(folder, name), adapter(folder, whole)
    assert resumed.keys() == unbroken.keys()
    for name, tensor in unbroken.items():
        assert tensor.tobytes() == resumed[name].tobytes(), name


def test_resumed_with_other_workers_and_stage_goes_on_with_the_same_losses(folder: Path) -> None:
    """Catches optimizer state that only fits the number of workers, or the ZeRO stage, that wrote it."""
    moved = folder / "runs" / "moved"
    shutil.copytree(folder / "runs" / "unbroken", moved)
    made_by = moved / "config.yaml"
    made_by.write_text(made_by.read_text().replace("name: unbroken", "name: moved"))
    (moved / "result.json").unlink()
    for path in moved.glob("checkpoint-*"):
        if path.name != "checkpoint-000003":
            shutil.rmtree(path)
    train(folder, "name=moved", "train.zero_stage=3", "scaling.num_workers=2")
    np.testing.assert_allclose(losses(folder, "moved"), losses(folder, "unbroken"), rtol=1e-5)
