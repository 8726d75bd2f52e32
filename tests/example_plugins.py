"""Generators as a user might write them, good and bad; named by import path in tests, and imported by Ray's workers."""

import time

import numpy as np

Difficulty = tuple[float, float]
Rows = list[list[int]]

NOT_A_FUNCTION = 3


def mirrored(rng: np.random.Generator, difficulty: Difficulty) -> tuple[np.ndarray, np.ndarray]:
    """A grid and its mirror image; `difficulty` bounds its width."""
    low, high = (1 + round(29 * bound) for bound in difficulty)
    grid = rng.integers(0, 10, (3, rng.integers(low, high + 1)))
    return grid, grid[:, ::-1]


def unmirror(grid: np.ndarray) -> np.ndarray:
    """The verifier of `mirrored`."""
    return grid[:, ::-1]


def refuse(grid: np.ndarray) -> np.ndarray:
    """A verifier that agrees with nothing."""
    return 9 - grid


def few(rng: np.random.Generator, difficulty: Difficulty) -> tuple[Rows, Rows]:
    """One of forty grids, so that duplicates are many; no symmetry or renaming of colours makes one of another."""
    number = int(rng.integers(40))
    return [[5] * (number // 10 + 1) + [6] * (number % 10 + 1)], [[5]]


def sometimes_hangs(rng: np.random.Generator, difficulty: Difficulty) -> tuple[np.ndarray, np.ndarray]:
    """Hang for ever in one of ten draws, and swallow whatever tries to stop it."""
    if rng.random() < 0.1:
        while True:
            try:
                time.sleep(0.001)
            except:  # noqa: E722
                break
        while True:
            pass
    return mirrored(rng, difficulty)


def always_raises(rng: np.random.Generator, difficulty: Difficulty) -> tuple[Rows, Rows]:
    """A bug in a user's generator."""
    raise LookupError("no such colour")


def returns_rubbish(rng: np.random.Generator, difficulty: Difficulty) -> int:
    """Not a pair."""
    return 3
