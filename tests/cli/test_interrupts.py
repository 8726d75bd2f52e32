"""Ctrl-C, a real SIGINT to the command's process group, at every stage: exit code 130, one sentence, and it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from small_study import small_search, small_study
from training import counting_tree, environment

pytestmark = pytest.mark.slow

SENTENCE = "error: interrupted; the same command goes on from here\n"
PATIENCE = 300.0


@contextmanager
def running(command: str, config: Path) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, as a shell starts one in the foreground; it is gone at the end."""
    words = [sys.executable, "-m", "arc_ray", command, str(config)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        words, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def interrupt(command: str, config: Path, is_time: Callable[[], object]) -> None:
    """Press Ctrl-C once when it is time; the command must end with 130 and its sentence, and take Ray along."""
    with running(command, config) as process:
        deadline = time.monotonic() + PATIENCE
        while not is_time():
            assert process.poll() is None, f"it ended too early:\n{process.communicate()[0]}"
            assert time.monotonic() < deadline, "it never came so far"
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 130, printed
        assert printed.endswith(SENTENCE), printed
        assert "Traceback" not in printed
        _, alive = psutil.wait_procs(family, timeout=120)
        assert not alive


def ends_well(command: str, config: Path) -> str:
    with running(command, config) as process:
        printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, printed
    return printed


def statuses(folder: Path) -> list[str]:
    return sorted(json.loads(path.read_text())["status"] for path in folder.glob("trials/*/trial.json"))


def test_a_training_ends_at_the_first_ctrl_c_and_goes_on(tmp_path: Path) -> None:
    """Catches Ray Train's own answer to the signal, which ends in a traceback and exit code 1."""
    train = {"lr": 1e-3, "row_tokens": 256, "batch_rows": 2, "epochs": 20, "max_steps": 400, "checkpoint_every": 20}
    tree = counting_tree(48, 32, 1, train, {"threads": 1, "data_cpus": 0.25})
    config, run = tmp_path / "config.yaml", tmp_path / "runs" / "run"
    config.write_text(yaml.safe_dump({**tree, "storage": str(tmp_path / "runs")}))
    interrupt("train", config, lambda: list(run.glob("checkpoint-*/arc_ray.json")))
    assert not (run / "result.json").exists()
    ends_well("train", config)
    assert json.loads((run / "result.json").read_text())["steps"] == 400


def test_a_study_ends_at_the_first_ctrl_c_while_it_searches_and_while_it_evaluates(tmp_path: Path) -> None:
    """Catches a study that takes an interrupted search for an ended one, or goes on after the signal, and a handler that
    a training left behind and that answers in a later stage."""
    tree, config = small_study(tmp_path / "runs"), tmp_path / "small.yaml"
    tree["tune"] |= {"max_concurrent": 1}
    config.write_text(yaml.safe_dump(tree))
    folder = tmp_path / "runs" / "quickstart"
    interrupt("study", config, lambda: "done" in statuses(folder))
    assert statuses(folder).count("done") < 4, "it was interrupted too late to show anything"
    assert not (folder / "analysis.json").exists()
    interrupt("study", config, lambda: list(folder.glob("evaluate/*/*/predictions")))
    assert set(statuses(folder)) == {"done"}
    assert len(statuses(folder)) == 4
    assert not (folder / "result.json").exists()


def test_a_search_that_was_interrupted_is_not_ended(tmp_path: Path) -> None:
    """Catches half a grid that is taken for the whole: best.yaml and exit code 0 after Ctrl-C."""
    config, folder = tmp_path / "search.yaml", tmp_path / "search"
    tree = small_search(tmp_path, {"train.lr": {"grid": [1e-2, 1e-3, 1e-4]}})
    tree["train"] |= {"epochs": 10}  # the trials that are left take longer than the signal
    config.write_text(yaml.safe_dump(tree))
    interrupt("tune", config, lambda: "done" in statuses(folder))
    assert len(statuses(folder)) < 3
    assert not (folder / "result.json").exists()
    ends_well("tune", config)
    assert statuses(folder) == ["done"] * 3


def test_looking_ends_too_also_while_libraries_are_imported(tmp_path: Path) -> None:
    """Catches a signal that is lost in an import, so that the command goes on, or that ends as an error of a library's."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(small_search(tmp_path / "none", {"train.lr": {"grid": [1e-3]}})))
    for seconds in (0.7, 1.2, 1.7, 2.2):
        begun = time.monotonic()
        interrupt("check", config, lambda begun=begun, seconds=seconds: time.monotonic() - begun > seconds)
