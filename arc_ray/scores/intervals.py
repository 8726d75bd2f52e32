"""Intervals: how far a share of tasks, or the difference of two arms over tasks and seeds, may be off.

The formulas, their reasons, and how often the intervals hold the truth: `tests/benchmarks/STATISTICS.md`. SciPy is imported
where it is needed: whoever reads the frames of a report does without.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from arc_ray.errors import UserError
from arc_ray.scores.records import FloatArray, Interval
from arc_ray.tasks.task import puzzle_of

IntArray = npt.NDArray[np.int64]

FEWEST_PUZZLES = 4
"""Fewer puzzles than this say nothing about puzzles at large; an interval is then about further tasks of these."""
MOST_NEEDED = 10_000
"""More seeds or tasks than this count as "no number would do"."""
POWER = 0.8
"""Chance with which a planned study is to show its effect."""
NEARLY_NONE = 1e-9
"""Instead of no answer of a kind, for which the beta distribution is not defined."""
QUIET_SEEDS = 0.25
"""Quantile of the noise that is subtracted from the variation between seeds."""
SHARED_LUCK = 0.25
"""Puzzles whose tasks differ all together that are added before the design effect of a difference is estimated."""

LOOKS_CELLS = 401
"""Places of a sum that are told apart; an odd number, since it begins at zero."""


class MeanSquares(NamedTuple):
    """Variation between seeds, between units (tasks or puzzles) and the rest, a degree of freedom; of any one shape."""

    seed: FloatArray
    unit: FloatArray
    rest: FloatArray


@dataclass(frozen=True)
class Effect(Interval):
    """Mean difference of two arms, with what is needed to plan a larger study."""

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


class Needed(NamedTuple):
    """How large a study would show an effect of a given size; None where no affordable number would."""

    seeds: int | None
    """Seeds on the same tasks. None also after a single seed, which leaves their variation unknown."""
    units: int | None
    """Measured tasks (or puzzles) with the same seeds."""


def units_of(task_ids: Sequence[str]) -> tuple[IntArray, str]:
    """Number the independent units of tasks, (num_tasks,), and name them: "puzzles" where there are enough, or "tasks"."""
    puzzles = [puzzle_of(task_id) for task_id in task_ids]
    if FEWEST_PUZZLES <= len(set(puzzles)) < len(puzzles):
        return np.unique(puzzles, return_inverse=True)[1], "puzzles"
    return np.arange(len(task_ids)), "tasks"


def share_interval(
    above: FloatArray, below: FloatArray, units: IntArray, confidence: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return value, low and high of a share: a sum over tasks (`above`, each at most `below`) over another sum.

    Both are (..., num_tasks), the results (...); `units` is what `units_of` returns. Agresti and Coull's interval at an
    effective sample size, cut where Clopper and Pearson's is narrower.
    """
    from scipy.special import betaincinv

    right, of = _by_unit(above, units), _by_unit(below, units)
    total, squares = of.sum(-1), (of**2).sum(-1)
    value = right.sum(-1) / total
    # Few informative units hardly tell how alike a unit's outcomes are: one more, all right or all wrong, is added.
    one_more = squares / of.shape[-1]
    spread = ((right - value[..., None] * of) ** 2).sum(-1)
    design = (spread + one_more) / (value * (1 - value) * squares + one_more)
    num_alike = total**2 / squares
    degrees = np.maximum(num_alike - 1, 1), np.maximum(total - 1, 1)
    few = np.divide(*(student_quantile(confidence, d) for d in degrees)) ** 2
    size = num_alike / design / few
    upper = (1 + confidence) / 2
    z2 = NormalDist().inv_cdf(upper) ** 2
    centre = (value * size + z2 / 2) / (size + z2)
    reach = np.sqrt(z2 * centre * (1 - centre) / (size + z2))
    yes, no = np.maximum(value * size, NEARLY_NONE), np.maximum((1 - value) * size, NEARLY_NONE)
    low = np.maximum(centre - reach, betaincinv(yes, no + 1, 1 - upper))
    high = np.minimum(centre + reach, betaincinv(yes + 1, no, upper))
    return value, np.minimum(low, value), np.maximum(high, value)


def share_over_seeds(outcomes: FloatArray, units: IntArray, confidence: float) -> tuple[FloatArray, FloatArray]:
    """Return low and high of the mean of outcomes (..., num_seeds, num_tasks) between 0 and 1, over seeds and tasks."""
    num_seeds, num_tasks = outcomes.shape[-2:]
    value, low, high = share_interval(outcomes.sum(-2), np.full(num_tasks, float(num_seeds)), units, confidence)
    seeds = _seeds_part(mean_squares(outcomes, units)[0], num_seeds, int(units.max()) + 1, confidence)
    low, high = value - np.hypot(value - low, seeds), value + np.hypot(high - value, seeds)
    return np.maximum(low, 0), np.minimum(high, 1)


