"""`arc-ray` in a process of its own, killed or interrupted; a small training's config, and what its folder holds."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from forks import fork_of
from safetensors.numpy import load_file

PATIENCE = 600.0
"""Seconds after which what is waited for will not come."""


def counting_tree(
    examples: int, hidden_size: int, layers: int, train: dict[str, Any], scaling: dict[str, Any]
) -> dict[str, Any]:
    """Make a config that trains LoRA on counting questions, upon a base of random weights after two steps."""
    return {
        "name": "run",
        "data": {
            "sources": {"counting": {"kind": "counting", "examples": examples, "max_side": 5}},
            "mix": {"counting": 1},
            "validation": [],
        },
        "prompt": {"format": "compact", "encoder": "compact"},
        "model": {"base": "@base", "lora": {"r": 4, "alpha": 8}},
        "runs": {
            "base": {
                "model.base": None,
                "model.scratch": {
                    "hidden_size": hidden_size,
                    "layers": layers,
                    "heads": 2,
                    "intermediate_size": 2 * hidden_size,
                },
                "train.full": True,
                "train.max_steps": 2,
            }
        },
        "train": train,
        "scaling": scaling,
        "ray": {"object_store_mib": 100},
    }


def environment() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}


@contextmanager
def running(*words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`arc-ray` with these words in a process group of its own, as a shell starts it in the foreground; gone at the end."""
    command, pipe = [sys.executable, "-m", "arc_ray", *words], subprocess.PIPE
    run = subprocess.Popen(
        command,
        env=environment() | variables,
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield run
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def ends_well(run: subprocess.Popen[str]) -> str:
    """Wait for exit code 0; return what was printed."""
    printed, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, printed
    return printed


def wait_for(there: Callable[[], Any], run: subprocess.Popen[str], seconds: float = 0.01) -> Any:
    """Look every so many seconds until `there` returns something, while the run goes on."""
    deadline = time.monotonic() + PATIENCE
    while not (found := there()):
        assert run.poll() is None, f"it ended too early:\n{run.communicate(timeout=PATIENCE)[0]}"
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(seconds)
    return found


def press_ctrl_c(run: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> None:
    """Interrupt the process group, as a terminal does; it must end with 130 and one sentence, and take Ray along.

    By SIGTERM, as a batch system does, with 143.
    """
    family, (code, word) = descendants(run.pid), (130, "interrupted") if number == signal.SIGINT else (143, "stopped")
    os.killpg(run.pid, number)
    printed, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == code, printed
    assert printed.endswith(f"error: {word}; the same command goes on from here\n"), printed
    assert "Traceback" not in printed
    assert_gone(family)


def kill_driver(run: subprocess.Popen[Any]) -> None:
    """Kill a process that has started Ray, with signal 9; Ray must end by itself: a worker may still finish its work."""
    family = [process for process in descendants(run.pid) if not is_agent(process)]
    run.kill()
    run.wait()
    assert_gone(family)


def descendants(process: int) -> list[psutil.Process]:
    """The processes that one has started, and those that these have; also the forks that do their work, and theirs."""
    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        children += psutil.Process(process).children()
        children += [psutil.Process(fork) for fork in [fork_of(process)] if fork]
    return [each for child in children for each in (child, *descendants(child.pid))]


def hosts_here() -> list[psutil.Process]:
    """The living processes that hold models, among those that this one has started."""
    return [process for process in descendants(os.getpid()) if "ray::Host" in title_of(process)]


def title_of(process: psutil.Process) -> str:
    """What a process is called with, or calls itself; nothing if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def is_agent(process: psutil.Process) -> bool:
    """Tell whether it is one of the two processes that do nothing any more, but end a minute after their raylet."""
    try:
        return process.name() in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
    except psutil.NoSuchProcess:
        return False


def assert_gone(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert not alive, "Ray outlived its driver"


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    """The metric records of a run's steps, also while it runs; those of validations alone are left out."""
    path = folder / "runs" / name / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last may be half written
    return [record for record in map(json.loads, lines) if "train/loss" in record]


def adapter(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The adapter of a finished run's last checkpoint."""
    result = json.loads((folder / "runs" / name / "result.json").read_text())
    return load_file(folder / "runs" / name / result["checkpoint"] / "adapter_model.safetensors")
