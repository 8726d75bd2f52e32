"""A run's only worker without a worker group: in a process that may train one run after another.

What torch.distributed and DeepSpeed keep for a whole process is made and taken away here, in one place.
"""

import itertools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import torch
import torch.distributed
from ray.exceptions import RayError

from arc_ray.errors import mistake_in
from arc_ray.train.engine import import_deepspeed
from arc_ray.train.record import forget_peak_memory, free_memory
from arc_ray.train.worker import Job, Seat, is_node_ending, train_on_worker

logger = logging.getLogger(__name__)

ENVIRONMENT = {
    **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},  # nobody connects: the group's store is in this process
}
"""Where DeepSpeed and accelerate look for a process group."""


def train_alone(job: Job, report: Callable[[dict[str, Any]], None] = lambda record: None) -> None:
    """Run the only worker of a training in this process; raises what goes wrong, and leaves nothing of the run behind."""
    with process_group_of_one(job.config.scaling.on_gpu):
        train_on_worker(job, Seat(0, 1, 1, report, is_node_ending))


@contextmanager
def process_group_of_one(on_gpu: bool) -> Iterator[None]:
    """Make a process group of this process alone; at the end the process is as it was, its memory free."""
    deepspeed, environment = import_deepspeed(), dict(os.environ)
    forget_peak_memory()
    os.environ.update(ENVIRONMENT)
    backend, store = "nccl" if on_gpu else "gloo", torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed()
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold the model
        raise
    finally:
        deepspeed.comm.destroy_process_group()
        deepspeed.comm.comm.cdb = None
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # compiled code is kept by its place in the source, for few models only
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        free_memory()


class TrainWorker:
    """A process of Ray's that trains alone."""

    def __init__(self) -> None:
        import_deepspeed()  # seconds, in which the caller prepares

    def train(self, job: Job) -> None:
        """Do a job from its newest checkpoint to its end."""
        train_alone(job)


class OneWorker:
    """The only worker of a run on one machine: its process starts, and imports, while the run's rows are prepared.

    Ray Train would start three processes one after another, and the first when the rows are there.
    """

    def __init__(self, resources: Mapping[str, float], environment: Mapping[str, str]) -> None:
        self._start = ray.remote(TrainWorker).options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            runtime_env={"env_vars": dict(environment)} if environment else None,
        )
        self._worker: Any = self._start.remote()

    def __call__(self, job: Job) -> None:
        """Do a job; a worker that dies, or fails by no mistake of the user's, is replaced `train.max_failures` times.

        Raises RayError where that was not enough.
        """
        try:
            for failures in itertools.count():
                try:
                    return ray.get(self._worker.train.remote(job))
                except RayError as error:
                    if mistake_in(error) or failures == job.config.train.max_failures:
                        raise
                    logger.warning("the worker failed and is replaced: %s", " ".join(str(error).split())[:300])
                    ray.kill(self._worker)
                    self._worker = self._start.remote()
        finally:
            ray.kill(self._worker)
