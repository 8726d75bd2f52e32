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

from arc_ray.config import Config
from arc_ray.models.build import build_model
from arc_ray.models.estimate import device_peak
from arc_ray.models.loss import LearnedLoss, validate
from arc_ray.models.supported import compile_layers
from arc_ray.models.weights import not_finite
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.maker import Batch, RowMaker, ValidationSet
from arc_ray.rows.plan import Plan
from arc_ray.rows.stream import ahead, held, stream_rows
from arc_ray.runs.folder import checkpoint_steps, run_folder
from arc_ray.runs.machine import Instant, usable_cores
from arc_ray.train.checkpoint import CheckpointWriter, read_state
from arc_ray.train.engine import Start, accumulation_steps, begin, gather_state, load_weights, make_engine
from arc_ray.train.loop import WHAT_MENDS, Hooks, Metrics, NonFiniteLossError, Steps, fit
from arc_ray.train.record import Measures, MetricsLog

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


def train_on_worker(job: Job, seat: Seat) -> None:
    """Run one worker of a training run to its end; started again after a fault, it goes on from the newest checkpoint."""
    Worker(job, seat).train()


class Worker:
    """One worker of a run: what it was given, the model it built, and what it writes by."""

    def __init__(self, job: Job, seat: Seat) -> None:
        """Fetch what the worker needs and build the model as it is at the newest checkpoint."""
        began, config, train = time.perf_counter(), job.config, job.config.train
        self._config, self._seat, self._folder = config, seat, run_folder(config)
        torch.set_num_threads(config.scaling.threads or max(1, usable_cores() // seat.num_on_node))
        self._maker, self._validation = held(job.maker), held(job.validation)
        plan, step = self._maker.plan, max(checkpoint_steps(self._folder), default=0)
        self._batches: Iterator[Batch] = iter(())
        if train.engine != "trl":  # which makes its own; others are made already while the model loads
            rows = rows_of_rank(plan, config, seat.rank, seat.num_workers, step)
            stream = stream_rows(job.maker, rows, train.rows_at_once, plan.row_tokens, config.scaling.data_cpus)
            self._batches = ahead(stream)
        loading = time.perf_counter()
        self._tokenizer = load_tokenizer(config.model, config.storage)
        model = build_model(config.model, config.storage, config.seed, train.full, self._tokenizer, train.row_tokens)
        ready = began + time.perf_counter() - loading  # the loading of the model does not count
        self._model, self._start = model, Start(step, read_state(self._folder, step)) if step else Start()
        if self._start.state is not None:
            load_weights(model, self._start.state)
        if train.compile:
            compile_layers(model)
        self._measures = Measures(model, plan, seat.num_workers, device_peak())
        self._log = MetricsLog(config, step, job.begun.here(), ready, seat.rank == 0, seat.report)
        self._writer = CheckpointWriter(self._folder, config, model, self._tokenizer)

    def train(self) -> None:
        """Train to the end of the plan."""
        config, seat, model, start = self._config, self._seat, self._model, self._start
        if seat.rank == 0:
            self._writer.rehearse()
        with ExitStack() as at_end:
            at_end.callback(self._log.close)
            at_end.callback(self._writer.wait)
            make_hooks = partial(self._hooks, at_end)
            if config.train.engine == "trl":
                from arc_ray.train.sft import fit_with_trl  # seconds to import, and not needed otherwise

                return fit_with_trl(model, self._tokenizer, self._maker, config, start, seat.num_workers, make_hooks)
            engine = make_engine(LearnedLoss(model), config.train, config.model, seat.num_workers)
            begin(engine, model, start)
            hooks, plan = make_hooks(engine, engine), self._maker.plan
            steps = Steps(engine, plan, config.train, config.seed, start.step, seat.rank, hooks)
            fit(steps, self._batches, seat.num_workers)

    def _hooks(self, at_end: ExitStack, engine: Any, scoring: Any) -> Hooks:
        """Tie the loop to the run folder; `scoring` is called for the losses of validation, `engine` holds the state."""
        validation, plan, seat = self._validation, self._maker.plan, self._seat
        at_end.callback(engine.destroy)  # its hooks would keep the model in memory for ever

        def run_validation(step: int) -> Metrics:
            if validation is None:
                return {}
            outcome = validate(scoring, validation, self._config.train.rows_at_once, seat.rank, seat.num_workers)
            if not np.isfinite(outcome.mean_loss):
                read = zip(validation.names, outcome.loss, strict=False)  # those that are too long follow
                lost = [name for name, loss in read if not np.isfinite(loss)]
                raise NonFiniteLossError(
                    f"validation after step {step}: the loss of {', '.join(lost[:20])} is not finite; {WHAT_MENDS}"
                )
            if seat.rank == 0:
                (self._folder / "validation").write_json(f"step-{step:06d}.json", outcome.to_json())
            return outcome.metrics()

        def save(step: int) -> None:
            state = gather_state(engine, self._model)
            if lost := not_finite(state.items()):
                raise NonFiniteLossError(f"step {step}: {lost[0]} holds numbers that are not finite; {WHAT_MENDS}")
            if seat.rank == 0:
                self._writer.write(step, state, after=self._log.flush())

        def name_views(step: int) -> list[str]:
            rows = [row for row in plan.rows_of_step(step) if row < plan.num_rows]
            return [name for row in rows for name in self._maker.names_of(row)]

        notice = EndNotice(seat.ask_end, seat.num_workers, engine.device)
        scales_loss = self._config.model.dtype == "float16"
        return Hooks(self._measures, self._log, run_validation, save, name_views, scales_loss, notice.is_new)


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
