"""A Ray of a command's own: it gets a second try, its command ends with it, and nothing of it outlives the command."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from training import environment

from arc_ray.cli import own_ray
from arc_ray.config import Config
from arc_ray.errors import UserError


def test_ray_gets_a_folder_whose_sockets_have_paths_that_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches every command ending in an OSError where the folder for temporary files has a long path."""
    monkeypatch.setenv("RAY_TMPDIR", "/var/tmp")
    monkeypatch.setenv("TMPDIR", "/" + 83 * "t")
    own_ray.shorten_temporary_folder()
    assert (os.environ["RAY_TMPDIR"], os.environ["TMPDIR"]) == ("/var/tmp", "/tmp")
    monkeypatch.setenv("TMPDIR", "/" + 83 * "t")
    monkeypatch.setattr(own_ray, "SHORT_TEMPORARY", "/nowhere")
    with pytest.raises(UserError, match=r"TMPDIR /ttt.*set it to a folder whose path has at most 32 characters"):
        own_ray.shorten_temporary_folder()


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        (0, ""),
        (1, "The current node timed out during startup. This could happen because ..."),
        (
            1,
            "\nThe last 20 lines of /tmp/ray/session/logs/dashboard.log (it contains ...): \nloaded 9 modules",
        ),
        (1, "Timed out after 60 seconds while waiting for node to startup. Did not find socket name ..."),
        (1, "Failed to start GCS. Last connection error: ..."),
        (2, "The current node timed out during startup. This could happen because ..."),
    ],
)
def test_a_busy_machine_gets_a_second_try(failures: int, said: str, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a traceback where Ray gave up, and processes of the first try that stay beside those of the second."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        started.append(subprocess.Popen(["sleep", "60"]))
        if len(started) <= failures:
            raise Exception(said)

    with (
        pytest.raises(UserError, match=r"twice: this machine is too busy \(load \d+\); call the command again")
        if failures == 2
        else nullcontext()
    ):
        own_ray.start_patiently(start)
    assert len(started) == min(failures + 1, 2)
    assert [process.poll() is None for process in started] == [False] * failures + [True] * (len(started) - failures)
    assert ("it is started once more" in caplog.text) == (failures > 0)
    for process in started:
        process.kill()
        process.wait()


def test_other_errors_of_ray_are_told_at_once() -> None:
    """Catches a mistake of ours that is tried twice and called a busy machine."""
    tries: list[int] = []

    def start() -> None:
        tries.append(1)
        raise ValueError("no such label")

    with pytest.raises(ValueError, match="no such label"):
        own_ray.start_patiently(start)
    assert len(tries) == 1


class Work:
    """A command's end, which comes only after its server's, or before it."""

    def __init__(self, server: subprocess.Popen[bytes], ends_well: bool) -> None:
        self._server, self._ends_well = server, ends_well

    def wait(self, _: float) -> bool:
        self._server.kill()
        time.sleep(0.01)
        return self._ends_well


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A program that looks like a server of Ray's."""
    program = tmp_path / "gcs_server"
    program.write_text("#!/bin/sh\nread line\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("received", "ends_well", "said"),
    [
        ([], False, [(1, "a server process of Ray's has ended; was it killed, or did memory run out?")]),
        ([signal.SIGTERM], False, [(143, "stopped")]),  # it was meant for all
        ([], True, []),
    ],
)
def test_a_command_ends_with_a_server_of_its_ray_and_says_why(
    received: list[int], ends_well: bool, said: list[tuple[int, str]], server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a command that goes on without Ray's head, for a minute, and then ends without a word, or with another code."""
    found: list[tuple[int, str]] = []

    def leave(*ending: Any) -> None:
        found.append(ending)
        raise SystemExit

    monkeypatch.setattr(own_ray, "leave", leave)
    monkeypatch.setattr(own_ray, "received", received)
    with subprocess.Popen([server], stdin=subprocess.PIPE) as running, suppress(SystemExit):
        own_ray._watch_servers([psutil.Process(running.pid)], Work(running, ends_well))  # pyright: ignore[reportArgumentType]
    assert found == said


@pytest.mark.parametrize("is_dead", [True, False])
def test_an_error_of_rays_is_told_by_its_cause(is_dead: bool, server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a command that unwinds with what Ray says of its raylet's end: Ray's shutdown ends it then, with no reason."""
    monkeypatch.setattr(own_ray, "_start", lambda *_: started.append(subprocess.Popen([server], stdin=subprocess.PIPE)))
    monkeypatch.setattr(own_ray.ray, "shutdown", lambda: None)
    monkeypatch.setattr(own_ray, "received", [])
    monkeypatch.setattr(own_ray, "leave", lambda *ending: found.append(ending))
    started, found = list[subprocess.Popen[bytes]](), list[tuple[int, str]]()
    with suppress(ZeroDivisionError), own_ray.own_ray(Config(name="a").ray, False):
        if is_dead:
            started[0].kill()
            started[0].wait()
        raise ZeroDivisionError
    assert found == [own_ray.SERVER_ENDED] * is_dead
    for process in started:
        process.kill()
        process.wait()


GROUP = """
import subprocess, sys, time
from arc_ray.cli import own_ray, signals
from arc_ray.config import Config

signals.hear_signals()
own_ray._start = lambda *_: subprocess.Popen(sys.argv[1], stdin=subprocess.PIPE)
own_ray.ray.shutdown = lambda: time.sleep(600)  # Ray's own waits, and ends the process, where its raylet is dead
with own_ray.own_ray(Config(name="a").ray, False):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_command_whose_whole_group_is_stopped_says_so_while_it_unwinds(server: Path) -> None:
    """Catches a watcher that rests as soon as the command unwinds: then Ray's shutdown ends it, with 1 and no reason."""
    words = [sys.executable, "-c", GROUP, str(server)]
    seen = {key: value for key, value in environment().items() if key != "RAY_ADDRESS"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, env=seen, text=True, start_new_session=True, **pipes) as command:
        assert command.stdout
        assert command.stdout.readline() == "ready\n"
        os.killpg(command.pid, signal.SIGTERM)
        try:
            assert command.communicate(timeout=120)[1] == "error: stopped; the same command goes on from here\n"
        finally:
            command.kill()
    assert command.returncode == 143


def test_no_worker_outlives_the_command(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a worker whose clock was put back, so that it would look whether its raylet lives in some hours."""
    server.write_text("#!/bin/sh\nsleep 600 &\nread line\n")
    monkeypatch.setenv("RAY_ADDRESS", "none")
    started: list[subprocess.Popen[bytes]] = []

    def start(*_: object) -> None:
        started.append(subprocess.Popen([server], stdin=subprocess.PIPE))
        while not psutil.Process(started[0].pid).children():
            time.sleep(0.01)

    monkeypatch.setattr(own_ray, "_start", start)
    monkeypatch.setattr(own_ray.ray, "shutdown", lambda: started[0].kill())
    with own_ray.own_ray(Config(name="a").ray, has_dashboard=False):
        workers = psutil.Process(started[0].pid).children()
    with started[0]:
        assert psutil.wait_procs(workers, timeout=20)[1] == []


def test_a_ray_that_was_there_stays(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a command that takes the servers of another Ray of its process for its own, and kills what they started."""
    server.write_text("#!/bin/sh\nsleep 600 &\nread line\n")
    monkeypatch.setenv("RAY_ADDRESS", "none")
    monkeypatch.setattr(own_ray, "_start", lambda *_: None)
    monkeypatch.setattr(own_ray.ray, "shutdown", lambda: None)
    with subprocess.Popen([server], stdin=subprocess.PIPE) as other:
        while not (workers := psutil.Process(other.pid).children()):
            time.sleep(0.01)
        with own_ray.own_ray(Config(name="a").ray, has_dashboard=False):
            pass
        assert [worker.status() for worker in workers] == [psutil.STATUS_SLEEPING]
        other.kill()
    workers[0].kill()


SERVERS_OF = """
import json, sys, time
import psutil
from arc_ray.cli.own_ray import own_ray
from arc_ray.config import Config

with own_ray(Config(name="a").ray, has_dashboard=sys.argv[1] == "dashboard"):
    started = psutil.Process().children(recursive=True)
    print(json.dumps([[process.pid, *process.cmdline()[:3]] for process in started]), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("dashboard", ["dashboard", "none"])
def test_a_command_starts_no_server_that_it_does_not_use(dashboard: str) -> None:
    """Catches a Ray whose start takes 3 s longer, for an autoscaler, a forwarder of logs, idle workers and a dashboard
    without pages or its agent, and what stands for that agent where it outlives a command that was killed."""
    seen = {key: value for key, value in environment().items() if key != "RAY_ADDRESS"}
    words = [sys.executable, "-c", SERVERS_OF, dashboard]
    with subprocess.Popen(words, env=seen, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout
        started = [(pid, {Path(word).name for word in words}) for pid, *words in json.loads(command.stdout.readline())]
        instead = [psutil.Process(pid) for pid, names in started if "cat" in names]
        command.kill()
    found = set().union(*(names for _, names in started))
    assert "gcs_server" in found
    has_dashboard = dashboard == "dashboard"
    assert not found & {"monitor.py", "log_monitor.py", "default_worker.py", "ray::IDLE"}
    assert ("dashboard.py" in found, "ray::DashboardAgent" in found) == (has_dashboard, has_dashboard)
    assert len(instead) == (not has_dashboard)
    assert psutil.wait_procs(instead, timeout=20)[1] == []
