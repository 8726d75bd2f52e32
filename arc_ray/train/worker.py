"""What one training worker does: build, restore, stream its own rows, loop. Ray Train calls it on every worker."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import torch
from torch import nn

from arc_ray.config import Config
from arc_ray.models.build import build_model, compile_layers
from arc_ray.models.loss import LearnedLoss
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.maker import Batch, RowMaker
from arc_ray.rows.plan import Plan
from arc_ray.rows.stream import ahead, stream_rows
from arc_ray.rows.validation import ValidationSet
from arc_ray.runs.cores import usable_cores
from arc_ray.runs.folder import MetricsFile, run_folder
from arc_ray.train.accuracy import validate
from arc_ray.train.checkpoint import CheckpointWriter, newest_checkpoint, read_state
from arc_ray.train.engine import Start, begin, gather_state, load_weights, make_engine
from arc_ray.train.loop import Hooks, Metrics, fit
from arc_ray.train.measures import Measures, device_peak
from arc_ray.train.notice import EndNotice
from arc_ray.train.schedule import accumulation_steps
from arc_ray.train.trackers import make_tracker

WRITE_METRICS_SECONDS = {"local": 1.0, "bucket": 15.0}
"""Time between writes of metrics; a bucket is given the whole file each time."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything the workers of a run are given; large parts by reference."""

    config: Config
    begun: float
    """Seconds since the epoch: when the run would have begun if it had never been interrupted."""
    maker: "ray.ObjectRef[RowMaker]"
    validation: "ray.ObjectRef[ValidationSet | None]"


@dataclasses.dataclass(frozen=True)
class Worker:
    """One worker of a run: who it is, what it was given, and the model it built."""

    config: Config
    rank: int
    num_workers: int
    maker: RowMaker
    validation: ValidationSet | None
    tokenizer: Any
    model: nn.Module
    """With the weights of the start, not wrapped yet."""
    start: Start
    batches: Iterator[Batch]
    """Its rows, which are made already while the model loads; trl's engine makes its own."""
    ready: float
    """When it began (time.perf_counter), the loading of the model taken off."""


def train_on_worker(parts: dict[str, Any]) -> None:
    """Run one worker of a training run to its end; started again after a fault, it goes on from the newest checkpoint."""
    job: Job = parts["job"]
    worker = make_worker(job)
    folder, is_first = run_folder(worker.config), worker.rank == 0
    measures = Measures(worker.model, worker.maker.plan, worker.num_workers, device_peak())
    log = MetricsLog(worker.config, worker.start.step, job.begun, worker.ready, measures, is_writer=is_first)
    writer = CheckpointWriter(folder, worker.config, worker.model, worker.tokenizer)
    if is_first:
        writer.rehearse()
    train = train_with_trl if worker.config.train.engine == "trl" else train_with_deepspeed
    with ExitStack() as at_end:
        at_end.callback(log.close)
        at_end.callback(writer.wait)
        train(worker, partial(_hooks, worker, log, writer))


