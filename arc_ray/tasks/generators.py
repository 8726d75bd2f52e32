"""Generators of examples: RE-ARC's for 400 ARC training tasks (Hodel, arXiv 2404.07353), ARC-GEN's (Moffitt, arXiv
2511.00162) from a user's clone of Google's repository, and a user's own.

RE-ARC comes in reasoning-gym, of which only `rearc_utils` is loaded, under a name of our own: importing reasoning_gym
itself would take ten seconds on a cold worker, and its own dataset class never calls the verifiers.

ARC-GEN's draw from Python's global `random`, import a `common` of their own, and some never end for some seeds. So they
run in a bare process, seeded before each draw: nothing of this process is touched, and a hanging one is killed. A process
is kept for the next draw, because starting one takes as long as fifty draws; it ends with the process that it serves.

A user's are `generate(rng, difficulty) -> (input, output)` and perhaps `verify(input) -> output`, named by their import
path, "package.module:function"; the module must be importable on every node.
"""

import hashlib
import importlib
import importlib.util
import inspect
import marshal
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from multiprocessing import Pipe
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, NamedTuple

from arc_ray.config.sources import ArcGenSource, PluginSource, RearcSource
from arc_ray.errors import UserError, nearest
from arc_ray.seeding import digest64, python_random_for, rng_for
from arc_ray.tasks.examples import Draw, Example, TimeLimitError, as_grid, try_until_accepted
from arc_ray.tasks.task import same_grid

_LOADED_AS = "arc_ray_rearc_utils"
WALL_FACTOR = 60
"""An example of ARC-GEN's that gets little CPU time, or sleeps, is waited for this many times its limit."""


class _Library(NamedTuple):
    generate: dict[str, Callable[..., dict[str, Any]]]
    verify: dict[str, Callable[[Any], Any]]


def rearc_ids() -> tuple[str, ...]:
    """List the ids of all tasks that have a generator and a verifier, sorted."""
    return tuple(sorted(_library().generate))


def rearc_example(source: RearcSource, task_id: str, index: int) -> Example:
    """Make example `index` of a task: a pure function of the arguments, except where the time limit strikes. Attempt a
    draws from the key (seed, "rearc", task_id, index, a), so that no rejected attempt moves the next one."""
    generate, verify = _library().generate[task_id], _library().verify[task_id]

    def draw(attempt: int) -> Draw:
        rng = python_random_for(source.seed, "rearc", task_id, index, attempt)
        made = generate(rng, *source.difficulty)
        samples = getattr(rng, "difficulty_samples", None)  # their `unifint` leaves its draws there
        return Draw(made["input"], made["output"], fmean(samples) if samples else None)

    def is_right(made: Draw) -> bool:
        return verify(made.input) == made.output

    return try_until_accepted(draw, is_right, source.max_side, source.time_limit_seconds)


@cache
def _library() -> _Library:
    """Load generators and verifiers (0.7 s), once a process."""
    found = importlib.util.find_spec("reasoning_gym")
    assert found
    assert found.submodule_search_locations
    package = sys.modules[_LOADED_AS] = ModuleType(_LOADED_AS)
    package.__path__ = [str(Path(found.submodule_search_locations[0]) / "arc" / "rearc_utils")]
    library = _Library(_named("generate_", "generators"), _named("verify_", "verifiers"))
    assert library.generate.keys() == library.verify.keys()
    return library


def _named(prefix: str, module: str) -> dict[str, Callable[..., Any]]:
    found = vars(importlib.import_module(f"{_LOADED_AS}.{module}"))
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


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
    return digest_of(sorted([*Path(path).glob("*.py"), *Path(path).glob("tasks/*.py")]))


def arcgen_example(source: ArcGenSource, task_id: str, index: int) -> Example:
    """Make example `index` of a task: a pure function of (seed, task_id, index) and the clone, except where the time limit
    strikes. Attempt a draws from the key (seed, "arcgen", task_id, index, a)."""

    def draw(attempt: int) -> Draw:
        seed = digest64(source.seed, "arcgen", task_id, index, attempt)
        process = _PROCESSES.get(source.path) or _PROCESSES.setdefault(source.path, _Process(source.path))
        try:
            made = process.ask(task_id, seed, source.time_limit_seconds)
        except BaseException:  # a time limit, or the process has ended: what it might still say belongs to no draw
            _PROCESSES.pop(source.path).end()
            raise
        if isinstance(made, str):
            raise RuntimeError(made)
        return Draw(*made)

    return try_until_accepted(draw, lambda made: True, source.max_side, WALL_FACTOR * source.time_limit_seconds)


