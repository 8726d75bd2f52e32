"""`run_evaluation` asks (prompts), answers (predictions on disk) and chooses (votes, scores, gallery, submission).

The run folder holds predictions/ (and scores/ for a product of experts), one Parquet file a batch, and files.json beside
them once all are there: from then on choosing needs no model.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from arc_ray.config import Config
from arc_ray.config.searching import EvaluateConfig
from arc_ray.config.sources import GENERATED, AnySource, CountingSource
from arc_ray.datasets.reading import load_source
from arc_ray.decode.vllm import refuse_without_vllm
from arc_ray.errors import UserError
from arc_ray.evaluate.pool import Hosts, answer_all
from arc_ray.evaluate.predictions import distinct_answers, read_predictions, take_over, take_over_whole
from arc_ray.evaluate.questions import Work, make_prompts, works_of
from arc_ray.evaluate.results import REDONE, redone, select_answers
from arc_ray.models.weights import most_tokens, refuse_other_base
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import ENCODERS
from arc_ray.prompts.formats import Frame, format_named, needs_description
from arc_ray.prompts.sample import make_codec
from arc_ray.prompts.tokenizer import load_tokenizer, refuse_other_frame
from arc_ray.rows.guard import refuse_overlap
from arc_ray.rows.maker import make_validation
from arc_ray.rows.prepare import codec_of
from arc_ray.runs.folder import claim, is_finished, note_sets, resolve_reference, run_folder
from arc_ray.runs.shapes import CheckpointShape, DigestsShape, ResultShape
from arc_ray.runs.starts import lineage
from arc_ray.scores.attempts import BY_SCORES
from arc_ray.storage import Folder
from arc_ray.tasks.fingerprints import digest_tasks, refuse_changes
from arc_ray.tasks.selection import name_set
from arc_ray.tasks.task import Task, TaskTable

FIRST, SECOND = "describe", "implement"
"""Prompt formats of two players: the first describes each task in words from its shown pairs, the second draws outputs from
the words alone. The second answers twice, from the descriptions that came with the tasks and from those of the first; what
it loses from one to the other is the first player's share of the mistakes."""

Advance = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""


def run_evaluation(
    config: Config, progress: Advance, hosts: Hosts | None = None, others: Sequence[Config] = ()
) -> dict[str, Any]:
    """Answer the tasks of `evaluate.sets` and score them; goes on where it was cut off. Raises UserError.

    `hosts` are processes that other evaluations use as well; `others` are finished evaluations of the same checkpoint, from
    which answers are taken over.
    A finished folder is only selected from again, if one of `REDONE` is another one. The run folder then holds
    answers.json, submission.json (one for each set if there are several) and result.json with "<set>/<rule>" scores.
    """
    check_evaluation(config)
    folder, storage = run_folder(config), Folder.at(config.storage)
    is_open = needs_model(config.evaluate, folder)
    learned = refuse_overlap(config, lineage(config, trains=False), trains=False) if is_open else []
    claim(folder, config, "evaluate", tuple(REDONE))
    if is_finished(folder):
        result = folder.read_json("result.json", ResultShape)
        told = {key.rsplit(".", 1)[-1]: value for key, value in REDONE.items()} | result
        if told.items() >= redone(config).items():
            return result
    sets = {name: load_set(name, config.data.sources[name], storage) for name in config.evaluate.sets}
    if learned:
        folder.write_json("overlap.json", learned)
    note_sets(folder, {n: name_set(config.data.sources[n], TaskTable.of(sets[n]), config.storage) for n in sets})
    answer_sets(config, folder, sets, progress, hosts, others)
    return select_answers(config, folder, sets)


def answer_sets(
    config: Config,
    folder: Folder,
    sets: Mapping[str, Sequence[Task]],
    progress: Advance,
    hosts: Hosts | None,
    others: Sequence[Config],
) -> None:
    """Have tasks answered, by set, as far as they are not: predictions/ of the run folder. Raises UserError, also where the
    tasks are others than when it began; arguments as of `run_evaluation`."""
    tables = {name: TaskTable.of(tasks) for name, tasks in sets.items()}
    if folder.exists("tasks.json"):
        refuse_changes(folder.read_json("tasks.json", dict[str, DigestsShape]), tables, folder.uri)
    elif not folder.exists("predictions"):
        folder.write_json("tasks.json", {name: digest_tasks(table) for name, table in tables.items()})
    if needs_model(config.evaluate, folder):
        with nullcontext(hosts) if hosts else Hosts() as those:
            _answer(those, config, folder, sets, progress, others)


