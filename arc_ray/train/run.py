"""`run_training`: a config becomes a finished run folder. Called by `arc-ray train`, and once per trial by Tune."""

import time
import uuid
import warnings
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from arc_ray.cluster.roles import hidden_gpus, least_gpu_memory, live_room
from arc_ray.config import Config, with_overrides
from arc_ray.config.training import ScalingConfig
from arc_ray.errors import UserError, mistake_in, unwrapped
from arc_ray.models.build import check_model
from arc_ray.models.estimate import rows_for
from arc_ray.models.supported import check_positions
from arc_ray.rows.plan import Plan
from arc_ray.rows.prepare import Prepared, codec_of, keep, prepare
from arc_ray.rows.stream import SharedRows, in_store, settle_data_scheduling
from arc_ray.runs.folder import (
    as_made,
    checkpoint_name,
    checkpoint_steps,
    claim,
    finish,
    is_finished,
    read_metrics,
    run_folder,
)
from arc_ray.runs.machine import Instant
from arc_ray.runs.shapes import ResultShape
from arc_ray.storage import Folder
from arc_ray.train.alone import OneWorker, TrainWorker
from arc_ray.train.engine import check_deepspeed
from arc_ray.train.optimizer import check_optimizer
from arc_ray.train.record import check_tracker, tracker_environment
from arc_ray.train.worker import Job, Seat, train_on_worker


def check_training(config: Config, trains: bool = True) -> None:
    """Find out before any work whether a config's model can be loaded, asked and, if it `trains`, trained so.

    Raises UserError.
    """
    row_tokens = config.train.row_tokens if trains or config.evaluate.ttt else None
    model, tokenizer = check_model(config.model, config.storage, config.train.full, row_tokens)
    codec_of(config, tokenizer)
    if config.prompt.positions == "grid":
        check_positions(model)
    if trains:
        check_tracker(config)
        if not config.train.full:
            from arc_ray.models.lora import check_engine  # peft takes seconds to import

            check_engine(model, config.train)
    check_optimizer(config.train)
    check_deepspeed(config.train, config.model)


def with_rows(config: Config) -> Config:
    """Choose `train.micro_rows` where it is `auto`: as the run was begun, or what fits the GPUs. Raises UserError."""
    config = as_made(run_folder(config), config)
    if config.train.micro_rows != "auto":
        return config
    rows = rows_for(config, least_gpu_memory()) if config.scaling.on_gpu else 1
    return with_overrides(config, {"train.micro_rows": rows})


def own_rows(config: Config, folder: Folder) -> Prepared:
    """Prepare a run whose folder is claimed, for a worker that is not Ray's. Raises UserError."""
    return keep(prepare(config, folder), folder)


def share_rows(config: Config, folder: Folder) -> SharedRows:
    """Do so, and put what workers need into Ray's store. Raises UserError."""
    return in_store(own_rows(config, folder))


def is_alone(config: Config) -> bool:
    """Tell whether a run has one worker, which needs no group."""
    return config.scaling.workers == (1, 1)


def start_worker(config: Config) -> Callable[[Job], None]:
    """Start the only worker of a run on one machine, before its rows are there; return what has a run's job done."""
    if is_alone(config) and live_room().is_one_machine:
        return OneWorker(partial(RayProcess, config)).train_last
    return train_in_group


class RayProcess:
    """A process of Ray's that trains alone."""

    def __init__(self, config: Config) -> None:
        resources, environment = worker_resources(config.scaling), worker_environment(config)
        runtime_env = {"env_vars": environment} if environment else None
        options = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0), "runtime_env": runtime_env}
        self._actor: Any = ray.remote(TrainWorker).options(**options).remote()

    def train(self, job: Job) -> None:
        """Do a job from its newest checkpoint to its end. Raises RayError."""
        ray.get(self._actor.train.remote(job))

    def end(self) -> None:
        """End the process, whatever it does."""
        ray.kill(self._actor)


