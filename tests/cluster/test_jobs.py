"""Any command as a job of `ray job submit`: exit codes, a readable log, a stop from which the same command goes on.

On a Ray of its own, with ports and a folder of its own, ended by its process session; other Rays of the machine are not
touched. tests/cluster/test_onprem.py does it again on several hosts.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from lab import PATIENCE
from places import RUN, checkpoints, steps

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": PATH,
    "COLUMNS": "200",
}


def free_ports(count: int) -> list[int]:
    """Ask the system for ports that nobody has."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """A head of its own; the address for jobs."""
    gcs, port, client, agent_http, agent_grpc, metrics = free_ports(6)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [
            *("ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"),
            *(f"--dashboard-port={port}", f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"),
            *(f"--dashboard-agent-listen-port={agent_http}", f"--dashboard-agent-grpc-port={agent_grpc}"),
            *("--min-worker-port=0", "--max-worker-port=0", "--num-cpus=4", "--object-store-memory=150000000"),
            f"--temp-dir={folder}",
        ]
        log = Path(folder) / "start.log"
        with log.open("w") as out:
            head = subprocess.Popen(command, env=ENVIRONMENT, stdout=out, stderr=out, start_new_session=True)
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE
        while jobs(address, "submit", "--", "true").returncode != 0:  # the dashboard is there before its agent
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(1)
        yield address
        for process in psutil.process_iter():
            if process.is_running() and session_of(process.pid) == head.pid:
                process.kill()
        head.wait()


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def jobs(address: str, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["ray", "job", verb, "--address", address, *words]
    return subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def submit(address: str, *words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return jobs(address, "submit", *options, "--working-dir", ".", "--", "arc-ray", *words)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    changes = {"storage": str(folder / "runs"), "scaling": {"num_workers": 1, "threads": 1, "data_cpus": 0.25}}
    (folder / "run.yaml").write_text(yaml.safe_dump({**RUN, **changes}))
    return folder / "run.yaml"


def test_mistakes_fail_the_job_and_say_what(dashboard: str, config: Path) -> None:
    """Catches a mistake that counts as success, and results in the job's own folder, which Ray deletes."""
    done = submit(dashboard, "train", str(config), "train.lr=fast")
    assert done.returncode == 1
    assert "exit code 2" in done.stdout + done.stderr
    assert "error: " in done.stdout
    assert "train.lr" in done.stdout
    assert "Traceback" not in done.stdout
    done = submit(dashboard, "check", str(config), "storage=runs")
    assert done.returncode == 1
    assert "a job's own folder is deleted after it" in done.stdout


def test_check_runs_where_the_work_would(dashboard: str, config: Path) -> None:
    """Catches a check in a job that looks at the laptop's side only, and one that lets a cluster without GPUs pass."""
    done = submit(dashboard, "check", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": ray 2.60.0, torch" in done.stdout
    assert "each of 1 nodes reads what the others write" in done.stdout
    assert "network: not measured (all workers are on one node)" in done.stdout
    assert "storage: one node writes " in done.stdout
    done = submit(dashboard, "check", str(config), "scaling.use_gpu=true", "scaling.num_workers=2")
    assert done.returncode == 1
    assert "too few GPUs: scaling.num_workers=2 needs 2, the cluster has or can start 0" in done.stdout


def test_a_stopped_job_goes_on_and_its_log_is_readable(dashboard: str, config: Path) -> None:
    """Catches bars in a log, a stop that leaves nothing to go on from, and steps done twice."""
    done = submit(dashboard, "train", str(config), options=("--no-wait", "--submission-id", "first"))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = config.parent / "runs" / "run"
    deadline = time.monotonic() + PATIENCE
    while not checkpoints(folder):
        assert time.monotonic() < deadline, jobs(dashboard, "logs", "first").stdout
        time.sleep(0.3)
    jobs(dashboard, "stop", "first")
    assert "was stopped" in jobs(dashboard, "status", "first").stdout
    assert not (folder / "result.json").exists(), "it had ended before the stop, so nothing was tested"
    done = submit(dashboard, "train", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    num_steps = json.loads((folder / "result.json").read_text())["steps"]
    assert steps(folder) == list(range(1, num_steps + 1))
    for log in (done.stdout, jobs(dashboard, "logs", "first").stdout):
        assert not [sign for sign in ("\r", "\x1b[2K", "━", "it/s", "Traceback") if sign in log], log
    assert f"steps: {num_steps} of {num_steps}" in done.stdout


def test_the_python_client_does_the_same(dashboard: str, config: Path) -> None:
    """Catches a command that needs the shell's environment; called again, a finished run is not done again."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(dashboard)
    command = f"arc-ray train {config} name=run"
    name = client.submit_job(entrypoint=command, runtime_env={"working_dir": str(ROOT), "excludes": [".venv", ".git"]})

    async def follow() -> str:
        return "".join([chunk async for chunk in client.tail_job_logs(name)])

    log = asyncio.run(asyncio.wait_for(follow(), PATIENCE))
    assert client.get_job_status(name) == JobStatus.SUCCEEDED, log


def test_a_terminated_command_says_that_it_goes_on(config: Path) -> None:
    """Catches a trace, or exit code 0, where somebody (`ray job stop`, a batch system) sends SIGTERM."""
    command = [sys.executable, "-c", "from arc_ray.cli import main; main()", "train", str(config), "name=terminated"]
    running = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while not (config.parent / "runs" / "terminated" / "run.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=PATIENCE)
    assert running.returncode == 143, errors
    assert "stopped; the same command goes on from here" in errors
    assert "Traceback" not in errors