def paired_effect(arm: FloatArray, baseline: FloatArray, task_ids: Sequence[str], confidence: float) -> Effect:
    """Estimate the mean of arm - baseline, outcomes between 0 and 1, over seeds and tasks; with one seed, over tasks.

    Both are (num_seeds, num_tasks); row by row they share the seed, column by column the task of `task_ids`.
    Raises UserError for fewer than two tasks.
    """
    assert arm.shape == baseline.shape, f"{arm.shape} against {baseline.shape}"
    difference = np.asarray(arm, dtype=np.float64) - baseline
    num_seeds, num_tasks = difference.shape
    if num_tasks < 2:
        raise UserError(f"{num_tasks} measured task gives no interval; validate on more tasks")
    units, unit = units_of(task_ids)
    squares, low, high = difference_interval(difference, units, confidence)
    num_units, num_differing = int(units.max()) + 1, len(set(units[(difference != 0).any(axis=0)]))
    estimate = (float(difference.mean()), float(low), float(high))
    return Effect(*estimate, confidence, num_seeds, num_tasks, num_units, unit, num_differing, squares)


def difference_interval(
    difference: FloatArray, units: IntArray, confidence: float
) -> tuple[MeanSquares, FloatArray, FloatArray]:
    """Return mean squares, low and high of the mean of differences (..., num_seeds, num_tasks) between -1 and 1."""
    squares, kept = mean_squares(difference, units)
    mean = difference.mean(axis=(-2, -1))
    centre, reach = mean * kept, half_width(squares, difference.shape[-2], int(units.max()) + 1, confidence)
    return squares, np.clip(centre - reach, -1, mean), np.clip(centre + reach, mean, 1)


