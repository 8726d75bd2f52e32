"""What one training worker does: build, restore, stream its own rows, loop. Ray Train calls it on every worker."""

import dataclasses
import os
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import torch

from arc_ray.config import Config
from arc_ray.model import LearnedLoss, build_model, load_tokenizer
from arc_ray.pipeline import stream_rows
from arc_ray.plan import Plan
from arc_ray.rows import RowMaker
from arc_ray.runs import read_metrics, run_folder, write_metrics
from arc_ray.train.checkpoint import CheckpointWriter, newest_checkpoint, read_state
from arc_ray.train.engine import gather_state, load_weights, make_engine, restore_state
from arc_ray.train.loop import Hooks, Metrics, NonFiniteLossError, fit
from arc_ray.train.notice import EndNotice
from arc_ray.train.schedule import accumulation_steps
from arc_ray.train.validation import ValidationSet, validate

WRITE_METRICS_SECONDS = 1.0
FAILURE_FILE = "failure.json"
"""Why a run cannot go on, where starting its workers again would not help."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything the workers of a run are given; large parts by reference."""

    config: Config
    maker: "ray.ObjectRef[RowMaker]"
    validation: "ray.ObjectRef[ValidationSet | None]"


def train_on_worker(parts: dict[str, Any]) -> None:
    """Run one worker of a training run to its end; started again after a fault, it goes on from the newest checkpoint."""
    job: Job = parts["job"]
    config, context = job.config, ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.scaling.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    maker, validation = ray.get([job.maker, job.validation])
    tokenizer = load_tokenizer(config.model, config.storage)
    model = build_model(config.model, config.storage, config.seed, config.train.full, tokenizer)
    folder = run_folder(config)
    first_step = newest_checkpoint(folder) or 0
    state = read_state(folder, first_step) if first_step else None
    if state is not None:
        load_weights(model, state)
    engine = make_engine(LearnedLoss(model), config.train, config.model, num_workers)
    if state is not None:
        restore_state(engine, state, first_step)
    log = MetricsLog(config, first_step, is_writer=rank == 0)
    writer = CheckpointWriter(folder, config, model, tokenizer)

    def run_validation(step: int) -> Metrics:
        if validation is None:
            return {}
        outcome = validate(engine, validation, config.train.micro_rows, rank, num_workers)
        if rank == 0:
            (folder / "validation").write_json(f"step-{step:06d}.json", outcome.to_json())
        return outcome.metrics()

    def save(step: int) -> None:
        # A run that goes on from this checkpoint keeps the records up to it, so they must be there first.
        log.flush()
        state = gather_state(engine)
        if rank == 0:
            writer.write(step, state)

    rows = rows_of_rank(maker.plan, config, rank, num_workers, first_step)
    row_tokens = maker.plan.row_tokens
    batches = stream_rows(job.maker, rows, config.train.micro_rows, row_tokens, config.scaling.data_cpus)
    hooks = Hooks(
        log,
        run_validation,
        save,
        lambda step: [n for r in _real(maker.plan, step) for n in maker.names_of(r)],
        EndNotice(ray.train.get_preemption_info).is_new,
    )
    try:
        fit(engine, batches, maker.plan, config.train, first_step, num_workers, hooks)
    except NonFiniteLossError as error:
        # Trying again would only find it again, so Ray, which would, does not hear of it.
        if rank == 0:
            folder.write_json(FAILURE_FILE, str(error))
    writer.wait()
    log.close()


def rows_of_rank(plan: Plan, config: Config, rank: int, num_workers: int, first_step: int) -> npt.NDArray[np.int64]:
    """Return the row numbers that one worker streams from a step on: its share of every step's global batch, in order.

    A worker's share of a step is interleaved by micro-batch, so each pass over all workers covers rows that stand together.
    """
    micro = config.train.micro_rows
    steps = np.arange(first_step, plan.num_steps)[:, None, None] * plan.batch_rows
    passes = np.arange(accumulation_steps(config.train, num_workers))[None, :, None] * num_workers * micro
    return (steps + passes + rank * micro + np.arange(micro)[None, None, :]).ravel()


def _real(plan: Plan, step: int) -> list[int]:
    return [row for row in plan.rows_of_step(step) if row < plan.num_rows]


class MetricsLog:
    """Collects metric records; rank 0 writes them to metrics.jsonl at most once a second, every rank reports to Ray."""

    def __init__(self, config: Config, first_step: int, is_writer: bool) -> None:
        self._folder, self._is_writer = run_folder(config), is_writer
        # What came after the checkpoint is going to be done again.
        self._records = [r for r in read_metrics(self._folder) if r["step"] <= first_step] if is_writer else []
        self._is_resumed_at = first_step
        self._begun, self._written = time.time(), 0.0

    def __call__(self, step: int, metrics: Metrics) -> None:
        finite = {key: float(value) for key, value in metrics.items() if np.isfinite(value)}
        record = {"step": step, "seconds": round(time.time() - self._begun, 3), **finite}
        if self._is_writer:
            self._records.append(record)
            if time.time() - self._written > WRITE_METRICS_SECONDS or any(key.startswith("eval/") for key in finite):
                self.flush()
        if any(key.startswith("eval/") for key in finite):
            # Only validations are reported: a report is a barrier of all workers, and what Tune decides on.
            ray.train.report(record)

    def close(self) -> None:
        """Write what is not written yet."""
        if self._is_writer:
            self.flush()

    def flush(self) -> None:
        """Write all records, if this is the rank that writes."""
        if not self._is_writer:
            return
        write_metrics(self._folder, self._records)
        self._written = time.time()
