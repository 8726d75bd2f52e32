"""How often does the interval of an effect (`arc_ray.scores.intervals`) hold the truth? Simulated studies.

    python tests/benchmarks/simulate_analysis.py [--repetitions 4000] [--only effects|choosing]

A simulated run solves a task if  merit of the setting + difficulty of the puzzle + liking of the arm for the puzzle
+ liking of the setting for it + luck of the seed + noise  is above 0, all but the merit normal with a known
standard deviation (noise: 1). The true share of solved tasks is then an exact formula, and so is the effect.

`effects` compares two arms of one setting, and tells of the baseline's own share over seeds and tasks. In `choosing`,
arms have eight settings each; the best is chosen on one half of the tasks and measured on the other, as in
`arc_ray.scores.analysis.compare`. Numbers are shares of repetitions in percent; 4,000 of them are good to 0.7 points.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from arc_ray.scores.intervals import Effect, MeanSquares, difference_interval, mean_squares, needed, share_over_seeds
from arc_ray.seeding import rng_for

FloatArray = npt.NDArray[np.float64]

HILL = (-0.9, -0.6, -0.3, -0.1, 0.0, -0.05, -0.3, -0.8)
"""Merit of eight settings: a hill with a broad top, as over learning rates."""
FLAT = (0.0,) * 8
PEAK = (0.0,) + (-1.0,) * 7
ONE = (0.0,)
ALIKE, BETTER, BEST = 0.0, 0.5, 1.5
"""Merit that one arm has over the other: no effect; at 40 % solved, about 10 and 30 points."""
CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class World:
    """What a study is drawn from; standard deviations are in units of the noise."""

    num_seeds: int = 3
    num_tasks: int = 100
    per_puzzle: int = 1
    """Tasks cut from one puzzle, which share their difficulty and how they are liked."""
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

        def by_puzzle(spread: float) -> FloatArray:
            drawn = rng.normal(0, spread, (repetitions, 1, self.num_tasks // self.per_puzzle))
            return np.repeat(drawn, self.per_puzzle, axis=-1)

        difficulty = by_puzzle(self.difficulty)
        arms = []
        for merits in self._merits():
            of_arm = difficulty + by_puzzle(self.arm_liking)
            settings = []
            for merit in merits:
                tendency = merit + of_arm + by_puzzle(self.setting_liking)
                luck = rng.normal(0, self.seed_luck, (repetitions, self.num_seeds, 1))
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


def units_in(world: World, num_tasks: int) -> npt.NDArray[np.int64]:
    """Number the puzzles of so many of the world's tasks."""
    return np.arange(num_tasks) // world.per_puzzle


