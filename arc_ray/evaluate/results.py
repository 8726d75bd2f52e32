"""What follows from the files of predictions: attempts, scores, gains, answers for the gallery, submissions, the result.

Scores stay nested by set, way of answering and rule until result.json is written (`scores.rules.flat_record`).
"""

import warnings
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from arc_ray.config import Config
from arc_ray.config.sources import GENERATED, CountingSource, KaggleSource
from arc_ray.evaluate.answering import read_predictions
from arc_ray.evaluate.choice import puzzle_scores
from arc_ray.evaluate.ttt import with_tuned
from arc_ray.runs.folder import finish
from arc_ray.scores.intervals import Effect, paired_effect
from arc_ray.scores.rules import Scores, flat_record
from arc_ray.scores.submission import write_submission
from arc_ray.scores.vote import Attempts
from arc_ray.storage import Folder
from arc_ray.tasks.arc import read_json
from arc_ray.tasks.counting import Answered, accuracy_by_kind, extent_of
from arc_ray.tasks.task import Task

REDONE = {"evaluate.selection": "majority", "evaluate.fill_submission": False, "study.confidence": 0.95}
"""Keys whose part is done again in a finished folder, with what held where an older result does not tell."""

Answers = Sequence[Mapping[str, Any]]
"""One record a test output, as answers.json has them."""


def select(config: Config, folder: Folder, sets: Mapping[str, Sequence[Task]]) -> dict[str, Any]:
    """Choose, score and write everything that follows from the files; return the result."""
    files = (folder / "predictions").read_json("files.json")
    result: dict[str, Any] = {"run": folder.name, "checkpoint": config.evaluate.checkpoint, **redone(config)}
    if learned := folder.read_json("overlap.json"):
        result["overlap"] = learned
    answers: dict[str, list[Mapping[str, Any]]] = {"answers": []}
    submissions: dict[str, dict[str, Any]] = {}
    for name, tasks in sets.items():
        if is_counting(config, name):
            result |= flat_record({name: _counting_scores(config, name, tasks, folder / "predictions")})
            continue
        scores, found, attempts = _puzzle_scores(config, folder, name, tasks, f"{name}{GENERATED}" in files)
        result |= flat_record({name: scores})
        for file, rows in found.items():
            answers.setdefault(file, []).extend(rows)
        submissions[name] = write_submission(tasks, attempts, _left_out(config, name, tasks))
    for file, rows in answers.items():
        folder.write_json(f"{file}.json", rows)
    for name, submission in submissions.items():
        folder.write_json("submission.json" if len(submissions) == 1 else f"submission-{name}.json", submission)
    finish(folder, result)
    return result


def _puzzle_scores(
    config: Config, folder: Folder, name: str, tasks: Sequence[Task], is_described: bool
) -> tuple[Scores, dict[str, Answers], dict[str, list[Attempts]]]:
    """Score a set in every way in which it was answered: scores, answers by the file that holds them, attempts."""
    files, score_files = ((folder / part).read_json("files.json") or {} for part in ("predictions", "scores"))

    def read(key: str) -> tuple[Any, Any]:
        predictions = read_predictions(folder / "predictions", files[key])
        return predictions, read_predictions(folder / "scores", score_files.get(key, ()))

    plain = read(name)
    scores, answers, attempts = puzzle_scores(
        config, name, tasks, *(with_tuned(folder, name, *plain) if config.evaluate.ttt else plain)
    )
    found = {"answers": answers}
    scores = {**scores, "voting": gain_of_voting(config, answers)}
    if config.evaluate.ttt:
        untuned, before, _ = puzzle_scores(config, f"{name}/untuned", tasks, *plain)
        found["answers-untuned"] = before
        scores["untuned"] = {**untuned, "voting": gain_of_voting(config, before)}
        scores["tuning"] = gain_of_tuning(config, answers, before)
    if is_described:
        generated, again, _ = puzzle_scores(config, f"{name}/generated", tasks, *read(f"{name}{GENERATED}"))
        found["answers-generated"] = again
        scores["generated"] = {**generated, **gain(config, again, answers)}
    return scores, found, attempts


