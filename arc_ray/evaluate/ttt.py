"""Test-time training over the cluster: one work item an ARC task, longest first, on a pool of actors that hold the model.

An actor keeps the model between tasks and starts each from the same weights, so order and number of workers change
nothing but the time. Answers are kept as they come, a Parquet file a task and then its record: a killed evaluation
goes on. Every task has been answered untuned before, so one whose turn does not come keeps those answers.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pyarrow as pa
import torch

from arc_ray.cluster.roles import reachable_room
from arc_ray.config import Config
from arc_ray.config.searching import EvaluateConfig
from arc_ray.config.tuning import TttConfig
from arc_ray.errors import TooLargeError, UserError
from arc_ray.evaluate.adapter import Adapter, leave_one_out_batches, tuning_seed
from arc_ray.evaluate.answering import Answerer, Predictions, ScoringWork, Work, read_predictions
from arc_ray.evaluate.choice import candidate_grids
from arc_ray.evaluate.pool import Pool
from arc_ray.evaluate.questions import make_batches, rows_of
from arc_ray.models.attention import place
from arc_ray.models.build import load_for_tuning, without_adapter
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


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One task to tune on and to answer; it holds no output of a test pair."""

    name: str
    set_name: str
    task: Task
    """Without its test pairs, which are in the prompts only."""
    works: tuple[Work, ...]

    @property
    def size(self) -> int:
        """Tokens of prompts and answers, to which both tuning and answering are about proportional."""
        return sum(len(prompt.ids) + prompt.limit for work in self.works for prompt in work.prompts)


def make_jobs(config: EvaluateConfig, set_name: str, tasks: Sequence[Task], works: Sequence[Work]) -> list[Job]:
    """Make a job of each task that has a prompt; `works` are the set's, as they are answered untuned."""
    prompts = [prompt for work in works for prompt in work.prompts]
    jobs = []
    for index, task in enumerate(tasks):
        name, own = f"{set_name}-{index:05d}", [prompt for prompt in prompts if prompt.task == index]
        batches = make_batches(own, config.batch_tokens, rows_of(config))
        parts = [Work(name, works[0].task_ids, tuple(own[i] for i in batch)) for batch in batches]
        if parts:
            jobs.append(Job(name, set_name, without_tests(task), tuple(parts)))
    return jobs


def _scoring(works: Sequence[Work], answers: pa.Table) -> list[ScoringWork]:
    """Lay out every candidate of an output under every view of it; outputs without a candidate have nothing to score."""
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in answers.to_pylist():
        rows.setdefault(row["output"], []).append(row)
    grids = {output: candidate_grids(of_output) for output, of_output in rows.items()}
    asked = [tuple(prompt for prompt in work.prompts if grids[prompt.output]) for work in works]
    return [
        ScoringWork(work.name, work.task_ids, prompts, tuple(grids[prompt.output] for prompt in prompts))
        for work, prompts in zip(works, asked, strict=True)
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
        self._answerer = Answerer(config, self._folder, self._encoder, without_adapter(model))
        self._codec = codec_of(config, load_tokenizer(config.model, config.storage))

    def do(self, job: Job) -> Record:
        """Tune on a task and write its answers; return its record."""
        from arc_ray.models.fused import merged  # peft takes seconds to import

        begun, record = time.monotonic(), {"set": job.set_name, "task": job.task.id}
        batches = leave_one_out_batches(self._config, self._ttt, self._codec, job.set_name, job.task)
        if not batches:
            return {**record, "status": "no_views", "seconds": 0.0}
        seed = tuning_seed(self._config, job.set_name, job.task.id)
        first, last = self._adapter.tune(batches, self._train, self._ttt.lr, seed)
        # On the CPU products take the time, not kernels, and unmerged answers are what old evaluations go on with.
        with merged(self._model) if self._config.scaling.on_gpu else nullcontext():
            answers = pa.concat_tables([self._answerer.predict(work) for work in job.works])
            scores = pa.concat_tables([self._answerer.score(work) for work in _scoring(job.works, answers)])
        self._folder.write_parquet(f"{job.name}.parquet", answers)
        self._folder.write_parquet(f"{job.name}{SCORES_SUFFIX}.parquet", scores)
        seconds = round(time.monotonic() - begun, 3)
        return {**record, "status": "tuned", "seconds": seconds, "first_loss": first, "last_loss": last}


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
    jobs = [j for name in sets for j in make_jobs(config.evaluate, name, sets[name], works[name])]
    encoder = encoder_named(config.prompt.encoder)
    records = tune_all(config, ttt, folder / "tuned", encoder, jobs, progress)
    folder.write_json("tuning.json", [{**r, "file": job.name} for job, r in zip(jobs, records, strict=True)])


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
    jobs: Sequence[Job],
    progress: Callable[[int, int], None],
) -> list[Record]:
    """Tune and answer every job that has no record yet, within the budget; return the records of all, in their order.

    `progress` gets (done, total). Raises UserError, and whatever failed where no task could be tuned at all.
    """
    records: dict[str, Record] = {job.name: found for job in jobs if (found := folder.read_json(f"{job.name}.json"))}
    spent = max((record["at"] for record in records.values()), default=0.0)
    left = sorted((job for job in jobs if job.name not in records), key=lambda job: (-job.size, job.name))
    progress(len(records), len(jobs))
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
    for job, outcome in pool.run(left):
        if isinstance(outcome, Exception):
            failures[job.name] = outcome
            continue
        records[job.name] = {**outcome, "at": round(time.monotonic() - begun, 3)}
        folder.write_json(f"{job.name}.json", records[job.name])
        progress(len(records), len(jobs))
    if failures and len(failures) == len(jobs):
        raise next(iter(failures.values()))
    return [records.get(job.name) or _untuned(job, failures.get(job.name)) for job in jobs]


def _untuned(job: Job, failure: Exception | None) -> Record:
    record = {"set": job.set_name, "task": job.task.id, "status": "failed" if failure else "budget", "seconds": 0.0}
    return {**record, "error": str(failure)} if failure else record


def _room(config: Config, ttt: TttConfig) -> int:
    """Count the workers that the cluster has room for."""
    return max(1, reachable_room().holds(config.scaling.cpus_per_worker, ttt.gpus if config.scaling.on_gpu else 0))
