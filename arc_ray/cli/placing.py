"""Where the work of a command runs: what is `auto` in its config is chosen once, told, and held against the room there is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import ray

from arc_ray.cli.session import connected, is_cluster
from arc_ray.cluster.preflight import describe_placement, placement, size_faults
from arc_ray.cluster.roles import Room, compute_in_bfloat16, has_bfloat16, live_room, machine_room, reachable_room
from arc_ray.config import Config, with_overrides
from arc_ray.errors import UserError
from arc_ray.progress import Progress
from arc_ray.runs.folder import as_made, run_folder
from arc_ray.runs.starts import needed_runs, with_start
from arc_ray.study.needs import SEARCHES, Command, Needs, variants_of

JOIN_SECONDS = 60.0


@contextmanager
def placed(config: Config, command: Command, address: str | None, progress: Progress) -> Iterator[Config]:
    """Check what a command is given, join or start Ray, and yield the config with a place to run. Raises UserError."""
    Needs(config, command).check()
    with connected(config, address) as room:
        yield settled(config, room, progress, command)


def settled(config: Config, room: Room, progress: Progress, command: Command) -> Config:
    """Choose what is `auto` for a command and the runs that it needs, say what was chosen, and see that it fits.

    On a cluster it is said what is waited for. Raises UserError for what can never start on one machine.
    """
    if config.scaling.use_gpu == "auto" and room.num_hosts and not room.gpu_kinds():
        room = _with_hosts(room.num_hosts, progress)
    config = _chosen(config, room, command)
    progress.note(_described(config, room, command))
    faults = _faults(config, room, command)
    if faults and room.is_one_machine:
        raise UserError(faults[0])
    if not room.is_one_machine and not faults:
        faults = _faults(config, live_room(), command, is_now=True)
    for fault in faults[:1]:
        progress.note(f"waits for nodes: {fault}")
    return config


def _with_hosts(number: int, progress: Progress) -> Room:
    """Wait a while until a number of hosts has joined the head after `ray up`: before, nobody knows what they have."""
    end = time.monotonic() + JOIN_SECONDS
    while (joined := live_room().most_nodes) < number and time.monotonic() < end:
        progress.advance("hosts that have joined", joined, number)
        time.sleep(2)
    return reachable_room()


def foreseen(config: Config, address: str | None, progress: Progress, command: Command) -> Config:
    """Settle a config where nothing is to be done: for the cluster, if there is one, else for this machine."""
    if is_cluster(address):
        with connected(config, address) as room:
            return settled(config, room, progress, command)
    room = machine_room(config.ray.num_cpus)
    config = _chosen(config, room, command)
    progress.note(f"on this machine {_described(config, room, command)}; a cluster chooses for itself")
    for fault in _faults(config, room, command)[:1]:
        progress.note(f"on this machine it would be refused: {fault}")
    return config


def _chosen(config: Config, room: Room, command: Command) -> Config:
    """Choose for a config, and what differs for its start and for runs that it needs: they may share out other rows.

    A run that was begun keeps its dtype.
    """
    in_bfloat16 = cache(lambda: compute_in_bfloat16(room) if ray.is_initialized() else has_bfloat16())

    def place(asked: Config, is_search: bool) -> Config:
        kept = with_overrides(asked, {"model.dtype": as_made(run_folder(asked), asked).model.dtype})
        return with_overrides(kept, placement(kept, room, in_bfloat16, is_search))

    chosen, starts, runs = place(config, command in SEARCHES), dict(config.starts), dict(config.runs)

    def own(asked: Config) -> dict[str, Any]:
        workers, found = place(asked, is_search=False).scaling.num_workers, dict[str, Any]()
        if asked.scaling.num_workers == "auto" and workers != chosen.scaling.num_workers:
            found["scaling.num_workers"] = workers
        dtype = as_made(run_folder(asked), asked).model.dtype
        if asked.model.dtype == "auto" and dtype not in ("auto", chosen.model.dtype):
            found["model.dtype"] = dtype
        return found

    for run in needed_runs(config, variants_of(config, command)):
        runs[run.name] = {**runs[run.name], **own(run)}
    if command not in SEARCHES:
        starts[config.start] = {**starts[config.start], **own(with_start(config))}
    return with_overrides(chosen, {"starts": starts, "runs": runs})


def _described(config: Config, room: Room, command: Command) -> str:
    return describe_placement(config, room, command in SEARCHES, trains=command != "evaluate")


def _faults(config: Config, room: Room, command: Command, is_now: bool = False) -> list[str]:
    """List what does not fit of a settled config, its trials and the runs that it needs."""
    needs, at_once = Needs(config, command), 0
    if command in SEARCHES:
        at_once = min(config.tune.max_concurrent or 1, config.tune.num_trials or len(needs.variants))
    found = [size_faults(variant, room, needs.trains, at_once, is_now) for variant in needs.variants]
    found += [size_faults(run, room) for run in needs.runs]
    return list(dict.fromkeys(fault for faults in found for fault in faults))
