"""How many cores a process may use, read from control groups as Linux lays them out; and imports."""

import gc
import time
from dataclasses import replace
from pathlib import Path

import pytest

from arc_ray.runs.machine import Instant, cpu_quota, importing, usable_cores


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({"cpu.max": "200000 100000\n"}, "0::/\n", 2.0),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cgroup.procs": ""}, "0::/\n", None),
        # A slice around the job's own group is tighter than the group.
        ({"a/cpu.max": "150000 100000\n", "a/job/cpu.max": "max 100000\n"}, "0::/a/job\n", 1.5),
        ({"a/cpu.max": "800000 100000\n", "a/job/cpu.max": "300000 100000\n"}, "0::/a/job\n", 3.0),
        # Version 1, in a container: the path is the host's, the mount is the container's own.
        (
            {"cpu,cpuacct/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/docker/x\n",
            4.0,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n0::/\n", None),
        # A group of another controller says nothing of CPUs.
        ({"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, "3:cpuset:/\n", None),
    ],
)
def test_the_tightest_quota_counts(files: dict[str, str], membership: str, quota: float | None, tmp_path: Path) -> None:
    """Catches 64 threads in a container with 2 CPUs of 64, where `os.cpu_count` tells the machine's cores."""
    assert cpu_quota(write(tmp_path, files), membership) == quota


@pytest.mark.parametrize(("limit", "cores"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 64)])
def test_affinity_and_quota_are_both_kept(
    limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a half CPU that rounds to none, and a quota without the affinity."""
    write(tmp_path, {"cpu.max": limit, "membership": "0::/\n"})
    monkeypatch.setattr("arc_ray.runs.machine.CGROUPS", tmp_path)
    monkeypatch.setattr("arc_ray.runs.machine.MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    assert usable_cores() == cores
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3})
    assert usable_cores() == 1


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_is_as_it_was_after_imports(is_on: bool) -> None:
    """Catches a process that frees no cycle any more, or frees them though its user had switched that off."""
    (gc.enable if is_on else gc.disable)()
    try:
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled() == is_on
    finally:
        gc.enable()
        gc.unfreeze()


def test_an_instant_is_the_same_on_another_machine() -> None:
    """Catches seconds counted from another machine's start, which its own clock knows nothing of."""
    sent = replace(Instant.ago(3600.0), monotonic=1e9, boot="another machine's")
    assert 3600 <= time.monotonic() - sent.here() < 3660
