"""Where the points are lost: what became of each test output, in one class, and the shares of the classes."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from arc_ray.scores.attempts import cell_accuracy
from arc_ray.scores.intervals import share_interval, units_of
from arc_ray.scores.records import Interval
from arc_ray.tasks.task import Grid, same_grid

FEW_WRONG = 0.1
"""At most this share of cells is wrong in an answer that is nearly right."""

ENDINGS: Mapping[str, str] = {
    "right": "An attempt is the right grid.",
    "not_chosen": "The right grid is among the answers of all views, but not among the two attempts: selection lost it.",
    "few_wrong": f"An attempt has the right size, and at most {100 * FEW_WRONG:g} % of its cells are wrong.",
    "many_wrong": "An attempt has the right size, and more of its cells are wrong.",
    "copy": "An attempt is the input, unchanged.",
    "wrong_size": "Every attempt has another size than the right grid.",
    "no_grid": "Nothing that was written could be read as a grid.",
    "not_asked": "The prompt was too long, so nothing was written.",
}
"""What becomes of an output, the better endings first -> what that means. The first that fits holds."""

BEST = "best possible"
"""The rule that always chooses the right grid where there is one."""
BoolArray = npt.NDArray[np.bool_]


def ending_of(
    truth: Grid, attempts: Sequence[Grid], candidates: Sequence[Grid | None], given: Grid, was_asked: bool = True
) -> str:
    """Name what became of an output; `candidates` are all answers to it, `given` is its input."""
    if any(same_grid(truth, grid) for grid in attempts):
        return "right"
    if any(same_grid(truth, grid) for grid in candidates):
        return "not_chosen"
    cells = max((cell_accuracy(truth, grid) for grid in attempts), default=0.0)
    if cells >= 1 - FEW_WRONG:
        return "few_wrong"
    if any(same_grid(given, grid) for grid in attempts):
        return "copy"
    if any(grid.shape == truth.shape for grid in attempts):
        return "many_wrong"
    if attempts:
        return "wrong_size"
    return "no_grid" if was_asked else "not_asked"


def shares_of_endings(endings: Sequence[str], task_ids: Sequence[str], confidence: float) -> dict[str, Interval]:
    """Return the share of each ending that occurs, with its interval over tasks; both sequences have an item an output."""
    found = [ending for ending in ENDINGS if ending in set(endings)]
    return shares_of({ending: np.array(endings) == ending for ending in found}, task_ids, confidence)


def shares_by_rule(
    right_by: Sequence[Mapping[str, bool]], endings: Sequence[str], task_ids: Sequence[str], confidence: float
) -> dict[str, Interval]:
    """Return the share of outputs that each rule of selection solves, and under `BEST` what no rule could exceed."""
    rules = [rule for rule in right_by[0] if all(rule in rights for rights in right_by)]
    is_right = {rule: np.array([rights[rule] for rights in right_by]) for rule in rules}
    return shares_of({**is_right, BEST: np.isin(endings, ("right", "not_chosen"))}, task_ids, confidence)


def shares_of(outcomes: Mapping[str, BoolArray], task_ids: Sequence[str], confidence: float) -> dict[str, Interval]:
    """Return the shares of outputs of which something holds, (num_outputs,) each, with intervals over tasks."""
    tasks, number = np.unique(task_ids, return_inverse=True)
    of = np.bincount(number, minlength=len(tasks)).astype(np.float64)
    units, _ = units_of(tasks.tolist())
    found = {}
    for name, holds in outcomes.items():
        held = np.bincount(number, weights=holds, minlength=len(tasks)).astype(np.float64)
        found[name] = Interval(*map(float, share_interval(held, of, units, confidence)))
    return found
