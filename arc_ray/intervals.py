"""Intervals: how far a share of tasks, or the difference of two arms over tasks and seeds, may be off.

**A share of tasks** (`bootstrap_shares`): tasks are resampled, percentiles taken.

**A difference over tasks and seeds** (`paired_effect`): D[s, t], one arm's outcome minus the other's for seed s and
task t, is a two-way crossed layout with one value a cell. A seed shifts all tasks, a task shifts all seeds, the rest is
residual; their mean squares are MS_seed, MS_task and MS_rest. The interval is the mean of D plus or minus h,

    h^2 = ( t(tasks - 1)^2 MS_task + t(seeds - 1)^2 max(MS_seed - k MS_rest, 0) ) / (seeds x tasks)

where t(n) is Student's quantile with n degrees of freedom: each source of variation is widened by its own small-sample
factor before the squares are added (as Zou and Donner recover variances, Statistics in Medicine 27, 2008). k, which is
(1 - 2 / (9 (seeds - 1)))^3, is the median of MS_seed / MS_rest where seeds do not matter (Wilson and Hilferty, 1931):
seeds count for what exceeds the noise's median. The textbook's k = 1 counts them too rarely, k = 0 counts noise twice.

**Coverage** (`tests/benchmarks/simulate_analysis.py`, 4,000 repetitions of each of 54 designs: 3, 5 and 10 seeds; 40,
100 and 400 tasks, half of them measured; 8 settings an arm; seeds that move the share of solved tasks by 0, 2 or 5
points; no effect or 10 points): the 95 % interval holds the effect between the arms' truly best settings in 93.9 to
96.6 %, that between the chosen ones in 94.8 to 97.5 %, and leaves out zero in 3.5 to 5.8 % where there is no effect.
Resampling seeds and tasks instead (Owen's pigeonhole bootstrap, Annals of Applied Statistics 1, 2007) covers from 85.5
to 99.7 %, depending on how much seeds matter, and studentised from 89.9 to 97.5 % with widths that explode at 3 seeds:
of three seeds, one resample in nine is a single seed three times. Two seeds are allowed, but t(1) = 12.7 makes the
interval about three times as wide as with three.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from arc_ray.errors import UserError
from arc_ray.tasks import puzzle_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NUM_RESAMPLES = 2000
FEWEST_PUZZLES = 4
"""Fewer puzzles than this say nothing about puzzles at large; an interval is then about further tasks of these."""
MOST_NEEDED = 10_000
"""More seeds or tasks than this count as "no number would do"."""


class MeanSquares(NamedTuple):
    """Variation between seeds, between units (tasks or puzzles) and the rest, a degree of freedom; of any one shape."""

    seed: FloatArray
    unit: FloatArray
    rest: FloatArray


@dataclass(frozen=True)
class Effect:
    """Mean difference of two arms, with its interval and what is needed to plan a larger study."""

    value: float
    low: float
    high: float
    confidence: float
    num_seeds: int
    num_tasks: int
    num_units: int
    """What the interval takes to be independent: tasks, or puzzles where several tasks were cut from one (`id#k`)."""
    unit: str
    """ "tasks" or "puzzles"."""
    num_differing: int
    """Units on which the arms' outcomes differ for any seed; with fewer than ten, no interval is exact."""
    mean_squares: MeanSquares

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    @property
    def covers(self) -> str:
        """What the interval speaks for; "tasks" alone with one seed, whose luck is then not in it."""
        return self.unit if self.num_seeds == 1 else f"seeds and {self.unit}"


@dataclass(frozen=True)
class Needed:
    """How large a study would show an effect of a given size; None where no affordable number would."""

    size: float
    power: float
    """Chance that the interval leaves out zero if the effect has that size."""
    seeds: int | None
    """Seeds on the same tasks. None also after a single seed, which leaves their variation unknown."""
    units: int | None
    """Measured tasks (or puzzles) with the same seeds."""