def contrast_interval(difference: FloatArray, confidence: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return value, low and high of the mean of differences of shares (..., num_seeds, num_tasks) between -1 and 1.

    One more task is added, half of it all gain and half all loss: where little is solved, most differences are 0, and their
    variance says nothing of the rare ones. Seeds count as in `share_over_seeds`.
    """
    num_seeds, num_tasks = difference.shape[-2:]
    by_task = difference.mean(axis=-2)
    centre = by_task.sum(axis=-1) / (num_tasks + 1)
    variance = ((by_task**2).sum(axis=-1) + 1) / (num_tasks + 1) - centre**2
    reach = student_quantile(confidence, num_tasks - 1) * np.sqrt(variance / (num_tasks + 1))
    squares = mean_squares(difference, np.arange(num_tasks))[0]
    reach = np.hypot(reach, _seeds_part(squares, num_seeds, num_tasks, confidence))
    value = by_task.mean(axis=-1)
    return value, np.clip(centre - reach, -1, value), np.clip(centre + reach, value, 1)


def two_shares_interval(first: float, of_first: int, second: float, of_second: int, confidence: float) -> Interval:
    """Return the difference of two shares of yes-or-no answers with the interval of Agresti and Caffo (2000): to each a
    yes and a no are added, so that a share of a single answer has an interval."""
    (p, variance_p), (q, variance_q) = (
        (centre := (share * of + 1) / (of + 2), centre * (1 - centre) / (of + 2))
        for share, of in ((first, of_first), (second, of_second))
    )
    value, reach = first - second, NormalDist().inv_cdf((1 + confidence) / 2) * (variance_p + variance_q) ** 0.5
    return Interval(value, max(min(p - q - reach, value), -1.0), min(max(p - q + reach, value), 1.0))


def mean_squares(difference: FloatArray, units: IntArray) -> tuple[MeanSquares, FloatArray]:
    """Split the variation of differences (..., num_seeds, num_tasks) by seed and unit: crossed random effects.

    Also returns the share of the mean that is kept when a gain and a loss are added for each seed, as they are to
    differences of yes and no. Units of unequal size are linearised about the mean, as is usual for a ratio.
    """
    num_seeds, num_tasks = difference.shape[-2:]
    sizes = np.bincount(units)
    num_units, scale = len(sizes), len(sizes) / num_tasks
    mean = difference.mean(axis=(-2, -1), keepdims=True)
    centred = scale * _by_unit(difference - mean, units)
    seed_means, unit_means = centred.mean(axis=-1, keepdims=True), centred.mean(axis=-2, keepdims=True)
    seed = num_units * (seed_means**2).sum(axis=(-2, -1)) / max(num_seeds - 1, 1)
    rest = ((centred - seed_means - unit_means) ** 2).sum(axis=(-2, -1)) / max((num_seeds - 1) * (num_units - 1), 1)

    is_yes_or_no = (difference == np.rint(difference)).all(axis=(-2, -1))
    added = np.where(is_yes_or_no, scale**2 * (sizes**2).mean() / num_seeds, 0.0)
    task_means = (difference - mean).mean(axis=-2)
    together = scale**2 * (sizes[units] * task_means**2).sum(axis=-1)
    prior = SHARED_LUCK * added
    found = (unit_means**2).sum(axis=(-2, -1)) + prior
    design = np.divide(found, together + prior, out=np.ones_like(found), where=together + prior > 0)
    a_unit = design / num_units
    kept = 1 / (1 + 2 * is_yes_or_no * a_unit)
    variance = kept**2 * (together / num_units * a_unit + 2 * added * a_unit**2)
    return MeanSquares(seed, num_seeds * num_units**2 / max(num_units - 1, 1) * variance, rest), kept


def half_width(squares: MeanSquares, num_seeds: int, num_units: int, confidence: float) -> FloatArray:
    """Return half the width of an interval of a mean, in the shape of the mean squares; with one seed, the units' part."""
    unit = student_quantile(confidence, num_units - 1) * np.sqrt(squares.unit / (num_seeds * num_units))
    return np.hypot(unit, _seeds_part(squares, num_seeds, num_units, confidence))


def _seeds_part(squares: MeanSquares, num_seeds: int, num_units: int, confidence: float) -> FloatArray:
    from scipy.special import gammaincinv

    if num_seeds == 1:
        return np.zeros_like(squares.seed)
    half = (num_seeds - 1) / 2
    noise = float(gammaincinv(half, QUIET_SEEDS)) / half
    excess = np.maximum(squares.seed - noise * squares.rest, 0.0)
    return student_quantile(confidence, num_seeds - 1) * np.sqrt(excess / (num_seeds * num_units))


def needed(effect: Effect, size: float) -> Needed:
    """Plan from a comparison how many seeds, or units, would show an effect of this size; rough, as its variances are."""
    seed, unit, rest = (float(square) for square in effect.mean_squares)
    a_seed, a_unit = max(seed - rest, 0.0) / effect.num_units, max(unit - rest, 0.0) / effect.num_seeds

    def shows(num_seeds: int, num_units: int) -> bool:
        expected = (rest + num_units * a_seed, rest + num_seeds * a_unit, rest)
        squares = MeanSquares(*map(np.asarray, expected))
        reach = float(half_width(squares, num_seeds, num_units, effect.confidence))
        error = (a_seed / num_seeds + a_unit / num_units + rest / (num_seeds * num_units)) ** 0.5
        return reach + NormalDist().inv_cdf(POWER) * error <= abs(size)

    numbers = range(2, MOST_NEEDED + 1)
    seeds = bisect_left(numbers, True, key=lambda n: shows(n, effect.num_units))
    units = bisect_left(numbers, True, key=lambda n: shows(effect.num_seeds, n))
    return Needed(
        seeds=numbers[seeds] if effect.num_seeds > 1 and seeds < len(numbers) else None,
        units=numbers[units] if units < len(numbers) else None,
    )


def student_quantile(confidence: float, degrees: npt.ArrayLike) -> FloatArray:
    """Return q such that Student's t with so many degrees of freedom lies in [-q, q] with this probability."""
    from scipy.special import stdtrit

    return stdtrit(degrees, (1 + confidence) / 2)


@cache
def looks_levels(looks: tuple[int, ...], confidence: float) -> tuple[float, ...]:
    """Return the level of an interval at each look, after so many seeds, such that all hold the truth with `confidence`.

    O'Brien and Fleming's bounds (Biometrics 35, 1979): z falls with the square root of the seeds, so that early looks hardly
    cost the last one.
    """
    from scipy.optimize import brentq

    if len(looks) == 1:
        return (confidence,)
    one = NormalDist().inv_cdf((1 + confidence) / 2) * looks[-1] ** 0.5
    bound = brentq(lambda b: _stays_within(b, looks) - confidence, one, 2 * one, xtol=1e-4)
    return tuple(2 * NormalDist().cdf(bound / number**0.5) - 1 for number in looks)


def _stays_within(bound: float, looks: Sequence[int]) -> float:
    """Return how often a sum of standard normal numbers lies within [-bound, bound] after each of so many."""
    width = 2 * bound / LOOKS_CELLS
    places = (np.arange(LOOKS_CELLS) + 0.5) * width - bound
    density, last = np.zeros(LOOKS_CELLS), 0
    density[LOOKS_CELLS // 2] = 1.0
    for number in looks:
        spread = (number - last) ** 0.5
        moved = np.exp(-(((places[:, None] - places) / spread) ** 2) / 2) * width / (spread * (2 * np.pi) ** 0.5)
        density, last = moved @ density, number
    return float(density.sum())


def _by_unit(values: FloatArray, units: IntArray) -> FloatArray:
    """Add up the tasks of each unit: (..., num_tasks) -> (..., num_units)."""
    if len(units) == int(units.max()) + 1:
        return values[..., np.argsort(units)]
    return values @ (units[:, None] == np.arange(units.max() + 1)).astype(np.float64)
