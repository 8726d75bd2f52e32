"""The record of a training: what is measured of a step, on its way into metrics.jsonl, a tracker and what is reported.

Trackers show these records in TensorBoard, Weights & Biases or MLflow. What one keeps of steps that are going to be done
again, it drops or overwrites.
"""

import importlib.util
import math
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arc_ray.config import Config
from arc_ray.errors import UserError
from arc_ray.models.estimate import flops_of_steps
from arc_ray.rows.plan import Plan
from arc_ray.runs.folder import MetricsFile, run_folder
from arc_ray.seeding import digest64
from arc_ray.train.loop import Metrics, Step

WRITE_METRICS_SECONDS = {"local": 1.0, "bucket": 15.0}
"""Time between writes of metrics; a bucket is given the whole file each time."""

PROJECT = "arc_ray"
"""Project (Weights & Biases) or experiment (MLflow) that all runs go to; WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME change it."""

TENSORBOARD_FOLDER = "tensorboard"


class Measures:
    """Makes the metrics of steps; made before DeepSpeed shards the model."""

    def __init__(self, model: nn.Module, plan: Plan, num_workers: int, peak: float | None) -> None:
        """Take the peak of one device in FLOPs per second; None where none is known, and then there is no MFU."""
        self._plan, self._num_workers = plan, num_workers
        self._tokens, self._learned = plan.tokens_per_step(), plan.learned_per_step()
        self._flops = flops_of_steps(model, plan)
        self._peak = peak * num_workers if peak else None
        self._before: tuple[int, float] | None = None

    def __call__(self, step: Step) -> Metrics:
        """Return the metrics of a step that has just ended."""
        tokens, learned = int(self._tokens[step.number]), int(self._learned[step.number])
        # Since the last step that was measured, with the logging, validation and saving between them.
        now, before = time.perf_counter(), self._before
        wall = (now - before[1]) / (step.number - before[0]) if before else step.seconds
        self._before = step.number, now
        metrics = {
            "train/loss": step.loss,
            "train/lr": step.lr,
            "train/grad_norm": step.grad_norm,
            "train/tokens_per_second": tokens / step.seconds,
            "train/learned_tokens_per_second": learned / step.seconds,
            "train/fill": tokens / (self._plan.batch_rows * self._plan.row_tokens),
            "train/step_seconds": step.seconds,
            "train/wall_seconds": wall,
            "data/stall_share": step.stalled / step.seconds,
            "train/epoch": self._plan.epoch_of_step(step.number + 1),
            "train/learned_tokens": int(self._learned[: step.number + 1].sum()),
            "train/memory_gb": peak_memory_gb(),
            "train/workers": float(self._num_workers),
        }
        if self._peak:
            metrics["train/mfu"] = float(self._flops[step.number]) / (step.seconds * self._peak)
        return metrics


def peak_memory_gb() -> float:
    """Return the most memory this worker has held so far, in 10^9 bytes: of its GPU, or resident where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class MetricsLog:
    """Takes metric records: rank 0 writes them to metrics.jsonl, on a thread beside the training; all report validations."""

    def __init__(
        self,
        config: Config,
        first_step: int,
        begun: float,
        ready: float,
        is_writer: bool,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        """Go on after the records up to `first_step`; `begun` is by `time.monotonic`, `ready` is `worker.Worker`'s."""
        folder = run_folder(config)
        self._begun, self._is_writer, self._report = begun, is_writer, report
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
        # As JSON, and Ray's controller, take them: plain floats, and none that is NaN or infinite.
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        if self._ready is not None and "train/loss" in finite:
            finite["train/start_seconds"] = time.perf_counter() - self._ready
            self._ready = None
        record = {"step": step, "seconds": round(time.monotonic() - self._begun, 3), **finite}
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
            self._report(record)

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


def check_tracker(config: Config) -> None:
    """Find out before any work that the tracker's package is missing. Raises UserError."""
    package = config.train.tracker
    if package != "none" and importlib.util.find_spec(package) is None:
        raise UserError(
            f"train.tracker {package}: the package {package} is not installed; install it with"
            f" pip install 'arc_ray[tracking]', or set train.tracker to tensorboard or none"
        )
    if package == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ and not run_folder(config).is_local:
        raise UserError(
            f"train.tracker mlflow: MLflow keeps no runs in a bucket ({config.storage});"
            f" set MLFLOW_TRACKING_URI to your MLflow server"
        )


