"""Around a command: Ray is there, and what is `auto` in the config is chosen once, told, and seen to fit."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import ray

from arc_ray.cli.joining import connected, is_cluster
from arc_ray.cluster.preflight import describe_placement, placement, size_faults
from arc_ray.cluster.roles import (
    Room,
    compute_in_bfloat16,
    has_bfloat16,
    live_room,
    machine_room,
    reachable_room,
)
from arc_ray.config import Config, with_overrides
from arc_ray.errors import UserError
from arc_ray.progress import Progress
from arc_ray.runs.folder import as_made, run_folder
from arc_ray.runs.owner import owned
from arc_ray.study.needs import Command, Needs

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