def redone(config: Config) -> dict[str, Any]:
    """Return what a result says of the keys in `REDONE`."""
    return {key.rsplit(".", 1)[-1]: attrgetter(key)(config) for key in REDONE}


def is_counting(config: Config, name: str) -> bool:
    """Tell whether a set asks questions about grids, not for grids."""
    return isinstance(config.data.sources[name], CountingSource)


def gain(config: Config, better: Answers, worse: Answers) -> dict[str, Effect]:
    """Return, as "gain", how much larger a share of outputs `better` solves than `worse`.

    The interval, of level `study.confidence`, is of the differences, output by output (see `intervals.paired_effect`):
    two answers to one task have its difficulty in common, which intervals of two shares would count twice. Empty where
    outputs are hidden, and for fewer than two of them.
    """
    return _gain(config, better, [a["is_right"] for a in better], [a["is_right"] for a in worse])


def gain_of_voting(config: Config, answers: Answers) -> Scores:
    """Return what voting gains over the greedy answer of the plain view, with its first attempt alone and with both.

    ARC scores both, but greedy decoding has no second one. Empty where there is no greedy answer, or no other view.
    """
    evaluate = config.evaluate
    if evaluate.decode != "greedy" or evaluate.symmetries * evaluate.copies == 1:
        return {}
    greedy, both = _greedy_is_right(answers), [answer["is_right"] for answer in answers]
    first = [answer["truth"] in answer["attempts"][:1] for answer in answers]
    return {**_gain(config, answers, first, greedy), "two_attempts": _gain(config, answers, both, greedy)}


def gain_of_tuning(config: Config, tuned: Answers, untuned: Answers) -> Scores:
    """Return what test-time training gains in two attempts and, where answers are greedy, in the plain view's one."""
    found = gain(config, tuned, untuned)
    if config.evaluate.decode != "greedy":
        return found
    return {**found, "greedy": _gain(config, tuned, _greedy_is_right(tuned), _greedy_is_right(untuned))}


def _gain(config: Config, answers: Answers, better: Sequence[bool], worse: Sequence[bool]) -> dict[str, Effect]:
    if len(answers) < 2 or any(answer["truth"] is None for answer in answers):
        return {}
    arm, baseline = (np.array([right], np.float64) for right in (better, worse))
    return {"gain": paired_effect(arm, baseline, [answer["task"] for answer in answers], config.study.confidence)}


def _greedy_is_right(answers: Answers) -> list[bool]:
    return [answer["truth"] == answer["greedy"] for answer in answers]


def _left_out(config: Config, name: str, tasks: Sequence[Task]) -> dict[str, int]:
    """Return the number of outputs of each task of a Kaggle file that is to be added to a submission; warn of a gap."""
    source = config.data.sources[name]
    if not isinstance(source, KaggleSource):
        return {}
    answered = {task.id for task in tasks}
    outputs = {task_id: len(record["test"]) for task_id, record in read_json(source.challenges).items()}
    missing = {task_id: number for task_id, number in outputs.items() if task_id not in answered}
    if missing and not config.evaluate.fill_submission:
        warnings.warn(
            f"submission of {name}: it lacks {len(missing)} of the {len(outputs)} tasks of {source.challenges}, which the"
            f" source leaves out, and a competition takes whole files only; evaluate.fill_submission=true fills them in",
            stacklevel=2,
        )
    return missing if config.evaluate.fill_submission else {}


def _counting_scores(config: Config, name: str, tasks: Sequence[Task], folder: Folder) -> dict[str, float]:
    source = config.data.sources[name]
    assert isinstance(source, CountingSource)
    right: Mapping[str, bool] = folder.read_json(f"{name}.json")
    return accuracy_by_kind(
        Answered(question.kind, *extent_of(task, source.connectivity), right[f"{name}/{task.id}:{i}/0"])
        for task in tasks
        for i, question in enumerate(task.questions)
    )
