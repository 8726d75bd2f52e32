"""Does the interval of `arc_ray.intervals` cover a known effect? Simulated studies, and the alternatives that fail.

    python tests/benchmarks/simulate_analysis.py [--repetitions 4000]

A simulated run solves a task if  merit of the setting + difficulty of the task + liking of the arm for the task
+ liking of the setting for the task + luck of the seed + noise  is above 0, all but the merit normal with a known
standard deviation (noise: 1). The true share of solved tasks is then an exact formula, and so is the effect.
Two arms have eight settings each; the best is chosen on one half of the tasks and measured on the other, as in
`arc_ray.analysis.compare`. Numbers are shares of repetitions in percent; 4,000 of them are good to 0.7 points.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from arc_ray.intervals import Effect, MeanSquares, half_width, mean_squares, needed, student_quantile
from arc_ray.seeding import rng_for

FloatArray = npt.NDArray[np.float64]
Interval = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
"""Differences (repetitions, seeds, tasks) -> low and high, (repetitions,) each."""

HILL = (-0.9, -0.6, -0.3, -0.1, 0.0, -0.05, -0.3, -0.8)
"""Merit of eight settings: a hill with a broad top, as over learning rates."""
FLAT = (0.0,) * 8
PEAK = (0.0,) + (-1.0,) * 7
ALIKE, BETTER = 0.0, 0.5
"""Merit that one arm has over the other: no effect, and about 10 points."""
CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class World:
    """What a study is drawn from; standard deviations are in units of the noise."""

    num_seeds: int = 3
    num_tasks: int = 100
    settings: tuple[tuple[float, ...], tuple[float, ...]] = (HILL, HILL)
    """Merits of the settings of baseline and arm."""
    gain: float = ALIKE
    level: float = -0.5
    """Merit of all; -0.5 solves four tasks in ten, -3 one in twenty."""
    seed_luck: float = 0.1
    """0.1 moves the share of solved tasks by about 2 points from seed to seed, 0.25 by 5."""
    difficulty: float = 1.5
    arm_liking: float = 0.3
    setting_liking: float = 0.2

    def true_shares(self) -> FloatArray:
        """Return the expected share of solved tasks: (2 arms, num_settings)."""
        parts = (1.0, self.seed_luck, self.difficulty, self.arm_liking, self.setting_liking)
        spread = sum(part**2 for part in parts) ** 0.5
        return np.array([[NormalDist().cdf(merit / spread) for merit in merits] for merits in self._merits()])

    def draw(self, rng: np.random.Generator, repetitions: int) -> FloatArray:
        """Draw solved (1) or not (0): (2 arms, num_settings, repetitions, num_seeds, num_tasks)."""
        by_task, by_seed = (repetitions, 1, self.num_tasks), (repetitions, self.num_seeds, 1)
        difficulty = rng.normal(0, self.difficulty, by_task)
        arms = []
        for merits in self._merits():
            of_arm = difficulty + rng.normal(0, self.arm_liking, by_task)
            settings = []
            for merit in merits:
                tendency = merit + of_arm + rng.normal(0, self.setting_liking, by_task)
                luck = rng.normal(0, self.seed_luck, by_seed)
                noise = rng.standard_normal((repetitions, self.num_seeds, self.num_tasks), dtype=np.float32)
                settings.append(noise + tendency + luck > 0)
            arms.append(settings)
        return np.array(arms, dtype=np.float64)

    def _merits(self) -> tuple[FloatArray, FloatArray]:
        baseline, arm = (np.array(merits) + self.level for merits in self.settings)
        return baseline, arm + self.gain


@dataclass(frozen=True)
class Tally:
    """What became of the intervals of one world."""

    covers_chosen: float
    """Share that holds the effect between the settings that were chosen."""
    covers_best: float
    """Share that holds the effect between the arms' truly best settings."""
    leaves_out_zero: float
    bias: float
    """Mean of the estimate minus the effect between the chosen settings."""
    half_width: float

    def __str__(self) -> str:
        values = (self.covers_chosen, self.covers_best, self.leaves_out_zero, self.bias, self.half_width)
        return "| " + " | ".join(f"{100 * value:6.1f}" for value in values) + " |"