def run_training(
    config: Config,
    command: str = "train",
    share: Callable[[Config, Folder], SharedRows | Prepared] = share_rows,
    train: Callable[[Job], None] | None = None,
) -> dict[str, Any]:
    """Train, or go on with a training that was cut off, or return the result of a finished one.

    `share` may give rows that other runs have as well, or that are in no store. `train` does the job from its newest
    checkpoint to its end.
    Raises UserError for what only the user can mend, and what `train` raises.
    """
    warn_of_float16(config)
    folder, config = run_folder(config), with_rows(config)
    claim(folder, config, command)
    if is_finished(folder):
        return folder.read_json("result.json", ResultShape)
    train = train or start_worker(config)
    # What was spent before an interruption counts, also what was lost after the last checkpoint.
    begun = Instant.ago(max((record.get("seconds", 0.0) for record in read_metrics(folder)), default=0.0))
    if ray.is_initialized():
        settle_data_scheduling()
    rows = share(config, folder)
    job = Job(config, begun, rows.maker, rows.validation)
    with unwrapped():
        train(job)
    result = summarize(folder, rows.plan, time.monotonic() - begun.here())
    folder.delete("ray")
    finish(folder, result)
    return result


def train_in_group(job: Job, callbacks: Sequence[ray.train.UserCallback] = ()) -> None:
    """Have the workers of Ray Train do a job. Raises TrainingFailedError where they failed too often."""
    config = job.config
    # Our checkpoints are in the run folder; Ray's own state serves one call of the driver and is not resumed from.
    attempt = f"attempt-{uuid.uuid4().hex[:8]}"
    low, high = config.scaling.workers
    trainer = _Trainer(
        _train_in_seat,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if config.scaling.on_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=low if low == high else (low, high),
            use_gpu=config.scaling.on_gpu,
            resources_per_worker=worker_resources(config.scaling),
            elastic_resize_monitor_interval_s=config.scaling.resize_seconds,
        ),
        run_config=ray.train.RunConfig(
            name=attempt,
            storage_path=(run_folder(config) / "ray").uri,
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": worker_environment(config)},
        ),
    )
    trainer.fit()


def worker_resources(scaling: ScalingConfig) -> dict[str, float]:
    """Return what Ray reserves for one worker."""
    return {"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.on_gpu else {})


def worker_environment(config: Config) -> dict[str, str]:
    """Return the variables that a worker needs on its machine besides those that are there."""
    return {**tracker_environment(config), **hidden_gpus(config.scaling.on_gpu)}


def _train_in_seat(parts: dict[str, Job]) -> None:
    """Run one worker of Ray Train's."""
    context = ray.train.get_context()
    rank, num_workers, num_on_node = context.get_world_rank(), context.get_world_size(), context.get_local_world_size()
    seat = Seat(rank, num_workers, num_on_node, ray.train.report, ray.train.get_preemption_info)
    train_on_worker(parts["job"], seat)


class _Trainer(TorchTrainer):
    """Ray's trainer, but a user's mistake ends it at once, and Ctrl-C is a KeyboardInterrupt as everywhere else.

    Ray offers no public place for either.
    """

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        assert self.run_config.failure_config
        policy = _MistakesEndIt(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**parts | {"failure_policy": policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave the signal to Python: Ray's handler would stay after the training and make 0 or 1 of Ctrl-C."""


class _MistakesEndIt(DefaultFailurePolicy):
    """Starts workers again as Ray does, unless one of them found what only the user can mend."""

    def make_decision(self, training_failed_error: ray.train.TrainingFailedError) -> FailureDecision:
        if mistake_in(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def warn_of_float16(config: Config) -> None:
    """Warn of the arithmetic that ended others' trainings after an hour, its largest number being 65,504."""
    if config.model.dtype == "float16":
        warnings.warn(
            "model.dtype float16 may diverge late in a run; take bfloat16 where the device has it, else float32",
            stacklevel=3,
        )


def summarize(folder: Folder, plan: Plan, seconds: float) -> dict[str, Any]:
    """Collect a finished run's result: the last metrics, the best validation, what the plan counted. Flat, slashed names."""
    records = read_metrics(folder)
    steps = checkpoint_steps(folder)
    if not steps or steps[-1] != plan.num_steps:
        raise UserError(
            f"{folder.uri}: the last checkpoint is missing; was it deleted? Delete the folder and train again"
        )
    last = dict(ChainMap(*reversed(records)))
    counts: Mapping[str, Any] = plan.counts
    return {
        **last,
        "run": folder.name,
        "steps": plan.num_steps,
        "seconds": round(seconds, 3),
        "plan/rows": plan.num_rows,
        "plan/fill": round(plan.fill(), 6),
        "plan/learned_tokens": int(plan.learned_per_step().sum()),
        "plan/tokens": int(plan.tokens_per_step().sum()),
        "plan/views": counts["views"],
        "plan/dropped": counts["dropped"],
        **{f"plan/views/{name}": number for name, number in counts["views_per_source"].items()},
        "checkpoint": checkpoint_name(steps[-1]),
    }
