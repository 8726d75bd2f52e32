"""A Ray of a command's own on this machine: started patiently, watched, and nothing of it is left at the end."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psutil
import ray
from ray._private import services
from ray._private.node import Node
from ray._raylet import persist_port  # pyright: ignore[reportAttributeAccessIssue]

from arc_ray.cli.signals import SIGNAL_ENDINGS, leave, received
from arc_ray.cluster.roles import ALONE, logical_cpus
from arc_ray.config.training import RayConfig
from arc_ray.errors import UserError

logger = logging.getLogger(__name__)

SERVERS = ("gcs_server", "raylet")
SERVER_SECONDS, LEAVE_SECONDS = 0.05, 1.0
SERVER_ENDED = 1, "a server process of Ray's has ended; was it killed, or did memory run out?"
SLOW_STARTS = ("timed out", "failed to start gcs", "dashboard.log", "dashboard.err")
"""What Ray's errors say, in small letters, where its servers took longer than it waits."""
NO_AGENT = 'sh -c "exec cat"'
"""Instead of the dashboard's agent, without which a raylet would end: it reads what the raylet never writes, to its end."""
AGENT_PORTS, NOT_SERVED = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port"), -1
"""What a raylet waits for that its agent would tell, and what Ray tells where there is none."""
SHORT_TEMPORARY = "/tmp"  # noqa: S108 - Ray makes a folder of its own there
MOST_TEMPORARY = 32
"""Characters: Ray adds up to 75 for its session and a socket's name, and a socket's path may have 107."""


@contextmanager
def own_ray(config: RayConfig, has_dashboard: bool) -> Iterator[None]:
    """Start Ray, and end it with all its processes. Raises UserError where the machine is too busy for it."""
    over, servers, others = threading.Event(), list[psutil.Process](), _children(psutil.Process())
    try:
        _start(config, has_dashboard)
        started = set(_children(psutil.Process())) - set(others)
        servers += [process for process in started if _is_alive(process) and process.name() in SERVERS]
        threading.Thread(target=_watch_servers, args=(servers, over), daemon=True).start()
        yield
    except Exception as error:
        if not isinstance(error, UserError) and not received and not all(map(_is_alive, servers)):
            leave(*SERVER_ENDED)  # Ray's shutdown would end the process without a reason
        raise
    finally:
        if signal.SIGTERM not in received:  # else Ray's servers may be gone already, and its shutdown end the process
            over.set()
        served = [child for server in servers for child in _children(server)]
        ray.shutdown()
        over.set()
        _kill(served)
        if os.environ.get("RAY_ADDRESS") == _own_address():
            del os.environ["RAY_ADDRESS"]


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def _kill(processes: Iterable[psutil.Process]) -> None:
    """Kill those that are left: Ray has them look for its end by the wall clock, which may be put back by hours."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _start(config: RayConfig, has_dashboard: bool) -> None:
    """Start it. Raises UserError where the machine is too busy for it."""
    shorten_temporary_folder()
    # Threads that wait by spinning make two busy processes on a few cores ten times slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # On one machine there is nobody to announce a preemption, and the watcher is a process for every run.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # A report, and the end of a run, wait for Ray Train's next look at its workers: every 2 s, a fourth of a short trial.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Trials keep their processes alive for a while; Ray would warn of more than three a core, as if something leaked.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    start_patiently(partial(_init, config, has_dashboard))


def _watch_servers(servers: list[psutil.Process], over: threading.Event) -> None:
    """Leave soon after a server of the Ray that this process started is gone, and say so: Ray would go on for a while, and
    end the process without a reason. SIGTERM may be meant for all of them: then Ray ends it at once, unless it is quick."""
    while not over.wait(SERVER_SECONDS):
        if all(map(_is_alive, servers)):
            continue
        ending, patience = SERVER_ENDED, LEAVE_SECONDS
        if signal.SIGTERM in received:
            ending, patience = SIGNAL_ENDINGS[signal.SIGTERM], SERVER_SECONDS
        elif signal.SIGINT in received:  # the command unwinds
            patience *= 5
        if not over.wait(patience):
            leave(*ending)


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _init(config: RayConfig, has_dashboard: bool) -> None:
    """Call `ray.init` with an address that is settled and told to all before Ray starts.

    By the dashboard, looked for at RAY_ADDRESS, Ray Train frees a stopped trial's group of workers; else it would look at
    the machine's processes, and a second Ray there would leave them reserved for ever.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        os.environ["RAY_GCS_SERVER_PORT"] = str(free.getsockname()[1])
    os.environ["RAY_ADDRESS"] = _own_address()
    with without_servers(has_dashboard):
        ray.init(
            address="local",
            num_cpus=logical_cpus(config.num_cpus),
            object_store_memory=config.object_store_mib * 2**20,
            include_dashboard=has_dashboard,
            labels={ALONE: "true"},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )


@contextmanager
def without_servers(has_dashboard: bool) -> Iterator[None]:
    """Have Ray start no processes that commands of one machine do not use: an autoscaler, one that hands logs on, workers
    before there is work and, unless it `has_dashboard`, what would be left of that without its pages, and its agent. They
    would be 3 s of every command and 280 MiB or more, and Ray offers no public way to do without."""
    instead = {"--num_prestart_python_workers": 0} | ({} if has_dashboard else {"--dashboard_agent_command": NO_AGENT})

    def start_nothing(self: Node, **_: Any) -> None:
        self._webui_url = ""

    def start_raylet(self: Node, *words: Any, **named: Any) -> None:
        for port in () if has_dashboard else AGENT_PORTS:
            persist_port(self.get_session_dir_path(), self.node_id, port, NOT_SERVED)
        kept[Node, "start_raylet"](self, *words, **named)

    def start_process(command: list[str], *words: Any, **named: Any) -> Any:
        keys = [word.partition("=")[0] for word in command]
        changed = [f"{key}={instead[key]}" if key in instead else word for key, word in zip(keys, command, strict=True)]
        return kept[services, "start_ray_process"](changed, *words, **named)

    replaced: dict[tuple[Any, str], Callable[..., Any]] = {
        (Node, "start_monitor"): start_nothing,
        (Node, "start_log_monitor"): start_nothing,
        **({} if has_dashboard else {(Node, "start_api_server"): start_nothing}),
        (Node, "start_raylet"): start_raylet,
        (services, "start_ray_process"): start_process,
    }
    kept = {(owner, name): getattr(owner, name) for owner, name in replaced}
    try:
        for (owner, name), start in replaced.items():
            setattr(owner, name, start)
        yield
    finally:
        for (owner, name), start in kept.items():
            setattr(owner, name, start)


def start_patiently(start: Callable[[], None]) -> None:
    """Start Ray, once more where any of its servers took longer than Ray gives it. Raises UserError."""
    others = set(psutil.Process().children(recursive=True))
    for is_last in (False, True):
        try:
            return start()
        except Exception as error:  # Ray raises no class of its own
            if not any(words in str(error).lower() for words in SLOW_STARTS):
                raise
            left = set(psutil.Process().children(recursive=True)) - others
            _kill(left)
            psutil.wait_procs(left, timeout=10)
            if is_last:
                raise UserError(
                    f"Ray did not start in time, twice: this machine is too busy (load {os.getloadavg()[0]:.0f});"
                    f" call the command again when less runs on it"
                ) from error
            logger.warning("Ray did not start in time, because this machine is busy; it is started once more")


def shorten_temporary_folder() -> None:
    """Give Ray's processes another folder where TMPDIR is too long for sockets, theirs and Python's. Raises UserError."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        path = os.environ.get(variable, "")
        if len(path) <= MOST_TEMPORARY:
            continue
        if not os.access(SHORT_TEMPORARY, os.W_OK):
            raise UserError(
                f"{variable} {path}: sockets that Ray makes there would have longer paths than the system allows;"
                f" set it to a folder whose path has at most {MOST_TEMPORARY} characters"
            )
        os.environ[variable] = SHORT_TEMPORARY


def _own_address() -> str:
    """Return the address of the Ray that this process starts or started."""
    return f"{ray.util.get_node_ip_address()}:{os.environ.get('RAY_GCS_SERVER_PORT')}"