def formula(difference: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Apply the interval under test, at 95 %."""
    num_seeds, num_tasks = difference.shape[-2:]
    return _around(difference, half_width(mean_squares(difference), num_seeds, num_tasks, 0.95))


def with_factor(k: float) -> Interval:
    """Make the formula with another multiple of MS_rest subtracted: 1 is the textbook's, 0 subtracts nothing."""

    def interval(difference: FloatArray) -> tuple[FloatArray, FloatArray]:
        squares, (num_seeds, num_tasks) = mean_squares(difference), difference.shape[-2:]
        excess = np.maximum(squares.seed - k * squares.rest, 0)
        h2 = (
            student_quantile(0.95, num_tasks - 1) ** 2 * squares.unit
            + student_quantile(0.95, num_seeds - 1) ** 2 * excess
        )
        return _around(difference, np.sqrt(h2 / (num_seeds * num_tasks)))

    return interval


def bootstrap(studentised: bool, draws: int = 400) -> Interval:
    """Make the bootstrap that resamples seeds and tasks, each as a whole (Owen 2007), by percentiles or studentised."""
    rng = rng_for("simulate_analysis", "bootstrap", studentised)

    def interval(difference: FloatArray) -> tuple[FloatArray, FloatArray]:
        num_seeds, num_tasks = difference.shape[-2:]
        bounds = []
        for of_study in difference:
            seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), draws)
            tasks = rng.multinomial(num_tasks, np.full(num_tasks, 1 / num_tasks), draws)
            of_seed, of_task = tasks @ of_study.T / num_tasks, seeds @ of_study / num_seeds
            means = (seeds * of_seed).sum(axis=1) / num_seeds
            if not studentised:
                bounds.append(np.quantile(means, [0.025, 0.975]))
                continue
            variance = (seeds * (of_seed - means[:, None]) ** 2).sum(axis=1) / (num_seeds * (num_seeds - 1))
            variance += (tasks * (of_task - means[:, None]) ** 2).sum(axis=1) / (num_tasks * (num_tasks - 1))
            squares = mean_squares(of_study)
            error = np.sqrt((squares.seed + squares.unit) / (num_seeds * num_tasks))
            low, high = np.quantile((means - of_study.mean()) / np.sqrt(variance + 1e-9), [0.025, 0.975])
            bounds.append((of_study.mean() - high * error, of_study.mean() - low * error))
        return np.array(bounds).T[0], np.array(bounds).T[1]

    return interval


