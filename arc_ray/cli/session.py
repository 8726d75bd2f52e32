"""Around a command: Ray is started or joined, and what is `auto` in the config is chosen once, told, and seen to fit."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from arc_ray.cli.own_ray import own_ray
from arc_ray.cluster.preflight import check_address, describe_placement, placement, size_faults
from arc_ray.cluster.roles import (
    Room,
    compute_in_bfloat16,
    has_bfloat16,
    live_room,
    machine_room,
    reachable_room,
)
from arc_ray.config import Config, with_overrides
from arc_ray.errors import UserError, one_line
from arc_ray.progress import Progress
from arc_ray.runs.folder import as_made, run_folder
from arc_ray.runs.owner import owned
from arc_ray.study.needs import Command, Needs

logger = logging.getLogger(__name__)

JOIN_SECONDS = 60.0


@contextmanager
def placed(config: Config, command: Command, address: str | None, progress: Progress) -> Iterator[Needs]:
    """Check a command, own its run folder, have Ray if that is needed, and yield needs with places. Raises UserError."""
    needs = Needs(config, command)
    needs.check()
    room = machine_room(config.ray.num_cpus)
    is_there = is_cluster(address) or ray.is_initialized()
    here = None if is_there else needs.placed(_chosen(needs, room))
    has_ray, trains_groups = (True, False) if here is None else (here.uses_ray, here.trains_groups)
    with (
        owned(run_folder(config), command, progress),
        connected(config, address, trains_groups) if has_ray else nullcontext(room) as room,
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
    terminate = signal.getsignal(signal.SIGTERM)
    with _joined(address or "auto") if is_cluster(address) else own_ray(config.ray, trains_groups):
        if callable(terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray has put its own in this one's place
        for name in ("ray", "ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield reachable_room()


def is_cluster(address: str | None) -> bool:
    """Tell whether a command joins a Ray that is there: it was given an address, or runs as a job of `ray job submit`."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Join a running Ray."""
    try:
        _join(address)
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    """Join a running Ray; what usually goes wrong becomes a UserError."""
    check_address(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        raise UserError(
            f"--address {address}: Ray does not let this machine join: {one_line(error, 400)}."
            f" Check RAY_AUTH_MODE and the token, and that Python and Ray are the same here and there"
        ) from error
