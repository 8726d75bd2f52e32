"""Where the work of a command runs: what is `auto` in its config is chosen once, told, and held against the room there is."""

import time
from collections.abc import Callable
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
from arc_ray.runs.starts import config_of_run, needed_runs, with_start

JOIN_SECONDS = 60.0

Trials = Callable[[Config], list[Config]]
"""Returns the configs of all trials of a search."""


def settled(
    config: Config, room: Room, progress: Progress, trials: Trials | None = None, trains: bool = True
) -> Config:
    """Choose what is `auto` for a command and the runs that it needs, say what was chosen, and see that it fits.

    `trains` is false where the config, unlike the runs it needs, only answers. On a cluster it is said what is waited
    for. Raises UserError for what can never start on one machine.
    """
    if config.scaling.use_gpu == "auto" and room.num_hosts and not room.gpu_kinds():
        room = _with_hosts(room.num_hosts, progress)
    config = _placed(config, room, trials)
    progress.note(describe_placement(config, room, trials is not None, trains))
    faults = _faults(config, room, trials, trains)
    if faults and room.is_one_machine:
        raise UserError(faults[0])
    if not room.is_one_machine and not faults:
        faults = _faults(config, live_room(), trials, trains, is_now=True)
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


def foreseen(
    config: Config, address: str | None, progress: Progress, trials: Trials | None = None, trains: bool = True
) -> Config:
    """Settle a config where nothing is to be done: for the cluster, if there is one, else for this machine."""
    if is_cluster(address):
        with connected(config, address) as room:
            return settled(config, room, progress, trials, trains)
    room = machine_room(config.ray.num_cpus)
    config = _placed(config, room, trials)
    where = describe_placement(config, room, trials is not None, trains)
    progress.note(f"on this machine {where}; a cluster chooses for itself")
    for fault in _faults(config, room, trials, trains)[:1]:
        progress.note(f"on this machine it would be refused: {fault}")
    return config


def _placed(config: Config, room: Room, trials: Trials | None) -> Config:
    """Choose for a config, and what differs for its start and for runs that it needs: they may share out other rows.

    A run that was begun keeps its dtype.
    """
    in_bfloat16 = cache(lambda: compute_in_bfloat16(room) if ray.is_initialized() else has_bfloat16())

    def place(asked: Config, is_search: bool) -> Config:
        kept = with_overrides(asked, {"model.dtype": as_made(run_folder(asked), asked).model.dtype})
        return with_overrides(kept, placement(kept, room, in_bfloat16, is_search))

    chosen, starts, runs = place(config, trials is not None), dict(config.starts), dict(config.runs)

    def own(asked: Config) -> dict[str, Any]:
        workers, found = place(asked, is_search=False).scaling.num_workers, dict[str, Any]()
        if asked.scaling.num_workers == "auto" and workers != chosen.scaling.num_workers:
            found["scaling.num_workers"] = workers
        dtype = as_made(run_folder(asked), asked).model.dtype
        if asked.model.dtype == "auto" and dtype not in ("auto", chosen.model.dtype):
            found["model.dtype"] = dtype
        return found

    for name in needed_runs(config, _variants(config, trials)):
        runs[name] = {**runs[name], **own(config_of_run(config, name))}
    if trials is None:
        starts[config.start] = {**starts[config.start], **own(with_start(config))}
    return with_overrides(chosen, {"starts": starts, "runs": runs})


def _variants(config: Config, trials: Trials | None) -> list[Config]:
    return trials(config) if trials else [with_start(config)]


def _faults(config: Config, room: Room, trials: Trials | None, trains: bool = True, is_now: bool = False) -> list[str]:
    """List what does not fit of a settled config, its trials and the runs that it needs."""
    variants = _variants(config, trials)
    needed = [config_of_run(config, name) for name in needed_runs(config, variants)]
    at_once = min(config.tune.max_concurrent or 1, config.tune.num_trials or len(variants)) if trials else 0
    found = [size_faults(run, room, trains, at_once, is_now) for run in variants]
    found += [size_faults(run, room) for run in needed]
    return list(dict.fromkeys(fault for faults in found for fault in faults))