def units_of(task_ids: Sequence[str]) -> tuple[IntArray, str]:
    """Number the independent units of tasks, (num_tasks,), and say what they are: "puzzles" or "tasks".

    Tasks of one puzzle are solved together, so that the puzzle is the unit, where there are at least four puzzles.
    """
    puzzles = [puzzle_of(task_id) for task_id in task_ids]
    if FEWEST_PUZZLES <= len(set(puzzles)) < len(puzzles):
        return np.unique(puzzles, return_inverse=True)[1], "puzzles"
    return np.arange(len(task_ids)), "tasks"


def bootstrap_shares(
    sums: Mapping[str, tuple[FloatArray, FloatArray]],
    units: IntArray,
    confidence: float,
    rng: np.random.Generator,
) -> dict[str, tuple[float, float, float]]:
    """Return value, low and high of shares, each a sum over tasks divided by another sum over tasks.

    `sums` maps a name to the terms above and below the line, (num_tasks,) each; `units` is what `units_of` returns.
    Every share sees the same resamples of units, and the interval lies between percentiles of the resampled shares.
    Where all units agree on 0 or 1 resampling sees no variation, and the exact bound of Clopper and Pearson takes its
    place: none solved of 400 is no proof of none in 4,000.
    """
    num_units = int(units.max()) + 1
    draws = rng.multinomial(num_units, np.full(num_units, 1 / num_units), NUM_RESAMPLES)
    tail = (1 - confidence) / 2
    shares: dict[str, tuple[float, float, float]] = {}
    for name, parts in sums.items():
        above, below = (np.bincount(units, weights=part, minlength=num_units) for part in parts)
        value = float(above.sum() / below.sum())
        low, high = np.quantile((draws @ above) / (draws @ below), [tail, 1 - tail])
        if value == 0.0:
            high = 1 - tail ** (1 / num_units)
        elif value == 1.0:
            low = tail ** (1 / num_units)
        shares[name] = (value, float(low), float(high))
    return shares


def paired_effect(
    arm: FloatArray, baseline: FloatArray, task_ids: Sequence[str] | None = None, confidence: float = 0.95
) -> Effect:
    """Estimate the mean of arm - baseline over seeds and tasks; with one seed, over tasks only.

    Both are (num_seeds, num_tasks); row by row they share the seed, column by column the task. `task_ids` tells which
    tasks come from one puzzle; None takes each for itself. Raises UserError for fewer than two tasks.
    """
    assert arm.shape == baseline.shape, f"{arm.shape} against {baseline.shape}"
    difference = np.asarray(arm, dtype=np.float64) - baseline
    num_seeds, num_tasks = difference.shape
    if num_tasks < 2:
        raise UserError(f"{num_tasks} measured task gives no interval; validate on more tasks")
    units, unit = units_of(task_ids) if task_ids is not None else (np.arange(num_tasks), "tasks")
    squares = mean_squares(difference, units)
    num_units = int(units.max()) + 1
    value, reach = float(difference.mean()), float(half_width(squares, num_seeds, num_units, confidence))
    return Effect(
        value=value,
        low=value - reach,
        high=value + reach,
        confidence=confidence,
        num_seeds=num_seeds,
        num_tasks=num_tasks,
        num_units=num_units,
        unit=unit,
        num_differing=len(set(units[(difference != 0).any(axis=0)])),
        mean_squares=squares,
    )


