"""ARC-GEN's generators of ARC tasks (Moffitt, arXiv 2511.00162), run from a user's clone of Google's repository.

They draw from Python's global `random`, import a `common` of their own, and some never end for some seeds. So they run in
a bare process, seeded before each draw: nothing of this process is touched, and a hanging one is killed. A process is kept
for the next draw, because starting one takes as long as fifty draws; it ends with the process that it serves.
"""

import hashlib
import inspect
import marshal
import os
import signal
import subprocess
import sys
from functools import cache
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from arc_ray.config.sources import ArcGenSource
from arc_ray.errors import UserError
from arc_ray.seeding import digest64
from arc_ray.tasks.examples import Draw, Example, TimeLimitError, try_until_accepted

WALL_FACTOR = 60
"""An example that gets little CPU time, or sleeps, is waited for this many times its limit."""


@cache
def arcgen_ids(path: str) -> tuple[str, ...]:
    """List the ids of the tasks that a clone has generators of, sorted. Raises UserError if there is none."""
    names = sorted(file.stem.removeprefix("task_") for file in Path(path).glob("tasks/task_*.py"))
    if not names:
        raise UserError(
            f"{path}: there is no generator (tasks/task_<id>.py); give `path` the folder of a clone of ARC-GEN"
            f" (github.com/google/ARC-GEN), which must be there on every node, such as in the job's working directory"
        )
    return tuple(names)


@cache
def arcgen_digest(path: str) -> str:
    """Digest all code of a clone that generators may use, so that a changed clone is noticed. Raises UserError."""
    arcgen_ids(path)
    files = sorted([*Path(path).glob("*.py"), *Path(path).glob("tasks/*.py")])
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()


def arcgen_example(source: ArcGenSource, task_id: str, index: int) -> Example:
    """Make example `index` of a task: a pure function of (seed, task_id, index) and the clone, except where the time limit
    strikes. Attempt a draws from the key (seed, "arcgen", task_id, index, a)."""

    def draw(attempt: int) -> Draw:
        seed = digest64(source.seed, "arcgen", task_id, index, attempt)
        return _draw(source.path, task_id, seed, source.time_limit_seconds)

    return try_until_accepted(draw, lambda made: True, source.max_side, WALL_FACTOR * source.time_limit_seconds)


_PROCESSES: dict[str, "_Process"] = {}
"""Clone -> the process that runs its generators."""


def _draw(path: str, task_id: str, seed: int, cpu_seconds: float) -> Draw:
    process = _PROCESSES.get(path) or _PROCESSES.setdefault(path, _Process(path))
    try:
        made = process.ask(task_id, seed, cpu_seconds)
    except BaseException:  # a time limit, or the process has ended: what it might still say belongs to no draw
        _PROCESSES.pop(path).end()
        raise
    if isinstance(made, str):
        raise RuntimeError(made)
    return Draw(*made)


class _Process:
    """A Python process in which a clone's generators run."""

    def __init__(self, path: str) -> None:
        self._pipe, theirs = Pipe()
        self._popen = subprocess.Popen(
            [sys.executable, "-c", f"{inspect.getsource(_serve)}_serve()", path, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt is for the process that asks
        )
        theirs.close()

    def ask(self, task_id: str, seed: int, cpu_seconds: float) -> Any:
        """Return the two grids of a draw, or what the generator raised, as text. Raises TimeLimitError."""
        try:
            # Of a grid's many small numbers, pickle would take six times as long.
            self._pipe.send_bytes(marshal.dumps((task_id, seed, cpu_seconds)))
            return marshal.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            code = self._popen.wait()
            if code == -signal.SIGPROF:
                raise TimeLimitError from error
            raise RuntimeError(f"the generator ended its process with exit code {code}") from error

    def end(self) -> None:
        self._pipe.close()
        self._popen.kill()
        self._popen.wait()


def _serve() -> None:
    """Answer draws; run from its source text in a process that has nothing of arc_ray."""
    import gc
    import marshal
    import random
    import signal
    import sys
    from importlib import import_module
    from multiprocessing.connection import Connection

    sys.path[:1] = [sys.argv[1], f"{sys.argv[1]}/tasks"]
    gc.set_threshold(100_000)  # most of what the generators make has no cycles
    requests, generators = Connection(int(sys.argv[2])), {}
    while True:
        try:
            task_id, seed, cpu_seconds = marshal.loads(requests.recv_bytes())
        except EOFError:  # the asking process has ended
            return
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # then the system ends this process
        try:
            if task_id not in generators:
                generators[task_id] = import_module(f"task_{task_id}").generate
            random.seed(seed)
            made = generators[task_id]()
            answer = marshal.dumps((made["input"], made["output"]))
        except Exception as error:
            answer = marshal.dumps(f"{type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        requests.send_bytes(answer)


MEAN_SECONDS = 0.0006
"""What an example of all other tasks takes."""
SLOW_DRAWS = {
    0.6: "e681b708 6ffe8f07 2c0b0aff 6bcdb01e f0f8a26d",
    0.4: "a8c38be5 985ae207 1b8318e3 2753e76c",
    0.25: "0d87d2a6 37d3e8b2 22806e14 bd14c3bf 8efcae92 1e5d6875 ad38a9d0 52df9849 551d5bf1",
    0.15: "ba9d41b8 f3b10344 97a05b5b e21a174a a934301b 6a1e5592 48634b99 15663ba9 f21745ec",
    0.1: "1d61978c 230f2e48 2a5f8217 e39e9282",
    0.05: "2faf500b 342ae2ed 1c56ad9f 5e6bbc0b e57337a4 6ca952ad 54db823b 776ffc46 20fb2937 57edb29d 7d18a6fb 96a8c0cd",
    0.02: "896d5239 3490cc26 ef135b50 83b6b474 7e0986d6 494ef9d7 8e301a54 c920a713 ae58858e edcc2ff0 7df24a62 e509e548"
    " 414297c0 14b8e18c d2abd087",
    0.01: "2e65ae53 ddf7fa4f 8cb8642d 2f0c5170 a57f2f04 b2862040 1fad071e e1d2900e",
}
"""Seconds of an example -> tasks: twelve draws of each of 900 with a time limit of 1 s, on one core of a 2026 x86 server.
These 66 take 98 % of the time of all. Draws that hang take 61 %: they are 7 in 1,000, of 34 tasks."""


def arcgen_seconds(task_id: str) -> float:
    """Estimate what an example of a task costs on one core."""
    return next((seconds for seconds, tasks in SLOW_DRAWS.items() if task_id in tasks.split()), MEAN_SECONDS)
