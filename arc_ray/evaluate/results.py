"""What follows from the files of predictions: attempts, scores, gains, answers for the gallery, submissions, the result.

Only files are read, so it can be redone at any time without a model. Scores are found by set, way of answering and rule;
`scores.records.flat_record` names them once result.json is written.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from arc_ray.config import Config
from arc_ray.config.searching import EvaluateConfig
from arc_ray.config.sources import GENERATED, CountingSource, KaggleSource
from arc_ray.contents import damaged, parse_json
from arc_ray.errors import UserError
from arc_ray.evaluate.curves import answer_curves
from arc_ray.evaluate.predictions import SCORES_SUFFIX, Predictions, candidates_of, choose, grid_of, read_predictions
from arc_ray.runs.folder import finish
from arc_ray.runs.shapes import FilesShape, RunShape, TunedShape
from arc_ray.scores.attempts import BY_SCORES, SELECTIONS, Attempts, Score, cell_accuracy, score_attempts, score_samples
from arc_ray.scores.intervals import Effect, paired_effect
from arc_ray.scores.losses import ending_of
from arc_ray.scores.records import FloatArray, Interval, ScorePath, flat_record
from arc_ray.scores.submission import write_submission
from arc_ray.storage import Folder
from arc_ray.tasks.arc import read_json
from arc_ray.tasks.counting import Answered, accuracy_by_kind, extent_of
from arc_ray.tasks.task import Grid, Task, same_grid

REDONE = {"evaluate.selection": "majority", "evaluate.fill_submission": False, "study.confidence": 0.95}
"""Keys whose part is done again in a finished folder, with what held where an older result does not tell."""

Answers = Sequence[Mapping[str, Any]]
"""One record a test output, as answers.json has them."""
Ways = Mapping[str, Answers]
"""A set's answers by how they were found: "" as the config says, "untuned" without test-time training, "generated" from
the describer's words. Each way has a file, answers-<way>.json."""


def select_answers(config: Config, folder: Folder, sets: Mapping[str, Sequence[Task]]) -> dict[str, Any]:
    """Choose, score and write everything that follows from the files; return the result."""
    result: dict[str, Any] = {"run": folder.name, "checkpoint": config.evaluate.checkpoint, **redone(config)}
    about = folder.read_json("run.json", RunShape) or {}
    result |= {f"{name}/version": version for name, version in about.get("sets", {}).items()}
    if learned := folder.read_json("overlap.json", list[str]):
        result["overlap"] = learned
    records = folder.read_json("tuning.json", list[TunedShape]) if config.evaluate.ttt else []
    answers: dict[str, list[Mapping[str, Any]]] = {"": []}
    submissions: dict[str, dict[str, Any]] = {}
    curves: list[dict[str, Any]] = []
    for name, tasks in sets.items():
        source = config.data.sources[name]
        if isinstance(source, CountingSource):
            right = folder.read(f"predictions/{name}.json", partial(parse_json, shape=dict[str, bool]))
            with damaged(f"{folder.uri}/predictions/{name}.json"):
                scores = _counting_scores(source, name, tasks, right)
            result |= {f"{name}/{key}": value for key, value in scores.items()}
            continue
        tuned = [record for record in records if record["set"] == name and record["status"] == "tuned"]
        predicted = _predicted(config, folder, name, tuned)
        scores, ways, attempts = _scores_of_ways(config, name, tasks, predicted)
        tuning = {record["task"]: record.get("tuning_seconds") for record in tuned}
        curves += answer_curves(config.evaluate, name, tasks, *predicted[""], tuning)
        result |= flat_record(scores)
        for way, rows in ways.items():
            answers.setdefault(way, []).extend(rows)
        submissions[name] = write_submission(tasks, attempts, _left_out(config, name, tasks))
    for way, rows in answers.items():
        folder.write_json(f"answers-{way}.json" if way else "answers.json", rows)
    folder.write_json("curves.json", curves)
    for name, submission in submissions.items():
        folder.write_json("submission.json" if len(submissions) == 1 else f"submission-{name}.json", submission)
    finish(folder, result)
    return result


def redone(config: Config) -> dict[str, Any]:
    """Return what a result says of the keys in `REDONE`."""
    return {key.rsplit(".", 1)[-1]: attrgetter(key)(config) for key in REDONE}


