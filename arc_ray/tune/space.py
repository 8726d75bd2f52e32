"""The space of a search: config keys and values become trials with names; nothing here knows Ray."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from arc_ray.config import Config, with_overrides
from arc_ray.errors import UserError
from arc_ray.runs.folder import outside_job, run_folder
from arc_ray.runs.starts import with_start
from arc_ray.seeding import digest64, rng_for
from arc_ray.storage import Folder

Point = dict[str, Any]
"""Dotted config keys and the values of one trial."""

MOST_NAME = 120
MOST_DRAWS = 100
"""Draws for each point that is wanted, and each that lists can make, until a space counts as used up."""


def points(config: Config) -> list[Point]:
    """List the points of a grid or random search, in the order in which they are started; the same each time.

    Points that come first in a key's list are started first: put the likeliest values there. Of a search by Optuna,
    whose points follow from results, as few as hold every value that a key may have: what they need, all need.
    """
    space = config.tune.space
    values = [next(iter(spec.values())) for spec in space.values()]
    match config.tune.search:
        case "random":
            return _random_points(config)
        case "grid":
            rows = itertools.product(*values)
        case "optuna":
            rows = itertools.islice(zip(*map(itertools.cycle, values), strict=True), max(map(len, values)))
    return [dict(zip(space, row, strict=True)) for row in rows]


def fixed_parts(config: Config, trials: Sequence[Point]) -> list[Point]:
    """List what trials hold besides the keys that are searched, such as a study's arms and seed; each once, in order."""
    parts = [{key: value for key, value in point.items() if key not in config.tune.space} for point in trials]
    return [part for i, part in enumerate(parts) if part not in parts[:i]]


def num_trials(config: Config, trials: Sequence[Point]) -> int:
    """Count the trials of a search; those that Optuna will propose are not known yet, but their number is."""
    if config.tune.search != "optuna":
        return len(trials)
    assert config.tune.num_trials, "the config checks this"
    return len(fixed_parts(config, trials)) * config.tune.num_trials


def trial_config(config: Config, point: Point) -> Config:
    """Return the config of a trial: the point over the search's config, then what its start sets. Raises UserError."""
    name = trial_name(point)
    return with_start(with_overrides(config, {**point, "name": f"{config.name}/trials/{name}"}, f"trial {name}"))


def trial_folder(config: Config, point: Point) -> Folder:
    """Return the run folder of a search's trial."""
    return run_folder(config) / "trials" / trial_name(point)


def trial_name(point: Mapping[str, Any]) -> str:
    """Name a trial after its point, such as start-count_lr-0.002_epochs-2_seed-1; long names end in a digest."""
    words = [f"{as_word(key.rsplit('.', 1)[-1])}-{as_word(value)}" for key, value in point.items()]
    name = "_".join(words) or "only"
    if len(name) > MOST_NAME:
        name = f"{name[:MOST_NAME]}-{digest64(sorted(point.items())):016x}"
    return name


def check_points(config: Config, trials: Sequence[Point]) -> list[Config]:
    """Return the configs of all trials, so that an impossible point is found before the first one runs. Raises UserError."""
    names = [trial_name(point) for point in trials]
    if len(set(names)) < len(names):
        raise UserError("tune.space: two trials have the same values; remove repeated values from its lists")
    return [trial_config(config, point) for point in trials]


def _random_points(config: Config) -> list[Point]:
    """Draw points until there are as many different ones as trials. Raises UserError where the space has fewer."""
    space, number = config.tune.space, config.tune.num_trials
    assert number, "the config checks this"
    lists = [values for spec in space.values() for kind, values in spec.items() if kind in ("grid", "choice")]
    size = math.prod(len({as_word(value) for value in values}) for values in lists)
    found: dict[str, Point] = {}
    # Ranges hold more points than any search has trials, unless they are narrower than the digits of a name.
    most_draws = MOST_DRAWS * number * size
    for draw in range(most_draws if len(lists) < len(space) or size >= number else 0):
        point = {key: _draw(config.seed, draw, key, spec) for key, spec in space.items()}
        found.setdefault(trial_name(point), point)
        if len(found) == number:
            return list(found.values())
    raise UserError(
        f"tune.num_trials {number}: tune.space holds only {len(found) or size} different points;"
        f" ask for fewer trials, or give its keys more values"
    )


def _draw(seed: int, number: int, key: str, spec: Mapping[str, Any]) -> Any:
    kind, values = next(iter(spec.items()))
    rng = rng_for(seed, "tune", number, key)
    match kind:
        case "uniform":
            return as_named(rng.uniform(*values))
        case "loguniform":
            return as_named(values[0] * (values[1] / values[0]) ** rng.uniform())
        case _:
            return values[int(rng.integers(len(values)))]


def as_named(value: float) -> float:
    """Round to the digits that a trial's name shows, so that two trials of one name would really be the same."""
    return float(f"{value:.6g}")


def as_word(value: Any) -> str:
    """Write a value so that it can be part of a folder's name: of a place its last part, and a digest of all."""
    if isinstance(value, str) and (value.startswith("/") or "://" in value):
        return f"{as_word(Folder.at(value).name)}-{digest64(outside_job(value)) % 2**24:06x}"
    text = f"{value:.6g}".replace("e+", "e") if isinstance(value, float) else str(value)
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)