def studies(world: World, repetitions: int, how: str) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Simulate studies in parts: measured differences (part, seeds, tasks), and the effect of what was chosen (part,).

    `how` is "halves" (choose on one, measure on the other), "swapped" (both ways, all tasks measured), "same" (choose
    and measure on all tasks) or "per seed" (halves; each seed's setting is chosen on the other seeds).
    """
    num_cells = 2 * len(HILL) * world.num_seeds * world.num_tasks
    for start in range(0, repetitions, part := max(CELLS_AT_ONCE // num_cells, 1)):
        solved = world.draw(rng_for("simulate_analysis", world, start), min(part, repetitions - start))
        first, second = np.split(solved, [world.num_tasks // 2], axis=-1)
        match how:
            case "halves":
                yield _at_best(first, second, world)
            case "same":
                yield _at_best(solved, solved, world)
            case "swapped":
                (one, effect_one), (two, effect_two) = _at_best(first, second, world), _at_best(second, first, world)
                yield np.concatenate([one, two], axis=-1), (effect_one + effect_two) / 2
            case "per seed":
                each = []
                for seed in range(world.num_seeds):
                    others = np.delete(first, seed, axis=-2)
                    each.append(_at_best(others, second[..., seed : seed + 1, :], world))
                yield (
                    np.concatenate([rows for rows, _ in each], axis=-2),
                    np.mean([effect for _, effect in each], axis=0),
                )


def tally(world: World, repetitions: int, interval: Interval = formula, how: str = "halves") -> Tally:
    """Count how often an interval is right in a world."""
    shares = world.true_shares()
    best = shares[1].max() - shares[0].max()
    columns = []
    for difference, effect in studies(world, repetitions, how):
        low, high = interval(difference)
        # Shares are multiples of 1 / (seeds x tasks), so bounds may fall on the effect exactly.
        low, high = low - 1e-9, high + 1e-9
        columns.append(
            [
                (low <= effect) & (effect <= high),
                (low <= best) & (best <= high),
                (low > 0) | (high < 0),
                difference.mean(axis=(-2, -1)) - effect,
                (high - low) / 2,
            ]
        )
    return Tally(*(float(column.mean()) for column in np.concatenate(columns, axis=1)))


def power_of_plan(pilot: World, size_gain: float, repetitions: int) -> tuple[float, float]:
    """Plan with `needed` from pilot studies, then see how often the planned number of seeds shows the effect.

    Returns the median number of planned seeds and the share of studies with that number that leave out zero.
    """
    world = replace(pilot, gain=size_gain)
    shares = world.true_shares()
    size = float(shares[1].max() - shares[0].max())
    plans = []
    for difference, _ in studies(pilot, repetitions, "halves"):
        num_seeds, num_tasks = difference.shape[-2:]
        for squares in zip(*mean_squares(difference), strict=True):
            effect = Effect(0, 0, 0, 0.95, num_seeds, num_tasks, num_tasks, "tasks", num_tasks, MeanSquares(*squares))
            plans.append(needed(effect, size).seeds or np.inf)
    seeds = int(np.median(plans))
    return seeds, tally(replace(world, num_seeds=seeds), repetitions).leaves_out_zero


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000)
    repetitions = parser.parse_args().repetitions
    began = time.perf_counter()
    header = f"| {'':58} | chosen |   best |  not 0 |   bias |  +- |"

    def show(title: str, world: World, how: str = "halves") -> None:
        print(f"| {title:58} {tally(world, repetitions, how=how)}", flush=True)

    for luck in (0.1, 0.0, 0.25):
        print(f"\nThe formula; luck of a seed {luck}\n{header}")
        for num_tasks in (40, 100, 400):
            for num_seeds in (2, 3, 5, 10):
                for gain, name in ((ALIKE, "no effect"), (BETTER, "effect")):
                    world = World(num_seeds, num_tasks, gain=gain, seed_luck=luck)
                    show(f"{num_seeds} seeds x {num_tasks} tasks, {name}", world)
    print(f"\nHard cases of the formula\n{header}")
    for num_seeds, num_tasks in ((3, 40), (5, 100), (3, 400)):
        name = f"{num_seeds} seeds x {num_tasks} tasks"
        for luck in (0.1, 0.25):
            show(
                f"{name}, good settings 8 to 1, luck {luck}", World(num_seeds, num_tasks, (FLAT, PEAK), seed_luck=luck)
            )
        show(f"{name}, 8 equal settings", World(num_seeds, num_tasks, (FLAT, FLAT)))
        show(f"{name}, 5 % solved, no effect", World(num_seeds, num_tasks, level=-3.0))
        show(f"{name}, 5 % solved, effect", World(num_seeds, num_tasks, level=-3.0, gain=BETTER))
    one = ((0.0,), (0.0,))
    rivals: dict[str, Interval] = {
        "formula": formula,
        "k = 1": with_factor(1),
        "k = 0": with_factor(0),
        "bootstrap, percentiles": bootstrap(studentised=False),
        "bootstrap, studentised": bootstrap(studentised=True),
    }
    print(f"\nOther intervals, one setting, half of the tasks measured\n{header}")
    for num_seeds, num_tasks in ((3, 40), (3, 400), (5, 100)):
        for luck in (0.0, 0.1, 0.4):
            for name, interval in rivals.items():
                world = World(num_seeds, num_tasks, one, seed_luck=luck)
                title = f"{num_seeds} seeds x {num_tasks} tasks, luck {luck}, {name}"
                print(f"| {title:58} {tally(world, min(repetitions, 1000), interval)}", flush=True)
    print(f"\nOther ways to choose\n{header}")
    for num_seeds, num_tasks in ((3, 40), (5, 100), (3, 400)):
        for settings, luck, landscape in (
            ((HILL, HILL), 0.1, "hill"),
            ((FLAT, FLAT), 0.1, "flat"),
            ((FLAT, PEAK), 0.25, "8 to 1"),
        ):
            for how in ("halves", "same", "swapped", "per seed"):
                world = World(num_seeds, num_tasks, settings, seed_luck=luck)
                show(f"{num_seeds} seeds x {num_tasks} tasks, {landscape}, luck {luck}, {how}", world, how=how)
    print("\nNumber of seeds that `needed` plans for a power of 80 %, and the power that it has")
    for num_seeds, num_tasks, gain in ((3, 400, 0.25), (5, 100, 0.4), (3, 200, 0.4), (5, 400, 0.2)):
        seeds, power = power_of_plan(World(num_seeds, num_tasks), gain, min(repetitions, 1000))
        print(f"pilot of {num_seeds} seeds x {num_tasks} tasks: {seeds} seeds, power {100 * power:.0f} %", flush=True)
    print(f"\n{repetitions} repetitions, {time.perf_counter() - began:.0f} s")


def _at_best(choosing: FloatArray, measured: FloatArray, world: World) -> tuple[FloatArray, FloatArray]:
    """Choose each arm's setting on some outcomes, and take the arms' differences at those settings from others."""
    shares, rows = world.true_shares(), np.arange(choosing.shape[2])
    best = [outcomes.mean(axis=(-2, -1)).argmax(axis=0) for outcomes in choosing]
    difference = measured[1][best[1], rows] - measured[0][best[0], rows]
    return difference, shares[1][best[1]] - shares[0][best[0]]


def _around(difference: FloatArray, reach: FloatArray) -> tuple[FloatArray, FloatArray]:
    mean = difference.mean(axis=(-2, -1))
    return mean - reach, mean + reach


if __name__ == "__main__":
    main()
