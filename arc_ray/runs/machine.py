"""What a run is made on: the cores that this process may use, its libraries, versions, commit.

A machine may have many more cores than a container or a batch job is given.
"""

import gc
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arc_ray.config import Config
from arc_ray.runs.obtain import revision_of

PACKAGES = ("ray", "torch", "transformers", "peft", "trl", "deepspeed", "pyarrow", "numpy", "reasoning-gym")
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
"""Where Linux mounts its control groups, and where it says which of them this process is in."""


@dataclass(frozen=True)
class Instant:
    """A moment that the processes of a run measure from. Somebody may put the wall clock meanwhile, so it serves only to
    compare two machines, once."""

    monotonic: float
    wall: float
    boot: str

    @classmethod
    def ago(cls, seconds: float) -> "Instant":
        """Return the moment so many seconds before now."""
        return cls(time.monotonic() - seconds, time.time() - seconds, boot())

    def here(self) -> float:
        """Return what `time.monotonic` of this process was then; seconds."""
        return self.monotonic if self.boot == boot() else time.monotonic() - (time.time() - self.wall)


def boot() -> str:
    """Name this boot of this machine, whose processes share a monotonic clock; its host name where no boot has a name."""
    name = Path("/proc/sys/kernel/random/boot_id")
    return name.read_text().strip() if name.exists() else socket.gethostname()


def usable_cores() -> int:
    """Count the cores that this process may keep busy: its affinity, cut by the quota of its control groups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(CGROUPS, MEMBERSHIP.read_text()) if MEMBERSHIP.exists() else None
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cpu_quota(root: Path, membership: str) -> float | None:
    """Return the CPUs that control groups grant, the least of a group and those around it; None without a limit.

    `membership` is the text of /proc/self/cgroup. Within a container its paths may be the host's, which are not mounted
    there: then the group at the mount's root is the container's own.
    """
    quotas: list[float] = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / controllers if controllers else root
        groups = [mount / path.lstrip("/"), *(mount / path.lstrip("/")).parents]
        quotas += [quota for group in groups if group.is_relative_to(mount) and (quota := _quota(group))]
    return min(quotas, default=None)


def _quota(group: Path) -> float | None:
    """Read one group's limit, as version 2 or version 1 writes it."""
    if (group / "cpu.max").is_file():
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    if (group / "cpu.cfs_quota_us").is_file():
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    return None


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the search for cyclic garbage in the body; what has no cycles is freed all the same.

    RE-ARC makes millions of tuples: 6 % of its time. A batch of rows makes lists with a hundred thousand entries: every
    third one takes twice as long, since each search looks at all objects of the process. Imports make a million objects,
    all of which stay: a fourth of their seconds.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """Pause the collector while libraries are imported, and keep it from looking at what they made ever after."""
    with collector_paused():
        try:
            yield
        finally:
            gc.freeze()


def describe_run(config: Config, command: str) -> dict[str, Any]:
    """Describe where a run was made: command, time, versions, hardware, git commit."""
    return {
        "command": command,
        "arguments": sys.argv[1:],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "model": {"base": config.model.base, "revision": revision_of(config.model.base, config.storage)},
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cores": usable_cores()},
        "placement": {
            "use_gpu": config.scaling.use_gpu,
            "num_workers": config.scaling.num_workers,
            "dtype": config.model.dtype,
            "micro_rows": config.train.micro_rows,
        },
        "git_commit": _git_commit(),
    }


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None of one that is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