def _predicted(
    config: Config, folder: Folder, name: str, tuned: Sequence[TunedShape]
) -> dict[str, tuple[Predictions, Predictions]]:
    """Read the predictions of a set, and what scores there are of them, by the way in which it was answered."""
    files, score_files = (
        folder.read_json(f"{part}/files.json", FilesShape) or {} for part in ("predictions", "scores")
    )

    def read(key: str) -> tuple[Predictions, Predictions]:
        if key not in files:
            raise UserError(
                f"{folder.uri}/predictions/files.json names no predictions of {key}; put a whole copy there"
            )
        predictions = read_predictions(folder / "predictions", files[key])
        return predictions, read_predictions(folder / "scores", score_files.get(key, ()))

    plain = read(name)
    predicted = {"": _with_tuned(folder, tuned, *plain), "untuned": plain} if config.evaluate.ttt else {"": plain}
    if f"{name}{GENERATED}" in files:
        predicted["generated"] = read(f"{name}{GENERATED}")
    return predicted


def _scores_of_ways(
    config: Config, name: str, tasks: Sequence[Task], predicted: Mapping[str, tuple[Predictions, Predictions]]
) -> tuple[dict[ScorePath, Interval], Ways, dict[str, list[Attempts]]]:
    """Score a set in every way in which it was answered: scores, answers, and the attempts that are submitted."""
    scores: dict[ScorePath, Interval] = {}
    answers: dict[str, Answers] = {}
    submitted: dict[str, list[Attempts]] = {}
    for way, rows in predicted.items():
        path = (name, way) if way else (name,)
        found, answers[way], attempts = puzzle_scores(config, "/".join(path), tasks, *rows)
        scores |= {(*path, *rule): score for rule, score in found.items()}
        submitted = submitted if way else attempts
    scores |= {(name, *path): effect for path, effect in gains(config, answers).items()}
    return scores, answers, submitted


def _with_tuned(
    folder: Folder, records: Sequence[TunedShape], predictions: Predictions, scores: Predictions
) -> tuple[Predictions, Predictions]:
    """Put the predictions and scores of tuned models over a set's untuned ones, for every task that was tuned."""
    tuned = {record["task"] for record in records}
    kept = {key: rows for key, rows in scores.items() if key[0] not in tuned}
    answered, scored = (
        read_predictions(folder / "tuned", [f"{record['file']}{kind}.parquet" for record in records])
        for kind in ("", SCORES_SUFFIX)
    )
    return {**predictions, **answered}, {**kept, **scored}


def puzzle_scores(
    config: Config, name: str, tasks: Sequence[Task], predictions: Predictions, scores: Predictions
) -> tuple[dict[ScorePath, Score], list[dict[str, Any]], dict[str, list[Attempts]]]:
    """Choose attempts for a set: return its scores, an answer for the gallery a test output, and the attempts.

    `scores` are needed for the selections `BY_SCORES` only. Without the outputs of all tasks there are no scores.
    """
    evaluate, confidence = config.evaluate, config.study.confidence
    chosen: dict[str, list[Attempts]] = {task.id: [] for task in tasks}
    greedy: dict[str, list[Attempts]] = {task.id: [] for task in tasks}
    samples: dict[str, list[list[Grid | None]]] = {task.id: [] for task in tasks}
    answers = []
    # Tasks that were not tuned have no scores, unless the selection asks for them.
    is_scored = all(scores.get(key) for key, rows in predictions.items() if any(row["grid"] for row in rows))
    for task in tasks:
        for i in range(len(task.test)):
            rows, scored = (part.get((task.id, i), ()) for part in (predictions, scores))
            attempts = choose(evaluate.selection, rows, scored)
            # What the plain view gives by itself, where there is one answer to it.
            alone = tuple(c.grid for c in candidates_of(rows) if c.view == "same" and evaluate.decode == "greedy")
            chosen[task.id].append(attempts)
            greedy[task.id].append(alone)
            samples[task.id].append([grid_of(row) for row in rows])
            answer = _answer(name, task, i, config.view.max_shown, attempts, alone)
            if (truth := task.test[i].output) is not None:
                read = samples[task.id][-1]
                answer["ending"] = ending_of(truth, attempts, read, task.test[i].input, was_asked=bool(rows))
                answer["right_by"] = {
                    rule: any(same_grid(truth, grid) for grid in choose(rule, rows, scored))
                    for rule in SELECTIONS
                    if is_scored or rule not in BY_SCORES
                }
            answers.append(answer)
    if any(pair.output is None for task in tasks for pair in task.test):
        return {}, answers, chosen
    found = score_attempts(tasks, chosen, confidence)
    found |= score_samples(tasks, samples, _sample_sizes(evaluate), confidence)
    found["vote_at_2"] = found["per_output"]  # its name beside pass_at_<n>
    by_path = {(rule,): score for rule, score in found.items()}
    if evaluate.decode == "greedy":
        by_path |= {("greedy", rule): score for rule, score in score_attempts(tasks, greedy, confidence).items()}
    return by_path, answers, chosen


