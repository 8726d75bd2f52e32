"""The notice that a machine of a run will be taken away, as Ray Train passes it on (`ray drain-node`, spot notices)."""

import os
import time
from collections.abc import Callable

import ray
import torch
import torch.distributed

ASK_SECONDS = 5.0
"""Time between questions whether there is a notice: each is a barrier of all workers, and clouds give 30 seconds or more."""


class EndNotice:
    """Tells each worker once, at the same step, that the notice is there."""

    def __init__(self, ask: Callable[[], object | None], num_workers: int, device: torch.device) -> None:
        """`ask` may be ray.train.get_preemption_info: a barrier of all workers, who all get the same answer."""
        # `arc-ray` switches Ray's watcher off where it starts Ray itself: nobody could give notice there.
        self._listens = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"
        self._ask, self._num_workers, self._device = ask, num_workers, device
        self._asked = time.monotonic()

    def is_new(self) -> bool:
        """Tell, once, that the notice is there. All workers must call it equally often."""
        if not self._listens or not self._is_time():
            return False
        self._asked = time.monotonic()
        self._listens = self._ask() is None
        return not self._listens

    def _is_time(self) -> bool:
        """Tell, on every worker alike, whether any has not asked for long: their clocks differ, and a barrier needs all."""
        is_time = time.monotonic() - self._asked >= ASK_SECONDS
        if self._num_workers > 1:
            votes = torch.tensor(float(is_time), device=self._device)
            torch.distributed.all_reduce(votes)
            is_time = bool(votes)
        return is_time


def is_node_ending() -> object | None:
    """Ask Ray, from a worker without a group, for the notice of its own machine; None as long as there is none."""
    return ray._private.state.state.get_draining_nodes().get(ray.get_runtime_context().get_node_id())