def mean_squares(difference: FloatArray, units: IntArray | None = None) -> MeanSquares:
    """Split the variation of differences (..., num_seeds, num_tasks) by seed and unit; `units` as of `units_of`.

    Where all differences are whole (of outcomes that are 0 or 1), variation between units is taken to be at least
    that of one task a seed that differs: otherwise two arms that agree on 20 tasks would be proven to be equal.
    """
    num_seeds, num_tasks = difference.shape[-2:]
    whole = (difference == np.rint(difference)).all(axis=(-2, -1))
    if units is not None:
        difference = _by_unit(difference, units)
    num_units = difference.shape[-1]
    centred = difference - difference.mean(axis=(-2, -1), keepdims=True)
    of_seed, of_unit = centred.mean(axis=-1, keepdims=True), centred.mean(axis=-2, keepdims=True)
    seed = num_units * (of_seed**2).sum(axis=(-2, -1)) / max(num_seeds - 1, 1)
    unit = num_seeds * (of_unit**2).sum(axis=(-2, -1)) / (num_units - 1)
    rest = ((centred - of_seed - of_unit) ** 2).sum(axis=(-2, -1)) / max((num_seeds - 1) * (num_units - 1), 1)
    return MeanSquares(seed, np.maximum(unit, np.where(whole, num_units / num_tasks**2, 0.0)), rest)


def half_width(squares: MeanSquares, num_seeds: int, num_units: int, confidence: float) -> FloatArray:
    """Return h of the module's formula, in the shape of the mean squares; with one seed, the part of the units only."""
    h2 = student_quantile(confidence, num_units - 1) ** 2 * squares.unit
    if num_seeds > 1:
        median_of_noise = (1 - 2 / (9 * (num_seeds - 1))) ** 3
        excess = np.maximum(squares.seed - median_of_noise * squares.rest, 0.0)
        h2 = h2 + student_quantile(confidence, num_seeds - 1) ** 2 * excess
    return np.sqrt(h2 / (num_seeds * num_units))


def needed(effect: Effect, size: float, power: float = 0.8) -> Needed:
    """Plan from a finished comparison: how many seeds, or how many units, would show an effect of this size.

    The variances of seeds, units and rest are taken as estimated, so the numbers are rough: "about 9 seeds".
    """
    seed, unit, rest = (float(square) for square in effect.mean_squares)
    of_seed = max(seed - rest, 0.0) / effect.num_units
    of_unit = max(unit - rest, 0.0) / effect.num_seeds

    def shows(num_seeds: int, num_units: int) -> bool:
        expected = (rest + num_units * of_seed, rest + num_seeds * of_unit, rest)
        squares = MeanSquares(*map(np.asarray, expected))
        reach = float(half_width(squares, num_seeds, num_units, effect.confidence))
        error = (of_seed / num_seeds + of_unit / num_units + rest / (num_seeds * num_units)) ** 0.5
        return reach + NormalDist().inv_cdf(power) * error <= abs(size)

    numbers = range(2, MOST_NEEDED + 1)
    seeds = bisect_left(numbers, True, key=lambda n: shows(n, effect.num_units))
    units = bisect_left(numbers, True, key=lambda n: shows(effect.num_seeds, n))
    return Needed(
        size=abs(size),
        power=power,
        seeds=numbers[seeds] if effect.num_seeds > 1 and seeds < len(numbers) else None,
        units=numbers[units] if units < len(numbers) else None,
    )


@lru_cache(maxsize=1024)
def student_quantile(confidence: float, degrees: int) -> float:
    """Return q such that Student's t with so many degrees of freedom lies in [-q, q] with this probability.

    In the angle a = arctan(t / sqrt(n)) the density is proportional to cos(a)^(n - 1), which is integrated on a grid.
    """
    angles = np.linspace(0.0, np.pi / 2, 50_001)
    density = np.cos(angles) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(degrees) * np.tan(np.interp(confidence, mass / mass[-1], angles)))


def _by_unit(difference: FloatArray, units: IntArray) -> FloatArray:
    """Join tasks into units: (..., num_seeds, num_units) with the same mean over units as over tasks, seed by seed.

    A unit's value is its mean where all units have as many tasks; otherwise it is linearised about the overall mean,
    as is usual for a ratio (the number of tasks varies from unit to unit).
    """
    num_tasks, num_units = len(units), int(units.max()) + 1
    member = (units[:, None] == np.arange(num_units)).astype(np.float64)
    mean = difference.mean(axis=(-2, -1), keepdims=True)
    return mean + ((difference - mean) @ member) * (num_units / num_tasks)
