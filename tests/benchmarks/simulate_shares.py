"""How often does the interval of a share (`arc_ray.scores.intervals.share_interval`) hold the truth? Simulated evaluations.

    python tests/benchmarks/simulate_shares.py [--repetitions 4000]

The outputs of a unit (a task, or the tasks cut from a puzzle) are right with a chance that is drawn for the unit from a
beta distribution, so that any two of them are correlated as the row says. Each cell is the coverage of the 95 %
interval in percent; 4,000 repetitions are good to 0.7 points.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from arc_ray.scores.intervals import share_interval
from arc_ray.seeding import rng_for

FloatArray = npt.NDArray[np.float64]
RATES = (0.01, 0.03, 0.1, 0.2, 0.5, 0.8, 0.97, 0.99)
NUM_UNITS = (10, 20, 40, 120, 400)
CORRELATIONS = (0.0, 0.3, 0.8)

SIZES: dict[str, Callable[[np.random.Generator, tuple[int, int]], FloatArray]] = {
    "strict": lambda rng, shape: np.ones(shape),
    "per output": lambda rng, shape: rng.choice([1.0, 2.0, 3.0], p=[0.75, 0.2, 0.05], size=shape),
    "per task mean": lambda rng, shape: rng.choice([1.0, 2.0, 3.0], p=[0.75, 0.2, 0.05], size=shape),
    "8 tasks a puzzle": lambda rng, shape: np.full(shape, 8.0),
    "1 to 20 tasks a puzzle": lambda rng, shape: rng.choice([1.0, 2.0, 5.0, 20.0], size=shape),
    "pass@1 of 8 samples": lambda rng, shape: np.full(shape, 8.0),
    "cells": lambda rng, shape: np.ones(shape),
}
"""Rule -> outputs of each unit."""


def draw(rule: str, rate: float, correlation: float, shape: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Draw what is right and of how much, by unit: two arrays (repetitions, units)."""
    rng = rng_for("simulate_shares", rule, rate, correlation, shape)
    below = SIZES[rule](rng, shape)
    if rule == "cells":  # a grid of a wrong size has no right cell
        part = rate**0.5
        return np.where(rng.random(shape) < part, rng.beta(8 * part, 8 * (1 - part), shape), 0.0), below
    strength = 1 / correlation - 1 if correlation else 1.0
    chance = rng.beta(rate * strength, (1 - rate) * strength, shape) if correlation else rate
    above = rng.binomial(below.astype(int), chance, shape).astype(float)
    if rule in ("per task mean", "pass@1 of 8 samples"):
        return above / below, np.ones(shape)
    return above, below


def coverage(rule: str, rate: float, correlation: float, num_units: int, repetitions: int) -> tuple[float, float]:
    """Return the share of 95 % intervals that hold the rate, and their mean half width."""
    above, below = draw(rule, rate, correlation, (repetitions, num_units))
    _, low, high = share_interval(above, below, np.arange(num_units), 0.95)
    return float(((low <= rate + 1e-9) & (rate - 1e-9 <= high)).mean()), float((high - low).mean() / 2)


def main() -> None:
    """Print coverage and half width, a row each rule, correlation and number of units."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000)
    repetitions, began = parser.parse_args().repetitions, time.perf_counter()
    head = " ".join(f"{100 * rate:5g}" for rate in RATES)
    print(f"| {'rule, correlation, units':36} | coverage at a rate of {head} % | half width |")
    for rule in SIZES:
        for correlation in (0.0,) if rule in ("strict", "cells") else CORRELATIONS:
            for num_units in NUM_UNITS:
                found = [coverage(rule, rate, correlation, num_units, repetitions) for rate in RATES]
                cells = [" ".join(f"{100 * part[i]:5.1f}" for part in found) for i in (0, 1)]
                print(f"| {f'{rule}, {correlation}, {num_units}':36} | {cells[0]} | {cells[1]} |", flush=True)
    print(f"{repetitions} repetitions, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
