"""`run_evaluation`: a checkpoint answers sets of tasks; votes, scores, answers for the gallery, submission."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arc_ray.config import Config
from arc_ray.config.sources import CountingSource
from arc_ray.datasets import load_source
from arc_ray.encoders import encoder_named
from arc_ray.errors import UserError
from arc_ray.evaluate.answering import CountingWork, Work, answer_all, read_predictions
from arc_ray.evaluate.questions import make_batches, make_prompts
from arc_ray.model import load_tokenizer
from arc_ray.runs import claim, finish, is_finished, resolve_reference, run_folder
from arc_ray.scores import cell_accuracy, flat_record, score_attempts
from arc_ray.sources.counting import Answered, accuracy_by_kind, extent_of
from arc_ray.storage import Folder
from arc_ray.submission import write_submission
from arc_ray.tasks import Grid, Task, TaskTable, same_grid
from arc_ray.tokens import Codec
from arc_ray.train.driver import codec_of
from arc_ray.train.validation import make_validation
from arc_ray.vote import Attempts, Candidate, majority

Progress = Callable[[int, int], None]
Predictions = Mapping[tuple[str, int], list[dict[str, Any]]]


def run_evaluation(config: Config, progress: Progress, command: str = "evaluate") -> dict[str, Any]:
    """Answer the tasks of `evaluate.sets` and score them; goes on where it was cut off. Raises UserError.

    The run folder then holds predictions/, answers.json, submission.json and result.json with "<set>/<rule>" scores.
    """
    folder = run_folder(config)
    claim(folder, config, command)
    if is_finished(folder):
        return folder.read_json("result.json")
    _check_prompt(config)
    sets = {name: load_source(config.data.sources[name], Folder.at(config.storage)) for name in config.evaluate.sets}
    if not sets:
        raise UserError("evaluate.sets is empty: name at least one source to answer")
    tokenizer = load_tokenizer(config.model, config.storage)
    codec = dataclasses.replace(codec_of(config, tokenizer), learn="asked", _layouts={})
    works = {name: _works(config, codec, name, tasks, tokenizer) for name, tasks in sets.items()}
    every = [work for of_set in works.values() for work in of_set]
    answer_all(config, folder / "predictions", encoder_named(config.prompt.encoder), every, progress)
    result: dict[str, Any] = {"run": folder.name, "checkpoint": config.evaluate.checkpoint}
    answers: list[dict[str, Any]] = []
    submission: dict[str, Any] = {}
    for name, tasks in sets.items():
        if isinstance(config.data.sources[name], CountingSource):
            result |= _counting_scores(config, name, tasks, folder / "predictions")
        else:
            scores, of_set, attempts = _puzzle_scores(config, name, tasks, folder / "predictions", works[name])
            result |= scores
            answers += of_set
            submission |= write_submission(tasks, attempts)
    folder.write_json("answers.json", answers)
    folder.write_json("submission.json", submission)
    finish(folder, result)
    return result


def _works(config: Config, codec: Codec, name: str, tasks: Sequence[Task], tokenizer: Any) -> list[Any]:
    if isinstance(config.data.sources[name], CountingSource):
        pad_id = tokenizer.pad_token_id or 0
        single = TaskTable.of(one for task in tasks for one in _single_questions(task))
        questions = make_validation(codec, {name: single}, 1, config.train.row_tokens, pad_id)
        return [CountingWork(f"{name}.json", questions)]
    table = TaskTable.of(tasks)
    prompts = make_prompts(codec, table, config.evaluate, max_shown=config.view.max_shown)
    batches = make_batches(prompts, config.evaluate.batch_tokens)
    return [
        Work(f"{name}-{number:05d}.parquet", table.ids, tuple(prompts[i] for i in batch))
        for number, batch in enumerate(batches)
    ]


def _single_questions(task: Task) -> list[Task]:
    """One task per question, so that no answer stands in the prompt of another question."""
    return [
        dataclasses.replace(task, id=f"{task.id}:{i}", questions=(question,))
        for i, question in enumerate(task.questions)
    ]


def _counting_scores(config: Config, name: str, tasks: Sequence[Task], folder: Folder) -> dict[str, float]:
    source = config.data.sources[name]
    assert isinstance(source, CountingSource)
    right: Mapping[str, bool] = folder.read_json(f"{name}.json")
    records = [
        Answered(question.kind, *extent_of(task, source.connectivity), right[f"{name}/{task.id}:{i}/0"])
        for task in tasks
        for i, question in enumerate(task.questions)
    ]
    return {f"{name}/{key}": value for key, value in accuracy_by_kind(records).items()}


def _puzzle_scores(
    config: Config, name: str, tasks: Sequence[Task], folder: Folder, works: Sequence[Work]
) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, list[Attempts]]]:
    predictions = read_predictions(folder, works)
    voted: dict[str, list[Attempts]] = {}
    greedy: dict[str, list[Attempts]] = {}
    answers = []
    for task in tasks:
        for output, pair in enumerate(task.test):
            candidates = _candidates(predictions, task.id, output)
            first = tuple(c.grid for c in candidates if c.view == "same")
            attempts = majority(candidates)
            voted.setdefault(task.id, []).append(attempts)
            greedy.setdefault(task.id, []).append(first)
            answers.append(_answer(config, name, task, output, pair.output, attempts, first))
    if any(pair.output is None for task in tasks for pair in task.test):
        return {}, answers, voted
    scores = flat_record(score_attempts(tasks, voted), f"{name}/")
    scores |= flat_record(score_attempts(tasks, greedy), f"{name}/greedy/")
    return scores, answers, voted


def _candidates(predictions: Predictions, task_id: str, output: int) -> list[Candidate]:
    return [
        Candidate(np.array(json.loads(row["grid"]), np.uint8), row["log_probability"], row["view"])
        for row in predictions.get((task_id, output), ())
        if row["grid"]
    ]


def _answer(
    config: Config, name: str, task: Task, output: int, truth: Grid | None, attempts: Attempts, greedy: Attempts
) -> dict[str, Any]:
    """Describe one answered output for the gallery."""
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


def _check_prompt(config: Config) -> None:
    """Refuse a checkpoint that learned another prompt: it would answer, and be wrong for no visible reason."""
    if not config.evaluate.checkpoint:
        return
    folder = Folder.at(resolve_reference(config.evaluate.checkpoint, config.storage))
    if not folder.exists():
        raise UserError(f"evaluate.checkpoint {config.evaluate.checkpoint}: there is no such folder")
    about = folder.read_json("arc_ray.json")
    asked = {"format": config.prompt.format, "encoder": config.prompt.encoder}
    if about and about["prompt"] != asked:
        raise UserError(
            f"evaluate.checkpoint {config.evaluate.checkpoint} learned the prompt {about['prompt']}, the config says {asked};"
            f" set prompt.format and prompt.encoder to the checkpoint's"
        )
