"""Around a command: Ray is started or joined, and what is `auto` in the config is chosen once, told, and seen to fit."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, partial
from typing import Any

import psutil
import ray
from ray.exceptions import AuthenticationError

from arc_ray.cli.signals import SIGNAL_ENDINGS, leave, received
from arc_ray.cluster.preflight import check_address, describe_placement, placement, size_faults
from arc_ray.cluster.roles import (
    ALONE,
    Room,
    compute_in_bfloat16,
    has_bfloat16,
    live_room,
    logical_cpus,
    machine_room,
    reachable_room,
)
from arc_ray.config import Config, with_overrides
from arc_ray.errors import UserError
from arc_ray.progress import Progress
from arc_ray.runs.folder import as_made, run_folder
from arc_ray.runs.owner import owned
from arc_ray.study.needs import Command, Needs

logger = logging.getLogger(__name__)

SERVERS = ("gcs_server", "raylet")
JOIN_SECONDS, SERVER_SECONDS, LEAVE_SECONDS = 60.0, 0.05, 5.0
SHORT_TEMPORARY = "/tmp"  # noqa: S108 - Ray makes a folder of its own there
MOST_TEMPORARY = 32
"""Characters: Ray adds up to 75 for its session and a socket's name, and a socket's path may have 107."""


@contextmanager
def placed(config: Config, command: Command, address: str | None, progress: Progress) -> Iterator[Needs]:
    """Check a command, own its run folder, have Ray if that is needed, and yield needs with places. Raises UserError."""
    needs = Needs(config, command)
    needs.check()
    room = machine_room(config.ray.num_cpus)
    here = needs.placed(_chosen(needs, room))
    has_ray = is_cluster(address) or ray.is_initialized() or here.uses_ray
    with (
        owned(run_folder(config), command, progress),
        connected(config, address, here.trains_groups) if has_ray else nullcontext(room) as room,
    ):
        yield settled(needs, room, progress)


def settled(needs: Needs, room: Room, progress: Progress) -> Needs:
    """Choose what is `auto` for a command and the runs that it needs, say what was chosen, and see that it fits.

    On a cluster it is said what is waited for. Raises UserError for what can never start on one machine.
    """
    if needs.config.scaling.use_gpu == "auto" and room.num_hosts and not room.gpu_kinds():
        room = _with_hosts(room.num_hosts, progress)
    needs = needs.placed(_chosen(needs, room))
    progress.note(describe_placement(needs.config, room, needs.is_search, needs.trains))
    faults = _faults(needs, room)
    if faults and room.is_one_machine:
        raise UserError(faults[0])
    if not room.is_one_machine and not faults:
        faults = _faults(needs, live_room(), is_now=True)
    for fault in faults[:1]:
        progress.note(f"waits for nodes: {fault}")
    return needs


def _with_hosts(number: int, progress: Progress) -> Room:
    """Wait a while until a number of hosts has joined the head after `ray up`: before, nobody knows what they have."""
    end = time.monotonic() + JOIN_SECONDS
    while (joined := live_room().most_nodes) < number and time.monotonic() < end:
        progress.advance("hosts that have joined", joined, number)
        time.sleep(2)
    return reachable_room()


@contextmanager
def foreseen(config: Config, command: Command, address: str | None, progress: Progress) -> Iterator[Needs]:
    """Settle a config where nothing is to be done: for the cluster, if there is one, else for this machine.

    Raises UserError, but for what can never start on this machine only when all else has been said.
    """
    needs = Needs(config, command)
    needs.storage.try_writing(creates=False)
    if is_cluster(address):
        with connected(config, address) as room:
            needs = settled(needs, room, progress)
        yield needs
        return
    room = machine_room(config.ray.num_cpus)
    needs = needs.placed(_chosen(needs, room))
    described = describe_placement(needs.config, room, needs.is_search, needs.trains)
    progress.note(f"on this machine {described}; a cluster chooses for itself")
    yield needs
    for fault in _faults(needs, room):
        raise UserError(f"on this machine it would be refused: {fault}; `--address` asks a cluster")


def _chosen(needs: Needs, room: Room) -> Config:
    """Choose for a config, and what differs for its start and for runs that it needs: they may share out other rows.

    A run that was begun keeps its dtype.
    """
    in_bfloat16 = cache(lambda: compute_in_bfloat16(room) if ray.is_initialized() else has_bfloat16())

    def place(asked: Config, is_search: bool) -> Config:
        kept = with_overrides(asked, {"model.dtype": as_made(run_folder(asked), asked).model.dtype})
        return with_overrides(kept, placement(kept, room, in_bfloat16, is_search))

    config = needs.config
    chosen, starts, runs = place(config, needs.is_search), dict(config.starts), dict(config.runs)

    def own(asked: Config) -> dict[str, Any]:
        workers, found = place(asked, is_search=False).scaling.num_workers, dict[str, Any]()
        if asked.scaling.num_workers == "auto" and workers != chosen.scaling.num_workers:
            found["scaling.num_workers"] = workers
        dtype = as_made(run_folder(asked), asked).model.dtype
        if asked.model.dtype == "auto" and dtype not in ("auto", chosen.model.dtype):
            found["model.dtype"] = dtype
        return found

    for run in needs.runs:
        runs[run.name] = {**runs[run.name], **own(run)}
    if not needs.is_search:
        starts[config.start] = {**starts[config.start], **own(needs.variants[0])}
    return with_overrides(chosen, {"starts": starts, "runs": runs})


def _faults(needs: Needs, room: Room, is_now: bool = False) -> list[str]:
    """List what does not fit of settled variants and of the runs that they need."""
    tune, at_once = needs.config.tune, 0
    if needs.is_search:
        at_once = min(tune.max_concurrent or 1, tune.num_trials or len(needs.variants))
    faults = [fault for c in needs.variants for fault in size_faults(c, room, needs.trains, at_once, is_now)]
    return list(dict.fromkeys([*faults, *(fault for run in needs.runs for fault in size_faults(run, room))]))


@contextmanager
def connected(config: Config, address: str | None, trains_groups: bool = False) -> Iterator[Room]:
    """Join the Ray at an address (or of this job), else start one on this machine; it ends with the command.

    What there is, or may be started, is yielded for `settled`. A Ray that this process has, as in a notebook, stays; one
    that is started has a dashboard where it `trains_groups` of workers.
    """
    if ray.is_initialized():
        yield reachable_room()
        return
    # New machines take minutes to come. An elastic run need not wait for them: it goes on with those that are there, and
    # should not wait long for one that is counted though it has just died.
    wait_seconds = "10" if isinstance(config.scaling.num_workers, tuple) else "900"
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", wait_seconds)
    # Tune would frame each search with boxes that name its scratch folder; the table of trials is shown by us.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would end the search at Ctrl-C as if it were done.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    over, terminate = threading.Event(), signal.getsignal(signal.SIGTERM)
    try:
        if is_cluster(address):
            _join(address or "auto")
        else:
            _start_ray(config, trains_groups)
            servers = [p for p in psutil.Process().children(recursive=True) if _is_alive(p) and p.name() in SERVERS]
            threading.Thread(target=_watch_servers, args=(servers, over), daemon=True).start()
        if callable(terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray has put its own in this one's place
        for name in ("ray", "ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield reachable_room()
    finally:
        if signal.SIGTERM not in received:  # else Ray's servers may be gone already, and its shutdown end the process
            over.set()
        ray.shutdown()
        over.set()
        if os.environ.get("RAY_ADDRESS") == _own_address():
            del os.environ["RAY_ADDRESS"]


def _start_ray(config: Config, has_dashboard: bool) -> None:
    """Start a Ray of our own on this machine. Raises UserError where the machine is too busy for it."""
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
    ending, patience = (1, "a server process of Ray's has ended; was it killed, or did memory run out?"), LEAVE_SECONDS
    while not over.wait(SERVER_SECONDS):
        if all(map(_is_alive, servers)):
            continue
        if signal.SIGTERM in received:
            ending, patience = SIGNAL_ENDINGS[signal.SIGTERM], SERVER_SECONDS
        if not over.wait(patience):
            leave(*ending)


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _init(config: Config, has_dashboard: bool) -> None:
    """Call `ray.init` with an address that is settled and told to all before Ray starts.

    By the dashboard, looked for at RAY_ADDRESS, Ray Train frees a stopped trial's group of workers; else it would look at
    the machine's processes, and a second Ray there would leave them reserved for ever. Others are spared 200 MiB.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        os.environ["RAY_GCS_SERVER_PORT"] = str(free.getsockname()[1])
    os.environ["RAY_ADDRESS"] = _own_address()
    ray.init(
        address="local",
        num_cpus=logical_cpus(config.ray.num_cpus),
        object_store_memory=config.ray.object_store_mib * 2**20,
        include_dashboard=has_dashboard,
        labels={ALONE: "true"},
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def start_patiently(start: Callable[[], None]) -> None:
    """Start Ray, once more where it, or its dashboard, took longer than Ray gives itself. Raises UserError."""
    others = set(psutil.Process().children(recursive=True))
    for is_last in (False, True):
        try:
            return start()
        except Exception as error:  # Ray raises no class of its own
            if not any(words in str(error) for words in ("timed out during startup", "dashboard.log", "dashboard.err")):
                raise
            left = set(psutil.Process().children(recursive=True)) - others
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
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


def is_cluster(address: str | None) -> bool:
    """Tell whether a command joins a Ray that is there: it was given an address, or runs as a job of `ray job submit`."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def _join(address: str) -> None:
    """Join a running Ray; what usually goes wrong becomes a UserError."""
    check_address(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise UserError(
            f"--address {address}: Ray does not let this machine join: {reason}."
            f" Check RAY_AUTH_MODE and the token, and that Python and Ray are the same here and there"
        ) from error
