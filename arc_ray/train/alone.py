"""A run's only worker without a worker group: in the process that calls, which may train one run after another.

What torch.distributed and DeepSpeed keep for a whole process is made and taken away here, in one place.
"""

import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed

from arc_ray.train.engine import import_deepspeed
from arc_ray.train.measures import forget_peak_memory
from arc_ray.train.notice import is_node_ending
from arc_ray.train.worker import Job, Seat, train_on_worker

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
    backend, store = "nccl" if on_gpu else "gloo", torch.distributed.HashStore()
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
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
