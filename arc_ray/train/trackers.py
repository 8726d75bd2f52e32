"""Trackers: the records of metrics.jsonl, shown in TensorBoard, Weights & Biases or MLflow.

A tracker is given each record just as it goes into metrics.jsonl, by the one worker that writes that file, so what it shows
cannot differ from it. What a tracker keeps of steps that are going to be done again, it drops or overwrites.
"""

import importlib.util
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from arc_ray.config import Config
from arc_ray.errors import UserError
from arc_ray.runs.folder import run_folder
from arc_ray.seeding import digest64
from arc_ray.storage import Folder

PROJECT = "arc_ray"
"""Project (Weights & Biases) or experiment (MLflow) that all runs go to; WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME change it."""

TENSORBOARD_FOLDER = "tensorboard"

Record = Mapping[str, Any]
"""A line of metrics.jsonl: `step`, `seconds`, and slashed names of metrics."""


class Tracker(Protocol):
    """Something that shows metrics; records may be added while another thread flushes."""

    def add(self, record: Record) -> None:
        """Show a record."""

    def flush(self) -> None:
        """Make what was added visible."""

    def close(self) -> None:
        """End; the run may go on later in another process."""


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


def make_tracker(config: Config, records: Iterable[Record]) -> Tracker:
    """Make the tracker of a run; `records` are those of a run that goes on, up to its checkpoint."""
    match config.train.tracker:
        case "tensorboard":
            return TensorBoard(run_folder(config), records)
        case "wandb":
            return Wandb(config)
        case "mlflow":
            return MLflow(config)
        case "none":
            return NoTracker()


def metrics_of(record: Record) -> dict[str, float]:
    """Return a record's metrics without its step."""
    return {name: float(value) for name, value in record.items() if name != "step"}


class NoTracker:
    """Shows nothing."""

    def add(self, record: Record) -> None:
        """Show a record: nowhere."""

    def flush(self) -> None:
        """There is nothing to make visible."""

    def close(self) -> None:
        """There is nothing to end."""


class TensorBoard:
    """Event files in <run>/tensorboard, written anew from the run's records whenever a run goes on.

    TensorBoard cannot take back a step, so a run that was cut off would show some steps twice. For a bucket, the file is
    written locally and put there whole at each flush.
    """

    def __init__(self, folder: Folder, records: Iterable[Record]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.delete(TENSORBOARD_FOLDER)
        self._target = folder / TENSORBOARD_FOLDER
        self._path = self._target.local_path() if folder.is_local else Path(tempfile.mkdtemp(prefix="arc_ray-"))
        self._writer = SummaryWriter(str(self._path))
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Add each metric as a scalar at the record's step."""
        for name, value in metrics_of(record).items():
            self._writer.add_scalar(name, value, int(record["step"]))

    def flush(self) -> None:
        """Write the event file, and for a bucket put it there."""
        self._writer.flush()
        if not self._target.is_local:
            for path in self._path.iterdir():
                self._target.write_bytes(path.name, path.read_bytes())

    def close(self) -> None:
        """Write and end."""
        self.flush()
        self._writer.close()
        if not self._target.is_local:
            shutil.rmtree(self._path)


class Wandb:
    """A run of Weights & Biases whose id follows from the run folder, so that a run that goes on is the same run there.

    Its server keeps the first value it was given for a step; steps that are done again give the same value.
    """

    def __init__(self, config: Config) -> None:
        self._run = import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=config.name,
            id=_identity(config),
            resume="allow",
            config=config.model_dump(mode="json"),
            dir=tempfile.mkdtemp(prefix="arc_ray-") if not run_folder(config).is_local else run_folder(config).uri,
        )

    def add(self, record: Record) -> None:
        """Log a record at its step."""
        self._run.log(metrics_of(record), step=int(record["step"]))

    def flush(self) -> None:
        """Weights & Biases sends by itself."""

    def close(self) -> None:
        """End the run there."""
        self._run.finish()


class MLflow:
    """A run of MLflow, found again by the tag `arc_ray.run`; MLFLOW_TRACKING_URI says where, else the run folder."""

    def __init__(self, config: Config) -> None:
        folder = run_folder(config)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._client = import_module("mlflow.tracking").MlflowClient(
            uri or f"sqlite:///{folder.local_path()}/mlflow.db"
        )
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        tag = _identity(config)
        found = self._client.search_runs([experiment], f"tags.`arc_ray.run` = '{tag}'", max_results=1)
        made = found or [self._client.create_run(experiment, tags={"arc_ray.run": tag}, run_name=config.name)]
        self._id = made[0].info.run_id
        self._waiting: list[tuple[int, Record]] = []

    def add(self, record: Record) -> None:
        """Keep a record, and when it came, until the next flush: MLflow takes many at once for the price of one."""
        self._waiting.append((int(1000 * time.time()), record))

    def flush(self) -> None:
        """Send the metrics of the records kept so far."""
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
        """Send and end the run there."""
        self.flush()
        self._client.set_terminated(self._id)


def _identity(config: Config) -> str:
    """A name for a run folder that services accept: sixteen hexadecimal digits."""
    return f"{digest64(run_folder(config).uri) % 2**64:016x}"
