"""A run's only worker without a worker group: in a process that may train one run after another.

The process is Ray's, or where nothing needs Ray one that this process starts. What torch.distributed and DeepSpeed keep for
a whole process is made and taken away here, in one place. Heavy libraries wait for the function that needs them: who starts
such a process need not have them, and it imports them in its own way.
"""

import ctypes
import gc
import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from arc_ray.errors import mistake_in, one_line
from arc_ray.runs.machine import importing

if TYPE_CHECKING:
    from arc_ray.train.run import RayProcess
    from arc_ray.train.worker import Job

logger = logging.getLogger(__name__)

ENVIRONMENT = {
    **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},  # nobody connects: the group's store is in this process
}
"""Where DeepSpeed and accelerate look for a process group."""

WITHOUT_RAY = {
    **{"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},  # what is on GPUs trains in Ray's processes
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Set for a process that is not Ray's."""


def train_alone(job: "Job", report: Callable[[dict[str, Any]], None] = lambda record: None) -> None:
    """Run the only worker of a training in this process; raises what goes wrong, and leaves nothing of the run behind."""
    from arc_ray.train.worker import Seat, is_node_ending, train_on_worker

    with process_group_of_one(job.config.scaling.on_gpu):
        train_on_worker(job, Seat(0, 1, 1, report, is_node_ending))


@contextmanager
def process_group_of_one(on_gpu: bool) -> Iterator[None]:
    """Make a process group of this process alone; at the end the process is as it was, its memory free."""
    import torch
    import torch.distributed

    from arc_ray.train.engine import import_deepspeed

    deepspeed, environment = import_deepspeed(), dict(os.environ)
    # Peak memory is measured anew, in a process that has trained before.
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif (record := Path("/proc/self/clear_refs")).exists():
        record.write_text("5")  # by which Linux forgets the most memory that this process has held
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


def free_memory() -> None:
    """Give the system, and the GPU, what nothing refers to any more.

    glibc would keep for a thread what it freed, and each trial that Tune runs in a process has a thread of its own.
    """
    import torch

    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # other C libraries have none
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def import_libraries() -> None:
    """Import what a training needs: seconds, in which the caller prepares it."""
    with importing():
        import transformers.modeling_utils  # noqa: F401 - else where a model is built

        import arc_ray.train.worker  # noqa: F401
        from arc_ray.train.engine import import_deepspeed

        import_deepspeed()


class TrainWorker:
    """What an actor of Ray's is that trains alone."""

    def __init__(self) -> None:
        import_libraries()

    def train(self, job: "Job") -> None:
        """Do a job from its newest checkpoint to its end."""
        train_alone(job)


class WorkerError(RuntimeError):
    """A process that was not Ray's ended, or a job in it failed; the message has what it said."""


class OwnProcess:
    """A process of this machine that trains alone on the CPU, without Ray; it ends with the process that started it."""

    def __init__(self) -> None:
        theirs, self._jobs = Pipe(duplex=False)
        self._answers, answers = Pipe(duplex=False)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        # Threads that wait by spinning make two busy processes on a few cores ten times slower than one.
        waits = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        # In a session of its own it hears no Ctrl-C: this process ends it.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "arc_ray.train.alone", str(theirs.fileno()), str(answers.fileno())],
            env={**waits, **os.environ, **WITHOUT_RAY, "PYTHONPATH": path},
            pass_fds=(theirs.fileno(), answers.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        theirs.close()
        answers.close()

    def train(self, job: "Job") -> None:
        """Do a job from its newest checkpoint to its end. Raises UserError and WorkerError."""
        try:
            self._jobs.send_bytes(pickle.dumps(job))
            failure = self._answers.recv()
        except (EOFError, OSError):
            raise WorkerError(self._last_words()) from None
        if failure:
            raise failure

    def _last_words(self) -> str:
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += ", as the system ends what takes too much memory"
        self._log.seek(0)
        return f"the training's process ended by {how}: {self._log.read()[-2000:].decode(errors='replace')}"

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for closable in (self._jobs, self._answers, self._log):
            closable.close()


class OneWorker:
    """The only worker of a run: its process starts, and imports, while the run's rows are prepared.

    Ray Train would start three processes one after another, and the first when the rows are there.
    """

    def __init__(self, start: "Callable[[], OwnProcess | RayProcess]") -> None:
        self._start = start
        self._process = start()

    def train(self, job: "Job") -> None:
        """Do a job; a process that dies, or fails by no mistake of the user's, is replaced `train.max_failures` times.

        Raises what it raised where that was not enough.
        """
        for failures in itertools.count():
            try:
                return self._process.train(job)
            except Exception as error:
                if mistake_in(error) or failures == job.config.train.max_failures:
                    raise
                logger.warning("the worker failed and is replaced: %s", one_line(error))
                self.end()
                self._process = self._start()

    def train_last(self, job: "Job") -> None:
        """Do a job and end."""
        try:
            self.train(job)
        finally:
            self.end()

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.end()


def _serve(jobs: Connection, answers: Connection) -> None:
    """Do one job after another until the other end of `jobs` is closed, which a process that dies does as well."""
    waiting = SimpleQueue[bytes]()

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                waiting.put(jobs.recv_bytes())
        os._exit(1)  # also in the middle of a job: another process may go on with the run

    threading.Thread(target=listen, daemon=True).start()
    import_libraries()
    while True:
        failure = None
        try:
            train_alone(pickle.loads(waiting.get()))  # noqa: S301 - from the process that started this one
        except Exception as error:
            failure = mistake_in(error) or WorkerError(traceback.format_exc())
        answers.send(failure)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1]), writable=False), Connection(int(sys.argv[2]), readable=False))
