"""What fewer answers would have come to: attempts are chosen again from those that a smaller evaluation would have had.

    [{"set": "unseen", "axis": "views", "x": 4, "passes": 61.5, "tokens": 180.0, "seconds": 0.7,
      "tasks": [...], "solved": [0, 1, ...], "best": [0, 1, ...]}]

is curves.json of an evaluation: of each set and axis a record a number (or probability), with an item an output.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from arc_ray.config.searching import EvaluateConfig
from arc_ray.evaluate.predictions import Predictions, choose, grid_of
from arc_ray.scores.attempts import BY_SCORES
from arc_ray.tasks.task import NUM_SYMMETRIES, Task, same_grid
from arc_ray.views.augmentation import Augmentation

THRESHOLDS = (0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
Rows = Sequence[dict[str, Any]]


def answer_curves(
    evaluate: EvaluateConfig,
    name: str,
    tasks: Sequence[Task],
    predictions: Predictions,
    scores: Predictions,
    tuning: Mapping[str, float | None],
) -> Iterator[dict[str, Any]]:
    """Choose by `evaluate.selection` from the first views, the first samples of each, or the most probable answers of a set.

    `solved` tells whether an attempt is right, `best` whether any answer is. What was spent is a mean over outputs: the
    forward `passes` and `tokens` of the answers, and the `seconds` of answers, scores and test-time training (`tuning`: task
    id -> seconds); None where it is not known. A search shares passes and tokens among its answers, and which of its
    seconds a higher threshold would save is not known. Nothing where outputs are hidden.
    """
    truths = [(task.id, i, pair.output) for task in tasks for i, pair in enumerate(task.test)]
    if any(truth is None for *_, truth in truths):
        return
    by_scores, is_search = evaluate.selection in BY_SCORES, evaluate.decode == "search"
    for axis, keeps in _axes(evaluate).items():
        for x, keep in keeps.items():
            solved, best = [], []
            spent: dict[str, list[float | None]] = {"passes": [], "tokens": [], "seconds": [*tuning.values()]}
            for task, output, truth in truths:
                rows = keep(predictions.get((task, output), []))
                scored: Rows = scores.get((task, output), []) if by_scores else []
                views, grids = ({row[key] for row in rows} for key in ("view", "grid"))
                scored = [row for row in scored if row["view"] in views and row["grid"] in grids]
                attempts = choose(evaluate.selection, rows, scored)
                solved.append(int(any(same_grid(truth, grid) for grid in attempts)))
                best.append(int(any(same_grid(truth, grid_of(row)) for row in rows if row["grid"])))
                for kind, values in spent.items():
                    is_known = not is_search or (kind == "seconds" and axis != "threshold")
                    values += [row[kind] if is_known else None for row in rows]
                spent["seconds"] += [row["seconds"] for row in scored]
            means = {kind: _mean(values, len(truths)) for kind, values in spent.items()}
            about = {"set": name, "axis": axis, "x": x, **means, "tasks": [task for task, *_ in truths]}
            yield {**about, "solved": solved, "best": best}


def _mean(values: Sequence[float | None], number: int) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / max(number, 1) if len(known) == len(values) else None


def _axes(evaluate: EvaluateConfig) -> dict[str, dict[float, Callable[[Rows], Rows]]]:
    """Return axis -> x -> which rows of an output a smaller evaluation would have; axes with one value are left out."""
    axes: dict[str, dict[float, Callable[[Rows], Rows]]] = {
        "views": {
            n: partial(_first_views, n, evaluate.symmetries) for n in _sizes(evaluate.symmetries * evaluate.copies)
        }
    }
    if evaluate.decode == "sample":
        axes["samples"] = {n: partial(_first_samples, n) for n in _sizes(evaluate.samples)}
    if evaluate.decode == "search":
        thresholds = [p for p in THRESHOLDS if p > evaluate.min_probability] + [evaluate.min_probability]
        axes["threshold"] = {p: partial(_above, math.log(p)) for p in thresholds}
    return {axis: keeps for axis, keeps in axes.items() if len(keeps) > 1}


def _sizes(most: int) -> list[int]:
    """Return 1, 2, 4, ... and the last."""
    return sorted({*(2**i for i in range(most.bit_length())), most})


def _first_views(number: int, symmetries: int, rows: Rows) -> Rows:
    """Keep the plain copies of the first symmetries, then the second copies."""

    def place(view: str) -> int:
        name, _, copy = view.partition("#")
        symmetry = ".".join(part for part in name.split(".") if not part.startswith("colors"))
        return int(copy or 0) * symmetries + PLACES.get(symmetry, 0)

    return [row for row in rows if place(row["view"]) < number]


PLACES = {Augmentation(symmetry).name: symmetry for symmetry in range(NUM_SYMMETRIES)}


def _first_samples(number: int, rows: Rows) -> Rows:
    return [row for _, of_view in groupby(rows, itemgetter("view")) for row in islice(of_view, number)]


def _above(least: float, rows: Rows) -> Rows:
    return [row for row in rows if row["log_probability"] is not None and row["log_probability"] > least]
