"""Test-time training over the cluster: one work item an ARC task, longest first, on a pool of actors that hold the model.

An actor keeps the model between tasks and starts each from the same weights, so order and number of workers change
nothing but the time. Answers are kept as they come, a Parquet file a task and then its record: a killed evaluation
goes on. Every task has been answered untuned before, so one whose turn does not come keeps those answers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any

import pyarrow as pa
import torch

from arc_ray.cluster.roles import reachable_room
from arc_ray.config import Config
from arc_ray.config.searching import TttConfig
from arc_ray.errors import TooLargeError, UserError
from arc_ray.evaluate.adapter import Adapter, leave_one_out_batches, tuning_seed
from arc_ray.evaluate.answering import Answerer
from arc_ray.evaluate.pool import Pool
from arc_ray.evaluate.questions import Prompt, rows_of
from arc_ray.evaluate.work import (
    SCORES,
    Predictions,
    Work,
    answering_works,
    by_output,
    read_predictions,
    scoring_works,
)
from arc_ray.models.attention import place
from arc_ray.models.build import load_for_tuning
from arc_ray.prompts.encoders import Encoder, encoder_named
from arc_ray.prompts.formats import format_named, needs_description
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.prepare import codec_of
from arc_ray.storage import Folder
from arc_ray.tasks.task import Task, without_tests
from arc_ray.train.loop import NonFiniteLossError

Record = dict[str, Any]
"""What became of a task: set, task, status (one of STATUSES), seconds, and if tuned first_loss and last_loss."""

TASK_FAILURES = (NonFiniteLossError, TooLargeError)
"""What only one task need have: no other is given up for it, and it is not tried again."""

SCORES_SUFFIX = "-scores"

STATUSES = ("tuned", "no_views", "budget", "failed")
"""Tuned; nothing to learn from (fewer than two shown pairs, or all too long); out of time; failed at every attempt."""


def tuning_works(set_name: str, tasks: Sequence[Task], works: Sequence[Work]) -> list[Work]:
    """Make a work of each task that has a prompt; `works` are the set's, as they are answered untuned."""
    prompts: dict[str, list[Prompt]] = {}
    for prompt in chain.from_iterable(work.prompts for work in works):
        prompts.setdefault(prompt.task, []).append(prompt)
    return [
        Work(f"{set_name}-{i:05d}", tuple(prompts[task.id]), task=without_tests(task), set_name=set_name)
        for i, task in enumerate(tasks)
        if task.id in prompts
    ]


class Tuner:
    """A model that is tuned on one task after another; each actor of the pool holds one."""

    def __init__(self, config: Config, ttt: TttConfig, folder: Folder, encoder: Encoder) -> None:
        self._config, self._ttt, self._folder, self._encoder = config, ttt, folder, encoder

    def load(self) -> None:
        """Load the model. Raises UserError."""
        config, ttt = self._config, self._ttt
        # Not the machine's cores shared among the workers: sums would round differently on another number of workers.
        torch.set_num_threads(config.scaling.threads or max(1, int(config.scaling.cpus_per_worker)))
        fresh = ttt.adapter == "new"
        model: Any = load_for_tuning(
            config.model, config.storage, config.evaluate.checkpoint, fresh, config.seed, config.train.row_tokens
        )
        model = place(model, config.scaling.on_gpu)
        if config.scaling.on_gpu and config.model.dtype != "float32":
            # An adapter with dropout or DoRA, which is not fused, multiplies in float32 beside a bfloat16 model.
            torch.set_float32_matmul_precision("high")
        self._model, self._adapter = model, Adapter(model)
        # Rows at once were chosen for a whole GPU.
        rows = int(config.train.rows_at_once * (ttt.gpus if config.scaling.on_gpu else 1))
        self._train = config.train.model_copy(update={"micro_rows": max(1, rows)})
        self._answerer = Answerer(config, self._folder, self._encoder, model.get_base_model())
        self._codec = codec_of(config, load_tokenizer(config.model, config.storage))

    def do(self, work: Work) -> Record:
        """Tune on a task and write its answers; return its record."""
        from arc_ray.models.fused import merged  # peft takes seconds to import

        assert work.task, "there is nothing to tune on"
        begun, record = time.monotonic(), {"set": work.set_name, "task": work.task.id}
        batches = leave_one_out_batches(self._config, self._ttt, self._codec, work.set_name, work.task)
        if not batches:
            return {**record, "status": "no_views", "seconds": 0.0}
        seed = tuning_seed(self._config, work.set_name, work.task.id)
        first, last = self._adapter.tune(batches, self._train, self._ttt.lr, seed)
        # On the CPU products take the time, not kernels, and unmerged answers are what old evaluations go on with.
        with merged(self._model) if self._config.scaling.on_gpu else nullcontext():
            answers, scores = self._answer(work)
        self._folder.write_parquet(f"{work.name}.parquet", answers)
        self._folder.write_parquet(f"{work.name}{SCORES_SUFFIX}.parquet", scores)
        seconds = round(time.monotonic() - begun, 3)
        return {**record, "status": "tuned", "seconds": seconds, "first_loss": first, "last_loss": last}

    def _answer(self, work: Work) -> tuple[pa.Table, pa.Table]:
        """Answer the prompts of a task and score all candidates under all of its views."""
        tokens, rows = self._config.evaluate.batch_tokens, rows_of(self._config.evaluate)
        answering = answering_works(work.name, work.prompts, tokens, rows)
        answers = pa.concat_tables([self._answerer.predict(part) for part in answering])
        scoring = scoring_works(work.name, work.prompts, by_output(answers.to_pylist()), tokens)
        return answers, pa.concat_tables([SCORES.empty_table(), *(self._answerer.score(part) for part in scoring)])


