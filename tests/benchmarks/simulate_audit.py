"""How often do the intervals of an audit (`arc_ray.scores.contrasts`) hold the truth, and how often do they cry wolf?

    python tests/benchmarks/simulate_audit.py [--repetitions 1000]

A task has a chance of being solved, the normal distribution's of  level + spread x difficulty;  its published pair and its
fresh ones are solved with it, independently. A task that was learned by heart has its published pair solved in any case.
Audits are of 20 to 400 tasks with 5 to 20 fresh pairs each; 5 to 80 % of fresh pairs are solved, tasks differ little (0.5),
as in studies of ours (1.5), or so much that most are solved always or never (4); none, a tenth or three tenths are learned.

Of the difference in all it counts how often the 95 % interval holds the truth, and, where nothing is learned, how often it
lies above zero. Beside it the interval that differences of tasks had before one more task was added. Of single tasks it counts
how often the interval lies above zero where the task was not learned, and where it was.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import product
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from arc_ray.scores.intervals import contrast_interval, difference_interval, two_shares_interval
from arc_ray.seeding import rng_for

FloatArray = npt.NDArray[np.float64]
NUM_TASKS, NUM_FRESH = (20, 50, 100, 400), (5, 10, 20)
SOLVED, SPREADS, LEARNED = (0.05, 0.2, 0.5, 0.8), (0.5, 1.5, 4.0), (0.0, 0.1, 0.3)
NEAR = 1e-9
"""Shares are multiples of a fraction, so that bounds may fall on the truth exactly."""


def draw(
    num_tasks: int, num_fresh: int, solved: float, spread: float, learned: float, repetitions: int
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Draw audits: published (1 or 0) and number of fresh ones solved, and which tasks are learned; (repetitions, tasks)."""
    rng = rng_for("simulate_audit", num_tasks, num_fresh, solved, spread, learned)
    level = NormalDist().inv_cdf(solved) * (1 + spread**2) ** 0.5
    chance = ndtr(level + rng.normal(0, spread, (repetitions, num_tasks)))
    is_learned = rng.random(chance.shape) < learned
    published = (rng.random(chance.shape) < chance) | is_learned
    return published.astype(float), rng.binomial(num_fresh, chance).astype(float), is_learned


def cells(repetitions: int) -> Iterator[tuple[tuple[float, ...], dict[str, float]]]:
    """Yield each cell with its shares of repetitions, in percent."""
    for cell in product(NUM_TASKS, NUM_FRESH, SOLVED, SPREADS, LEARNED):
        num_tasks, num_fresh, solved, _, learned = cell
        published, fresh, is_learned = draw(*cell, repetitions)
        truth, difference = learned * (1 - solved), (published - fresh / num_fresh)[:, None, :]
        found = {}
        _, low, high = contrast_interval(difference, 0.95)
        _, low_before, high_before = difference_interval(difference, np.arange(num_tasks), 0.95)
        for name, a, b in (("held", low, high), ("held before", low_before, high_before)):
            found[name] = np.mean((a <= truth + NEAR) & (truth - NEAR <= b))
        found["above zero"], found["above zero before"] = np.mean(low > 0), np.mean(low_before > 0)
        lows = np.array(
            [
                [two_shares_interval(p, 1, k / num_fresh, num_fresh, 0.95).low for k in range(num_fresh + 1)]
                for p in (0, 1)
            ]
        )
        is_above = lows[published.astype(int), fresh.astype(int)] > 0
        found["a task not learned above zero"] = is_above[~is_learned].mean()
        found["a learned task above zero"] = is_above[is_learned].mean() if learned else np.nan
        yield cell, {name: 100 * float(share) for name, share in found.items()}


def main() -> None:
    """Print a table by number of tasks, and the cells that are furthest off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    arguments, began = parser.parse_args(), time.perf_counter()
    found = list(cells(arguments.repetitions))
    print(
        "| tasks | cells | held: least, mean, most | 93 to 97 % | under | over | least before"
        " | false alarms: mean, most | most before |"
    )
    for num_tasks in NUM_TASKS:
        own = [shares for cell, shares in found if cell[0] == num_tasks]
        held, before = (np.array([shares[name] for shares in own]) for name in ("held", "held before"))
        null = [shares for cell, shares in found if cell[0] == num_tasks and cell[-1] == 0]
        alarms, alarms_before = (np.array([s[name] for s in null]) for name in ("above zero", "above zero before"))
        within = (held >= 93) & (held <= 97)
        print(
            f"| {num_tasks} | {len(own)} | {held.min():.1f}, {held.mean():.1f}, {held.max():.1f} | {100 * within.mean():.0f} %"
            f" | {100 * (held < 93).mean():.0f} % | {100 * (held > 97).mean():.0f} % | {before.min():.1f}"
            f" | {alarms.mean():.1f}, {alarms.max():.1f} | {alarms_before.max():.1f} |"
        )
    for num_fresh in NUM_FRESH:
        own = [(cell, shares) for cell, shares in found if cell[1] == num_fresh]
        alarms = [shares["a task not learned above zero"] for _, shares in own]
        hits = [shares["a learned task above zero"] for cell, shares in own if cell[-1] and cell[2] == 0.05]
        print(
            f"single tasks, {num_fresh} fresh: {np.mean(alarms):.1f} % (most {max(alarms):.1f}) not learned and above zero,"
            f" {np.mean(hits):.1f} % of the learned where 5 % are solved"
        )
    for cell, shares in sorted(found, key=lambda one: one[1]["held"])[:5]:
        print(f"held least: {cell}: {shares['held']:.1f} %")
    print(f"{len(found)} cells of {arguments.repetitions} repetitions, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
