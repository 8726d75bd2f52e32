"""One fault, drawn from a seed: which process of a command, what happens to it, and at which moment."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil
from storage_server import BUCKET_FAULTS, StorageServer

MARK = "ARC_RAY_CHAOS"
"""A variable that a command and all that it starts have: nobody else's process is ever touched."""

TITLES = {
    "driver": r"-m arc_ray ",
    "trial": r"ray::ImplicitFu",
    "worker": r"ray::(TrainWorker|RayTrainWorker)|-m arc_ray\.train\.alone ",
    "controller": r"ray::TrainController",
    "data task": r"ray::(MapBatches|Map\(|MapWorker|ReadRange|FromItems)",
    "host": r"ray::Host",
    "preparer": r"ray::Preparer",
    "idle": r"ray::IDLE",
    "raylet": r"/raylet/raylet ",
    "head": r"/gcs/gcs_server ",
    "dashboard": r"dashboard/dashboard\.py",
}
"""How the command line of a kind of process looks."""

WORKLOADS = {
    "generate": ["driver", "data task", "idle", "raylet", "head"],
    "prepare": ["driver", "data task", "worker", "host", "head"],
    "train": ["driver", "worker"],
    "group": ["driver", "worker", "controller", "raylet", "dashboard"],
    "tune": ["driver", "trial", "preparer", "raylet", "head", "idle"],
    "evaluate": ["driver", "host", "raylet", "head"],
    "study": ["driver", "trial", "preparer", "host", "head"],
}
"""Commands, and the kinds of processes that each has."""

STOP_SECONDS = (2.0, 40.0)
DAY = 86_400
CLOCK = "clock"
"""A file beside a call's disk with the seconds that its clock is ahead; clock.c reads it."""
LONG_FAULT = 200
"""Requests: the client's own attempts are over, and the command ends."""


@dataclass(frozen=True)
class Fault:
    """What is to happen."""

    workload: str
    who: str
    """A kind of process; group: all of them; disk; bucket; clock."""
    what: str
    moment: float
    """Share of the files that an undisturbed command writes, or of the requests it makes, which are there by then."""
    delay: float
    """Seconds after that."""
    amount: float
    """0 to 1: how long a stop is, how much of a disk is left, how many requests fail, how far a clock is put."""

    def __str__(self) -> str:
        return f"{self.workload}: {self.who} {self.what} ({self.amount:.2f}) at {self.moment:.0%} + {self.delay:.1f} s"


def all_kinds() -> list[tuple[str, str, str]]:
    """List (workload, who, what), in an order that is mixed but always the same."""
    kinds = [(load, who, what) for load, whos in WORKLOADS.items() for who in whos for what in ("killed", "stopped")]
    kinds += [(load, "group", what) for load in WORKLOADS for what in ("interrupted", "terminated", "killed")]
    kinds += [(load, "disk", "full") for load in WORKLOADS for _ in range(2)]
    kinds += [(load, "bucket", fault) for load in WORKLOADS for fault in BUCKET_FAULTS]
    kinds += [(load, "clock", way) for load in WORKLOADS for way in ("forward", "back")]
    Random(0).shuffle(kinds)
    return kinds


def draw(seed: int) -> Fault:
    """Draw the fault of a seed: kinds come in turns, so that many seeds cover all; the moment is chance."""
    rng, kinds = Random(seed), all_kinds()
    return Fault(
        *kinds[seed % len(kinds)],
        moment=rng.random(),
        delay=rng.choice([0, rng.random(), 5 * rng.random()]),
        amount=rng.random(),
    )


def processes(mark: str) -> list[psutil.Process]:
    """Find all living processes of one campaign's call, whoever is their parent by now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def find(who: str, mark: str) -> list[psutil.Process]:
    """Find the living processes of a kind."""
    found = []
    for process in processes(mark):
        with suppress(psutil.Error):
            if re.search(TITLES[who], " ".join([*process.cmdline(), ""])):
                found.append(process)
    return found


def deal(fault: Fault, mark: str, pid: int, disk: Path, server: StorageServer, is_over: Callable[[], bool]) -> str:
    """Let it happen, as soon as there is such a process; say what happened, or nothing where the command was over first.

    A stopped process goes on before this returns.
    """
    if fault.who == "disk":
        return fill(disk, int(100_000 * fault.amount**3))
    if fault.who == "clock":
        seconds = (60 + DAY * fault.amount) * (1 if fault.what == "forward" else -1)
        (disk.parent / CLOCK).write_text(f"{seconds:.0f}\n")
        return f"{seconds:+.0f} s"
    if fault.who == "bucket":
        times = LONG_FAULT if fault.amount > 0.5 else 1 + int(12 * fault.amount)
        server.fail(fault.what, times)  # pyright: ignore[reportArgumentType]
        return f"{times} requests"
    if fault.who == "group":
        signals = {"interrupted": signal.SIGINT, "terminated": signal.SIGTERM, "killed": signal.SIGKILL}
        os.killpg(pid, signals[fault.what])
        return f"process group {pid}"
    while not (found := find(fault.who, mark)):
        if is_over():
            return ""
        time.sleep(0.02)
    victim = found[int(fault.amount * len(found))]
    with suppress(psutil.NoSuchProcess):
        if fault.what == "killed":
            victim.kill()
            return f"process {victim.pid}"
        victim.suspend()
        low, high = STOP_SECONDS
        time.sleep(low + (high - low) * fault.amount)
        victim.resume()
        return f"process {victim.pid}"
    return ""


def clock_of(folder: Path) -> dict[str, str]:
    """Return the environment of a call whose clock can be put; needs a C compiler."""
    offset = folder / CLOCK
    offset.write_text("0\n")
    return {**preloaded("clock.c", folder), "CHAOS_CLOCK": str(offset)}


def preloaded(source: str, folder: Path) -> dict[str, str]:
    """Compile a library of this folder's into a folder; return the environment of processes that load it first."""
    library = folder / f"{source}.so"
    place = Path(__file__).with_name(source)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(place), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


def fill(disk: Path, left: int) -> str:
    """Fill a disk of ours but for some bytes."""
    with (disk / "filler").open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(2**20)):
                pass
        file.truncate(max(0, file.tell() - left))
    return f"{left} bytes left"