_PROCESSES: dict[str, "_Process"] = {}
"""ARC-GEN's clone -> the process that runs its generators."""


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
    requests = Connection(int(sys.argv[2]))
    while True:
        try:
            task_id, seed, cpu_seconds = marshal.loads(requests.recv_bytes())
        except EOFError:  # the asking process has ended
            return
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # then the system ends this process
        try:
            generate = import_module(f"task_{task_id}").generate
            random.seed(seed)
            made = generate()
            answer = marshal.dumps((made["input"], made["output"]))
        except Exception as error:
            answer = marshal.dumps(f"{type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        requests.send_bytes(answer)


def plugin_example(source: PluginSource, index: int) -> Example:
    """Make example `index`: a pure function of the arguments if the generator takes all randomness from its `rng`, numpy's
    Generator of the key (seed, "plugin", task_id, index, attempt). An exception in either function rejects the attempt.
    Raises UserError if a path leads nowhere, or if `generate` returns no pair."""
    generate = resolve(source.generate)
    verify = resolve(source.verify) if source.verify else None

    def draw(attempt: int) -> Draw:
        made = generate(rng_for(source.seed, "plugin", source.task_id, index, attempt), source.difficulty)
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise UserError(
                f"plugin {source.generate}: example {index} is a {type(made).__name__} ({repr(made)[:40]});"
                f" return a pair (input, output) of grids"
            )
        return Draw(*made)

    def is_right(made: Draw) -> bool:
        return verify is None or same_grid(as_grid(verify(made.input)), as_grid(made.output))

    return try_until_accepted(draw, is_right, source.max_side, source.time_limit_seconds)


@cache
def resolve(path: str) -> Callable[..., Any]:
    """Import the function that "package.module:function" names. Raises UserError saying which part is wrong."""
    module_name, _, name = path.partition(":")
    find_module(path)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(f"plugin {path}: importing {module_name} raised {error!r}") from error
    if not hasattr(module, name):
        raise UserError(f"plugin {path}: {module.__file__} has no {name}{nearest(name, dir(module))}")
    function = getattr(module, name)
    if not callable(function):
        raise UserError(f"plugin {path}: {name} is a {type(function).__name__}; name a function")
    return function


def find_module(path: str) -> Path:
    """Return the file of a plugin's module, without running it, but for the packages around it. Raises UserError."""
    module_name = path.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError:  # a parent package is missing
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(
            f"plugin {path}: there is no module {module_name}; install it, or put its folder on PYTHONPATH"
            f" (on a cluster: on every node, or in the job's working directory)"
        )
    return Path(spec.origin)


def code_files(source: PluginSource) -> list[Path]:
    """Return the files of a plugin's functions. Raises UserError."""
    return sorted({find_module(path) for path in (source.generate, source.verify) if path})


def digest_of(files: Iterable[Path]) -> str:
    """Digest code, so that a changed generator is noticed."""
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()


def expected_seconds(task_id: str, slow: Mapping[float, str], usual: float) -> float:
    """Estimate what an example of a task costs on one core: as was measured, or what is `usual` where it was little."""
    return next((seconds for seconds, tasks in slow.items() if task_id in tasks.split()), usual)


REARC_USUAL = 0.0016
REARC_SLOW = {
    0.16: "447fd412",
    0.14: "f9012d9b",
    0.1: "150deff5",
    0.09: "af902bf9 c3f564a4 7df24a62",
    0.07: "6aa20dc0",
    0.06: "1b60fb0c",
    0.05: "6a1e5592 caa06a1f",
    0.04: "a64e4611",
    0.03: "484b58aa 239be575 72ca375d 3eda0437 681b3aeb d22278a0 b2862040 8efcae92 0e206a2e 11852cab",
    0.02: "36fdfd69 a8c38be5 97a05b5b 3631a71a b527c5c6 ff805c23 36d67576 0dfd9992 e73095fd d07ae81c 6455b5f5 e6721834"
    " 39a8645d 73251a56",
    0.01: "29ec7d0e 941d9a10 810b9b61 25d487eb aabf363d f8ff0b80 90f3ed37 e40b9e2f 60b61512 f25ffba3",
    0.009: "48d8fb45 a740d043 5c2c9af4",
    0.008: "3345333e b775ac94 6d75e8bb 496994bd 5117e062 ea32f347 7837ac64",
    0.007: "890034e9 e509e548 22233c11 4290ef0e 06df4c85 72322fa7 57aa92db de1cd16c 29c11459",
    0.006: "a1570a43 1f0c79e5 228f6490 7f4411dc 253bf280 9d9215db 50846271 db93a21d 264363fd",
    0.005: "22168020 25ff71a9 9ecd008a a79310a0 1fad071e 5c0a986e",
}
"""Seconds per accepted example -> tasks: 20 to 60 examples of each of the 400 on one core of a 2026 x86 server, difficulty
0 to 1. The ten slowest take 39 % of the time of all; tasks below 0.005 s are left to their mean, REARC_USUAL."""

ARCGEN_USUAL = 0.0006
ARCGEN_SLOW = {
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
