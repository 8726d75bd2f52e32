"""A generator of the user's own: `generate(rng, difficulty) -> (input, output)`, and perhaps `verify(input) -> output`.

Both are named by their import path, "package.module:function", and imported where they run: the module must be
importable on every node (installed, on PYTHONPATH, or in the job's working directory).
"""

import difflib
import hashlib
import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from arc_ray.config.sources import PluginSource
from arc_ray.errors import UserError
from arc_ray.seeding import rng_for
from arc_ray.tasks.examples import Draw, Example, as_grid, try_until_accepted
from arc_ray.tasks.task import same_grid


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