def check_evaluation(config: Config) -> None:
    """Refuse what no model and no data would make right. Raises UserError."""
    if not config.evaluate.sets:
        raise UserError("evaluate.sets is empty: name at least one source to answer")
    if config.evaluate.backend == "vllm" and "RAY_ADDRESS" not in os.environ:
        refuse_without_vllm()
    if config.evaluate.describer:
        first_player(config)
    ttt, format_name = config.evaluate.ttt, config.prompt.format
    if ttt and (ttt.symmetries or ttt.colors == "permute") and needs_description(format_named(format_name)):
        raise UserError(
            f"prompt.format={format_name} uses descriptions, which name colours and directions:"
            f" set evaluate.ttt.symmetries=false and evaluate.ttt.colors=keep, or leave them null"
        )


def first_player(config: Config) -> Config:
    """Return the config by which the first player answers. Raises UserError if the second is no second player."""
    if config.prompt.format != SECOND:
        raise UserError(
            f"evaluate.describer writes descriptions for a second player: set prompt.format={SECOND},"
            f" not {config.prompt.format}"
        )
    answering = {"checkpoint": config.evaluate.describer, "decode": "greedy", "constrain": False}
    prompt, evaluate = config.prompt.model_copy(update={"format": FIRST}), config.evaluate.model_copy(update=answering)
    return config.model_copy(update={"prompt": prompt, "evaluate": evaluate})


def needs_model(evaluate: EvaluateConfig, folder: Folder) -> bool:
    """Tell whether predictions, or the scores that the selection asks for, are still to be made in a run folder."""
    is_scored = evaluate.selection not in BY_SCORES or folder.exists("scores/files.json")
    is_tuned = not evaluate.ttt or folder.exists("tuning.json")
    return not (folder.exists("predictions/files.json") and is_scored and is_tuned)


def load_set(name: str, source: AnySource, storage: Folder) -> list[Task]:
    """Load the tasks of one of `evaluate.sets`. Raises UserError for a task with nothing to answer."""
    tasks = load_source(source, storage)
    for task in tasks:
        if not task.test and not task.questions:
            file = getattr(source, "path", None) or getattr(source, "challenges", None)
            raise UserError(
                f"evaluate.sets: {name}: {f'{file}: ' if file else ''}task {task.id} has no test pair to answer;"
                f" leave it out, or give examples that are cut into tasks (`shown: n` of a source)"
            )
    return tasks


def asking_codec(config: Config, tokenizer: Any) -> Codec:
    """Make the codec that writes the prompts of an evaluation. Raises UserError, also for a checkpoint that learned others."""
    codec = dataclasses.replace(codec_of(config, tokenizer), learn="asked")
    if config.evaluate.constrain and not codec.is_fast:
        others = {name: config.prompt.model_copy(update={"encoder": name}) for name in ENCODERS}
        with warnings.catch_warnings(action="ignore"):
            fitting = [name for name, prompt in others.items() if make_codec(tokenizer, prompt).is_fast]
        raise UserError(
            f"evaluate.constrain: with prompt.encoder {config.prompt.encoder} this tokenizer gives cells no tokens of"
            f" their own; set it to false, or train and evaluate with an encoder whose cells it keeps apart:"
            f" {', '.join(fitting) or 'there is none'}"
        )
    check_checkpoint(config, "checkpoint", codec.frame)
    return codec


def check_checkpoint(config: Config, key: str, frame: Frame | None = None) -> None:
    """Refuse a checkpoint of other weights or another prompt: it would answer, and be wrong for no visible reason.

    With `frame`, the texts around prompts count as well, as the tokenizer's chat template writes them now.
    """
    checkpoint = config.evaluate.checkpoint
    if not checkpoint:
        return
    folder, what = Folder.at(resolve_reference(checkpoint, config.storage)), f"evaluate.{key} {checkpoint}"
    if not folder.exists():
        raise UserError(f"{what}: there is no such folder")
    refuse_other_base(what, folder, config.model, config.storage, by_name=False)
    about = folder.read_json("arc_ray.json", CheckpointShape | None) or {}
    asked = config.prompt.model_dump(include={"format", "encoder", "positions"})
    learned = {"positions": "sequence"} | about.get("prompt", asked)  # older checkpoints know of no other
    if learned != asked:
        raise UserError(
            f"{what} learned the prompt {learned} ({folder.uri}/arc_ray.json), the config says {asked};"
            f" set prompt.format, prompt.encoder and prompt.positions to the checkpoint's"
        )
    if frame:
        refuse_other_frame(about.get("frame"), frame, what)


