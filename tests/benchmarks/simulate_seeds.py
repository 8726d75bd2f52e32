"""May a study add seeds until its answer is clear? How often such an interval holds the truth, and what it saves.

    python tests/benchmarks/simulate_seeds.py [--repetitions 1000] [--indifference 0.05]

Studies are those of `simulate_analysis.py`, with one setting an arm. A study looks after 3 seeds, and again after each seed
or after each three (as `study.seeds` with at_least 3 and at_most 12 has it), up to 12; it stops when its interval leaves out
zero or lies within plus and minus the indifference. Each look takes the product's own interval at a higher level, so that all
looks together miss the truth in 5 % at most: `obrien_fleming` is `arc_ray.scores.intervals.looks_levels`, `pocock` has one
level for all looks, both for sums of independent normal differences (the tasks' luck, which all looks share, makes looks more
alike and crossings rarer). `naive` takes 95 % at every look, and `fixed` looks once, at 12 seeds.

A row a cell: what the baseline solves, tasks, luck of the seeds, true effect; then of each plan the coverage, the mean number
of seeds, and how often zero was left out, in percent.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm
from simulate_analysis import ONE, FloatArray, World, units_in

from arc_ray.scores.intervals import difference_interval, looks_levels
from arc_ray.seeding import rng_for

AT_LEAST, AT_MOST, MISSES = 3, 12, 0.05
LEVELS, LUCKS, GAINS = (-0.5, -3.0), (0.0, 0.1, 0.25, 0.5), (0.0, 0.125, 0.25, 0.5, 1.5)
TASKS = ((20, 1), (50, 1), (200, 1), (160, 8))
"""Tasks, and how many of them are cut from a puzzle."""


@dataclass(frozen=True)
class Plan:
    """After how many seeds a study looks, and at which level."""

    name: str
    looks: Sequence[int]
    levels: Sequence[float]


@dataclass(frozen=True)
class Tally:
    """What became of a plan's studies in one world."""

    covers: float
    seeds: float
    leaves_out_zero: float
    half_width: float


def plans() -> list[Plan]:
    """List the plans that are compared."""
    every, rounds = (tuple(range(AT_LEAST, AT_MOST + 1, step)) for step in (1, AT_LEAST))
    found = [Plan("fixed", [AT_MOST], [1 - MISSES]), Plan("naive", every, [1 - MISSES] * len(every))]
    for looks, how in ((every, "each seed"), (rounds, "each three")):
        found.append(Plan(f"pocock, {how}", looks, pocock(looks)))
        found.append(Plan(f"obrien_fleming, {how}", looks, looks_levels(looks, 1 - MISSES)))
    return found


def pocock(looks: tuple[int, ...]) -> list[float]:
    """Return one level for all looks, such that sums of normal differences leave [-z, z] at any of them in `MISSES`."""
    bound = brentq(lambda z: crossings(looks, z) - MISSES, 1.9, 3.5, xtol=1e-4)
    return [2 * float(norm.cdf(bound)) - 1] * len(looks)


def crossings(looks: tuple[int, ...], bound: float) -> float:
    """Return how often a sum of standard normal numbers, over its standard deviation, leaves the bounds at any look."""
    reach = bound * looks[-1] ** 0.5 + 1
    sums = np.linspace(-reach, reach, 1201)
    step, last = sums[1] - sums[0], 0
    density = np.where(np.arange(len(sums)) == len(sums) // 2, 1 / step, 0.0)
    for n in looks:
        density = norm.pdf(sums[:, None] - sums, scale=(n - last) ** 0.5) @ density * step
        density[np.abs(sums) > bound * n**0.5] = 0.0
        last = n
    return 1 - float(density.sum() * step)


def tally(world: World, plan: Plan, solved: FloatArray, indifference: float) -> Tally:
    """Let every study look as planned; count those whose last interval holds the true effect."""
    shares = world.true_shares()
    effect = float(shares[1, 0] - shares[0, 0])
    difference, units = solved[1, 0] - solved[0, 0], units_in(world, world.num_tasks)
    bounds = np.zeros((2, len(difference)))
    seeds, is_open = np.zeros(len(difference)), np.ones(len(difference), bool)
    for n, level in zip(plan.looks, plan.levels, strict=True):
        _, low, high = difference_interval(difference[is_open, :n], units, level)
        bounds[:, is_open], seeds[is_open] = (low, high), n
        is_open = (bounds[0] <= 0) & (bounds[1] >= 0) & (np.abs(bounds).max(axis=0) > indifference)
    low, high = bounds
    covers = (low - 1e-9 <= effect) & (effect <= high + 1e-9)
    found = covers.mean(), seeds.mean(), ((low > 0) | (high < 0)).mean(), (high - low).mean() / 2
    return Tally(*map(float, found))


def main() -> None:
    """Print a row a cell and, of each plan, the lowest coverage, the cells under 93.5 %, and the mean number of seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--indifference", type=float, default=0.05)
    arguments, began = parser.parse_args(), time.perf_counter()
    compared, found = plans(), dict[str, list[Tally]]()
    for plan in compared:
        print(f"{plan.name}: {' '.join(f'{100 * level:.3f}' for level in plan.levels)} % at {[*plan.looks]} seeds")
    for level, (num_tasks, per_puzzle), luck, gain in product(LEVELS, TASKS, LUCKS, GAINS):
        world = World(AT_MOST, num_tasks, per_puzzle, (ONE, ONE), gain, level, luck)
        solved = world.draw(rng_for("simulate_seeds", world), arguments.repetitions)
        shares = 100 * world.true_shares()[:, 0]
        row = [f"{shares[0]:4.1f} %, {num_tasks:3} / {per_puzzle}, luck {luck:4}, {shares[1] - shares[0]:4.1f}"]
        for plan in compared:
            one = tally(world, plan, solved, arguments.indifference)
            found.setdefault(plan.name, []).append(one)
            row.append(f"{100 * one.covers:5.1f} {one.seeds:4.1f} {100 * one.leaves_out_zero:5.1f}")
        print(" | ".join(row), flush=True)
    for name, tallies in found.items():
        columns = (
            [getattr(one, key) for one in tallies] for key in ("covers", "seeds", "leaves_out_zero", "half_width")
        )
        covers, seeds, shown, half_width = map(np.array, columns)
        print(
            f"{name:26} coverage at least {100 * covers.min():.1f}, mean {100 * covers.mean():.1f}, under 93.5 in"
            f" {(covers < 0.935).sum()} of {len(covers)} cells; {seeds.mean():.1f} seeds; zero left out in"
            f" {100 * shown.mean():.1f} %; half width {100 * half_width.mean():.1f}"
        )
    print(f"{arguments.repetitions} repetitions, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
