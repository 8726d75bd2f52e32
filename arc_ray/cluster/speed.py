"""How fast workers' nodes exchange gradients, and how fast they write and read the storage: measured before a training.

One all-reduce between all of them, and one file. What a training needs of both is arithmetic on its size.
"""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from arc_ray.cluster.roles import HEAD_RESOURCE, kind_of, live_nodes, run_on
from arc_ray.errors import UserError
from arc_ray.storage import Folder

TRIAL_BYTES = 64 * 2**20
CONNECT_SECONDS = 60.0
PATIENCE_SECONDS = 180.0
"""A rank's process starts, imports torch, and perhaps waits for a GPU on which something else runs."""

TOO_SLOW = 2.0
"""Times its computing that a step may take for its exchange before that is called too slow."""


@dataclass(frozen=True)
class Speed:
    """What was measured, in bytes per second."""

    write: float
    read: float
    exchange: float | None = None
    """Bytes of an all-reduce by its seconds; None where workers are on one node, or their nodes are not up."""
    between: str = ""
    """Who exchanged; or why nobody did."""
    accelerator: str | None = None
    """Ray's name for the GPUs of these nodes."""

    def lines(self) -> Iterator[str]:
        """Say what was measured."""
        rate = "not measured" if self.exchange is None else f"{self.exchange / 1e9:.3g} GB/s in an all-reduce"
        yield f"network: {rate} {self.between}"
        yield f"storage: one node writes {self.write / 1e9:.3g} GB/s, another one reads {self.read / 1e9:.3g} GB/s"


@dataclass(frozen=True)
class Demand:
    """What a training asks for."""

    exchanged: float
    """Bytes of all-reduces between all workers in an optimizer step."""
    checkpoint: float
    """Bytes of a checkpoint."""
    seconds: float | None = None
    """In which a step computes; None for a device whose speed is not known."""
    checkpoint_every: int = 1
    """Steps between checkpoints."""

    def lines(self, speed: Speed) -> Iterator[str]:
        """Hold what was measured against it."""
        if speed.exchange is not None:
            takes = self.exchanged / speed.exchange
            said = f"network: a step exchanges {self.exchanged / 1e9:.3g} GB, which takes {takes:.3g} s"
            if self.seconds is not None:
                needed, times = self.exchanged / self.seconds / 1e9, takes / self.seconds
                said += f"; it computes {self.seconds:.3g} s on {speed.accelerator}, so {needed:.3g} GB/s are needed"
                if times > TOO_SLOW:
                    said += (
                        f". TOO SLOW: steps take {1 + times:.0f} times as long; lower scaling.num_workers to one node's GPUs,"
                        f" train LoRA, or raise train.batch_rows"
                    )
            yield said
        takes, between = self.checkpoint / speed.write, self.checkpoint_every * (self.seconds or 0)
        said = f"storage: a checkpoint of {self.checkpoint / 1e9:.3g} GB takes {takes:.3g} s to write"
        if between:
            said += f", every {between:.3g} s" + (". TOO SLOW: raise train.checkpoint_every" if takes > between else "")
        yield said


def measure(storage: str, trace: str, on_gpu: bool, num_workers: int) -> Speed:
    """Measure between the nodes that are there and would train, in a folder `trace` of the storage.

    Raises UserError where they cannot reach each other.
    """
    nodes = [node for node in live_nodes() if node["Resources"].get("GPU" if on_gpu else "CPU")]
    nodes.sort(key=lambda node: (HEAD_RESOURCE in node["Resources"], node["NodeManagerAddress"]))
    places = [n["NodeID"] for n in nodes or live_nodes()]
    write = ray.get(run_on(places[0], _write, storage, trace), timeout=PATIENCE_SECONDS)
    read = ray.get(run_on(places[-1], _read, storage, trace), timeout=PATIENCE_SECONDS)
    ranks = [node for node in nodes for _ in range(int(node["Resources"]["GPU"]) if on_gpu else 1)][:num_workers]
    exchange, between = _exchange(ranks, on_gpu, num_workers)
    kinds = {kind for node in nodes if (kind := kind_of(node["Resources"], {}).accelerator)}
    return Speed(write, read, exchange, between, min(kinds, default=None))


def _exchange(ranks: list[dict[str, Any]], on_gpu: bool, num_workers: int) -> tuple[float | None, str]:
    """Return the bytes per second of an all-reduce, one rank a GPU or a node without GPUs; and between whom, or why not."""
    hosts = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in ranks}
    kind = "nodes with GPUs" if on_gpu else "nodes with CPUs"
    if num_workers == 1 or len(hosts) == 1 < len(ranks) == num_workers:
        return None, "(all workers are on one node)"
    if len(hosts) < 2:
        return None, f"({num_workers} workers want two {kind} or more, up are {len(hosts)}: check again while they are)"
    first = ranks[0]
    port = ray.get(run_on(first["NodeID"], _free_port), timeout=PATIENCE_SECONDS)
    place = f"tcp://{first['NodeManagerAddress']}:{port}"
    options = {"num_gpus": 1, "max_calls": 1} if on_gpu else {"max_calls": 1}
    asked = [
        run_on(node["NodeID"], _all_reduce, place, rank, len(ranks), on_gpu, **options)
        for rank, node in enumerate(ranks)
    ]
    try:
        seconds = max(ray.get(asked, timeout=PATIENCE_SECONDS))
    except GetTimeoutError:
        for one in asked:
            ray.cancel(one, force=True)
        return None, f"(the {kind} are busy)"
    except RayError as error:
        reason = " ".join(str(error).split())[-300:]
        raise UserError(f"{' and '.join(list(hosts.values())[:3])} cannot exchange gradients: {reason}") from error
    return (
        TRIAL_BYTES / seconds,
        f"of {TRIAL_BYTES / 2**20:.0f} MiB between {len(ranks)} workers on {len(hosts)} {kind}",
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def _all_reduce(place: str, rank: int, size: int, on_gpu: bool) -> float:
    """Return the seconds of an all-reduce, the connecting not counted."""
    import torch
    import torch.distributed as group

    limit = timedelta(seconds=CONNECT_SECONDS)
    group.init_process_group("nccl" if on_gpu else "gloo", init_method=place, rank=rank, world_size=size, timeout=limit)
    try:
        numbers = torch.ones(TRIAL_BYTES // 4, device="cuda" if on_gpu else "cpu")
        group.all_reduce(numbers[:1024])
        group.barrier()
        begun = time.perf_counter()
        group.all_reduce(numbers)
        numbers[0].item()  # waits for the device
        return time.perf_counter() - begun
    finally:
        group.destroy_process_group()


def _write(storage: str, trace: str) -> float:
    content = os.urandom(TRIAL_BYTES)
    begun = time.perf_counter()
    Folder.at(storage).write_bytes(f"{trace}/speed", content)
    return TRIAL_BYTES / (time.perf_counter() - begun)


def _read(storage: str, trace: str) -> float:
    begun = time.perf_counter()
    Folder.at(storage).read_bytes(f"{trace}/speed")
    return TRIAL_BYTES / (time.perf_counter() - begun)