def _answer(
    hosts: Hosts,
    config: Config,
    folder: Folder,
    sets: Mapping[str, Sequence[Task]],
    progress: Advance,
    others: Sequence[Config],
) -> None:
    """Make the files of predictions, and of scores if the selection asks for them, that are not there yet."""
    evaluate = config.evaluate
    codec = asking_codec(config, load_tokenizer(config.model, config.storage))
    most = most_tokens(config.model, config.storage)
    sources = config.data.sources
    puzzles = {name: tasks for name, tasks in sets.items() if not isinstance(sources[name], CountingSource)}
    if evaluate.describer:
        first = first_player(config)
        check_checkpoint(first, "describer", codec.frame)
        described = _describe_sets(hosts, first, folder, puzzles, codec, most, partial(progress, "batches described"))
        puzzles |= {f"{name}{GENERATED}": tasks for name, tasks in described.items()}
    prompts = {name: make_prompts(codec, TaskTable.of(tasks), config, most) for name, tasks in puzzles.items()}
    predictions = folder / "predictions"
    works = {name: take_over(config, others, predictions, name, own) for name, own in prompts.items()}
    counting = {n: [_counting_work(config, codec, n, tasks)] for n, tasks in sets.items() if n not in puzzles}

    def make_files(folder: Folder, works: Mapping[str, Sequence[Work]], what: str) -> None:
        every = [work for own in works.values() for work in own]
        answer_all(hosts, config, folder, codec, every, partial(progress, what))
        folder.write_json("files.json", {name: [work.name for work in own] for name, own in works.items()})

    take_over_whole(config, others, folder, [*counting])
    make_files(predictions, works | counting, "batches answered")
    if evaluate.selection in BY_SCORES:
        scoring = dict[str, list[Work]]()
        for name, own in prompts.items():
            grids = distinct_answers(read_predictions(predictions, [work.name for work in works[name]]))
            scoring[name] = take_over(config, others, folder / "scores", name, own, grids)
        make_files(folder / "scores", scoring, "batches of candidates scored")
    if evaluate.ttt and not folder.exists("tuning.json"):
        from arc_ray.evaluate.ttt import tune_all, tuning_works  # with torch and transformers, seconds

        tuning = [work for name, tasks in puzzles.items() for work in tuning_works(name, tasks, works[name])]
        records = tune_all(hosts, config, folder / "tuned", codec, tuning, partial(progress, "tasks tuned"))
        folder.write_json("tuning.json", [{**r, "file": work.name} for work, r in zip(tuning, records, strict=True)])


def _describe_sets(
    hosts: Hosts,
    first: Config,
    folder: Folder,
    sets: Mapping[str, Sequence[Task]],
    codec: Codec,
    most_tokens: int | None,
    progress: Callable[[int, int], None],
) -> dict[str, list[Task]]:
    """Let the first player describe every task; return the sets with its descriptions in place of the given ones.

    `codec` is the second player's, `most_tokens` what their model reads alike. What the first player wrote is kept in
    describe/, and beside what was given in descriptions.json. A task that it says nothing about, or whose pairs do not
    fit into a prompt, has None. Raises UserError.
    """
    codec, place, evaluate = codec_of(first, codec.tokenizer), folder / FIRST, first.evaluate
    works: dict[str, list[Work]] = {}
    for name, tasks in sets.items():
        # The format has a place for a description, which prompts end before, and one for a test pair, never shown.
        table = TaskTable.of(dataclasses.replace(task, description="", test=task.test[:1]) for task in tasks)
        prompts = make_prompts(codec, table, first, most_tokens, evaluate.max_description_tokens)
        works[name] = works_of(name, prompts, evaluate)
    answer_all(hosts, first, place, codec, [work for own in works.values() for work in own], progress)
    described: dict[str, list[Task]] = {}
    told = []
    for name, tasks in sets.items():
        rows = [row for work in works[name] for row in place.read_parquet(work.name).to_pylist()]
        texts = {row["task"]: row["text"].strip() or None for row in rows}
        described[name] = [dataclasses.replace(task, description=texts.get(task.id)) for task in tasks]
        told += [
            {"set": name, "task": task.id, "given": task.description, "generated": texts.get(task.id)} for task in tasks
        ]
    folder.write_json("descriptions.json", told)
    return described


def _counting_work(config: Config, codec: Codec, name: str, tasks: Sequence[Task]) -> Work:
    """Ask each question alone, so that no answer stands in the prompt of another."""
    single = TaskTable.of(
        dataclasses.replace(task, id=f"{task.id}:{i}", questions=(question,))
        for task in tasks
        for i, question in enumerate(task.questions)
    )
    pad_id = codec.tokenizer.pad_token_id or 0
    return Work(f"{name}.json", questions=make_validation(codec, {name: single}, 1, config.train.row_tokens, pad_id))