def tracker_environment(config: Config) -> dict[str, str]:
    """Return this process's settings of the tracker (WANDB_..., MLFLOW_...) for workers on other machines.

    Secrets are left out, because Ray shows workers' environments in its dashboard: keys belong into the machines' own.
    """
    prefix = f"{config.train.tracker.upper()}_"
    is_secret = re.compile("KEY|TOKEN|PASSWORD|SECRET").search
    return {name: value for name, value in os.environ.items() if name.startswith(prefix) and not is_secret(name)}


def make_tracker(config: Config, records: Iterable[Mapping[str, Any]]) -> "Tracker":
    """Make the tracker of a run; `records` are those of a run that goes on, up to its checkpoint."""
    kinds = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow, "none": Tracker}
    tracker: Tracker = kinds[config.train.tracker](config)
    if isinstance(tracker, TensorBoard):  # the others keep what they were given by the process before
        for record in records:
            tracker.add(record)
    return tracker


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a line of metrics.jsonl, which are all but its `step`."""
    return {name: float(value) for name, value in record.items() if name != "step"}


class Tracker:
    """Shows nothing; what it is for the kinds of it that show metrics. Records may be added while a thread flushes."""

    def __init__(self, config: Config) -> None:
        self._folder = run_folder(config)
        self._identity = f"{digest64(self._folder.uri) % 2**64:016x}"
        """The run's folder, named so that services accept it: sixteen hexadecimal digits."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in a record."""

    def flush(self) -> None:
        """Make visible what was added."""

    def close(self) -> None:
        """End; the run may go on later in another process."""


class TensorBoard(Tracker):
    """Event files in <run>/tensorboard, written anew from the run's records whenever a run goes on: no step is taken back.

    For a bucket, the file is written locally and put there whole at each flush.
    """

    def __init__(self, config: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(config)
        self._folder.delete(TENSORBOARD_FOLDER)
        self._target = self._folder / TENSORBOARD_FOLDER
        self._path = self._target.local_path() if self._target.is_local else Path(tempfile.mkdtemp(prefix="arc_ray-"))
        self._writer = SummaryWriter(str(self._path))

    def add(self, record: Mapping[str, Any]) -> None:
        for name, value in metrics_of(record).items():
            self._writer.add_scalar(name, value, int(record["step"]))

    def flush(self) -> None:
        self._writer.flush()
        if not self._target.is_local:
            for path in self._path.iterdir():
                self._target.write_bytes(path.name, path.read_bytes())

    def close(self) -> None:
        self.flush()
        self._writer.close()
        if not self._target.is_local:
            shutil.rmtree(self._path)


class Wandb(Tracker):
    """A run of Weights & Biases whose id follows from the run folder, so that a run that goes on is the same run there.

    It sends by itself, and keeps the first value of a step; steps that are done again give the same.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._run = import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=config.name,
            id=self._identity,
            resume="allow",
            config=config.model_dump(mode="json"),
            dir=self._folder.uri if self._folder.is_local else tempfile.mkdtemp(prefix="arc_ray-"),
        )

    def add(self, record: Mapping[str, Any]) -> None:
        self._run.log(metrics_of(record), step=int(record["step"]))

    def close(self) -> None:
        self._run.finish()


class MLflow(Tracker):
    """A run of MLflow, found again by the tag `arc_ray.run`; MLFLOW_TRACKING_URI says where, else the run folder."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self._folder.local_path()}/mlflow.db"
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._client = import_module("mlflow.tracking").MlflowClient(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.`arc_ray.run` = '{self._identity}'", max_results=1)
        tags = {"arc_ray.run": self._identity}
        made = found or [self._client.create_run(experiment, tags=tags, run_name=config.name)]
        self._id = made[0].info.run_id
        self._waiting: list[tuple[int, Mapping[str, Any]]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a record, and when it came, until the next flush: MLflow takes many at once for the price of one."""
        self._waiting.append((int(1000 * time.time()), record))

    def flush(self) -> None:
        make = import_module("mlflow.entities").Metric
        waiting, self._waiting = self._waiting, []  # a record may come meanwhile, from another thread
        metrics = [
            make(name, value, milliseconds, int(record["step"]))
            for milliseconds, record in waiting
            for name, value in metrics_of(record).items()
        ]
        for begin in range(0, len(metrics), 1000):  # the most that its server takes at once
            self._client.log_batch(self._id, metrics=metrics[begin : begin + 1000])

    def close(self) -> None:
        self.flush()
        self._client.set_terminated(self._id)