def _sample_sizes(evaluate: EvaluateConfig) -> list[int]:
    """Return the n of pass_at_<n> that there are predictions for; search finds a number that is nobody's choice."""
    if evaluate.decode == "search":
        return []
    total = evaluate.symmetries * evaluate.copies * (evaluate.samples if evaluate.decode == "sample" else 1)
    return [n for n in (1, 2, 8, 64) if n <= total]


def _answer(name: str, task: Task, output: int, max_shown: int, attempts: Attempts, greedy: Attempts) -> dict[str, Any]:
    """Describe one answered output for the gallery."""
    truth = task.test[output].output
    return {
        "set": name,
        "task": task.id,
        "output": output,
        "shown": [{"input": p.input.tolist(), "output": _listed(p.output)} for p in task.train[:max_shown]],
        "input": task.test[output].input.tolist(),
        "truth": _listed(truth),
        "attempts": [grid.tolist() for grid in attempts],
        "greedy": _listed(greedy[0] if greedy else None),
        "is_right": any(same_grid(truth, grid) for grid in attempts),
        "cell_accuracy": max((cell_accuracy(truth, g) for g in attempts), default=0.0) if truth is not None else 0.0,
    }


def _listed(grid: Grid | None) -> list[list[int]] | None:
    return None if grid is None else grid.tolist()


def gains(config: Config, ways: Ways) -> dict[ScorePath, Effect]:
    """Return what ways of answering gain over others, as far as the config has them.

    The interval, of level `study.confidence`, is of the differences, output by output (see `intervals.paired_effect`):
    two answers to one task have its difficulty in common, which intervals of two shares would count twice. Empty where
    outputs are hidden, and for fewer than two of them.
    """
    answers, evaluate = ways[""], config.evaluate
    if len(answers) < 2 or any(answer["truth"] is None for answer in answers):
        return {}
    is_greedy = evaluate.decode == "greedy"
    is_voted = is_greedy and evaluate.symmetries * evaluate.copies > 1
    tasks = [answer["task"] for answer in answers]
    return {
        path: paired_effect(better[None], worse[None], tasks, config.study.confidence)
        for path, (better, worse) in compared(ways).items()
        if (is_voted if "voting" in path else is_greedy or "greedy" not in path)
    }


def compared(ways: Ways) -> dict[ScorePath, tuple[FloatArray, FloatArray]]:
    """Return path -> which outputs are right (1.0) by the better way and by the worse, (num_outputs,) each.

    Voting gains over the greedy answer of the plain view, with its first attempt alone and with both: ARC scores both,
    but greedy decoding has no second one. Tuning gains in two attempts and in the plain view's greedy one.
    """
    right = {way: right_answers(answers) for way, answers in ways.items()}
    found = {}
    for way, (first, both, greedy) in right.items():
        if way != "generated":
            path = (way, "voting") if way else ("voting",)
            found[*path, "gain"], found[*path, "two_attempts", "gain"] = (first, greedy), (both, greedy)
    _, both, greedy = right[""]
    if "untuned" in right:
        _, untuned, untuned_greedy = right["untuned"]
        found["tuning", "gain"], found["tuning", "greedy", "gain"] = (both, untuned), (greedy, untuned_greedy)
    if "generated" in right:
        found["generated", "gain"] = right["generated"][1], both
    return found


def right_answers(answers: Answers) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return which outputs are right (1.0) by the first attempt, by one of both, and by the greedy answer."""
    first = [answer["truth"] in answer["attempts"][:1] for answer in answers]
    both = [answer["is_right"] for answer in answers]
    greedy = [answer["truth"] == answer["greedy"] for answer in answers]
    return np.array(first, np.float64), np.array(both, np.float64), np.array(greedy, np.float64)


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


def _counting_scores(
    source: CountingSource, name: str, tasks: Sequence[Task], right: Mapping[str, bool]
) -> dict[str, float]:
    return accuracy_by_kind(
        Answered(question.kind, *extent_of(task, source.connectivity), right[f"{name}/{task.id}:{i}/0"])
        for task in tasks
        for i, question in enumerate(task.questions)
    )
