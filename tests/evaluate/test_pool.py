"""Processes that hold one model after another, and stand in nobody's way. That they change no byte: test_ttt.py."""

import time
from contextlib import suppress

import psutil
import pytest
import torch
from training import PATIENCE, hosts_here

from arc_ray.config import config_from
from arc_ray.evaluate.pool import Hosts, outcomes
from arc_ray.evaluate.questions import Work

pytestmark = pytest.mark.slow


class Doubler:
    """A worker that changes what belongs to the whole process."""

    def load(self) -> None:
        assert torch.get_float32_matmul_precision() == "highest"
        torch.set_float32_matmul_precision("high")

    def do(self, work: Work) -> int:
        return 2 * int(work.name)


def work_on(hosts: Hosts, cpus: int = 1) -> set[psutil.Process]:
    """Do four works, in time or not at all; return the processes that there are then."""
    config = config_from({"scaling": {"use_gpu": False, "cpus_per_worker": cpus}}, {})
    works, deadline = [Work(str(number)) for number in range(4)], time.monotonic() + PATIENCE
    found = {work.name: done for work, done in outcomes(hosts, config, Doubler, (), works, 2, 0, deadline=deadline)}
    assert found == {"0": 0, "1": 2, "2": 4, "3": 6}, "it waited for what other processes hold"
    return set(hosts_here())


def test_processes_are_kept_for_the_same_resources_only(ray_session: None) -> None:
    """Catches a process a model, processes with nothing to do that hold what others wait for, and dead ones in use."""
    with Hosts() as hosts:
        first = work_on(hosts)
        assert first & work_on(hosts)
        for process in first:
            with suppress(psutil.NoSuchProcess):  # one that was not needed any more
                process.kill()
        second = work_on(hosts)
        assert not first & second
        last = second | work_on(hosts, cpus=4)  # all of the session's: one of two can start
    assert not psutil.wait_procs(last, timeout=PATIENCE)[1], "they outlived what they were kept for"
