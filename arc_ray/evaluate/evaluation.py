"""`run_evaluation`: a checkpoint answers sets of tasks; votes, scores, answers for the gallery, submission.

The run folder holds predictions/ (and scores/ for a product of experts), one Parquet file a batch, and files.json beside
them once all are there: from then on selection needs no model.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from arc_ray.config import Config, with_overrides
from arc_ray.config.sources import GENERATED
from arc_ray.datasets.reading import load_source
from arc_ray.errors import UserError
from arc_ray.evaluate.answering import answer_all
from arc_ray.evaluate.questions import make_prompts, rows_of
from arc_ray.evaluate.results import REDONE, is_counting, redone, select_answers
from arc_ray.evaluate.ttt import check_tuning, tune_sets
from arc_ray.evaluate.two_players import describe_sets, first_player
from arc_ray.evaluate.work import Work, answering_works, read_predictions, scoring_works
from arc_ray.models.weights import most_tokens
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import ENCODERS, encoder_named
from arc_ray.prompts.formats import Frame
from arc_ray.prompts.tokenizer import load_tokenizer, refuse_other_frame
from arc_ray.rows.guard import refuse_overlap
from arc_ray.rows.maker import make_validation
from arc_ray.rows.prepare import codec_of
from arc_ray.runs.base import refuse_other_base
from arc_ray.runs.folder import claim, is_finished, resolve_reference, run_folder
from arc_ray.runs.starts import lineage
from arc_ray.storage import Folder
from arc_ray.tasks.fingerprints import digest_tasks, refuse_changes
from arc_ray.tasks.task import Task, TaskTable

Advance = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""
Sets = Mapping[str, Sequence[Task]]


def run_evaluation(config: Config, progress: Advance, command: str = "evaluate") -> dict[str, Any]:
    """Answer the tasks of `evaluate.sets` and score them; goes on where it was cut off. Raises UserError.

    A finished folder is only selected from again, if one of `REDONE` is another one. The run folder then holds
    answers.json, submission.json (one for each set if there are several) and result.json with "<set>/<rule>" scores.
    """
    check_evaluation(config)
    folder = run_folder(config)
    learned = refuse_overlap(config, lineage(config, trains=False), trains=False) if needs_model(config) else []
    claim(folder, config, command, tuple(REDONE))
    if is_finished(folder):
        result = folder.read_json("result.json")
        told = {key.rsplit(".", 1)[-1]: value for key, value in REDONE.items()} | result
        if told.items() >= redone(config).items():
            return result
    sets = {name: load_set(config, name) for name in config.evaluate.sets}
    _refuse_changes(folder, sets)
    if needs_model(config):
        if learned:
            folder.write_json("overlap.json", learned)
        _answer(config, folder, sets, progress)
    return select_answers(config, folder, sets)


def _refuse_changes(folder: Folder, sets: Sets) -> None:
    """Keep what the sets were when the folder began; refuse answers to other tasks beside those that are there."""
    tables = {name: TaskTable.of(tasks) for name, tasks in sets.items()}
    if folder.exists("tasks.json"):
        refuse_changes(folder.read_json("tasks.json"), tables, folder.uri)
    elif not folder.exists("predictions"):
        folder.write_json("tasks.json", {name: digest_tasks(table) for name, table in tables.items()})


def needs_model(config: Config) -> bool:
    """Tell whether predictions, or the scores that a product of experts adds up, are still to be made."""
    folder = run_folder(config)
    is_scored = config.evaluate.selection != "product_of_experts" or folder.exists("scores/files.json")
    is_tuned = not config.evaluate.ttt or folder.exists("tuning.json")
    return not (folder.exists("predictions/files.json") and is_scored and is_tuned)


def check_evaluation(config: Config) -> None:
    """Refuse what no model and no data would make right. Raises UserError."""
    if not config.evaluate.sets:
        raise UserError("evaluate.sets is empty: name at least one source to answer")
    if config.evaluate.ttt:
        check_tuning(config, config.evaluate.ttt)
    if config.evaluate.describer:
        first_player(config)


def asking_codec(config: Config, tokenizer: Any) -> Codec:
    """Make the codec that writes the prompts of an evaluation. Raises UserError."""
    codec = dataclasses.replace(codec_of(config, tokenizer), learn="asked")
    _check_frame(config, "checkpoint", codec.frame)
    if config.evaluate.constrain and not codec.is_fast:
        others = {name: with_overrides(config, {"prompt.encoder": name}) for name in ENCODERS}
        with warnings.catch_warnings(action="ignore"):
            fitting = [name for name, other in others.items() if codec_of(other, tokenizer).is_fast]
        raise UserError(
            f"evaluate.constrain: with prompt.encoder {config.prompt.encoder} this tokenizer gives cells no tokens of"
            f" their own; set it to false, or train and evaluate with an encoder whose cells it keeps apart:"
            f" {', '.join(fitting) or 'there is none'}"
        )
    return codec


def _answer(config: Config, folder: Folder, sets: Sets, progress: Advance) -> None:
    """Make the files of predictions, and of scores if the selection asks for them, that are not there yet."""
    check_prompt(config, "checkpoint")
    tokenizer = load_tokenizer(config.model, config.storage)
    codec = asking_codec(config, tokenizer)
    puzzles = {name: tasks for name, tasks in sets.items() if not is_counting(config, name)}
    if config.evaluate.describer:
        check_prompt(first_player(config), "describer")
        _check_frame(first_player(config), "describer", codec.frame)
        described = describe_sets(config, folder, puzzles, tokenizer, partial(progress, "batches described"))
        puzzles |= {f"{name}{GENERATED}": tasks for name, tasks in described.items()}
    most = most_tokens(config.model, config.storage)
    prompts = {name: make_prompts(codec, TaskTable.of(tasks), config, most) for name, tasks in puzzles.items()}
    tokens, rows = config.evaluate.batch_tokens, rows_of(config.evaluate)
    works = {name: answering_works(name, own, tokens, rows) for name, own in prompts.items()}
    counting = {n: [_counting_work(config, codec, n, tasks)] for n, tasks in sets.items() if n not in puzzles}
    _make_files(config, folder / "predictions", {**works, **counting}, partial(progress, "batches answered"))
    if config.evaluate.selection == "product_of_experts":
        there, files = folder / "predictions", folder.read_json("predictions/files.json")
        scoring = {
            name: scoring_works(name, own, read_predictions(there, files[name]), tokens)
            for name, own in prompts.items()
        }
        _make_files(config, folder / "scores", scoring, partial(progress, "batches of candidates scored"))
    if config.evaluate.ttt and not folder.exists("tuning.json"):
        tune_sets(config, folder, puzzles, works, partial(progress, "tasks tuned"))


def _make_files(
    config: Config, folder: Folder, works: Mapping[str, Sequence[Work]], progress: Callable[[int, int], None]
) -> None:
    """Do the works of every set, then write which files are whose."""
    every = [work for part in works.values() for work in part]
    answer_all(config, folder, encoder_named(config.prompt.encoder), every, progress)
    folder.write_json("files.json", {name: [work.name for work in part] for name, part in works.items()})


def _counting_work(config: Config, codec: Codec, name: str, tasks: Sequence[Task]) -> Work:
    single = TaskTable.of(one for task in tasks for one in _single_questions(task))
    pad_id = codec.tokenizer.pad_token_id or 0
    questions = make_validation(codec, {name: single}, 1, config.train.row_tokens, pad_id)
    return Work(f"{name}.json", questions=questions)


def _single_questions(task: Task) -> list[Task]:
    """One task per question, so that no answer stands in the prompt of another question."""
    return [
        dataclasses.replace(task, id=f"{task.id}:{i}", questions=(question,))
        for i, question in enumerate(task.questions)
    ]


def load_set(config: Config, name: str) -> list[Task]:
    """Load the tasks of one of `evaluate.sets`. Raises UserError for a task with nothing to answer."""
    source = config.data.sources[name]
    tasks = load_source(source, Folder.at(config.storage))
    for task in tasks:
        if not task.test and not task.questions:
            file = getattr(source, "path", None) or getattr(source, "challenges", None)
            raise UserError(
                f"evaluate.sets: {name}: {f'{file}: ' if file else ''}task {task.id} has no test pair to answer;"
                f" leave it out, or give examples that are cut into tasks (`shown: n` of a source)"
            )
    return tasks


def check_prompt(config: Config, key: str) -> None:
    """Refuse a checkpoint of other weights or another prompt: it would answer, and be wrong for no visible reason."""
    checkpoint = config.evaluate.checkpoint
    if not checkpoint:
        return
    folder = Folder.at(resolve_reference(checkpoint, config.storage))
    if not folder.exists():
        raise UserError(f"evaluate.{key} {checkpoint}: there is no such folder")
    refuse_other_base(f"evaluate.{key} {checkpoint}", folder, config.model.base, config.storage, by_name=False)
    about = folder.read_json("arc_ray.json")
    asked = {"format": config.prompt.format, "encoder": config.prompt.encoder}
    if about and about["prompt"] != asked:
        raise UserError(
            f"evaluate.{key} {checkpoint} learned the prompt {about['prompt']}, the config says {asked};"
            f" set prompt.format and prompt.encoder to the checkpoint's"
        )


def _check_frame(config: Config, key: str, frame: Frame) -> None:
    """Refuse a checkpoint whose prompts stood between other texts than the tokenizer's chat template writes now."""
    checkpoint = config.evaluate.checkpoint
    if checkpoint:
        about = Folder.at(resolve_reference(checkpoint, config.storage)).read_json("arc_ray.json") or {}
        refuse_other_frame(about.get("frame"), frame, f"evaluate.{key} {checkpoint}")
