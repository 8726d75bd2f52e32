"""`submission.json` in Kaggle's form: written from attempts, checked whoever wrote it, read back to be scored.

{"00576224": [{"attempt_1": [[...]], "attempt_2": [[...]]}, ...one object per test output], ...}
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arc_ray.errors import UserError
from arc_ray.tasks import Grid, Task, parse_grid

ATTEMPTS = ("attempt_1", "attempt_2")
FILLER = [[0]]
"""Stands for an unanswered output: the form has no empty attempt, and Kaggle refuses a file with a gap."""
SHOWN_PROBLEMS = 10


def write_submission(
    tasks: Sequence[Task], attempts: Mapping[str, Sequence[Sequence[Grid]]]
) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Make the JSON value of a submission: every output of every task, whether it was answered or not.

    `attempts` maps a task's id to the attempts at each of its outputs, best first. A single attempt is given twice.
    """
    submission = {}
    for task in tasks:
        of_task = attempts.get(task.id, ())
        assert len(of_task) in (0, len(task.test)), f"{task.id}: {len(of_task)} outputs, {len(task.test)} test pairs"
        submission[task.id] = [_entry(of_task[i] if of_task else ()) for i in range(len(task.test))]
    return submission


def validate_submission(value: object, tasks: Sequence[Task], file: str) -> list[str]:
    """List what is wrong with a submission read from JSON, each as "file: task, output: reason"; empty if it is sound.

    Knows: no object at all, missing and unknown tasks, a wrong number of outputs, missing and surplus attempts, and
    whatever `parse_grid` refuses (no grid, ragged rows, sides over 30, colours over 9).
    """
    if not isinstance(value, dict):
        return [f"{file}: a submission is an object, task id -> list of outputs; got {type(value).__name__}"]
    known = {task.id for task in tasks}
    problems = [
        f"{file}: task {id}: unknown; it is not among the {len(tasks)} tasks" for id in value if id not in known
    ]
    for task in tasks:
        problems += _problems_of_task(value, task, f"{file}: task {task.id}")
    return problems


def read_submission(value: object, tasks: Sequence[Task], file: str) -> dict[str, list[list[Grid]]]:
    """Turn a submission into attempts that can be scored: task id -> output -> the two grids.

    Raises UserError with the first problems if `validate_submission` finds any.
    """
    problems = validate_submission(value, tasks, file)
    if problems:
        rest = len(problems) - SHOWN_PROBLEMS
        more = [f"... and {rest} more problems"] if rest > 0 else []
        raise UserError("\n".join([*problems[:SHOWN_PROBLEMS], *more]))
    assert isinstance(value, dict)
    return {
        task.id: [[parse_grid(entry[name], file) for name in ATTEMPTS] for entry in value[task.id]] for task in tasks
    }


def _entry(grids: Sequence[Grid]) -> dict[str, list[list[int]]]:
    shown = [grid.tolist() for grid in grids[: len(ATTEMPTS)]] or [FILLER]
    return {name: shown[min(i, len(shown) - 1)] for i, name in enumerate(ATTEMPTS)}


def _problems_of_task(value: dict[str, Any], task: Task, where: str) -> Iterator[str]:
    if task.id not in value:
        yield f"{where}: missing; every task needs {len(task.test)} outputs, if only as {FILLER}"
        return
    entries = value[task.id]
    if not isinstance(entries, list):
        yield f"{where}: give a list with one object per test output; got {type(entries).__name__}"
        return
    if len(entries) != len(task.test):
        yield f"{where}: {len(entries)} outputs, but the task has {len(task.test)} test pairs"
    for i, entry in enumerate(entries):
        yield from _problems_of_output(entry, f"{where}, output {i}")


def _problems_of_output(entry: object, where: str) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"{where}: an output is an object with {' and '.join(ATTEMPTS)}; got {type(entry).__name__}"
        return
    for name in entry:
        if name not in ATTEMPTS:
            yield f"{where}: {name} is surplus; only {' and '.join(ATTEMPTS)} count"
    for name in ATTEMPTS:
        if name not in entry:
            yield f"{where}: {name} is missing; repeat the other attempt if there is only one"
            continue
        try:
            parse_grid(entry[name], f"{where}, {name}")
        except UserError as error:
            yield str(error)
