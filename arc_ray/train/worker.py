"""What one training worker does: build, restore, stream its own rows, loop. It is told its seat, and knows no Ray Train."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import nn

from arc_ray.config import Config
from arc_ray.models.build import build_model
from arc_ray.models.loss import LearnedLoss, validate
from arc_ray.models.weights import not_finite
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.maker import Batch, RowMaker, ValidationSet
from arc_ray.rows.plan import Plan
from arc_ray.rows.stream import ahead, held, stream_rows
from arc_ray.runs.folder import checkpoint_steps, run_folder
from arc_ray.runs.machine import Instant, usable_cores
from arc_ray.train.checkpoint import CheckpointWriter, read_state
from arc_ray.train.engine import Start, accumulation_steps, begin, gather_state, load_weights, make_engine
from arc_ray.train.loop import WHAT_MENDS, Hooks, Metrics, NonFiniteLossError, fit
from arc_ray.train.record import Measures, MetricsLog, device_peak

if TYPE_CHECKING:
    import ray

ASK_SECONDS = 5.0
"""Time between questions whether there is a notice: each is a barrier of all workers, and clouds give 30 seconds or more."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything the workers of a run are given; large parts by reference where they are in Ray's store."""

    config: Config
    begun: Instant
    """When the run would have begun if it had never been interrupted."""
    maker: "ray.ObjectRef[RowMaker] | RowMaker"
    validation: "ray.ObjectRef[ValidationSet | None] | ValidationSet | None"


@dataclasses.dataclass(frozen=True)
class Seat:
    """A worker's place among the workers of its run, and whom it talks to."""

    rank: int
    num_workers: int
    num_on_node: int
    """Workers that share this machine's cores."""
    report: Callable[[dict[str, Any]], None]
    """Called with the record of each validation, by all workers."""
    ask_end: Callable[[], object | None]
    """Returns something once the worker's machine is announced to end; called by all workers together."""


@dataclasses.dataclass(frozen=True)
class Worker:
    """One worker of a run: who it is, what it was given, and the model it built."""

    config: Config
    seat: Seat
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


def train_on_worker(job: Job, seat: Seat) -> None:
    """Run one worker of a training run to its end; started again after a fault, it goes on from the newest checkpoint."""
    worker = make_worker(job, seat)
    folder, is_first = run_folder(worker.config), seat.rank == 0
    measures = Measures(worker.model, worker.maker.plan, seat.num_workers, device_peak())
    log = MetricsLog(worker.config, worker.start.step, job.begun.here(), worker.ready, is_first, seat.report)
    writer = CheckpointWriter(folder, worker.config, worker.model, worker.tokenizer)
    if is_first:
        writer.rehearse()
    train = train_with_trl if worker.config.train.engine == "trl" else train_with_deepspeed
    with ExitStack() as at_end:
        at_end.callback(log.close)
        at_end.callback(writer.wait)
        train(worker, partial(_hooks, worker, measures, log, writer, at_end))


