"""Generators of examples: RE-ARC's for 400 ARC training tasks (Hodel, arXiv 2404.07353), and a user's own.

RE-ARC comes in reasoning-gym, of which only `rearc_utils` is loaded, under a name of our own: importing reasoning_gym
itself would import every environment it has, which takes ten seconds on a cold worker, and its own dataset class never
calls the verifiers. A user's are `generate(rng, difficulty) -> (input, output)` and perhaps `verify(input) -> output`,
named by their import path, "package.module:function", and imported where they run: the module must be importable on
every node (installed, on PYTHONPATH, or in the job's working directory).
"""

import difflib
import hashlib
import importlib
import importlib.util
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from arc_ray.config.sources import PluginSource, RearcSource
from arc_ray.errors import UserError
from arc_ray.seeding import python_random_for, rng_for
from arc_ray.tasks.examples import Draw, Example, as_grid, try_until_accepted
from arc_ray.tasks.task import same_grid

REARC_PACKAGE = "reasoning-gym"
"""Distribution whose version decides what an index yields."""

_LOADED_AS = "arc_ray_rearc_utils"


class _Library(NamedTuple):
    generate: dict[str, Callable[[random.Random, float, float], dict[str, Any]]]
    verify: dict[str, Callable[[Any], Any]]


def rearc_ids() -> tuple[str, ...]:
    """List the ids of all tasks that have a generator and a verifier, sorted."""
    return tuple(sorted(_library().generate))


def rearc_example(source: RearcSource, task_id: str, index: int) -> Example:
    """Make example `index` of a task: a pure function of the arguments, except where the time limit strikes.

    Attempt a draws from the key (seed, "rearc", task_id, index, a), so that no rejected attempt moves the next one.
    """
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
    folder = Path(found.submodule_search_locations[0]) / "arc" / "rearc_utils"
    spec = importlib.util.spec_from_file_location(
        _LOADED_AS, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec
    sys.modules[_LOADED_AS] = importlib.util.module_from_spec(spec)
    generators = importlib.import_module(f"{_LOADED_AS}.generators")
    verifiers = importlib.import_module(f"{_LOADED_AS}.verifiers")
    library = _Library(_named("generate_", generators), _named("verify_", verifiers))
    assert library.generate.keys() == library.verify.keys()
    return library


def _named(prefix: str, module: Any) -> dict[str, Callable[..., Any]]:
    return {name.removeprefix(prefix): value for name, value in vars(module).items() if name.startswith(prefix)}


def plugin_example(source: PluginSource, index: int) -> Example:
    """Make example `index`: a pure function of the arguments if the generator takes all randomness from its `rng`.

    Attempt a gets numpy's Generator of the key (seed, "plugin", task_id, index, a). An exception in either function
    rejects the attempt. Raises UserError if a path leads nowhere, or if `generate` returns no pair.
    """
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
        near = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"plugin {path}: {module.__file__} has no {name}{hint}")
    function = getattr(module, name)
    if not callable(function):
        raise UserError(f"plugin {path}: {name} is a {type(function).__name__}; name a function")
    return function


def find_module(path: str) -> Path:
    """Return the file of a plugin's module, without running it. Raises UserError if there is none."""
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


def code_digest(source: PluginSource) -> str:
    """Digest the files of a plugin's functions, so that a changed generator is noticed. Raises UserError."""
    files = {find_module(path) for path in (source.generate, source.verify) if path}
    return hashlib.blake2b(b"".join(file.read_bytes() for file in sorted(files)), digest_size=8).hexdigest()


USUAL_SECONDS = 0.0016
# fmt: off
SLOW_SECONDS = {
    "447fd412": 0.16, "f9012d9b": 0.14, "150deff5": 0.1, "af902bf9": 0.09, "c3f564a4": 0.09, "7df24a62": 0.09,
    "6aa20dc0": 0.07, "1b60fb0c": 0.06, "6a1e5592": 0.05, "caa06a1f": 0.05, "a64e4611": 0.04, "484b58aa": 0.03,
    "239be575": 0.03, "72ca375d": 0.03, "3eda0437": 0.03, "681b3aeb": 0.03, "d22278a0": 0.03, "b2862040": 0.03,
    "8efcae92": 0.03, "0e206a2e": 0.03, "11852cab": 0.03, "36fdfd69": 0.02, "a8c38be5": 0.02, "97a05b5b": 0.02,
    "3631a71a": 0.02, "b527c5c6": 0.02, "ff805c23": 0.02, "36d67576": 0.02, "0dfd9992": 0.02, "e73095fd": 0.02,
    "d07ae81c": 0.02, "6455b5f5": 0.02, "e6721834": 0.02, "39a8645d": 0.02, "73251a56": 0.02, "29ec7d0e": 0.01,
    "941d9a10": 0.01, "810b9b61": 0.01, "25d487eb": 0.01, "aabf363d": 0.01, "f8ff0b80": 0.01, "90f3ed37": 0.01,
    "e40b9e2f": 0.01, "60b61512": 0.01, "f25ffba3": 0.01, "48d8fb45": 0.009, "a740d043": 0.009, "5c2c9af4": 0.009,
    "3345333e": 0.008, "b775ac94": 0.008, "6d75e8bb": 0.008, "496994bd": 0.008, "5117e062": 0.008, "ea32f347": 0.008,
    "7837ac64": 0.008, "890034e9": 0.007, "e509e548": 0.007, "22233c11": 0.007, "4290ef0e": 0.007, "06df4c85": 0.007,
    "72322fa7": 0.007, "57aa92db": 0.007, "de1cd16c": 0.007, "29c11459": 0.007, "a1570a43": 0.006, "1f0c79e5": 0.006,
    "228f6490": 0.006, "7f4411dc": 0.006, "253bf280": 0.006, "9d9215db": 0.006, "50846271": 0.006, "db93a21d": 0.006,
    "264363fd": 0.006, "22168020": 0.005, "25ff71a9": 0.005, "9ecd008a": 0.005, "a79310a0": 0.005, "1fad071e": 0.005,
    "5c0a986e": 0.005,
}
"""Seconds per accepted example: 20 to 60 examples of each of the 400 tasks on one core of a 2026 x86 server, difficulty
0 to 1. The ten slowest take 39 % of the time of all; tasks below 0.005 s are left to their mean, USUAL_SECONDS."""
# fmt: on