def studies(world: World, repetitions: int, how: str) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Simulate studies in parts: measured differences (part, seeds, tasks), and the effect of what was chosen (part,).

    `how` is "halves" (choose on one, measure on the other), "swapped" (both ways, all tasks measured), "same" (choose
    and measure on all tasks) or "per seed" (halves; each seed's setting is chosen on the other seeds).
    """
    num_cells = 2 * len(world.settings[0]) * world.num_seeds * world.num_tasks
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


def tally(world: World, repetitions: int, how: str = "halves") -> Tally:
    """Count how often the 95 % interval is right in a world."""
    shares = world.true_shares()
    best = shares[1].max() - shares[0].max()
    columns = []
    for difference, effect in studies(world, repetitions, how):
        _, low, high = difference_interval(difference, units_in(world, difference.shape[-1]), 0.95)
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


def coverage_of_share(world: World, repetitions: int) -> tuple[float, float]:
    """Return how often the interval of the baseline's own share holds the truth, and its mean half width."""
    truth, found = world.true_shares()[0, 0], []
    for start in range(0, repetitions, part := max(CELLS_AT_ONCE // (2 * world.num_seeds * world.num_tasks), 1)):
        rng = rng_for("simulate_analysis", "share", world, start)
        solved = world.draw(rng, min(part, repetitions - start))[0, 0]
        low, high = share_over_seeds(solved, units_in(world, world.num_tasks), 0.95)
        found.append([(low <= truth) & (truth <= high), (high - low) / 2])
    held, half_width = np.concatenate(found, axis=1).mean(axis=1)
    return float(held), float(half_width)


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
        for squares in zip(*mean_squares(difference, units_in(pilot, num_tasks))[0], strict=True):
            effect = Effect(0, 0, 0, 0.95, num_seeds, num_tasks, num_tasks, "tasks", num_tasks, MeanSquares(*squares))
            plans.append(needed(effect, size).seeds or np.inf)
    seeds = int(np.median(plans))
    return seeds, tally(replace(world, num_seeds=seeds), repetitions).leaves_out_zero


def print_effects(repetitions: int) -> None:
    """Print the coverage of every cell of the grid: no effect, an effect, a large one; a row each design."""
    title = "solved by the baseline, seeds x tasks, luck"
    print(f"| {title:52} | coverage at gains of 0, 0.5, 1.5 | half width | not 0 | its share |")
    for level in (-0.5, -3.0, -5.0):
        for num_tasks, per_puzzle in ((10, 1), (20, 1), (50, 1), (200, 1), (64, 8), (160, 8), (400, 8)):
            for num_seeds in (1, 2, 3, 5):
                for luck in (0.0, 0.25, 0.5, 1.0) if num_seeds > 1 else (0.0,):
                    world = World(num_seeds, num_tasks, per_puzzle, (ONE, ONE), level=level, seed_luck=luck)
                    found = [tally(replace(world, gain=gain), repetitions, "same") for gain in (ALIKE, BETTER, BEST)]
                    solved = 100 * float(world.true_shares()[0, 0])
                    tasks = f"{num_tasks}" if per_puzzle == 1 else f"{num_tasks // per_puzzle} puzzles of {per_puzzle}"
                    title = f"{solved:.1f} %, {num_seeds} x {tasks}, luck {luck}"
                    cells = (
                        " ".join(f"{100 * one.covers_best:5.1f}" for one in found),
                        " ".join(f"{100 * one.half_width:5.1f}" for one in found),
                        f"{100 * found[0].leaves_out_zero:4.1f}",
                        " ".join(f"{100 * part:5.1f}" for part in coverage_of_share(world, repetitions)),
                    )
                    print(f"| {title:52} | {' | '.join(cells)} |", flush=True)


def print_choosing(repetitions: int) -> None:
    """Print what choosing on one half of the tasks does, and what other ways to choose would."""
    header = f"| {'':58} | chosen |   best |  not 0 |   bias |  +- |"

    def show(title: str, world: World, how: str = "halves") -> None:
        print(f"| {title:58} {tally(world, repetitions, how)}", flush=True)

    for luck in (0.1, 0.0, 0.25):
        print(f"\nChosen among eight settings; luck of a seed {luck}\n{header}")
        for num_tasks in (40, 100, 400):
            for num_seeds in (2, 3, 5, 10):
                for gain, name in ((ALIKE, "no effect"), (BETTER, "effect")):
                    world = World(num_seeds, num_tasks, gain=gain, seed_luck=luck)
                    show(f"{num_seeds} seeds x {num_tasks} tasks, {name}", world)
    print(f"\nHard cases\n{header}")
    for num_seeds, num_tasks in ((3, 40), (5, 100), (3, 400)):
        name = f"{num_seeds} seeds x {num_tasks} tasks"
        for luck in (0.1, 0.25):
            world = World(num_seeds, num_tasks, settings=(FLAT, PEAK), seed_luck=luck)
            show(f"{name}, good settings 8 to 1, luck {luck}", world)
        show(f"{name}, 8 equal settings", World(num_seeds, num_tasks, settings=(FLAT, FLAT)))
        show(f"{name}, 5 % solved, no effect", World(num_seeds, num_tasks, level=-3.0))
        show(f"{name}, 5 % solved, effect", World(num_seeds, num_tasks, level=-3.0, gain=BETTER))
    print(f"\nOther ways to choose\n{header}")
    for num_seeds, num_tasks in ((3, 40), (5, 100), (3, 400)):
        for settings, luck, landscape in (
            ((HILL, HILL), 0.1, "hill"),
            ((FLAT, FLAT), 0.1, "flat"),
            ((FLAT, PEAK), 0.25, "8 to 1"),
        ):
            for how in ("halves", "same", "swapped", "per seed"):
                world = World(num_seeds, num_tasks, settings=settings, seed_luck=luck)
                show(f"{num_seeds} seeds x {num_tasks} tasks, {landscape}, luck {luck}, {how}", world, how)
    print("\nNumber of seeds that `needed` plans for a power of 80 %, and the power that it has")
    for num_seeds, num_tasks, gain in ((3, 400, 0.25), (5, 100, 0.4), (3, 200, 0.4), (5, 400, 0.2)):
        seeds, power = power_of_plan(World(num_seeds, num_tasks), gain, min(repetitions, 1000))
        print(f"pilot of {num_seeds} seeds x {num_tasks} tasks: {seeds} seeds, power {100 * power:.0f} %", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000)
    parser.add_argument("--only", choices=["effects", "choosing"])
    arguments, began = parser.parse_args(), time.perf_counter()
    if arguments.only != "choosing":
        print_effects(arguments.repetitions)
    if arguments.only != "effects":
        print_choosing(arguments.repetitions)
    print(f"\n{arguments.repetitions} repetitions, {time.perf_counter() - began:.0f} s")


def _at_best(choosing: FloatArray, measured: FloatArray, world: World) -> tuple[FloatArray, FloatArray]:
    """Choose each arm's setting on some outcomes, and take the arms' differences at those settings from others."""
    shares, rows = world.true_shares(), np.arange(choosing.shape[2])
    best = [outcomes.mean(axis=(-2, -1)).argmax(axis=0) for outcomes in choosing]
    difference = measured[1][best[1], rows] - measured[0][best[0], rows]
    return difference, shares[1][best[1]] - shares[0][best[0]]


if __name__ == "__main__":
    main()