def check_tuning(config: Config, ttt: TttConfig) -> None:
    """Refuse views that would make a description wrong. Raises UserError."""
    if needs_description(format_named(config.prompt.format)) and (ttt.symmetries or ttt.colors == "permute"):
        raise UserError(
            f"prompt.format={config.prompt.format} uses descriptions, which name colours and directions:"
            f" set evaluate.ttt.symmetries=false and evaluate.ttt.colors=keep, or leave them null"
        )


def tune_sets(
    config: Config,
    folder: Folder,
    sets: Mapping[str, Sequence[Task]],
    works: Mapping[str, Sequence[Work]],
    progress: Callable[[int, int], None],
) -> None:
    """Tune on the puzzles of every set and answer them; `works` are the prompts of each set.

    Answers, and scores of their candidates under all views, are kept in tuned/ (the adapters are not, so whatever
    selection may ask for is made now), what became of each task in tuning.json. Raises UserError.
    """
    ttt = config.evaluate.ttt
    assert ttt, "evaluate.ttt is null"
    tasks = [work for name in sets for work in tuning_works(name, sets[name], works[name])]
    encoder = encoder_named(config.prompt.encoder)
    records = tune_all(config, ttt, folder / "tuned", encoder, tasks, progress)
    folder.write_json("tuning.json", [{**r, "file": work.name} for work, r in zip(tasks, records, strict=True)])


def with_tuned(folder: Folder, name: str, predictions: Predictions, scores: Predictions) -> tuple[Predictions, ...]:
    """Put the predictions and scores of tuned models over a set's untuned ones, for every task that was tuned."""
    records = [r for r in folder.read_json("tuning.json") if r["set"] == name and r["status"] == "tuned"]
    tuned = {record["task"] for record in records}
    kept = {key: rows for key, rows in scores.items() if key[0] not in tuned}
    answered, scored = (
        read_predictions(folder / "tuned", [f"{record['file']}{kind}.parquet" for record in records])
        for kind in ("", SCORES_SUFFIX)
    )
    return {**predictions, **answered}, {**kept, **scored}


def tune_all(
    config: Config,
    ttt: TttConfig,
    folder: Folder,
    encoder: Encoder,
    works: Sequence[Work],
    progress: Callable[[int, int], None],
) -> list[Record]:
    """Tune and answer every task that has no record yet, within the budget; return the records of all, in their order.

    `progress` gets (done, total). Raises UserError, and whatever failed where no task could be tuned at all.
    """
    records: dict[str, Record] = {
        work.name: found for work in works if (found := folder.read_json(f"{work.name}.json"))
    }
    spent = max((record["at"] for record in records.values()), default=0.0)
    left = sorted((work for work in works if work.name not in records), key=lambda work: (-work.size, work.name))
    progress(len(records), len(works))
    begun = time.monotonic() - spent
    pool = Pool(
        config,
        Tuner,
        (config, ttt, folder, encoder),
        ttt.num_workers or _room(config, ttt),
        gpus=ttt.gpus,
        retries=ttt.retries,
        deadline=begun + ttt.budget_seconds if ttt.budget_seconds else None,
        own_failures=TASK_FAILURES,
    )
    failures: dict[str, Exception] = {}
    for work, outcome in pool.run(left):
        if isinstance(outcome, Exception):
            failures[work.name] = outcome
            continue
        records[work.name] = {**outcome, "at": round(time.monotonic() - begun, 3)}
        folder.write_json(f"{work.name}.json", records[work.name])
        progress(len(records), len(works))
    if failures and len(failures) == len(works):
        raise next(iter(failures.values()))
    return [records.get(work.name) or _untuned(work, failures.get(work.name)) for work in works]


def _untuned(work: Work, failure: Exception | None) -> Record:
    assert work.task, "there is nothing to tune on"
    record = {"set": work.set_name, "task": work.task.id, "status": "failed" if failure else "budget", "seconds": 0.0}
    return {**record, "error": str(failure)} if failure else record


def _room(config: Config, ttt: TttConfig) -> int:
    """Count the workers that the cluster has room for."""
    return max(1, reachable_room().holds(config.scaling.cpus_per_worker, ttt.gpus if config.scaling.on_gpu else 0))
