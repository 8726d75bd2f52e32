"""Generators of examples: RE-ARC's for 400 ARC training tasks (Hodel, arXiv 2404.07353), and a user's own.

RE-ARC comes in reasoning-gym, of which only `rearc_utils` is loaded, under a name of our own: importing reasoning_gym
itself would take ten seconds on a cold worker, and its own dataset class never calls the verifiers. A user's are
`generate(rng, difficulty) -> (input, output)` and perhaps `verify(input) -> output`, named by their import path,
"package.module:function"; the module must be importable on every node.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, NamedTuple

from arc_ray.config.sources import PluginSource, RearcSource
from arc_ray.errors import UserError, nearest
from arc_ray.seeding import python_random_for, rng_for
from arc_ray.tasks.examples import Draw, Example, as_grid, try_until_accepted
from arc_ray.tasks.task import same_grid

_LOADED_AS = "arc_ray_rearc_utils"


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


def code_digest(source: PluginSource) -> str:
    """Digest the files of a plugin's functions, so that a changed generator is noticed. Raises UserError."""
    return hashlib.blake2b(b"".join(file.read_bytes() for file in code_files(source)), digest_size=8).hexdigest()


USUAL_SECONDS = 0.0016
SLOW_TASKS = {
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
0 to 1. The ten slowest take 39 % of the time of all; tasks below 0.005 s are left to their mean, USUAL_SECONDS."""
SLOW_SECONDS = {task_id: seconds for seconds, tasks in SLOW_TASKS.items() for task_id in tasks.split()}