def make_worker(job: Job, seat: Seat) -> Worker:
    """Fetch what the worker needs and build the model as it is at the newest checkpoint."""
    began = time.perf_counter()
    config, folder = job.config, run_folder(job.config)
    torch.set_num_threads(config.scaling.threads or max(1, usable_cores() // seat.num_on_node))
    maker, validation = held(job.maker), held(job.validation)
    step = max(checkpoint_steps(folder), default=0)
    batches = iter(()) if config.train.engine == "trl" else ahead(stream_share(job, maker.plan, seat, step))
    loading = time.perf_counter()
    tokenizer = load_tokenizer(config.model, config.storage)
    train = config.train
    model = build_model(config.model, config.storage, config.seed, train.full, tokenizer, train.row_tokens)
    ready = began + time.perf_counter() - loading
    start = Start(step, read_state(folder, step)) if step else Start()
    if start.state is not None:
        load_weights(model, start.state)
    if train.compile:
        from arc_ray.models.fused import compile_layers  # peft takes seconds to import

        compile_layers(model)
    return Worker(config, seat, maker, validation, tokenizer, model, start, batches, ready)


def stream_share(job: Job, plan: Plan, seat: Seat, step: int) -> Iterator[Batch]:
    """Stream the rows of one worker from a step on, made by Ray Data meanwhile."""
    config = job.config
    rows = rows_of_rank(plan, config, seat.rank, seat.num_workers, step)
    return stream_rows(job.maker, rows, config.train.rows_at_once, plan.row_tokens, config.scaling.data_cpus)


def train_with_deepspeed(worker: Worker, make_hooks: Callable[[Any, Any], Hooks]) -> None:
    """Train by our loop, on rows that Ray Data makes meanwhile."""
    config, start, seat = worker.config, worker.start, worker.seat
    engine = make_engine(LearnedLoss(worker.model), config.train, config.model, seat.num_workers)
    begin(engine, worker.model, start)
    plan, hooks = worker.maker.plan, make_hooks(engine, engine)
    fit(engine, worker.batches, plan, config.train, config.seed, start.step, seat.rank, seat.num_workers, hooks)


def train_with_trl(worker: Worker, make_hooks: Callable[[Any, Any], Hooks]) -> None:
    """Train by trl's loop, which makes its rows itself."""
    from arc_ray.train.sft import fit_with_trl  # seconds to import, and not needed otherwise

    fit_with_trl(
        worker.model, worker.tokenizer, worker.maker, worker.config, worker.start, worker.seat.num_workers, make_hooks
    )


def _hooks(
    worker: Worker,
    measures: Measures,
    log: MetricsLog,
    writer: CheckpointWriter,
    at_end: ExitStack,
    engine: Any,
    scoring: Any,
) -> Hooks:
    """Tie the loop to the run folder; `scoring` is called for the losses of validation, `engine` holds the state."""
    config, plan, folder, seat = worker.config, worker.maker.plan, run_folder(worker.config), worker.seat
    at_end.callback(engine.destroy)  # its hooks would keep the model in memory for ever

    def run_validation(step: int) -> Metrics:
        if worker.validation is None:
            return {}
        outcome = validate(scoring, worker.validation, config.train.rows_at_once, seat.rank, seat.num_workers)
        if not np.isfinite(outcome.mean_loss):
            read = zip(worker.validation.names, outcome.loss, strict=False)  # those that are too long follow
            lost = [name for name, loss in read if not np.isfinite(loss)]
            raise NonFiniteLossError(
                f"validation after step {step}: the loss of {', '.join(lost[:20])} is not finite; {WHAT_MENDS}"
            )
        if seat.rank == 0:
            (folder / "validation").write_json(f"step-{step:06d}.json", outcome.to_json())
        return outcome.metrics()

    def save(step: int) -> None:
        state = gather_state(engine, worker.model)
        if lost := not_finite(state.items()):
            raise NonFiniteLossError(f"step {step}: {lost[0]} holds numbers that are not finite; {WHAT_MENDS}")
        if seat.rank == 0:
            writer.write(step, state, after=log.flush())

    def name_views(step: int) -> list[str]:
        return [name for row in plan.rows_of_step(step) if row < plan.num_rows for name in worker.maker.names_of(row)]

    notice = EndNotice(seat.ask_end, seat.num_workers, engine.device)
    scales_loss = config.model.dtype == "float16"
    return Hooks(measures, log, run_validation, save, name_views, scales_loss, notice.is_new)


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


class EndNotice:
    """Tells each worker once, at the same step, that the notice is there."""

    def __init__(self, ask: Callable[[], object | None], num_workers: int, device: torch.device) -> None:
        """`ask` may be ray.train.get_preemption_info: a barrier of all workers, who all get the same answer."""
        # `arc-ray` switches Ray's watcher off where it starts Ray itself: nobody could give notice there.
        self._listens = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"
        self._ask, self._num_workers, self._device = ask, num_workers, device
        self._asked = time.monotonic()

    def is_new(self) -> bool:
        """Tell, once, that the notice is there. All workers must call it equally often."""
        if not self._listens or not self._is_time():
            return False
        self._asked = time.monotonic()
        self._listens = self._ask() is None
        return not self._listens

    def _is_time(self) -> bool:
        """Tell, on every worker alike, whether any has not asked for long: their clocks differ, and a barrier needs all."""
        is_time = time.monotonic() - self._asked >= ASK_SECONDS
        if self._num_workers > 1:
            votes = torch.tensor(float(is_time), device=self._device)
            torch.distributed.all_reduce(votes)
            is_time = bool(votes)
        return is_time


def is_node_ending() -> object | None:
    """Ask Ray, from a worker without a group, for the notice of its own machine; None as long as there is none."""
    import ray
    from ray._private.state import state as cluster_state

    return cluster_state.get_draining_nodes().get(ray.get_runtime_context().get_node_id())