def make_worker(job: Job) -> Worker:
    """Fetch what the worker needs and build the model as it is at the newest checkpoint."""
    began = time.perf_counter()
    config, context, folder = job.config, ray.train.get_context(), run_folder(job.config)
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.scaling.threads or max(1, usable_cores() // context.get_local_world_size()))
    maker, validation = ray.get([job.maker, job.validation])
    step = newest_checkpoint(folder) or 0
    batches = (
        iter(()) if config.train.engine == "trl" else ahead(stream_share(job, maker.plan, rank, num_workers, step))
    )
    loading = time.perf_counter()
    tokenizer = load_tokenizer(config.model, config.storage)
    train = config.train
    model = build_model(config.model, config.storage, config.seed, train.full, tokenizer, train.row_tokens)
    ready = began + time.perf_counter() - loading
    start = Start(step, read_state(folder, step)) if step else Start()
    if start.state is not None:
        load_weights(model, start.state)
    if train.compile:
        compile_layers(model)
    return Worker(config, rank, num_workers, maker, validation, tokenizer, model, start, batches, ready)


def stream_share(job: Job, plan: Plan, rank: int, num_workers: int, step: int) -> Iterator[Batch]:
    """Stream the rows of one worker from a step on, made by Ray Data meanwhile."""
    config = job.config
    rows = rows_of_rank(plan, config, rank, num_workers, step)
    return stream_rows(job.maker, rows, config.train.rows_at_once, plan.row_tokens, config.scaling.data_cpus)


def train_with_deepspeed(worker: Worker, make_hooks: Callable[[Any, Any], Hooks]) -> None:
    """Train by our loop, on rows that Ray Data makes meanwhile."""
    config, start, num_workers = worker.config, worker.start, worker.num_workers
    engine = make_engine(LearnedLoss(worker.model), config.train, config.model, num_workers)
    begin(engine, worker.model, start)
    plan, hooks = worker.maker.plan, make_hooks(engine, engine)
    fit(engine, worker.batches, plan, config.train, config.seed, start.step, worker.rank, num_workers, hooks)


def train_with_trl(worker: Worker, make_hooks: Callable[[Any, Any], Hooks]) -> None:
    """Train by trl's loop, which makes its rows itself."""
    from arc_ray.train.sft import fit_with_trl  # seconds to import, and not needed otherwise

    fit_with_trl(
        worker.model, worker.tokenizer, worker.maker, worker.config, worker.start, worker.num_workers, make_hooks
    )


def _hooks(worker: Worker, log: "MetricsLog", writer: CheckpointWriter, engine: Any, scoring: Any) -> Hooks:
    """Tie the loop to the run folder; `scoring` is called for the losses of validation, `engine` holds the state."""
    config, plan, folder = worker.config, worker.maker.plan, run_folder(worker.config)

    def run_validation(step: int) -> Metrics:
        if worker.validation is None:
            return {}
        outcome = validate(scoring, worker.validation, config.train.rows_at_once, worker.rank, worker.num_workers)
        if worker.rank == 0:
            (folder / "validation").write_json(f"step-{step:06d}.json", outcome.to_json())
        return outcome.metrics()

    def save(step: int) -> None:
        state = gather_state(engine, worker.model)
        if worker.rank == 0:
            writer.write(step, state, after=log.flush())

    def name_views(step: int) -> list[str]:
        return [name for row in plan.rows_of_step(step) if row < plan.num_rows for name in worker.maker.names_of(row)]

    return Hooks(log, run_validation, save, name_views, EndNotice(ray.train.get_preemption_info).is_new)


def rows_of_rank(plan: Plan, config: Config, rank: int, num_workers: int, first_step: int) -> npt.NDArray[np.int64]:
    """Return the row numbers that one worker streams from a step on: its share of every step's global batch, in order.

    A worker's share of a step is interleaved by micro-batch, so each pass over all workers covers rows that stand together.
    Every worker gets equally many: where an elastic run's workers do not divide the batch, the rest are empty rows.
    """
    micro, batch = config.train.rows_at_once, config.train.batch_rows
    passes = np.arange(accumulation_steps(config.train, num_workers))[:, None] * num_workers * micro
    within = (passes + rank * micro + np.arange(micro)).ravel()
    rows = np.arange(first_step, plan.num_steps)[:, None] * batch + within
    return np.where(within < batch, rows, plan.num_steps * batch).ravel()


def finite_metrics(metrics: Mapping[str, Any]) -> Metrics:
    """Return metrics as JSON, and Ray's controller, take them: plain floats; what is NaN or infinite is left out."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


class MetricsLog:
    """Takes metric records: rank 0 writes them to metrics.jsonl, on a thread beside the training; all report to Ray."""

    def __init__(
        self, config: Config, first_step: int, begun: float, ready: float, measures: Measures, is_writer: bool
    ) -> None:
        """Go on after the records up to `first_step`; `begun` is `Job`'s, `ready` is `Worker`'s."""
        folder = run_folder(config)
        self._begun, self._measures, self._is_writer = begun, measures, is_writer
        self._ready: float | None = ready
        if not is_writer:
            return
        self._file = MetricsFile(folder, first_step)
        self._tracker = make_tracker(config, self._file.kept)
        self._every = WRITE_METRICS_SECONDS["local" if folder.is_local else "bucket"]
        self._waiting: list[dict[str, Any]] = []
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._last, self._written = self._thread.submit(lambda: None), time.monotonic()

    def __call__(self, step: int, metrics: Metrics) -> None:
        finite = finite_metrics(self._measures(step, metrics))
        if self._ready is not None and "train/loss" in finite:
            finite["train/start_seconds"] = time.perf_counter() - self._ready
            self._ready = None
        record = {"step": step, "seconds": round(time.time() - self._begun, 3), **finite}
        is_validation = any(key.startswith("eval/") for key in finite)
        if self._is_writer:
            self._waiting.append(record)
            self._tracker.add(record)
            if is_validation:
                self.flush().result()  # a trial that is stopped for what it reports leaves its record
            elif self._last.done() and time.monotonic() - self._written > self._every:
                self.flush()
        if is_validation:
            # Only validations are reported: a report is a barrier of all workers, and what Tune decides on.
            ray.train.report(record)

    def close(self) -> None:
        """Write what is not written yet, and end."""
        if self._is_writer:
            self.flush().result()
            self._thread.shutdown()
            self._tracker.close()

    def flush(self) -> "Future[None]":
        """Have the records so far written, for the rank that writes; what goes wrong is raised by the result."""
        records, self._waiting = self._waiting, []
        self._last, self._written = self._thread.submit(self._write, records, self._last), time.monotonic()
        return self._last

    def _write(self, records: list[dict[str, Any]], before: "Future[None]") -> None:
        before.result()  # where that failed, this fails as well, until somebody hears of it
        self._file.append(records)
        self._tracker.flush()
