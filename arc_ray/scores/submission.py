"""`submission.json` in Kaggle's form: written from attempts, and read back to be scored, whoever wrote it.

{"00576224": [{"attempt_1": [[...]], "attempt_2": [[...]]}, ...one object per test output], ...}

A submission is read by going through the tasks, so whatever is missing or malformed counts as wrong and what belongs
to no task changes nothing; `MISTAKES` says what each kind of mistake does to the score.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from arc_ray.errors import UserError
from arc_ray.tasks.task import Grid, Task, parse_grid

ATTEMPTS = ("attempt_1", "attempt_2")
FILLER = [[0]]
"""Stands for an unanswered output: the form has no empty attempt, and Kaggle refuses a file with a gap."""

MISTAKES = {
    "missing task": "stays among those that the score is divided by; its outputs are wrong",
    "unknown task": "ignored",
    "repeated name": "the last one counts",
    "unreadable file": "one of a folder of results: the outputs of its task are wrong",
    "no list": "a task is a list with an object for each test output; else its outputs are wrong",
    "missing output": "wrong",
    "surplus output": "ignored",
    "no object": "an output is an object with attempt_1 and attempt_2; else it is wrong",
    "missing attempt": "the other attempt counts alone; without both the output is wrong",
    "empty attempt": "null and [] answer nothing, which is wrong; the other attempt counts",
    "surplus attempt": "ignored: of an output only attempt_1 and attempt_2 count",
    "no grid": "ragged or empty rows, sides over 30, text, null or other numbers than 0 to 9 as cells: wrong",
    "no integer": "numbers are compared by value, so 1.0 and true are 1; text such as '1' is no number",
}
"""Kind of mistake in a submission -> what it does to the score."""

TOLD_BY = ("4a21e3da", "abc82100", "b6f77b65", "f560132c", "faa9f03d")
VERSIONS = {"ARC-AGI-2 evaluation, 167 outputs": (1, 1, 2, 1, 1), "ARC-AGI-2 evaluation, 172 outputs": (2, 2, 3, 2, 2)}
"""Known versions of a set that the numbers of outputs of these tasks tell apart."""


class Mistake(NamedTuple):
    """Something that is wrong with a submission."""

    kind: str
    """One of `MISTAKES`."""
    place: str
    """Task, output and attempt, and what was found there."""


def write_submission(
    tasks: Sequence[Task], attempts: Mapping[str, Sequence[Sequence[Grid]]], left_out: Mapping[str, int] | None = None
) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Make the JSON value of a submission: every output of every task, whether it was answered or not.

    `attempts` maps a task's id to the attempts at each of its outputs, best first. A single attempt is given twice.
    `left_out` maps the ids of further tasks, which nobody answered, to the number of their outputs.
    """
    submission = {}
    for task in tasks:
        outputs = attempts.get(task.id, ())
        assert len(outputs) in (0, len(task.test)), f"{task.id}: {len(outputs)} outputs, {len(task.test)} test pairs"
        submission[task.id] = [_entry(outputs[i] if outputs else ()) for i in range(len(task.test))]
    return submission | {task_id: [_entry(())] * number for task_id, number in (left_out or {}).items()}


def read_submission(value: object, tasks: Sequence[Task]) -> tuple[dict[str, list[list[Grid]]], list[Mistake]]:
    """Turn a submission read from JSON into what can be scored: task id -> output -> grids, and list its mistakes.

    Attempts may also be objects with an "answer" and "metadata", as the official harness writes them; outputs are then
    placed by metadata's "pair_index". Raises UserError only for what is no object at all.
    """
    if not isinstance(value, dict):
        raise UserError(f"a submission is an object, task id -> list of outputs; got {type(value).__name__}")
    known = {task.id for task in tasks}
    mistakes = [Mistake("unknown task", task_id) for task_id in value if task_id not in known]
    attempts: dict[str, list[list[Grid]]] = {}
    for task in tasks:
        attempts[task.id] = [[] for _ in task.test]
        if task.id not in value:
            mistakes.append(Mistake("missing task", task.id))
        elif not isinstance(value[task.id], list):
            mistakes.append(Mistake("no list", f"{task.id}: {type(value[task.id]).__name__}"))
        else:
            mistakes += _read_task(value[task.id], task.id, attempts[task.id])
    return attempts, mistakes


def made_for_version(value: object) -> str | None:
    """Name the version of a set that a submission was made for, as far as its numbers of outputs tell one."""
    entries = [value.get(task_id) for task_id in TOLD_BY] if isinstance(value, dict) else []
    numbers = tuple(len(entry) if isinstance(entry, list) else 0 for entry in entries)
    return next((name for name, outputs in VERSIONS.items() if outputs == numbers), None)


def _read_task(entries: list[Any], task_id: str, outputs: list[list[Grid]]) -> Iterator[Mistake]:
    """Put the grids of a task's entries into `outputs`, which has a list for each test output."""
    answered = set()
    for position, entry in enumerate(entries):
        i = _pair_index(entry, position, len(outputs))
        where = f"{task_id}, output {i}"
        if i >= len(outputs) or i in answered:
            yield Mistake("surplus output", where)
            continue
        answered.add(i)
        if not isinstance(entry, dict):
            yield Mistake("no object", f"{where}: {type(entry).__name__}")
            continue
        yield from (Mistake("surplus attempt", f"{where}, {name}") for name in entry if name not in ATTEMPTS)
        for name in ATTEMPTS:
            if name in entry:
                yield from _read_attempt(_answer(entry[name]), f"{where}, {name}", outputs[i])
            else:
                yield Mistake("missing attempt", f"{where}, {name}")
    missing = (i for i in range(len(outputs)) if i not in answered)
    yield from (Mistake("missing output", f"{task_id}, output {i}") for i in missing)


def _read_attempt(value: object, where: str, grids: list[Grid]) -> Iterator[Mistake]:
    """Add the grid of an attempt to `grids`, if it is one."""
    if value is None or value == []:
        yield Mistake("empty attempt", where)
        return
    rows = value if isinstance(value, list) else []
    as_integers = [list(map(_as_integer, row)) if isinstance(row, list) else row for row in rows]
    try:
        grids.append(parse_grid(as_integers or value, where))
    except UserError as error:
        yield Mistake("no grid", str(error))
        return
    if any(type(cell) is not int for row in rows for cell in row):
        yield Mistake("no integer", where)


def _as_integer(cell: object) -> object:
    return int(cell) if isinstance(cell, bool | float) and cell in range(10) else cell


def _answer(attempt: object) -> object:
    """Return the grid of an attempt; the official harness's is an object, its grid perhaps as JSON text."""
    if not isinstance(attempt, dict) or "answer" not in attempt:
        return attempt
    answer = attempt["answer"]
    try:
        return json.loads(answer) if isinstance(answer, str) else answer
    except (ValueError, RecursionError):
        return answer


def _pair_index(entry: object, position: int, num_outputs: int) -> int:
    """Return which output an entry answers: as the first attempt's metadata says, if it does, else its position."""
    for attempt in entry.values() if isinstance(entry, dict) else ():
        metadata = attempt.get("metadata") if isinstance(attempt, dict) else None
        index = metadata.get("pair_index") if isinstance(metadata, dict) else None
        if isinstance(index, int) and 0 <= index < num_outputs:
            return index
    return position


def _entry(grids: Sequence[Grid]) -> dict[str, list[list[int]]]:
    shown = [grid.tolist() for grid in grids[: len(ATTEMPTS)]] or [FILLER]
    return {name: shown[min(i, len(shown) - 1)] for i, name in enumerate(ATTEMPTS)}
