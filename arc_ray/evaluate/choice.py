"""From predictions to attempts, scores and what the gallery shows; reads files only, so it can be redone at any time."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arc_ray.config import Config
from arc_ray.scores.attempts import (
    SELECTIONS,
    Attempts,
    Candidate,
    Score,
    cell_accuracy,
    distinct_grids,
    score_attempts,
    score_samples,
)
from arc_ray.scores.records import ScorePath
from arc_ray.tasks.task import Grid, Task, same_grid

Rows = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]
"""(task id, number of the test pair) -> rows of predictions, or of scores under every view."""

SAMPLE_SIZES = (1, 2, 8, 64)
"""n of the reported `pass_at_<n>`, as far as there are so many predictions."""


def puzzle_scores(
    config: Config, name: str, tasks: Sequence[Task], predictions: Rows, scores: Rows
) -> tuple[dict[ScorePath, Score], list[dict[str, Any]], dict[str, list[Attempts]]]:
    """Choose attempts for a set: return its scores, an answer for the gallery a test output, and the attempts.

    `scores` are needed for the product of experts only. Without the outputs of all tasks there are no scores.
    """
    chosen = _each_output(tasks, lambda *at: choose(config, predictions, scores, *at))
    greedy = _each_output(tasks, lambda *at: _greedy(config, predictions, *at))
    answers = [
        _answer(config, name, task, i, chosen[task.id][i], greedy[task.id][i])
        for task in tasks
        for i in range(len(task.test))
    ]
    if any(pair.output is None for task in tasks for pair in task.test):
        return {}, answers, chosen
    confidence, sizes = config.study.confidence, sample_sizes(config)
    samples = _each_output(tasks, lambda *at: [_grid(row) for row in predictions.get(at, ())])
    found = score_attempts(tasks, chosen, confidence) | score_samples(tasks, samples, chosen, sizes, confidence)
    by_path = {(rule,): score for rule, score in found.items()}
    if config.evaluate.decode == "greedy":
        by_path |= {("greedy", rule): score for rule, score in score_attempts(tasks, greedy, confidence).items()}
    return by_path, answers, chosen


def _each_output(tasks: Sequence[Task], find: Callable[[str, int], Any]) -> dict[str, list[Any]]:
    return {task.id: [find(task.id, i) for i in range(len(task.test))] for task in tasks}


def choose(config: Config, predictions: Rows, scores: Rows, task_id: str, output: int) -> Attempts:
    """Choose the attempts at one output by `evaluate.selection`."""
    rule = config.evaluate.selection
    rows = (scores if rule == "product_of_experts" else predictions).get((task_id, output), ())
    if rule == "vote_with_log_probability":
        # The same text drawn twice under one view is one summand of the mixture: its probability says how often it comes.
        rows = list({(row["view"], row["text"]): row for row in rows}.values())
    return SELECTIONS[rule](_candidates(rows))


def candidate_grids(rows: Sequence[Mapping[str, Any]]) -> tuple[Grid, ...]:
    """Return the different grids among the predictions of one output, in a fixed order: what is scored under all views."""
    return tuple(distinct_grids(_candidates(rows)))


def sample_sizes(config: Config) -> list[int]:
    """Return the n of pass_at_<n> that there are predictions for; search finds a number that is nobody's choice."""
    evaluate = config.evaluate
    if evaluate.decode == "search":
        return []
    total = evaluate.symmetries * evaluate.copies * (evaluate.samples if evaluate.decode == "sample" else 1)
    return [n for n in SAMPLE_SIZES if n <= total]


def _greedy(config: Config, predictions: Rows, task_id: str, output: int) -> Attempts:
    """Return what the plain view gives by itself, where there is one answer to it."""
    if config.evaluate.decode != "greedy":
        return ()
    return tuple(c.grid for c in _candidates(predictions.get((task_id, output), ())) if c.view == "same")


def _candidates(rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    found = ((_grid(row), row) for row in rows)
    return [Candidate(grid, row["log_probability"], row["view"]) for grid, row in found if grid is not None]


def _grid(row: Mapping[str, Any]) -> Grid | None:
    return np.array(json.loads(row["grid"]), np.uint8) if row["grid"] else None


def _answer(config: Config, name: str, task: Task, output: int, attempts: Attempts, greedy: Attempts) -> dict[str, Any]:
    """Describe one answered output for the gallery."""
    truth = task.test[output].output
    shown = [{"input": p.input.tolist(), "output": _listed(p.output)} for p in task.train[: config.view.max_shown]]
    return {
        "set": name,
        "task": task.id,
        "output": output,
        "shown": shown,
        "input": task.test[output].input.tolist(),
        "truth": _listed(truth),
        "attempts": [grid.tolist() for grid in attempts],
        "greedy": greedy[0].tolist() if greedy else None,
        "is_right": any(same_grid(truth, grid) for grid in attempts),
        "cell_accuracy": max((cell_accuracy(truth, g) for g in attempts), default=0.0) if truth is not None else 0.0,
    }


def _listed(grid: Grid | None) -> list[list[int]] | None:
    return None if grid is None else grid.tolist()
